"""Attention whose weights are held: only the value gets a cotangent, dV = P^T dO.

With P = softmax(scale q k^T + mask) held, attention is linear in v. A fused kernel's own backward computes three
cotangents with five matrix products, and two of them would be dropped. Two products suffice: one recomputes P, one
applies it. There are two ways:

- The fused forward kernel, with q and k swapped. The forward returns lse, and log P = scale q k^T - lse. To subtract
  lse, q gets one more column (-lse / scale), and so does k (1). The swapped kernel normalizes along the other axis,
  P / Z, and returns log Z, so that Z * kernel(k, q, g) = P^T g.
- Block by block, for any kernel (`blocks.py`).

That is for a CPU; on a GPU `fused.py` chooses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fxgrad.kinds import Kind, Operand
from fxgrad.ops import fused
from fxgrad.ops.backward import Decided, Rewriting, replace_call
from fxgrad.ops.blocks import split_axis, weights_transposed_times
from fxgrad.ops.function import Function
from fxgrad.ops.fused import CHOICE
from fxgrad.ops.kernels import Settings
from fxgrad.ops.short import Short, short
from fxgrad.ops.weights import Weighted, recording, share, weighted

SDPA = torch.ops.aten.scaled_dot_product_attention.default
FLASH: Any = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
"""The CPU's fused kernel, (q, k, v, dropout, causal, scale=) -> (output, lse); None if PyTorch no longer has it."""
IS_FLASH = 1
"""Its return value for the fused kernel (`torch.nn.attention.SDPBackend.FLASH_ATTENTION`)."""

REACH = 256.0
"""The largest |score| for the swapped kernel: the error of P is at most that many roundings."""


class _Fused(Function):
    """Attention by the fused kernel; the backward calls the same kernel with q and k swapped."""

    keeps = True

    @staticmethod
    def forward(settings: Settings, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        causal, given, scale, _ = settings
        y, lse = FLASH(q, k, v.detach(), 0.0, causal, scale=given)
        queries = torch.cat([q, lse.to(q.dtype).unsqueeze(-1) / -scale], -1)
        keys = torch.nn.functional.pad(k, (0, 1), value=1.0)
        # Row i of P sees columns up to i; row j of P^T sees columns from j on, which is causal in reversed order.
        return (y, queries.flip(-2), keys.flip(-2)) if causal else (y, queries, keys)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        ctx.settings = inputs[0]
        ctx.save_for_backward(*output[1:])

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Any, ...]:
        queries, keys = ctx.saved_tensors
        return None, None, None, _Swapped.call(ctx.settings, queries, keys, cotangent)


class _Swapped(Function):
    """P^T g by the fused kernel; under vmap block by block, so that all cotangents share P."""

    generate_vmap_rule = False

    @staticmethod
    def forward(settings: Settings, queries: Tensor, keys: Tensor, g: Tensor) -> Tensor:
        causal, _, scale, _ = settings
        g = torch.nn.functional.pad(g.flip(-2) if causal else g, (0, 1))
        y, log_z = FLASH(keys, queries, g, 0.0, causal, scale=scale)
        dv: Tensor = y[..., :-1] * log_z.to(y.dtype).exp().unsqueeze(-1)
        return dv.flip(-2) if causal else dv

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Any, ...]:
        raise NotImplementedError("attention with held weights has no second derivative")

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], settings: Settings, queries: Tensor, keys: Tensor, g: Tensor
    ) -> tuple[Tensor, int]:
        def blockwise(queries: Tensor, keys: Tensor, g: Tensor) -> Tensor:
            if settings.causal:
                queries, keys = queries.flip(-2), keys.flip(-2)
            return weights_transposed_times(g, queries.unsqueeze(-3), keys.mT, None, settings.causal, settings.scale)

        return torch.func.vmap(blockwise, in_dims[1:], randomness=info.randomness)(queries, keys, g), 0


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
    if op is SDPA and attn_mask is None and _takes_flash(q, k, value, settings):
        return _Fused.call(settings, q, k, value)  # type: ignore[no-any-return]
    # A parameter keeps its requires_grad, since PyTorch picks kernels by it.
    mask = attn_mask if attn_mask is None or attn_mask.is_leaf else attn_mask.detach()
    rows, columns = _laid_out(q, k, value, enable_gqa)
    return _Blockwise.call(op, settings, q, k, value, mask, rows, columns)  # type: ignore[no-any-return]


def _takes_flash(q: Tensor, k: Tensor, v: Tensor, settings: Settings) -> bool:
    """Whether unmasked attention would pick the CPU's fused kernel, and its swapped form can be the backward.

    Not in half precision, where lse would lose digits; not for causal attention of unequal lengths, which reversed is
    not causal; not for groups. And not where scores may be far from 0: log P is a difference of such numbers, while a
    block of whole rows normalizes its rounding errors away.
    """
    causal, given, scale, grouped = settings
    fits = q.device.type == "cpu" and q.dtype in (torch.float32, torch.float64) and q.dim() == 4
    if not fits or FLASH is None or CHOICE is None or q.shape[1] != k.shape[1] or (causal and q.shape[2] != k.shape[2]):
        return False
    if torch.compiler.is_compiling():
        return False  # neither the choice nor the scores' bound can be traced
    try:
        if CHOICE(q, k, v.detach(), None, 0.0, causal, scale=given, enable_gqa=grouped) != IS_FLASH:
            return False
        longest = [torch.linalg.vector_norm(t, dim=-1).amax().item() for t in (q, k)]
    except RuntimeError:
        return False  # inputs are traced, or wrapped by vmap
    return bool(longest[0] * longest[1] * abs(scale) <= REACH)


def _laid_out(q: Tensor, k: Tensor, v: Tensor, grouped: bool) -> tuple[Tensor, Tensor]:
    """q as (..., heads, groups, rows, width) and k as (..., heads, width, columns), both contiguous.

    Copies, since batched products want contiguous operands, and since q, k and v are often views of one projection,
    which a kept view would keep in memory.
    """
    heads = k.shape[-3] if grouped else 0
    if heads and heads != q.shape[-3]:
        shapes = [t.shape[:-3] for t in (q, k, v)]
        q = split_axis(q, -3, heads)
    else:
        heads, shapes = 0, [t.shape[:-2] for t in (q, k, v)]
        q = q.unsqueeze(-3)
    lead: tuple[int, ...] = torch.broadcast_shapes(*shapes)  # type: ignore[no-untyped-call]
    lead += (heads,) if heads else ()
    rows = q.expand(*lead, *q.shape[-3:]).clone(memory_format=torch.contiguous_format)
    columns = k.transpose(-2, -1).expand(*lead, k.shape[-1], k.shape[-2]).clone(memory_format=torch.contiguous_format)
    return rows, columns


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
