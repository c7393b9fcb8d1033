"""The word that says how a node's op moves elements; `fxgrad.graph.axes` follows axes by it."""

from __future__ import annotations

import operator
from collections.abc import Mapping

import torch
from torch import fx

from fxgrad.classify.decision import Decision
from fxgrad.graph.axes import PICK
from fxgrad.graph.follow import ALONG, ATTENTION, PRODUCT
from fxgrad.kinds import Kind
from fxgrad.table.row import Row

_KINDS = {Kind.ATTENTION: ATTENTION, Kind.NORMALIZATION: ALONG, Kind.SOFTMAX: ALONG}


def word_of(node: fx.Node, decisions: Mapping[str, Decision]) -> str | None:
    """How a node's op moves elements, from its row and its kind; for an item, the word of the op that made the tuple.

    Example:
        >>> import fxgrad
        >>> libra = fxgrad.convert(torch.nn.Flatten().eval(), (torch.zeros(2, 3, 4),))
        >>> (flatten,) = libra.classified.captured.graph.output_node().args[0]
        >>> word_of(flatten, libra.classified.decisions)
        'reshape'
    """
    row = _row(node, decisions)
    if row is None:
        return None
    if "moves" in row.options:
        return values_word_of(node, decisions)
    if node.target is operator.getitem:
        return None
    if row.kind is Kind.PRODUCT:  # the row's kind; the decision's is attention for products of softmax weights
        return None if torch.Tag.pointwise in node.target.tags else PRODUCT  # type: ignore[union-attr]
    return _KINDS.get(row.kind)


def values_word_of(node: fx.Node, decisions: Mapping[str, Decision]) -> str | None:
    """The same of an op that moves elements and leaves their values; None for any other, such as a norm or a softmax.

    Example:
        >>> import fxgrad
        >>> libra = fxgrad.convert(torch.nn.LayerNorm(4).eval(), (torch.zeros(2, 3, 4),))
        >>> (norm,) = libra.classified.captured.graph.output_node().args[0]
        >>> word_of(norm, libra.classified.decisions), values_word_of(norm, libra.classified.decisions)
        ('along', None)
    """
    row = _row(node, decisions)
    word = None if row is None else row.options.get("moves")
    return None if word in (None, PICK) else str(word)


def _row(node: fx.Node, decisions: Mapping[str, Decision]) -> Row | None:
    """The row of the node's op; for an item, of the op that made the tuple."""
    made: object = node.args[0] if node.target is operator.getitem else node
    decision = decisions.get(str(made))
    return None if decision is None else decision.row
