"""The word that says how a node's op moves elements; `fxgrad.graph.axes` follows axes by it."""

from __future__ import annotations

import operator
from collections.abc import Mapping

import torch
from torch import fx

from fxgrad.classify.decision import Decision
from fxgrad.graph.axes import PICK
from fxgrad.graph.follow import ATTENTION, PRODUCT
from fxgrad.kinds import Kind

_KINDS = {Kind.ATTENTION: ATTENTION, Kind.NORMALIZATION: "same", Kind.SOFTMAX: "same"}


def word_of(node: fx.Node, decisions: Mapping[str, Decision]) -> str | None:
    """How a node's op moves elements, from its row and its kind; for an item, the word of the op that made the tuple.

    Example:
        >>> import fxgrad
        >>> libra = fxgrad.convert(torch.nn.Flatten().eval(), (torch.zeros(2, 3, 4),))
        >>> (flatten,) = libra.classified.captured.graph.output_node().args[0]
        >>> word_of(flatten, libra.classified.decisions)
        'reshape'
    """
    made: object = node.args[0] if node.target is operator.getitem else node
    decision = decisions.get(str(made))
    if decision is None or decision.row is None:
        return None
    if word := decision.row.options.get("moves"):
        return None if word == PICK else str(word)
    if made is not node:
        return None
    kind = decision.row.kind
    if kind is Kind.PRODUCT:  # the row's kind; the decision's is attention for products of softmax weights
        return None if torch.Tag.pointwise in node.target.tags else PRODUCT  # type: ignore[union-attr]
    return _KINDS.get(kind)
