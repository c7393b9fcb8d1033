"""Whether each example of a batch has a row of its own, where axes alone do not tell: element by element.

A packed batch joins the sequences of each time step, so that no axis has the examples. But the program says of each
element which example it comes from, and a row of the output may come from its own example only. Each value is replaced
by such numbers: 0 for what comes from no example, 1 for the first example, and so on.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxgrad.classify.decision import Classified
from fxgrad.classify.moves import word_of
from fxgrad.graph.axes import MOVES, PICK
from fxgrad.graph.einsum import letters_of
from fxgrad.graph.mixing import mixes
from fxgrad.graph.nodes import arguments_of, descendants, tensors_of
from fxgrad.graph.sizes import Size, known, size_of, sizes_of
from fxgrad.ops.pieces import piece
from fxgrad.run.examples import tensors_among


class _MixedError(Exception):
    """Examples meet in an element."""


class _UnknownError(Exception):
    """It cannot be told whether examples meet."""


def rows_apart(classified: Classified, values: Sequence[Any], free: Mapping[Any, int]) -> tuple[int, list[str]] | None:
    """(the number of examples, the placeholders that have a row for each); (1, []) where they meet; None if unknown.

    Args:
        classified: what `fxgrad.classify.classify` returned.
        values: of the inputs and the embedded tokens.
        free: free size -> its value.

    Example:
        >>> import fxgrad
        >>> class Joined(torch.nn.Module):
        ...     def forward(self, x):
        ...         steps = torch.cat([x[:, 0], x[:2, 1]]).exp()
        ...         return torch.stack([steps[0] + steps[3], steps[1] + steps[4], steps[2]])
        >>> x = torch.ones(3, 2, 4)
        >>> fixed = fxgrad.convert(Joined().eval(), (x,), dynamic_shapes={"x": None})
        >>> rows_apart(fixed.classified, [x], {})
        (3, ['x'])
    """
    captured = classified.captured
    given = dict(zip(captured.entry_nodes, values))
    attributed = [n for n, d in zip(captured.entry_nodes, captured.entries) if d.attributed]
    outputs = tensors_among(captured.graph.output_node().all_input_nodes)
    rows = {known(sizes_of(n)[0], free) if sizes_of(n) else 0 for n in outputs}
    count = min(rows, default=0)
    seeds = [n for n in attributed if given[n].dim() and len(given[n]) == count]
    if len(rows) != 1 or not seeds:
        return 1, []
    alone = next((sizes_of(n)[0] for n in seeds if not isinstance(sizes_of(n)[0], int)), None)
    if count == 1 and alone is not None:  # one example meets no other in any model: two may
        (symbol,) = alone.free_symbols
        twice = [_twice(value, sizes_of(node), symbol) for node, value in given.items()]
        found = rows_apart(classified, twice, {**free, symbol: 2 * free[symbol]})
        return None if found is None else (1, found[1])
    try:
        ids = _Rows(classified, given, seeds, free).run()
    except _MixedError:
        return 1, []
    except _UnknownError:
        return None
    wanted = torch.arange(1, count + 1)
    reached = [ids[n] for n in outputs if n in ids]
    if any(own.shape[:1] != (count,) for own in reached):
        return None
    apart = all(bool(((own == 0) | (own == wanted.reshape(-1, *[1] * (own.dim() - 1)))).all()) for own in reached)
    return (count, [n.name for n in seeds]) if apart else (1, [])


def _twice(value: Any, sizes: Sequence[Size], symbol: Any) -> Any:
    """An input with two examples for each: repeated along the axes whose sizes follow the number of examples."""
    for axis, size in enumerate(sizes):
        if not isinstance(size, int) and symbol in size.free_symbols:
            value = torch.cat([value, value], axis)
    return value


class _Rows:
    """One walk along the graph.

    Attributes:
        ids: node -> the numbers of the examples, shaped as its value; nodes that depend on none have no entry.
    """

    def __init__(
        self, classified: Classified, given: Mapping[fx.Node, Any], seeds: list[fx.Node], free: Mapping[Any, int]
    ) -> None:
        self.decisions, self.graph = classified.decisions, classified.captured.graph
        self.given, self.free = given, free
        self.ids: dict[fx.Node, Any] = {}
        for seed in seeds:
            rows = torch.arange(1, len(given[seed]) + 1).reshape(-1, *[1] * (given[seed].dim() - 1))
            self.ids[seed] = rows.expand(given[seed].shape)
        self.reached: set[fx.Node] = set().union(*(descendants(seed) for seed in seeds))

    def run(self) -> dict[fx.Node, Any]:
        for node in self.graph.nodes:
            if node in self.reached and node.op == "call_function" and tensors_of(node):
                try:
                    self.ids[node] = self.after(node)
                except (RuntimeError, TypeError, LookupError, AttributeError) as error:  # an op that takes no numbers
                    raise _UnknownError from error
        return self.ids

    def after(self, node: fx.Node) -> Any:
        """The numbers of a node's value, from its operands'."""
        if node.target is piece:
            return self.ids.get(node.args[1], self.ids.get(node.args[0]))  # type: ignore[arg-type]
        made: Any = node.args[0] if node.target is operator.getitem else node
        word = word_of(node, self.decisions)
        row = getattr(self.decisions.get(made.name), "row", None)
        pick = row is not None and row.options.get("moves") == PICK
        pointwise = torch.Tag.pointwise in getattr(node.target, "tags", ())
        if node.target is operator.getitem or (word in MOVES and word != "same") or (pick and not pointwise):
            return self.moved(node)
        if "offsets" in arguments_of(node):
            return self.bagged(node)
        shape = tuple(known(size, self.free) for size in sizes_of(node))
        parts = [self.ids[n] for n in node.all_input_nodes if n in self.ids]
        if not (pointwise or word == "same"):
            parts = [self.summed(node, n, word, len(shape)) for n in node.all_input_nodes if n in self.ids]
        met = _met(parts, shape)
        items = node.meta["val"]
        if not isinstance(items, (list, tuple)):
            return met
        sizes = [tuple(map(size_of, t.shape)) if isinstance(t, Tensor) else None for t in items]
        return [met if own == sizes_of(node) else None for own in sizes]

    def moved(self, node: fx.Node) -> Any:
        """The numbers after an op that only moves elements: the op itself moves them."""
        arguments = [*node.args, dict(node.kwargs)]
        leaves, spec = pytree.tree_flatten(arguments)
        *args, kwargs = pytree.tree_unflatten([self.argument(leaf) for leaf in leaves], spec)
        if "value" in kwargs:
            kwargs["value"] = 0
        if getattr(node.target, "__name__", "").startswith(("pad.", "constant_pad_nd.")):
            args = [a if not isinstance(a, float) else 0 for a in args]
        return node.target(*args, **kwargs)  # type: ignore[operator]

    def bagged(self, node: fx.Node) -> list[Any]:
        """The numbers of bags of rows: those of each bag's rows must be of one example."""
        table, index, offsets, *rest = node.args
        rows = self.ids[table].amax(1, keepdim=True)  # type: ignore[index]
        if rest[3] in self.ids:
            rows = _met([rows, self.ids[rest[3]][:, None]], rows.shape)  # type: ignore[index]
        index, offsets = self.plain(index).cpu(), self.plain(offsets).cpu()  # type: ignore[arg-type]
        rest[3] = None
        rest[1] = 2  # the maximum of a bag
        last = len(rows) + 1
        most, least = (
            node.target(ids.double(), index, offsets, *rest)[0]  # type: ignore[operator]
            for ids in (rows, torch.where(rows > 0, last - rows, 0))
        )
        if bool(((most > 0) & (most != last - least)).any()):
            raise _MixedError
        shape = tuple(known(size, self.free) for size in sizes_of(node))
        return [most.long().expand(shape)]

    def argument(self, leaf: Any) -> Any:
        """An argument of an op that moves numbers in the place of elements."""
        if not isinstance(leaf, fx.Node):
            return leaf
        if leaf in self.ids:
            return self.ids[leaf]
        value = leaf.meta.get("val")
        if not isinstance(value, Tensor):
            return known(size_of(value), self.free)
        if value.is_floating_point():
            return torch.zeros([known(size, self.free) for size in sizes_of(leaf)], dtype=torch.int64)
        index = self.plain(leaf).cpu()
        if index.dim() != 1 or not torch.equal(index.sort().values, torch.arange(len(index))):
            raise _UnknownError  # an index that gathers, such as a graph's edges
        return index

    def plain(self, node: fx.Node) -> Any:
        """The value of a node that is computed from the other inputs, such as an order by length."""
        if node in self.given:
            return self.given[node]
        if not isinstance(node.meta.get("val"), (Tensor, list, tuple)):
            return known(size_of(node.meta["val"]), self.free)
        if node.op != "call_function" or node in self.reached:
            raise _UnknownError
        leaves, spec = pytree.tree_flatten([*node.args, dict(node.kwargs)])
        *args, kwargs = pytree.tree_unflatten([self.plain(n) if isinstance(n, fx.Node) else n for n in leaves], spec)
        return node.target(*args, **kwargs)  # type: ignore[operator]

    def summed(self, node: fx.Node, operand: fx.Node, word: str | None, rank: int) -> Tensor:
        """The numbers of an operand where an op may mix the elements along some axes: these must be of one example."""
        ids = self.ids[operand]
        if not isinstance(ids, Tensor) or letters_of(node) is not None:
            raise _UnknownError
        mixed = [axis for axis in range(ids.dim()) if mixes(node, operand, axis, word, self.reached)]
        for axis in range(ids.dim()):
            most = ids.amax(axis, keepdim=True)
            if axis not in mixed and not bool((ids == most).all()):
                continue
            if not bool(((ids == 0) | (ids == most)).all()):
                raise _UnknownError
            ids = most
        fewer = ids.dim() - rank  # axes that it sums over
        if fewer > 0 and len(mixed) != fewer:
            raise _UnknownError
        return ids.squeeze(mixed) if fewer > 0 else ids


def _met(parts: Sequence[Any], shape: Sequence[int]) -> Tensor:
    """The numbers of a value each of whose elements is computed from the elements at its place."""
    found = torch.zeros(tuple(shape), dtype=torch.int64)
    for ids in parts:
        own = ids.expand(found.shape)
        if bool(((found != 0) & (own != 0) & (found != own)).any()):
            raise _MixedError
        found = torch.maximum(found, own)
    return found
