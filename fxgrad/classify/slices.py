"""Liveness of the pieces of a fused projection, such as q, k and v from one linear layer.

Where attention weights are held, only the values get a cotangent. The forward keeps the layer's one product; the
backward needs only the rows of the weight that make the values. So this module follows the moves (reshape, permute,
split, select) that cut a layer's features apart, and makes each live piece hand its cotangent directly to the layer's
input.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cmp_to_key

import torch
from torch import fx

from fxgrad.classify.decision import Decision
from fxgrad.classify.moves import values_word_of
from fxgrad.graph.axes import Atom, Axes, fresh, move_of, moved, source_of
from fxgrad.graph.sizes import quotient, sizes_of
from fxgrad.ops import Rows
from fxgrad.ops.rows import OfRows
from fxgrad.ops.weights import NATIVE

LINEAR = torch.ops.aten.linear.default

_FEATURES, _OUTER = "features", "outer"
"""Origins of atoms: the layer's features, and the axes of its batch and tokens."""


@dataclass(frozen=True)
class _Piece:
    """The features of a layer that a tensor contains, and the axes that they lie along."""

    axes: Axes
    first: int = 0

    @property
    def count(self) -> int:
        return math.prod(atom.size for axis in self.axes for atom in axis if atom.origin == _FEATURES)

    @property
    def whole(self) -> bool:
        """Whether every axis has features alone, or all or part of one axis of batch or tokens."""
        return all(
            len(axis) <= 1
            and all(a.origin == _OUTER or (a.origin == _FEATURES and isinstance(a.size, int)) for a in axis)
            for axis in self.axes
        )

    def rows(self) -> Rows:
        """The piece in the form that `fxgrad.ops.rows_of` takes."""
        atoms = [(i, axis[0] if axis else Atom(_FEATURES, 0, 1)) for i, axis in enumerate(self.axes)]
        outer = sorted((pair for pair in atoms if pair[1].origin == _OUTER), key=cmp_to_key(_as_they_were))
        inner = sorted((-atom.stride, i, atom.size) for i, atom in atoms if atom.origin == _FEATURES)
        order = tuple(i for i, _ in outer) + tuple(i for _, i, _ in inner)
        return Rows(order, self.first, tuple((size, -stride) for stride, _, size in inner))


def _as_they_were(a: tuple[int, Atom], b: tuple[int, Atom]) -> int:
    """Compare two axes of batch and tokens: the earlier axis, or the outer part of the same axis, is first."""
    one, other = a[1], b[1]
    if one.axis != other.axis:
        return one.axis - other.axis
    return -1 if quotient(one.stride, other.stride) is not None else 1


def narrow(graph: fx.Graph, decisions: Mapping[str, Decision]) -> dict[str, Decision]:
    """Let the live pieces of a linear layer take over its backward, where other pieces are held.

    Args:
        graph: the captured graph.
        decisions: one per node, with its liveness.

    Returns:
        The decisions. A live piece has the layer's decision, and the nodes between them in its backward's `moves`; the
        layer and these nodes are held.

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
        *outer, features = sizes_of(node)
        if not isinstance(features, int):
            continue
        axes = [(Atom(_OUTER, i, size),) if size != 1 else () for i, size in enumerate(outer)]
        whole = _Piece((*axes, fresh(_FEATURES, 0, features)))
        pieces = _live_pieces(node, whole, decisions)
        if sum(piece.count for _, piece, _ in pieces) >= whole.count:
            continue
        for leaf, piece, moves in pieces:
            narrowed[leaf.name] = replace(decision, node=leaf.name, backward=OfRows(rows=piece.rows(), moves=moves))
            narrowed |= {name: decisions[name].held() for name in moves}
    return narrowed


def _plain(decision: Decision) -> bool:
    """Whether only the carrier depends on the inputs, and gets the layer's own vjp."""
    data = [(o.part, w) for o, w in zip(decision.operands, decision.weights) if o.data]
    return decision.backward is NATIVE and data == [("carrier", 1.0)]


_Found = list[tuple[fx.Node, _Piece, tuple[str, ...]]]


def _live_pieces(
    node: fx.Node, piece: _Piece, decisions: Mapping[str, Decision], moves: tuple[str, ...] = ()
) -> _Found:
    """The live nodes that together contain the features of `piece`, as few and as early as possible."""
    here: _Found = [(node, piece, moves)]
    found: _Found = []
    for user in node.users:
        decision = decisions.get(user.name)
        if user.op == "output":
            return here
        if decision is None or not decision.live or not decision.receives(node.name):
            continue
        for item, part, names in _moved(user, node, piece, decisions):
            if part is None:
                return here
            if decisions[item.name].live:
                found += _live_pieces(item, part, decisions, (*moves, node.name, *names))
    return found if sum(p.count for _, p, _ in found) < piece.count else here


def _moved(
    user: fx.Node, node: fx.Node, piece: _Piece, decisions: Mapping[str, Decision]
) -> list[tuple[fx.Node, _Piece | None, tuple[str, ...]]]:
    """For each output of `user`: which features of the layer it contains, or None if it mixes them."""
    word = values_word_of(user, decisions)
    if word not in ("permute", "reshape", "cut", "same") or source_of(user) is not node:
        return [(user, None, ())]
    if not isinstance(user.meta["val"], (list, tuple)):
        return [(user, _after(user, word, piece), ())]
    items = [item for item in user.users if item.target is operator.getitem]
    if len(items) < len(user.users):
        return [(user, None, ())]
    return [(item, _after(item, word, piece), (user.name,)) for item in items]


def _after(node: fx.Node, word: str, piece: _Piece) -> _Piece | None:
    """The piece after a move; None if the result is no piece, for example if features are merged with tokens."""
    move = move_of(node, word)
    if move is None:
        return None
    first = piece.first
    if word == "cut":
        (axis,) = piece.axes[move.dim] or (Atom(_FEATURES, 0, 1),)
        if axis.origin != _FEATURES or not isinstance(move.start, int) or not isinstance(move.size, int):
            return None
        first += move.start * axis.stride
    found = _Piece(moved(piece.axes, move, node), first)
    return found if found.whole else None
