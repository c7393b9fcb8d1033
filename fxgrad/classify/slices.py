"""Liveness at the grain of a projection's rows: what reads a fused qkv projection, and which of it gets a cotangent.

One linear layer often makes queries, keys and values together, and where attention weights are held only the values
get a cotangent. The layer keeps its one product forward; its backward needs the values' rows alone. So this follows,
from every linear layer on, the moves (reshape, permute, split, select) that cut its features apart, and hands
the layer's cotangent directly to the pieces that are live.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

from fxgrad.classify.decision import Decision
from fxgrad.graph.nodes import arguments_of
from fxgrad.ops import Rows
from fxgrad.ops.rows import OfRows

aten = torch.ops.aten
LINEAR = aten.linear.default


@dataclass(frozen=True)
class _Outer:
    """An axis of the layer's batch and tokens; `key` orders the axes as they were."""

    key: tuple[int, ...]


@dataclass(frozen=True)
class _Feature:
    """An axis along the layer's features, every `stride`-th of them."""

    size: int
    stride: int


@dataclass(frozen=True)
class _Piece:
    """Which features of a layer a tensor holds, and along which of its axes."""

    axes: tuple[_Outer | _Feature, ...]
    first: int = 0

    @property
    def features(self) -> list[_Feature]:
        return [axis for axis in self.axes if isinstance(axis, _Feature)]

    @property
    def count(self) -> int:
        return math.prod(axis.size for axis in self.features)

    def rows(self) -> Rows:
        """The same, as the op that hands on the cotangent takes it."""
        places = range(len(self.axes))
        outer = sorted((axis.key, i) for i, axis in zip(places, self.axes) if isinstance(axis, _Outer))
        inner = sorted((-axis.stride, i, axis.size) for i, axis in zip(places, self.axes) if isinstance(axis, _Feature))
        order = tuple(i for _, i in outer) + tuple(i for _, i, _ in inner)
        return Rows(order, self.first, tuple((size, -stride) for stride, _, size in inner))


def narrow(graph: fx.Graph, decisions: Mapping[str, Decision]) -> dict[str, Decision]:
    """Give the cotangent of a linear layer to its live pieces, where some are held.

    Args:
        graph: the captured graph.
        decisions: one per node, with its liveness.

    Returns:
        The decisions; a live piece now has the layer's operands and the moves between as `through`, while
        the layer and these moves are held.

    Example:
        >>> import fxgrad
        >>> from torch import nn
        >>> mha = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
        >>> libra = fxgrad.convert(mha, (torch.zeros(2, 5, 8),))
        >>> [d.backward.rows.where for d in libra.classified.decisions.values() if isinstance(d.backward, OfRows)]
        [slice(16, 24, None)]
    """
    narrowed = dict(decisions)
    for node in graph.nodes:
        decision = decisions.get(node.name)
        if node.target is not LINEAR or decision is None or not decision.live or not _plain(decision):
            continue
        *outer, features = node.meta["val"].shape
        if not isinstance(features, int):
            continue
        whole = _Piece((*(_Outer((i,)) for i in range(len(outer))), _Feature(features, 1)))
        pieces = _live_pieces(node, whole, decisions)
        if sum(piece.count for _, piece, _ in pieces) >= whole.count:
            continue
        for leaf, piece, through in pieces:
            narrowed[leaf.name] = replace(decision, node=leaf.name, backward=OfRows(rows=piece.rows(), moves=through))
            narrowed |= {name: decisions[name].held() for name in through}
    return narrowed


def _plain(decision: Decision) -> bool:
    """Whether only the carrier depends on the inputs, and has its own vjp."""
    return [(o.part, w) for o, w in zip(decision.operands, decision.weights) if o.data] == [("carrier", 1.0)]


_Found = list[tuple[fx.Node, _Piece, tuple[str, ...]]]


def _live_pieces(
    node: fx.Node, piece: _Piece, decisions: Mapping[str, Decision], through: tuple[str, ...] = ()
) -> _Found:
    """The live nodes that hold the features of `piece` between them, as few and as early as can be."""
    here: _Found = [(node, piece, through)]
    found: _Found = []
    for user in node.users:
        decision = decisions.get(user.name)
        if user.op == "output":
            return here
        if decision is None or not decision.live or not decision.receives(node.name):
            continue
        for moved, part, names in _moved(user, node, piece):
            if part is None:
                return here
            if decisions[moved.name].live:
                found += _live_pieces(moved, part, decisions, (*through, node.name, *names))
    return found if sum(p.count for _, p, _ in found) < piece.count else here


def _moved(user: fx.Node, node: fx.Node, piece: _Piece) -> list[tuple[fx.Node, _Piece | None, tuple[str, ...]]]:
    """What a user of a piece holds of it, item by item where it is a tuple; None where that is no piece."""
    move = MOVES.get(user.target)
    arguments = arguments_of(user)
    if move is None or next(iter(arguments.values())) is not node:
        return [(user, None, ())]
    if not isinstance(user.meta["val"], (list, tuple)):
        return [(user, move(piece, user, arguments), ())]
    items = [item for item in user.users if item.target is operator.getitem]
    if len(items) < len(user.users):
        return [(user, None, ())]
    return [(item, move(piece, item, {**arguments, "item": item.args[1]}), (user.name,)) for item in items]


Move = Callable[[_Piece, fx.Node, Mapping[str, Any]], "_Piece | None"]


def _same(piece: _Piece, node: fx.Node, arguments: Mapping[str, Any]) -> _Piece:
    return piece


def _permuted(piece: _Piece, node: fx.Node, arguments: Mapping[str, Any]) -> _Piece:
    return replace(piece, axes=tuple(piece.axes[d] for d in arguments["dims"]))


def _transposed(piece: _Piece, node: fx.Node, arguments: Mapping[str, Any]) -> _Piece:
    axes = list(piece.axes)
    a, b = arguments["dim0"], arguments["dim1"]
    axes[a], axes[b] = axes[b], axes[a]
    return replace(piece, axes=tuple(axes))


def _cut(piece: _Piece, dim: int, start: int, size: int, step: int = 1) -> _Piece | None:
    axis = piece.axes[dim]
    if not isinstance(axis, _Feature):
        return None
    axes = list(piece.axes)
    axes[dim] = _Feature(size, axis.stride * step)
    return _Piece(tuple(axes), piece.first + start * axis.stride)


def _selected(piece: _Piece, node: fx.Node, arguments: Mapping[str, Any]) -> _Piece | None:
    dim, index = arguments["dim"], arguments.get("item", arguments.get("index"))
    axis = piece.axes[dim]
    cut = _cut(piece, dim, index % axis.size, 1) if isinstance(axis, _Feature) else None
    return cut and replace(cut, axes=tuple(a for i, a in enumerate(cut.axes) if i != dim % len(cut.axes)))


def _sliced(piece: _Piece, node: fx.Node, arguments: Mapping[str, Any]) -> _Piece | None:
    axis = piece.axes[arguments["dim"]]
    bounds = arguments["start"], arguments["end"], arguments["step"]
    if not isinstance(axis, _Feature) or not all(b is None or isinstance(b, int) for b in bounds):
        return None
    kept = range(axis.size)[slice(*bounds)]
    return _cut(piece, arguments["dim"], kept.start, len(kept), kept.step)


def _split(piece: _Piece, node: fx.Node, arguments: Mapping[str, Any]) -> _Piece | None:
    """An item of a split, whose sizes its siblings show."""
    dim, item = arguments["dim"], arguments["item"]
    if not isinstance(piece.axes[dim], _Feature):
        return None
    sizes = [int(part.shape[dim]) for part in node.args[0].meta["val"]]  # type: ignore[union-attr]
    return _cut(piece, dim, sum(sizes[:item]), sizes[item])


def _reshaped(piece: _Piece, node: fx.Node, arguments: Mapping[str, Any]) -> _Piece | None:
    """Axes split up or joined, as long as no axis of features joins one of tokens."""
    old = [(axis, size) for axis, size in zip(piece.axes, next(iter(arguments.values())).meta["val"].shape)]
    new = list(node.meta["val"].shape)
    axes: list[_Outer | _Feature] = []
    while old or new:
        taken = _match([size for _, size in old], new)
        if taken is None:
            return None
        joined = _joined([axis for axis, _ in old[: taken[0]]])
        parts = None if joined is None else _parted(joined, new[: taken[1]])
        if parts is None:
            return None
        axes += parts
        old, new = old[taken[0] :], new[taken[1] :]
    return replace(piece, axes=tuple(axes))


def _match(old: list[Any], new: list[Any]) -> tuple[int, int] | None:
    """How many leading axes of either shape hold the same elements: one of one, one of several, or several of one."""
    if old and new and statically_known_true(old[0] == new[0]):
        return 1, 1
    if new and statically_known_true(new[0] == 1):
        return 0, 1
    if old and statically_known_true(old[0] == 1):
        return 1, 0
    pairs = [(1, n) for n in range(2, len(new) + 1)] + [(n, 1) for n in range(2, len(old) + 1)]
    return next((p for p in pairs if statically_known_true(math.prod(old[: p[0]]) == math.prod(new[: p[1]]))), None)


def _joined(axes: list[_Outer | _Feature]) -> _Outer | _Feature | None:
    """One axis in the place of several, features that lie as they did in the layer's output."""
    if len(axes) == 1:
        return axes[0]
    features = [axis for axis in axes if isinstance(axis, _Feature)]
    if len(features) < len(axes) or any(a.stride != b.size * b.stride for a, b in pairwise(features)):
        return None
    return _Feature(math.prod(axis.size for axis in features), features[-1].stride if features else 1)


def _parted(axis: _Outer | _Feature, sizes: list[Any]) -> list[_Outer | _Feature] | None:
    """Several axes in the place of one."""
    if isinstance(axis, _Outer):
        return [_Outer((*axis.key, i)) for i in range(len(sizes))]
    if not all(isinstance(size, int) for size in sizes):
        return None
    return [_Feature(size, axis.stride * math.prod(sizes[i + 1 :])) for i, size in enumerate(sizes)]


def _unsqueezed(piece: _Piece, node: fx.Node, arguments: Mapping[str, Any]) -> _Piece:
    axes = list(piece.axes)
    axes.insert(arguments["dim"] % (len(axes) + 1), _Feature(1, 1))
    return replace(piece, axes=tuple(axes))


def _squeezed(piece: _Piece, node: fx.Node, arguments: Mapping[str, Any]) -> _Piece | None:
    dims = arguments["dim"]
    gone = {d % len(piece.axes) for d in (dims if isinstance(dims, (list, tuple)) else [dims])}
    if any(piece.axes[d] != _Feature(1, getattr(piece.axes[d], "stride", 0)) for d in gone):
        return None
    return replace(piece, axes=tuple(axis for i, axis in enumerate(piece.axes) if i not in gone))


MOVES: dict[Any, Move] = {
    aten.clone.default: _same,
    aten.contiguous.default: _same,
    aten.alias.default: _same,
    aten.permute.default: _permuted,
    aten.transpose.int: _transposed,
    aten.select.int: _selected,
    aten.unbind.int: _selected,
    aten.slice.Tensor: _sliced,
    aten.split.Tensor: _split,
    aten.split_with_sizes.default: _split,
    aten.chunk.default: _split,
    aten.reshape.default: _reshaped,
    aten.view.default: _reshaped,
    aten.unflatten.int: _reshaped,
    aten.flatten.using_ints: _reshaped,
    aten.unsqueeze.default: _unsqueezed,
    aten.squeeze.dim: _squeezed,
    aten.squeeze.dims: _squeezed,
}
"""The moves that cut and order features, each with what becomes of a piece."""
