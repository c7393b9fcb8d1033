"""Which axis of a value holds the tokens: followed through the graph from where it is known, not guessed by its size.

Every axis of every value gets a tag: the batch, the tokens, rows or columns of a map, or something else. Tags move by
permutations and reshapes; a layer over the last axis makes that one something else. Where a branch that mixed tokens (a
mixer's) is added to the stream, the stream says what its axes are, and that goes back along the branch's moves.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from torch import fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

from fxgrad.graph.nodes import arguments_of, tensors_of

BATCH, TOKENS, ROWS, COLUMNS, OTHER = "batch", "tokens", "rows", "columns", ""
Tags = tuple[str, ...]
_PERMUTES = ("permute", "transpose", "t", "mT", "swapaxes", "movedim")
_RESHAPES = ("reshape", "view", "flatten", "unflatten", "unsqueeze", "squeeze", "_unsafe_view")
_CUTS = ("cat", "slice", "pad", "constant_pad_nd")


def token_axes(nodes: Iterable[fx.Node], seeds: Mapping[fx.Node, Tags], batch: str = "") -> dict[str, int]:
    """The axis of the tokens of every node that has one.

    Args:
        nodes: in the order of the graph.
        seeds: what is known: of inputs, of maps of features, of blocks' inputs.
        batch: the size of the batch's axis as it was captured, where that is a symbol.

    Returns:
        Node name -> axis.

    Example:
        >>> import fxgrad, torch
        >>> class Mix(torch.nn.Module):
        ...     def forward(self, x):
        ...         return x + x.mT.relu().mT
        >>> graph = fxgrad.convert(Mix().eval(), (torch.zeros(2, 4, 4),)).classified.captured.graph
        >>> (x, *nodes) = graph.nodes
        >>> list(token_axes(nodes, {x: (BATCH, TOKENS, OTHER)}).values())
        [1, 2, 2, 1, 1]
    """
    tags: dict[fx.Node, Tags] = dict(seeds)
    order = [node for node in nodes if tensors_of(node)]
    for node in order:
        if node not in seeds:
            found = zip(_forward(node, tags), _shape(node))
            tags[node] = tuple(BATCH if not tag and str(size) == batch else tag for tag, size in found)
    for node in reversed(order):
        for operand, known in _backward(node, tags):
            if TOKENS not in tags.get(operand, (TOKENS,)):
                tags[operand] = known
    return {node.name: t.index(TOKENS) for node, t in tags.items() if t.count(TOKENS) == 1}


def _shape(node: fx.Node) -> tuple[Any, ...]:
    return tuple(tensors_of(node)[0].shape)


def _name(node: fx.Node) -> str:
    target = node.target
    return str(getattr(getattr(target, "overloadpacket", None), "__name__", getattr(target, "__name__", "")))


def _forward(node: fx.Node, tags: Mapping[fx.Node, Tags]) -> Tags:
    """A result's tags, from its operands'."""
    operands = [n for n in node.all_input_nodes if n in tags and tensors_of(n)]
    shape, name = _shape(node), _name(node)
    if not operands:
        return (OTHER,) * len(shape)
    first = tags[operands[0]]
    if name in _PERMUTES:
        return tuple(first[axis] for axis in _order(node, len(shape)))
    if name in ("linear", "scaled_dot_product_attention"):
        return (*first[: len(shape) - 1], OTHER)
    if name in ("matmul", "bmm") and len(operands) == 2 and len(first) == len(shape):
        return (*first[:-1], tags[operands[1]][-1])
    if name in ("unbind", "select"):
        gone = arguments_of(node).get("dim", 0) % len(first)
        return first[:gone] + first[gone + 1 :]
    if name == "getitem":
        return first if len(first) == len(shape) else (OTHER,) * len(shape)
    if name in _RESHAPES:
        return _reshaped(first, _shape(operands[0]), shape)
    return _aligned(name, shape, operands, tags)


def _aligned(name: str, shape: tuple[Any, ...], operands: list[fx.Node], tags: Mapping[fx.Node, Tags]) -> Tags:
    """Of an elementwise op, a norm, or a cut: axes counted from the last."""
    found = [OTHER] * len(shape)
    for operand in operands:
        for back, (size, tag) in enumerate(zip(reversed(_shape(operand)), reversed(tags[operand])), 1):
            same = back <= len(shape) and (name in _CUTS or _equal(size, shape[-back]))
            if same and found[-back] == OTHER:
                found[-back] = tag
    return tuple(found)


def _order(node: fx.Node, count: int) -> list[int]:
    """Which axis of the operand each axis of the result is."""
    arguments = arguments_of(node)
    if "dims" in arguments:
        return [int(d) % count for d in arguments["dims"]]
    axes = list(range(count))
    a, b = (int(arguments.get(key, d)) % count for key, d in (("dim0", -2), ("dim1", -1)))
    axes[a], axes[b] = axes[b], axes[a]
    return axes


def _reshaped(first: Tags, old: tuple[Any, ...], new: tuple[Any, ...]) -> Tags:
    """Axes split up or joined: rows and columns joined are tokens, and tokens stay so beside axes of the batch."""
    found: list[str] = []
    tags, before, after = list(first), list(old), list(new)
    while before or after:
        taken = _match(before, after)
        if taken is None:
            return (*found, *[OTHER] * len(after))
        joined, made = tags[: taken[0]], taken[1]
        rest = [tag for tag, size in zip(joined, before) if not _equal(size, 1)] or joined[:1]
        if made == 1:
            both = set(rest)
            tag = TOKENS if both == {ROWS, COLUMNS} or both == {TOKENS, BATCH} else rest[0] if len(rest) == 1 else OTHER
            found.append(tag if rest else OTHER)
        else:
            kept = [i for i, size in enumerate(after[:made]) if not _equal(size, 1)]
            found += [rest[0] if rest and kept == [i] else OTHER for i in range(made)]
        tags, before, after = tags[taken[0] :], before[taken[0] :], after[made:]
    return tuple(found)


def _match(old: list[Any], new: list[Any]) -> tuple[int, int] | None:
    """How many leading axes of either shape hold the same elements."""
    if old and new and _equal(old[0], new[0]):
        return 1, 1
    if new and _equal(new[0], 1):
        return 0, 1
    if old and _equal(old[0], 1):
        return 1, 0
    pairs = [(1, n) for n in range(2, len(new) + 1)] + [(n, 1) for n in range(2, len(old) + 1)]
    return next((p for p in pairs if _equal(math.prod(old[: p[0]]), math.prod(new[: p[1]]))), None)


def _equal(a: Any, b: Any) -> bool:
    return bool(statically_known_true(a == b))


def _backward(node: fx.Node, tags: Mapping[fx.Node, Tags]) -> Iterable[tuple[fx.Node, Tags]]:
    """Operands whose tags the result's tell: of a permutation, and of what keeps a shape."""
    known = tags.get(node, ())
    if TOKENS not in known:
        return
    for operand in (n for n in node.all_input_nodes if n in tags and tensors_of(n)):
        if _name(node) in _PERMUTES:
            order = _order(node, len(known))
            yield operand, tuple(known[order.index(axis)] for axis in range(len(known)))
        elif _name(node) not in ("linear", "matmul", "bmm", "cat") and str(_shape(operand)) == str(_shape(node)):
            yield operand, known
