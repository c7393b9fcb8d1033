"""Sizes of a captured graph: ints, or sympy expressions of the free (symbolic) sizes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import sympy
from torch import fx
from torch.fx.experimental.symbolic_shapes import is_concrete_int

from fxgrad.graph.nodes import tensors_of

Size = Any
"""An int, or a sympy expression of free sizes."""


def sizes_of(node: fx.Node) -> tuple[Size, ...]:
    """The shape of a node's value; for a tuple, that of its first tensor; () if there is no tensor.

    Example:
        >>> import torch
        >>> graph = torch.export.export(torch.nn.ReLU(), (torch.ones(2, 3),)).graph
        >>> [sizes_of(node) for node in graph.nodes]
        [(2, 3), (2, 3), ()]
    """
    tensors = tensors_of(node)
    return tuple(size_of(size) for size in tensors[0].shape) if tensors else ()


def size_of(size: Any) -> Size:
    """A size as an int, or as an expression of the free sizes.

    Example:
        >>> size_of(3)
        3
    """
    return int(size) if is_concrete_int(size) else size.node.expr


def known(size: Size, free: Mapping[Any, int]) -> int:
    """A size as an int, given values of free sizes; -1 where these do not determine it.

    Example:
        >>> s = sympy.Symbol("s")
        >>> known(2 * s, {s: 3}), known(2 * s, {})
        (6, -1)
    """
    if isinstance(size, int):
        return size
    value = size.xreplace({symbol: sympy.Integer(number) for symbol, number in free.items()})
    return int(value) if value.is_Integer else -1


def free_sizes(nodes: Iterable[fx.Node], values: Iterable[Any]) -> dict[Any, int]:
    """The values of a graph's free sizes, for these values of its placeholders.

    Example:
        >>> import torch
        >>> batch = {0: torch.export.Dim.DYNAMIC}
        >>> program = torch.export.export(torch.nn.ReLU(), (torch.ones(2, 3),), dynamic_shapes=(batch,))
        >>> list(free_sizes(list(program.graph.nodes)[:1], [torch.ones(7, 3)]).values())
        [7]
    """
    found: dict[Any, int] = {}
    for node, value in zip(nodes, values):
        for size, number in zip(sizes_of(node), getattr(value, "shape", ())):
            if isinstance(size, int) or len(size.free_symbols) != 1:
                continue
            (symbol,) = size.free_symbols
            factor = size.coeff(symbol)
            if symbol not in found and size == factor * symbol and factor:
                found[symbol] = int(number) // int(factor)
    return found


def same(a: Size, b: Size) -> bool:
    """Whether two sizes are equal, whatever the free ones are.

    Example:
        >>> s = sympy.Symbol("s")
        >>> same(2 * s, s + s), same(s, 2)
        (True, False)
    """
    if a == b:
        return True
    both_numbers = isinstance(a, int) and isinstance(b, int)
    return not both_numbers and sympy.expand(a - b) == 0


def without_floors(size: Size) -> Size:
    """A size with every whole-number division as if it left no rest.

    Shapes between which a tensor can be reshaped are equal like this: a floor is at most the quotient, so that a
    product of floors equals the product that it is cut out of only where each division leaves no rest.

    Example:
        >>> from torch.utils._sympy.functions import FloorDiv
        >>> s = sympy.Symbol("s", integer=True, positive=True)
        >>> without_floors(2 * FloorDiv(s, 8)), without_floors(FloorDiv(FloorDiv(s, 2), 2))
        (s/4, s/4)
    """
    if isinstance(size, int):
        return size
    if type(size).__name__ == "FloorDiv":
        return without_floors(size.args[0]) / without_floors(size.args[1])
    return size.func(*map(without_floors, size.args)) if size.args else size


def number(size: Size) -> int | None:
    """A size as an int; None where it is free.

    Example:
        >>> s = sympy.Symbol("s")
        >>> number(s + 2 - s), number(s)
        (2, None)
    """
    if isinstance(size, int):
        return size
    expanded = sympy.expand(size)
    return int(expanded) if expanded.is_Integer else None


def at_most(a: Size, b: Size) -> bool | None:
    """Whether a <= b, whatever the free sizes are; None where that depends on them.

    Example:
        >>> s = sympy.Symbol("s", integer=True, positive=True)
        >>> at_most(s, 2 * s), at_most(s + 1, s), at_most(s, 2)
        (True, False, None)
    """
    difference = sympy.expand(b - a)
    found: bool | None = difference.is_nonnegative
    return found


def quotient(a: Size, b: Size) -> Size | None:
    """a / b if that is a size, else None.

    Example:
        >>> quotient(6, 2), quotient(6, 4)
        (3, None)
    """
    if isinstance(a, int) and isinstance(b, int):
        return a // b if a % b == 0 else None
    found = sympy.sympify(a) / b
    if found.is_Integer:
        return int(found)
    return found if sympy.fraction(found)[1] == 1 else None
