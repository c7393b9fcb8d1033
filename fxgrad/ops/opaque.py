"""Attention with held weights on a CPU, as two operators that `torch.compile` calls and does not look into.

How P^T g is best computed depends on values (how far the scores are from 0) and sizes (how many blocks), which no
tracer can follow without compiling again for each. As operators they are decided when the compiled code runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fxgrad.ops import swapped
from fxgrad.ops.blocks import laid_out, weights_transposed_times
from fxgrad.ops.function import Function
from fxgrad.ops.kernels import Settings


@torch.library.custom_op("fxgrad::attend", mutates_args=())
def attend(q: Tensor, k: Tensor, v: Tensor, causal: bool, given: float | None) -> tuple[Tensor, Tensor]:
    """Attention, and the log-sum-exp of each row of scores; infinity where another than the fused kernel ran."""
    if swapped.is_chosen(q, k, v, Settings(causal, given, 0.0, False)):
        y, lse = swapped.FLASH(q, k, v, 0.0, causal, scale=given)
    else:
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v, None, 0.0, causal, scale=given)
        lse = y.new_full(y.shape[:-1], math.inf)
    # In the layout of a transformer's queries, tokens before heads, whatever these have.
    return y.transpose(1, 2).contiguous().transpose(1, 2), lse.contiguous()


@attend.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, causal: bool, given: float | None) -> tuple[Tensor, Tensor]:
    batch, heads, rows, _ = q.shape
    return q.new_empty(batch, rows, heads, v.shape[-1]).transpose(1, 2), q.new_empty(batch, heads, rows)


@torch.library.custom_op("fxgrad::attention_vjp", mutates_args=())
def attention_vjp(
    g: Tensor, q: Tensor, k: Tensor, mask: Tensor | None, lse: Tensor | None, causal: bool, scale: float, grouped: bool
) -> Tensor:
    """P^T g, contiguous, with the leading axes that q and k are broadcast to: by the fused kernel or block by block."""
    settings = Settings(causal, scale, scale, grouped)
    fused = lse is not None and lse.numel() and not lse.flatten()[0].isposinf()
    if lse is not None and fused and swapped.within_reach(q, k, scale):
        return swapped.product(settings, *swapped.operands(settings, q, k, lse), g).contiguous()
    rows, columns = laid_out(q, k, k, grouped)
    return weights_transposed_times(g, rows, columns, mask, causal, scale).contiguous()


@attention_vjp.register_fake
def _(
    g: Tensor, q: Tensor, k: Tensor, mask: Tensor | None, lse: Tensor | None, causal: bool, scale: float, grouped: bool
) -> Tensor:
    lead = k.shape[:-2] if grouped else torch.broadcast_shapes(q.shape[:-2], k.shape[:-2])  # type: ignore[no-untyped-call]
    return g.new_empty(*lead, k.shape[-2], g.shape[-1])


def _one_by_one(op: Callable[..., Any]) -> Callable[..., Any]:
    """What vmap makes of an operator: a call for every element."""

    def batched(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
        def at(i: int) -> tuple[Any, ...]:
            return tuple(a if dim is None else a.select(dim, i) for a, dim in zip(args, in_dims))

        results = [op(*at(i)) for i in range(info.batch_size)]
        if isinstance(results[0], Tensor):
            return torch.stack(results), 0
        return tuple(torch.stack(part) for part in zip(*results)), tuple(0 for _ in results[0])

    return batched


attend.register_vmap(_one_by_one(attend))
attention_vjp.register_vmap(_one_by_one(attention_vjp))


class Opaque(Function):
    """Attention, the fused kernel where it is chosen; its backward is `attention_vjp`."""

    keeps = True

    @staticmethod
    def forward(op: Any, settings: Settings, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Any, ...]:
        if op is swapped.SDPA and mask is None and swapped.fits(q, k, settings):
            return attend(q, k, v.detach(), settings.causal, settings.given)  # type: ignore[no-any-return]
        y = op(q, k, v.detach(), mask, 0.0, settings.causal, scale=settings.given, enable_gqa=settings.grouped)
        return (y,)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        _, ctx.settings, q, k, v, mask = inputs
        ctx.v_shape, ctx.v_dtype = v.shape, v.dtype
        ctx.save_for_backward(q, k, mask, output[1] if len(output) > 1 else None)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Any, ...]:
        q, k, mask, lse = ctx.saved_tensors
        causal, _, scale, grouped = ctx.settings
        dv = attention_vjp(cotangent, q, k, mask, lse, causal, scale, grouped)
        return None, None, None, None, dv.sum_to_size(ctx.v_shape).to(ctx.v_dtype), None
