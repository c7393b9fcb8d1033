"""Which ops mix the elements along an axis of an operand, so that its indices are no longer apart."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import fx

from fxgrad.graph.axes import MOVES, move_of
from fxgrad.graph.einsum import letters_of
from fxgrad.graph.follow import ALONG, ATTENTION, PRODUCT, named_axes
from fxgrad.graph.nodes import arguments_of, op_name, tensors_of
from fxgrad.graph.sizes import same, sizes_of

_UNTAGGED = {"_prelu_kernel", "dropout", "hardswish", "log_sigmoid", "prelu", "tril", "triu"}
"""Elementwise ops that torch does not tag as pointwise."""
_COUNTED = {"arange", "unsqueeze", "view", "reshape", "expand", "slice", "_to_copy"}
"""The ops of an index that counts the indices of an axis."""


def mixes(node: fx.Node, operand: fx.Node, axis: int, word: str | None, data: Collection[fx.Node]) -> bool:
    """Whether an op combines, drops or rearranges the elements of an operand along an axis, or may do so.

    Of an op that nothing is known of, only the first axis is taken to be apart from the others: it is the batch's.
    An index that is computed from the data may rearrange them and put them back, as experts do; one that is given, such
    as a graph's list of edges, combines them.

    Args:
        node: a call of an op.
        operand: one of its operands.
        axis: index of the operand's axis.
        word: how the op moves elements; see `fxgrad.graph.follow`.
        data: the nodes that depend on the attributed inputs.

    Example:
        >>> import torch
        >>> class Neighbours(torch.nn.Module):
        ...     def forward(self, x, edges):
        ...         return x[edges]
        >>> example = (torch.ones(3, 2), torch.zeros(5, dtype=torch.int64))
        >>> x, edges, index, _ = torch.export.export(Neighbours(), example).graph.nodes
        >>> mixes(index, x, 0, None, {x, index}), mixes(index, x, 1, None, {x, index})
        (True, False)
    """
    rank, arguments = len(sizes_of(operand)), arguments_of(node)
    if word in MOVES:
        move = move_of(node, word)
        whole = move is None or move.word != "cut" or move.dim != axis
        return not (whole or (not move.drops and same(move.size, sizes_of(operand)[axis])))  # type: ignore[union-attr]
    if (spelled := letters_of(node)) is not None:
        return any(letters[axis] not in spelled[1] for own, letters in spelled[0] if own is operand)
    if word in (PRODUCT, ATTENTION):
        return _contracts(arguments, operand, axis - rank, word)
    if "batch_first" in arguments:  # a recurrence; its states are (layers, batch, width)
        first = arguments["batch_first"] and operand is arguments["input"]
        return rank < 3 or axis != (0 if first else 1)
    named = named_axes(arguments, rank)
    if axis in named or axis == _replaced(arguments, rank):
        return not any(_apart(index, data) for index in _indices(arguments, axis))
    if not sizes_of(node):
        return rank > 0
    return axis > 0 and not (named or word == ALONG or _elementwise(node) or _linear(arguments))


def _contracts(arguments: dict[str, Any], operand: fx.Node, back: int, word: str) -> bool:
    """Whether a matrix product or an attention sums over an axis, which is counted from the last."""
    matrices = [n for n in arguments.values() if isinstance(n, fx.Node) and sizes_of(n)]
    if word == ATTENTION:
        return any(n is operand for n in matrices[1:3]) and back >= -2
    first, last = matrices[-2:]
    if "vec1" in arguments:  # an outer product
        return False
    rows = -2 if len(sizes_of(last)) > 1 else -1
    return (first is operand and back == -1) or (last is operand and back == rows)


def _elementwise(node: fx.Node) -> bool:
    """Whether an op computes each element from the elements at its place; an item of a tuple is as it is."""
    packet = getattr(node.target, "overloadpacket", None)
    if packet is None or op_name(node) in _UNTAGGED:
        return True
    return any(torch.Tag.pointwise in getattr(packet, name).tags for name in packet.overloads())


def _linear(arguments: dict[str, Any]) -> bool:
    """Whether a weight replaces the last axis, or scales the channels, and nothing else."""
    weight = arguments.get("weight")
    return isinstance(weight, fx.Node) and len(sizes_of(weight)) < 3


def _replaced(arguments: dict[str, Any], rank: int) -> int | None:
    """The axis of channels, which a weight (out, in, ...) replaces."""
    weight = arguments.get("weight")
    return rank + 1 - len(sizes_of(weight)) if isinstance(weight, fx.Node) and len(sizes_of(weight)) > 1 else None


def _indices(arguments: dict[str, Any], axis: int) -> list[Any]:
    """The index tensors of an op along an axis."""
    several = arguments.get("indices")
    if isinstance(several, (list, tuple)):
        return [several[axis]] if axis < len(several) and isinstance(several[axis], fx.Node) else []
    return [arguments["index"]] if isinstance(arguments.get("index"), fx.Node) else []


def _apart(index: Any, data: Collection[fx.Node]) -> bool:
    """Whether an index leaves the indices of an axis apart: it counts them, or is computed from the data."""
    seen, pending = set(), [index]
    while pending:
        current = pending.pop()
        if current in data:
            return True
        if current not in seen and tensors_of(current):
            seen.add(current)
            pending += current.all_input_nodes
    names = {op_name(n) for n in seen}
    return "arange" in names and names <= _COUNTED
