"""Simplify a traced program: affine ops of zeros become their biases.

The offset of an affine op is its value with a carrier of 0 (`fxgrad.run.sources`). Traced, that is a second product
with every weight, whose result is known to be the bias.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.symbolic_shapes import is_concrete_int, statically_known_true

from fxgrad.graph.copies import prune
from fxgrad.graph.nodes import placeholders_of

aten = torch.ops.aten
MOVES = {
    aten.view.default,
    aten._unsafe_view.default,
    aten.permute.default,
    aten.transpose.int,
    aten.expand.default,
    aten.unsqueeze.default,
    aten.slice.Tensor,
    aten.detach.default,
    aten.clone.default,
    aten.alias.default,
}
"""Ops that move or repeat elements without changing them."""
ZEROS = {aten.zeros_like.default, aten.new_zeros.default}
LINEAR = MOVES | {aten.mm.default, aten.bmm.default}
"""Ops that are 0 where their first operand is."""


def simplify(graph: fx.Graph) -> None:
    """Replace, in place, affine ops of zeros by their biases, and drop these biases' guards against 0 * infinity.

    Args:
        graph: of ATen ops, as make_fx traces it.

    Example:
        >>> from torch.fx.experimental.proxy_tensor import make_fx
        >>> def offset(x, weight, bias):
        ...     return torch.addmm(bias, torch.zeros_like(x), weight)
        >>> traced = make_fx(offset)(torch.ones(2, 3), torch.ones(3, 4), torch.arange(4.0))
        >>> simplify(traced.graph)
        >>> [node.name for node in traced.graph.nodes if node.op == "call_function"]
        ['expand_default']
    """
    zeros: set[fx.Node] = set()
    biases: set[fx.Node] = set()
    # Where a free size is read from: an input rather than zeros, which are then computed for nothing else.
    sized = [node for node in placeholders_of(graph) if isinstance(node.meta.get("val"), Tensor)]
    for node in list(graph.nodes):
        first = node.args[0] if node.args else None
        if node.target in ZEROS or (node.target in LINEAR and first in zeros):
            if not any(_in_place(user) for user in node.users):
                zeros.add(node)
        elif node.target in MOVES and first in biases:
            biases.add(node)
        elif node.target is aten.where.self and _guarded(node) in biases:
            node.replace_all_uses_with(node.args[2])
        elif (found := _bias(node, zeros)) is not None:
            with graph.inserting_before(node):
                expanded = _expanded(graph, node, *found, sized)
            if expanded is not None and node.target is not aten.add.Tensor:  # add.Tensor may add a mask
                biases.add(expanded)
        elif node.target is aten.convolution.default:
            sized.append(node)
    prune(graph)


def _in_place(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _bias(node: fx.Node, zeros: set[fx.Node]) -> tuple[fx.Node, fx.Node, int] | None:
    """(zeros, bias, the result's axis along which the bias lies) of an affine op of zeros; None for other nodes."""
    args = node.args
    if node.target is aten.addmm.default and args[1] in zeros and not node.kwargs:
        return args[1], args[0], -1  # type: ignore[return-value]
    if node.target is aten.add.Tensor and args[0] in zeros and isinstance(args[1], fx.Node) and not node.kwargs:
        return args[0], args[1], -1  # type: ignore[return-value]
    if node.target is aten.convolution.default and args[0] in zeros and args[2] is not None:
        return args[0], args[2], 1  # type: ignore[return-value]
    if node.target is operator.getitem and args[1] == 0:
        norm: Any = args[0]
        if norm.target is aten.native_layer_norm.default and norm.args[0] in zeros and norm.args[3] is not None:
            return norm.args[0], norm.args[3], -1
    return None


def _expanded(
    graph: fx.Graph, node: fx.Node, zero: fx.Node, bias: fx.Node, axis: int, sized: Sequence[fx.Node]
) -> fx.Node | None:
    """The bias, expanded to the shape of `node`; None if no node is known to have one of its dynamic sizes."""
    shape = node.meta["val"].shape
    sizes: list[Any] = []
    for i, size in enumerate(shape):
        if is_concrete_int(size):
            sizes.append(int(size))
            continue
        owner = next((n for n in (*sized, zero) if _has(n, i, size)), None)
        if owner is None:
            return None
        sizes.append(graph.call_function(aten.sym_size.int, (owner, i)))
    if axis == 1:
        bias = graph.call_function(aten.view.default, (bias, [-1] + [1] * (len(sizes) - 2)))
    expanded = graph.call_function(aten.expand.default, (bias, sizes))
    node.replace_all_uses_with(expanded)
    return expanded


def _has(node: fx.Node, axis: int, size: Any) -> bool:
    shape = node.meta["val"].shape
    return axis < len(shape) and statically_known_true(size == shape[axis])


def _guarded(node: fx.Node) -> Any:
    """b of where(g == 0, 0, g * b)."""
    condition, _, product = node.args
    if not isinstance(condition, fx.Node) or not isinstance(product, fx.Node):
        return None
    if condition.target is not aten.eq.Scalar or product.target is not aten.mul.Tensor:
        return None
    return product.args[1] if product.args[0] is condition.args[0] else None
