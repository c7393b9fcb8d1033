"""How ops move elements, and what becomes of a tensor's axes.

An axis is a tuple of atoms, outermost first. An atom is all or part of an axis that a tensor once had: of which, how
many entries, and how far apart these lie there. So (tokens x batch) is known while it is one axis, and when it is
parted again. What an op does is told by a word, which its row in the rule table has; nothing here knows an op by its
name.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, fx

from fxgrad.graph.nodes import arguments_of, tensors_of
from fxgrad.graph.sizes import Size, quotient, same, size_of, sizes_of

MOVES = ("permute", "reshape", "cut", "join", "expand", "same")
"""What a row may say of an op that moves elements and changes none."""
PICK = "pick"
"""What it says of one that picks elements here and there, or puts others in the place of some: no axis survives it."""


class Atom(NamedTuple):
    """All or part of an axis that a tensor once had.

    Attributes:
        origin: a node's name, or a label such as "batch".
        axis: which axis of it.
        size: how many entries.
        stride: how far apart neighbours lie along the origin's axis.
    """

    origin: str
    axis: int
    size: Size
    stride: Size = 1


Axis = tuple[Atom, ...]
"""Atoms that are merged into one axis, outermost first; none where the axis has one entry."""
Axes = tuple[Axis, ...]


@dataclass(frozen=True)
class Move:
    """What an op does to the elements of one tensor.

    Attributes:
        word: one of `MOVES`.
        order: of a permutation: which axis of the operand each axis of the result is.
        dim: the axis along which it cuts or joins.
        start, size, step: of a cut; start is None where it is not a known number.
        drops: whether that axis is gone from the result, as behind `select`; or is new in it, as behind `stack`.
    """

    word: str
    order: tuple[int, ...] = ()
    dim: int = 0
    start: Size | None = 0
    size: Size = 1
    step: int = 1
    drops: bool = False


def fresh(name: str, axis: int, size: Size) -> Axis:
    """An axis of which nothing is known but whose it is.

    Example:
        >>> fresh("linear", 2, 8), fresh("linear", 1, 1)
        ((Atom(origin='linear', axis=2, size=8, stride=1),), ())
    """
    return () if same(size, 1) else (Atom(name, axis, size),)


def length(axis: Axis) -> Size:
    """How many entries an axis has.

    Example:
        >>> length((Atom("tokens", 0, 5), Atom("batch", 0, 2)))
        10
    """
    return math.prod(atom.size for atom in axis)


def source_of(node: fx.Node) -> Any:
    """What a move moves: its first operand; for an item of a tuple, that of the op which made the tuple.

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
        word: the op's, one of `MOVES`.

    Returns:
        The move; None where its arguments do not tell it.

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
        order = _order(arguments, rank)
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
    """What becomes of a tensor's axes by a move other than a join.

    Args:
        axes: the operand's.
        move: what is done.
        node: the result.

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
    """Axes merged and parted, group by group of those that hold the same elements."""
    found: list[Axis] = []
    old, new = list(axes), list(shape)
    while old or new:
        taken, made = _group([length(axis) for axis in old], new)
        atoms = [atom for axis in old[:taken] for atom in axis]
        parts = _dealt(atoms, new[:made])
        found += [fresh(name, len(found) + i, size) for i, size in enumerate(new[:made])] if parts is None else parts
        old, new = old[taken:], new[made:]
    return tuple(found)


def _group(old: list[Size], new: list[Size]) -> tuple[int, int]:
    """How many leading axes of either shape hold the same elements, as few as can be; all, if that is not known."""
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
    """Atoms in a row, dealt to axes of these sizes; None where an axis would end inside of what cannot be parted."""
    queue, found = list(atoms), []
    for size in sizes:
        taken, left = [], size
        while not same(left, 1):
            if not queue:
                return None
            atom = queue.pop(0)
            if (rest := quotient(left, atom.size)) is not None:
                taken.append(atom)
                left = rest
            elif (inner := quotient(atom.size, left)) is not None:
                taken.append(atom._replace(size=left, stride=atom.stride * inner))
                queue.insert(0, atom._replace(size=inner))
                left = 1
            else:
                return None
        found.append(_fused(taken))
    return None if queue else found


def _fused(atoms: list[Atom]) -> Axis:
    """Neighbours that follow one another as they did in their origin are one again."""
    found: list[Atom] = []
    for atom in atoms:
        last = found[-1] if found else None
        if last is not None and last[:2] == atom[:2] and same(last.stride, atom.size * atom.stride):
            found[-1] = atom._replace(size=last.size * atom.size)
        else:
            found.append(atom)
    return tuple(found)


class Within(NamedTuple):
    """Where an atom lies in a value.

    Attributes:
        axis: which of the value's axes it is in.
        ahead, behind: the sizes of what is merged into that axis outside of it and inside of it.
    """

    axis: int
    ahead: Size
    behind: Size

    def sums(self, value: Tensor, size: Any) -> Tensor:
        """Sums over all elements of each of the atom's entries, of which there are `size`; ahead or behind may be -1.

        Example:
            >>> import torch
            >>> Within(0, 1, 3).sums(torch.arange(6.0), 2)
            tensor([ 3., 12.])
        """
        rest = [axis for axis in range(value.dim()) if axis != self.axis]
        return (value.sum(rest) if rest else value).reshape(self.ahead, size, self.behind).sum((0, 2))


def where(axes: Axes, origin: str, size: Size) -> Within | None:
    """Where the whole of what a label stands for lies in a value; None where it is in no axis, or in parts.

    Args:
        axes: the value's.
        origin: the label.
        size: how many entries that has.

    Example:
        >>> where(((Atom("tokens", 0, 5), Atom("batch", 0, 2)), (Atom("linear", 2, 8),)), "batch", 2)
        Within(axis=0, ahead=5, behind=1)
    """
    for i, axis in enumerate(axes):
        for j, atom in enumerate(axis):
            if atom.origin == origin and same(atom.size, size) and same(atom.stride, 1):
                return Within(i, length(axis[:j]), length(axis[j + 1 :]))
    return None
