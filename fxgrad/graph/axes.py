"""How ops move elements, and which axes their results have.

An axis is a tuple of atoms, outermost first. An atom is all or part of an axis of an earlier tensor (its origin), with
a size, and a stride along the origin's axis. So (tokens x batch) is known while it is one axis, and when it is split
again. The row of an op says with one word how the op moves elements; nothing here knows an op by its name.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import sympy
from torch import Tensor, fx

from fxgrad.graph.nodes import arguments_of, op_name, tensors_of
from fxgrad.graph.sizes import Size, quotient, same, size_of, sizes_of, without_floors

MOVES = ("permute", "reshape", "cut", "join", "expand", "same")
"""The words for ops that move elements without changing them, as in rows."""
PICK = "pick"
"""The word for ops that take elements here and there, or replace some: no axis can be followed through them."""


class Atom(NamedTuple):
    """All or part of an axis of an earlier tensor, its origin.

    Attributes:
        origin: a node's name, or a label such as "batch".
        axis: index of the origin's axis.
        size: number of indices.
        stride: distance of neighbours along the origin's axis.
    """

    origin: str
    axis: int
    size: Size
    stride: Size = 1


Axis = tuple[Atom, ...]
"""The atoms that are merged into one axis, outermost first; empty for an axis of size 1."""
Axes = tuple[Axis, ...]


@dataclass(frozen=True)
class Move:
    """What an op does to the elements of one tensor.

    Attributes:
        word: one of `MOVES`.
        order: for a permutation: the operand's axis that each axis of the result is.
        dim: the axis along which it cuts or joins.
        start, size, step: for a cut; start is None where it is not a known number.
        drops: whether the result lacks axis `dim` (`select`), or has it in addition (`stack`).
    """

    word: str
    order: tuple[int, ...] = ()
    dim: int = 0
    start: Size | None = 0
    size: Size = 1
    step: int = 1
    drops: bool = False


def fresh(name: str, axis: int, size: Size) -> Axis:
    """A new axis: one atom, whose origin is this axis of `name` itself.

    Example:
        >>> fresh("linear", 2, 8), fresh("linear", 1, 1)
        ((Atom(origin='linear', axis=2, size=8, stride=1),), ())
    """
    return () if same(size, 1) else (Atom(name, axis, size),)


def length(axis: Axis) -> Size:
    """The size of an axis.

    Example:
        >>> length((Atom("tokens", 0, 5), Atom("batch", 0, 2)))
        10
    """
    return math.prod(atom.size for atom in axis)


def source_of(node: fx.Node) -> Any:
    """The operand that a move moves: the first one; for an item of a tuple, that of the op that made the tuple.

    Example:
        >>> import torch
        >>> class Halves(torch.nn.Module):
        ...     def forward(self, x):
        ...         return x.chunk(2)[1]
        >>> graph = torch.export.export(Halves(), (torch.ones(4),)).run_decompositions({}).graph
        >>> source_of(graph.output_node().args[0][0])
        x
    """
    op: Any = node.args[0] if node.target is operator.getitem else node
    return next(iter(arguments_of(op).values()), None)


def move_of(node: fx.Node, word: str | None) -> Move | None:
    """The move of a node, its arguments read by their names in the op's schema.

    Args:
        node: a call of an op, or an item of the tuple that a cut makes.
        word: how the op moves elements, one of `MOVES`.

    Returns:
        The move; None where the arguments do not determine it.

    Example:
        >>> import torch
        >>> class Turn(torch.nn.Module):
        ...     def forward(self, x):
        ...         return x.transpose(0, -1)
        >>> graph = torch.export.export(Turn(), (torch.ones(2, 3, 4),)).graph
        >>> move_of(list(graph.nodes)[1], "permute").order
        (2, 1, 0)
    """
    op: Any = node.args[0] if node.target is operator.getitem else node
    arguments = arguments_of(op)
    if word == "join":
        return _join(node, arguments)
    source = source_of(node)
    if word is None or not isinstance(source, fx.Node):
        return None
    rank = len(sizes_of(source))
    if word == "permute":
        order = tuple(reversed(range(rank))) if op_name(op) == "numpy_T" else _order(arguments, rank)
        return None if order is None else Move(word, order)
    if word == "cut":
        return _cut(node, op, arguments, sizes_of(source))
    return Move(word) if op is node else None


def _order(arguments: Mapping[str, Any], rank: int) -> tuple[int, ...] | None:
    if "dims" in arguments:
        return tuple(int(d) % rank for d in arguments["dims"])
    if "source" in arguments and "destination" in arguments:
        ends = [v if isinstance(v, (list, tuple)) else [v] for v in (arguments["source"], arguments["destination"])]
        moved = {d % rank: s % rank for s, d in zip(*ends)}
        rest = iter(axis for axis in range(rank) if axis not in moved.values())
        return tuple(moved[d] if d in moved else next(rest) for d in range(rank))
    if rank < 2:
        return tuple(range(rank)) if "dim0" not in arguments else None
    axes = list(range(rank))
    a, b = (int(arguments.get(key, d)) % rank for key, d in (("dim0", -2), ("dim1", -1)))
    axes[a], axes[b] = axes[b], axes[a]
    return tuple(axes)


def _join(node: fx.Node, arguments: Mapping[str, Any]) -> Move | None:
    parts = next((v for v in arguments.values() if isinstance(v, (list, tuple))), ())
    rank, tensors = len(sizes_of(node)), [n for n in parts if isinstance(n, fx.Node)]
    dim = arguments.get("dim", 0)
    if not tensors or not isinstance(dim, int):
        return None
    return Move("join", dim=dim % rank, drops=len(sizes_of(tensors[0])) < rank)


def _cut(node: fx.Node, op: fx.Node, arguments: Mapping[str, Any], shape: tuple[Size, ...]) -> Move | None:
    dim = arguments.get("dim", 0)
    if not isinstance(dim, int) or not shape:
        return None
    dim %= len(shape)
    if op is not node:
        item: Any = node.args[1]
        parts = [tuple(part.shape) for part in tensors_of(op)]
        if len(parts[item]) < len(shape):
            return Move("cut", dim=dim, start=item, drops=True)
        along = [size_of(part[dim]) for part in parts]
        return Move("cut", dim=dim, start=sum(along[:item]), size=along[item])
    if "index" in arguments:
        index, whole = arguments["index"], shape[dim]
        found = isinstance(index, int) and (index >= 0 or isinstance(whole, int))
        return Move(
            "cut", dim=dim, start=index % whole if found and index < 0 else index if found else None, drops=True
        )
    if isinstance(op.meta["val"], (list, tuple)):
        return None  # its items are the cuts
    size, step = sizes_of(node)[dim], arguments.get("step", 1)
    start = arguments.get("start") or 0
    if not isinstance(start, int) or (start < 0 and not isinstance(shape[dim], int)):
        return Move("cut", dim=dim, start=None, size=size, step=step)
    if isinstance(shape[dim], int):
        start = range(shape[dim])[slice(start, None)].start
    return Move("cut", dim=dim, start=start, size=size, step=step)


def moved(axes: Axes, move: Move, node: fx.Node) -> Axes:
    """The result's axes after a move other than a join.

    Args:
        axes: the operand's axes.
        move: the move.
        node: the node that makes the result.

    Example:
        >>> import torch
        >>> class Merge(torch.nn.Module):
        ...     def forward(self, x):
        ...         return x.reshape(6, 4)
        >>> graph = torch.export.export(Merge(), (torch.ones(2, 3, 4),)).graph
        >>> axes = tuple((Atom("x", i, size),) for i, size in enumerate((2, 3, 4)))
        >>> [[(atom.axis, atom.size) for atom in axis] for axis in moved(axes, Move("reshape"), list(graph.nodes)[1])]
        [[(0, 2), (1, 3)], [(2, 4)]]
    """
    shape = sizes_of(node)
    if move.word == "permute":
        return tuple(axes[i] for i in move.order)
    if move.word == "reshape":
        return _reshaped(axes, shape, node.name)
    if move.word == "cut":
        before, axis, behind = axes[: move.dim], axes[move.dim], axes[move.dim + 1 :]
        if move.drops:
            return (*before, *behind)
        if same(move.size, length(axis)):
            return axes
        if len(axis) == 1 and not same(move.size, 1):
            (atom,) = axis
            return (*before, (atom._replace(size=move.size, stride=atom.stride * move.step),), *behind)
        return (*before, fresh(node.name, move.dim, move.size), *behind)
    if move.word == "expand":
        ahead = len(shape) - len(axes)
        return tuple(
            axes[i - ahead] if i >= ahead and same(length(axes[i - ahead]), size) else fresh(node.name, i, size)
            for i, size in enumerate(shape)
        )
    return axes


def _reshaped(axes: Axes, shape: Sequence[Size], name: str) -> Axes:
    """The axes after a reshape: merged and split, group by group of axes with the same elements."""
    found: list[Axis] = []
    old, new = list(axes), [without_floors(size) for size in shape]
    while old or new:
        taken, made = _group([without_floors(length(axis)) for axis in old], new)
        atoms = [atom for axis in old[:taken] for atom in axis]
        parts = _dealt(atoms, new[:made])
        own = enumerate(shape[len(found) : len(found) + made], len(found))
        found += [fresh(name, i, size) if parts is None else _sized(parts[i - len(found)], size) for i, size in own]
        old, new = old[taken:], new[made:]
    return tuple(found)


def _sized(axis: Axis, size: Size) -> Axis:
    """An axis of one atom with its size as the shape has it."""
    return (axis[0]._replace(size=size),) if len(axis) == 1 else axis


def _group(old: list[Size], new: list[Size]) -> tuple[int, int]:
    """The smallest numbers of leading axes of both shapes with equal products of sizes; all axes, if unknown."""
    if old and new and same(old[0], new[0]):
        return 1, 1
    if new and same(new[0], 1):
        return 0, 1
    if old and same(old[0], 1):
        return 1, 0
    pairs = sorted(((i, j) for i in range(1, len(old) + 1) for j in range(1, len(new) + 1)), key=sum)
    fitting = (p for p in pairs if same(math.prod(old[: p[0]]), math.prod(new[: p[1]])))
    return next(fitting, (len(old), len(new)))


def _dealt(atoms: list[Atom], sizes: Sequence[Size]) -> list[Axis] | None:
    """Split a sequence of atoms into axes of these sizes; None where an axis would end inside an indivisible atom."""
    queue, found = list(atoms), []
    for size in sizes:
        taken, left = [], size
        while not same(left, 1):
            if not queue:
                return None
            atom = queue.pop(0)
            whole = without_floors(atom.size)
            if (rest := _ratio(left, whole)) is not None:
                taken.append(atom)
                left = rest
            elif (inner := _ratio(whole, left)) is not None:
                taken.append(atom._replace(size=left, stride=atom.stride * inner))
                queue.insert(0, atom._replace(size=inner))
                left = 1
            else:
                return None
        found.append(_fused(taken))
    return None if queue else found


def _ratio(a: Size, b: Size) -> Size | None:
    """How many times a size without floors holds another one; None where that depends on free sizes."""
    if isinstance(a, int) and isinstance(b, int):
        return quotient(a, b)
    found = sympy.sympify(a) / b
    if found.is_number:
        return int(found) if found.is_Integer else None
    return None if sympy.fraction(found)[1].free_symbols else found


def _fused(atoms: list[Atom]) -> Axis:
    """Join neighbouring atoms that are contiguous in their origin."""
    found: list[Atom] = []
    for atom in atoms:
        last = found[-1] if found else None
        step = without_floors(atom.size * atom.stride)
        if last is not None and last[:2] == atom[:2] and same(without_floors(last.stride), step):
            found[-1] = atom._replace(size=last.size * atom.size)
        else:
            found.append(atom)
    return tuple(found)


class Within(NamedTuple):
    """Where an atom lies in a value.

    Attributes:
        axis: index of the value's axis that contains it.
        ahead, behind: the products of the sizes of that axis's outer atoms and of its inner atoms.
    """

    axis: int
    ahead: Size
    behind: Size

    def sums(self, value: Tensor, size: Any) -> Tensor:
        """Sum all elements at each index of the atom: a tensor (size,). `ahead` or `behind` may be -1.

        Example:
            >>> import torch
            >>> Within(0, 1, 3).sums(torch.arange(6.0), 2)
            tensor([ 3., 12.])
        """
        rest = [axis for axis in range(value.dim()) if axis != self.axis]
        return (value.sum(rest) if rest else value).reshape(self.ahead, size, self.behind).sum((0, 2))


def where(axes: Axes, origin: str, size: Size) -> Within | None:
    """Where the atom with this label lies in a value; None where it is in no axis, or split.

    Args:
        axes: the value's axes.
        origin: the label.
        size: the size of the whole atom.

    Example:
        >>> where(((Atom("tokens", 0, 5), Atom("batch", 0, 2)), (Atom("linear", 2, 8),)), "batch", 2)
        Within(axis=0, ahead=5, behind=1)
    """
    for i, axis in enumerate(axes):
        for j, atom in enumerate(axis):
            if atom.origin == origin and same(atom.size, size) and same(atom.stride, 1):
                return Within(i, length(axis[:j]), length(axis[j + 1 :]))
    return None
