"""Follow the axes of some tensors along the graph, across moves and other ops."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from fxgrad.graph.axes import MOVES, Atom, Axes, Axis, Move, fresh, length, move_of, moved, source_of
from fxgrad.graph.einsum import letters_of
from fxgrad.graph.nodes import arguments_of, tensors_of
from fxgrad.graph.sizes import Size, same, sizes_of

ATTENTION, PRODUCT = "attention", "product"
"""Two more words, for ops that contract axes: softmax(q k^T) v, and products of matrices."""
ALONG = "along"
"""One more, for ops that keep the axes and mix the elements along those that their arguments name: norms, softmax."""
Word = Callable[[fx.Node], str | None]
Seeds = Mapping[fx.Node, Sequence[Axis | None]]


def follow(nodes: Iterable[fx.Node], word: Word, seeds: Seeds) -> dict[fx.Node, Axes]:
    """The axes of every node, as far as they follow from the seeds.

    An axis whose elements an op computes anew gets an atom whose origin is that node. If an elementwise op combines two
    tensors, an unknown axis of one is the known axis of the other. So a residual branch that mixed the tokens has the
    tokens' axis again, before and after it is added to the stream.

    Args:
        nodes: in the order of the graph; operands outside of `nodes` and `seeds` are ignored.
        word: says what a node's op does: one of `MOVES`, or `ATTENTION`, `PRODUCT`, `ALONG`; None for any other.
        seeds: node -> the atoms of each axis, whose origins are labels; None for an unknown axis.

    Returns:
        node -> axes, the seeds included.

    Example:
        >>> class Mix(torch.nn.Module):
        ...     def forward(self, x):
        ...         return x + x.mT.relu().mT
        >>> graph = torch.export.export(Mix(), (torch.ones(2, 4, 4),)).run_decompositions({}).graph
        >>> x, *nodes, _ = graph.nodes
        >>> seeds = {x: ((Atom("batch", 0, 2),), (Atom("tokens", 0, 4),), None)}
        >>> found = follow(nodes, lambda node: "permute" if "transpose" in node.name else None, seeds)
        >>> [[axis[0].origin for axis in found[node]].index("tokens") for node in (x, *nodes)]
        [1, 2, 2, 1, 1]
    """
    tracker = _Tracker(word, seeds)
    for node in nodes:
        if tensors_of(node):
            tracker.visit(node)
    return {node: tuple(tracker.resolved(axis) for axis in axes) for node, axes in tracker.axes.items()}


@dataclass
class _Tracker:
    """One walk along the graph.

    Attributes:
        axes: node -> axes, as far as known.
        equal: unknown axis (node's name, index) -> the axis that it turned out to be.
        whole: the same keys -> the axis's size.
    """

    word: Word
    seeds: Seeds
    axes: dict[fx.Node, Axes] = field(default_factory=dict)
    equal: dict[tuple[str, int], Axis] = field(default_factory=dict)
    whole: dict[tuple[str, int], Size] = field(default_factory=dict)

    def __post_init__(self) -> None:
        given = [atom for axes in self.seeds.values() for axis in axes for atom in axis or ()]
        self.labels = {atom.origin for atom in given}
        self.free = {atom.size: (atom,) for atom in given if not isinstance(atom.size, int)}
        for node, axes in self.seeds.items():
            if node.op == "placeholder":
                shape = sizes_of(node)
                self.axes[node] = tuple(fresh(node.name, i, shape[i]) if a is None else a for i, a in enumerate(axes))
                self.note(node)

    def visit(self, node: fx.Node) -> None:
        shape = sizes_of(node)
        found = [self.by_size(node, i, axis) for i, axis in enumerate(self.after(node, shape))]
        for i, axis in enumerate(self.seeds.get(node, ())):
            if axis is not None:
                self.unite(axis, found[i])
                found[i] = axis
        self.axes[node] = tuple(found)
        self.note(node)

    def note(self, node: fx.Node) -> None:
        """Note the sizes of a node's own axes."""
        self.whole |= {atom[:2]: atom.size for axis in self.axes[node] for atom in axis if atom.origin == node.name}

    def by_size(self, node: fx.Node, i: int, axis: Axis) -> Axis:
        """Take an unknown axis of a free size for the known axis of the same size."""
        if axis and axis[0].origin == node.name and not isinstance(axis[0].size, int):
            return self.free.get(axis[0].size, axis)
        return axis

    def after(self, node: fx.Node, shape: tuple[Size, ...]) -> Axes:
        """The axes of a node's value, from its operands'."""
        word = self.word(node)
        word = "same" if word == ALONG else word
        if word == "same" and len(sizes_of(source_of(node) or node)) != len(shape):
            word = None
        if word in MOVES:
            move = move_of(node, word)
            source = source_of(node)
            if move is not None and word != "join" and source in self.axes:
                return moved(self.axes[source], move, node)
            if move is not None and word == "join":
                return self.joined(node, move, shape)
        if (spelled := letters_of(node)) is not None:
            return self.spelled(node, shape, *spelled)
        operands = [n for n in node.all_input_nodes if n in self.axes]
        matrices = [n for n in arguments_of(node).values() if isinstance(n, fx.Node) and sizes_of(n)]
        if word == ATTENTION and len(matrices) > 2:
            return self.contracted(node, shape, matrices[0], matrices[2])
        if word == PRODUCT and len(matrices) > 1 and len(shape) > 1:
            return self.contracted(node, shape, *matrices[-2:])
        if word == "same" or torch.Tag.pointwise in getattr(node.target, "tags", ()):
            return self.aligned(node, shape, operands)
        return self.other(node, shape, operands)

    def aligned(self, node: fx.Node, shape: tuple[Size, ...], operands: Iterable[fx.Node], but: Any = ()) -> Axes:
        """The axes of an elementwise result; operands broadcast, so axes are counted from the last."""
        found = []
        known = [self.axes[n] for n in operands]
        for i, size in enumerate(shape):
            back = len(shape) - i
            own = [axes[-back] for axes in known if back <= len(axes) and i not in but]
            found.append(self.shared(node, i, size, own))
        return tuple(found)

    def shared(self, node: fx.Node, i: int, size: Size, own: Iterable[Axis]) -> Axis:
        """An axis of a result that is the same axis of several operands: one that is known, if any fits."""
        fitting = [axis for axis in own if axis and same(length(axis), size)]
        best = next((a for a in fitting if self.labelled(a)), fitting[0] if fitting else fresh(node.name, i, size))
        for axis in fitting:
            self.unite(best, axis)
        return best

    def joined(self, node: fx.Node, move: Move, shape: tuple[Size, ...]) -> Axes:
        parts = [n for n in node.all_input_nodes if n in self.axes]
        if not move.drops:
            return self.aligned(node, shape, parts, but={move.dim})
        rest = self.aligned(node, shape[: move.dim] + shape[move.dim + 1 :], parts)
        return (*rest[: move.dim], fresh(node.name, move.dim, shape[move.dim]), *rest[move.dim :])

    def contracted(self, node: fx.Node, shape: tuple[Size, ...], first: fx.Node, last: fx.Node) -> Axes:
        """The axes of a matrix product: rows are the first matrix's, columns the last one's."""
        followed = [n for n in (first, last) if n in self.axes and len(sizes_of(n)) > 1]
        lead = self.aligned(node, shape, followed, but={len(shape) - 2, len(shape) - 1})
        rows, columns = (
            self.axes[n][at]
            if n in followed and same(length(self.axes[n][at]), shape[at])
            else fresh(node.name, i, shape[i])
            for n, at, i in ((first, -2, len(shape) - 2), (last, -1, len(shape) - 1))
        )
        return (*lead[:-2], rows, columns)

    def spelled(self, node: fx.Node, shape: tuple[Size, ...], operands: list[tuple[fx.Node, str]], result: str) -> Axes:
        """The axes of an einsum: those of the operands that have the same letter."""
        found = []
        for i, (letter, size) in enumerate(zip(result, shape)):
            own = [self.axes[n][axes.index(letter)] for n, axes in operands if n in self.axes and letter in axes]
            found.append(self.shared(node, i, size, own))
        return tuple(found)

    def other(self, node: fx.Node, shape: tuple[Size, ...], operands: list[fx.Node]) -> Axes:
        """The axes after any other op: an axis stays if no argument names it and its size stays."""
        rank = len(sizes_of(operands[0])) if operands else 0
        arguments = arguments_of(node)
        named = named_axes(arguments, rank)
        if rank == len(shape):
            weight = arguments.get("weight")
            if isinstance(weight, fx.Node):  # (out, in, ...): makes new channels
                named = named | {rank + 1 - len(sizes_of(weight))}
            return self.aligned(node, shape, operands, but=named)
        if named and rank - len(named) == len(shape):
            return tuple(axis for i, axis in enumerate(self.axes[operands[0]]) if i not in named)
        given = [axis for n in operands for axis in self.axes[n]]
        free = [[a for a in given if a and same(length(a), s)] if not isinstance(s, int) else [] for s in shape]
        return tuple(f[0] if len(f) == 1 else fresh(node.name, i, shape[i]) for i, f in enumerate(free))

    def labelled(self, axis: Axis) -> bool:
        return any(atom.origin in self.labels for atom in self.resolved(axis))

    def unite(self, best: Axis, other: Axis) -> None:
        """Record that an unknown axis equals another one."""
        best, other = self.resolved(best), self.resolved(other)
        if len(other) == 1 and other != best:
            (atom,) = other
            if atom.stride == 1 and atom.size == self.whole.get(atom[:2]) and all(atom[:2] != a[:2] for a in best):
                self.equal.setdefault(atom[:2], best)

    def resolved(self, axis: Axis) -> Axis:
        """The axis, with unknown atoms replaced by what they turned out to be."""
        found: list[Atom] = []
        for atom in axis:
            equal = self.equal.get(atom[:2])
            whole = equal is not None and same(atom.size, length(equal)) and atom.stride == 1
            found += self.resolved(equal) if equal is not None and whole else [atom]
        return tuple(found)


def named_axes(arguments: Mapping[str, Any], rank: int) -> set[int]:
    """The axes that an op's arguments name; where they could name some and do not, all of them.

    Args:
        arguments: see `fxgrad.graph.nodes.arguments_of`.
        rank: the number of the operand's axes.

    Example:
        >>> named_axes({"self": None, "dim": -1}, 3), named_axes({"indices": [None, 5]}, 3)
        ({2}, {1})
        >>> named_axes({"normalized_shape": [4, 5]}, 3), named_axes({"dim": None}, 2)
        ({1, 2}, {0, 1})
    """
    named = next((arguments[key] for key in ("dim", "dims", "dimension") if key in arguments), ())
    given = named if isinstance(named, (list, tuple)) else [named]
    found = {d % rank for d in given if isinstance(d, int) and rank}
    if named is None or (named == [] and not found):
        found = set(range(rank))
    found |= set(range(rank - len(arguments.get("normalized_shape", ())), rank))
    if "num_groups" in arguments:
        found |= set(range(1, rank))
    if "use_input_stats" in arguments:
        found |= set(range(2, rank))
    indices = arguments.get("indices")
    if isinstance(indices, (list, tuple)):
        found |= {i for i, index in enumerate(indices) if index is not None}
    return found | ({0} if "offsets" in arguments else set())  # a bag joins rows
