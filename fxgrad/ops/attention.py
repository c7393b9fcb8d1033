"""Attention whose weights are held: only the value gets a cotangent, dV = P^T dO.

With P = softmax(scale q k^T + mask) held, attention is linear in v. A fused kernel's own backward computes three
cotangents with five matrix products, and two of them would be dropped. Two products suffice: one recomputes P, one
applies it. On a CPU there are three ways, on a GPU `fused.py` chooses:

- All weights at once, where they are few (`short.py`).
- The fused forward kernel, with q and k swapped (`swapped.py`).
- Block by block, for any kernel (`blocks.py`).

`torch.compile` calls the last two as operators (`opaque.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fxgrad.kinds import Kind, Operand
from fxgrad.ops import fused, swapped
from fxgrad.ops.backward import Decided, Rewriting, replace_call
from fxgrad.ops.blocks import laid_out, weights_transposed_times
from fxgrad.ops.function import Function, recording
from fxgrad.ops.kernels import Settings
from fxgrad.ops.opaque import Opaque
from fxgrad.ops.shares import share
from fxgrad.ops.short import Short, short
from fxgrad.ops.swapped import SDPA
from fxgrad.ops.weights import Weighted, weighted


class _Blockwise(Function):
    """Attention by any kernel; the backward runs block by block."""

    @staticmethod
    def forward(
        op: Any, settings: Settings, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, rows: Tensor, columns: Tensor
    ) -> Tensor:
        causal, given, _, grouped = settings
        return op(q, k, v.detach(), mask, 0.0, causal, scale=given, enable_gqa=grouped)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.settings, _, _, v, mask, rows, columns = inputs
        ctx.v_shape, ctx.v_dtype = v.shape, v.dtype
        ctx.save_for_backward(rows, columns, mask)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Any, ...]:
        rows, columns, mask = ctx.saved_tensors
        dv = weights_transposed_times(cotangent, rows, columns, mask, ctx.settings.causal, ctx.settings.scale)
        return None, None, None, None, dv.sum_to_size(ctx.v_shape).to(ctx.v_dtype), None, None, None


def value_only(
    op: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Call attention; its vjp holds the attention weights, so that only the value gets a cotangent.

    Args:
        op: `torch.ops.aten.scaled_dot_product_attention.default`, or a callable with its signature.
        query: (..., heads, rows, width), any floating dtype; below float32 the weights are computed in float32.
        key: (..., heads, columns, width); with `enable_gqa`, heads that divide the query's.
        value: (..., heads, columns, any width).
        attn_mask: broadcasts to (..., heads, rows, columns); boolean (True takes part) or added to the scores.
        dropout_p: if above 0, the vjp is the op's own, so that it drops the same weights.
        is_causal: row i sees the columns up to i.
        scale: factor of the scores; 1/sqrt(width) by default.
        enable_gqa: consecutive query heads share a key and value head.

    Returns:
        (..., heads, rows, value's width), bit for bit the result of `op`.

    Example:
        >>> q, k, v = torch.randn(3, 1, 2, 5, 4, dtype=torch.float64).requires_grad_()
        >>> y = value_only(torch.ops.aten.scaled_dot_product_attention.default, q, k, v)
        >>> (dv,) = torch.autograd.grad((y * y.detach()).sum(), v)
        >>> torch.allclose((v * dv).sum(), (y * y).sum())
        True

    Source: LibraGrad, arXiv:2411.16760, section 3.2 (attention); Vaswani et al., arXiv:1706.03762, eq. 1.
    """

    def own() -> Tensor:
        args = (query, key, value, attn_mask, dropout_p, is_causal)
        return weighted(op, (0, 0, 1, 0, 1, 1), *args, scale=scale, enable_gqa=enable_gqa)  # type: ignore[no-any-return]

    if dropout_p > 0 or not recording(value):
        return own()
    settings = Settings(is_causal, scale, query.shape[-1] ** -0.5 if scale is None else scale, enable_gqa)
    q, k = query.detach(), key.detach()
    if op is SDPA and fused.serves(q):
        if torch.compiler.is_compiling():
            mask = None if attn_mask is None else attn_mask.detach()
            return fused.traced(q, k, value, mask, is_causal, scale, enable_gqa) if fused.ALLOWED else own()
        road, kernel = fused.chosen(q, k, value, attn_mask, settings)
        if road == fused.OWN:
            return own()
        if kernel is not None:
            return fused.attention(kernel, road, settings, q, k, value)
    if attn_mask is None and short(q, k, value):
        return Short.call(op, is_causal, scale, settings.scale, q, k, value)  # type: ignore[no-any-return]
    compiling = torch.compiler.is_compiling()
    if op is SDPA and attn_mask is None and not compiling and swapped.takes(q, k, value, settings):
        return swapped.Swapped.call(settings, q, k, value)  # type: ignore[no-any-return]
    # A parameter keeps its requires_grad, since PyTorch picks kernels by it.
    mask = attn_mask if attn_mask is None or attn_mask.is_leaf else attn_mask.detach()
    if compiling and q.device.type == "cpu":
        return Opaque.call(op, settings, q, k, value, mask)  # type: ignore[no-any-return]
    rows, columns = laid_out(q, k, value, enable_gqa)
    return _Blockwise.call(op, settings, q, k, value, mask, rows, columns)  # type: ignore[no-any-return]


def hold_weights(operands: Sequence[Operand], degree: float | None) -> list[float]:
    """Only the value gets a cotangent: dV = P^T dO. Attention written out is a product with held softmax weights."""
    if not any(o.part == "value" for o in operands):
        return share(operands, degree)
    return [1.0 if o.part == "value" else 0.0 for o in operands]


def split(operands: Sequence[Operand], degree: float | None) -> list[float]:
    """Every factor an equal share, whatever its role: weights and value half each, query and key half of that."""
    parts = {o.part for o in operands if o.data}
    if any(o.part == "value" for o in operands):
        scores = parts & {"query", "key"}
        half = 1 / (("value" in parts) + bool(scores or "mask" in parts))
        shares = {"value": half, "mask": half, **{part: half / len(scores) for part in scores}}
        return [shares.get(o.part, 1.0) for o in operands]
    n = len({o.part if o.part == "carrier" else o.name for o in operands if o.part != "source" and o.data})
    return [1 / n if o.data and o.part != "source" else 1.0 for o in operands]


@dataclass(frozen=True)
class HoldWeights(Weighted):
    """The op's own vjp times the weights; the fused op's backward skips the cotangents of query and key."""

    def call(self, node: fx.Node, decided: Decided, done: Rewriting) -> fx.Node:
        if node.target is not SDPA:
            return super().call(node, decided, done)
        fused.allow()
        replace_call(node, value_only)
        return node


BACKWARDS = (
    HoldWeights("hold_weights", frozenset({Kind.ATTENTION}), hold_weights),
    # Softmax keeps its own gradient, which is not homogeneous.
    Weighted("split", frozenset({Kind.ATTENTION}), split, balanced=False),
)
