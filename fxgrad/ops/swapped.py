"""P^T g by the CPU's fused forward kernel, with q and k swapped.

The forward returns lse, and log P = scale q k^T - lse. To subtract lse, q gets one more column (-lse / scale), and so
does k (1). The swapped kernel normalizes along the other axis, P / Z, and returns log Z, so that Z * kernel(k, q, g) =
P^T g.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fxgrad.ops.blocks import weights_transposed_times
from fxgrad.ops.function import Function
from fxgrad.ops.fused import CHOICE
from fxgrad.ops.kernels import Settings

SDPA = torch.ops.aten.scaled_dot_product_attention.default
FLASH: Any = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
"""The CPU's fused kernel, (q, k, v, dropout, causal, scale=) -> (output, lse); None if PyTorch no longer has it."""
IS_FLASH = 1
"""Its return value for the fused kernel (`torch.nn.attention.SDPBackend.FLASH_ATTENTION`)."""

REACH = 256.0
"""The largest |score| for the swapped kernel: the error of P is at most that many roundings."""


class Swapped(Function):
    """Attention by the fused kernel; the backward calls the same kernel with q and k swapped."""

    keeps = True

    @staticmethod
    def forward(settings: Settings, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, lse = FLASH(q, k, v.detach(), 0.0, settings.causal, scale=settings.given)
        return y, *operands(settings, q, k, lse)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        ctx.settings = inputs[0]
        ctx.save_for_backward(*output[1:])

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Any, ...]:
        queries, keys = ctx.saved_tensors
        return None, None, None, _Product.call(ctx.settings, queries, keys, cotangent)


class _Product(Function):
    """P^T g by the fused kernel; under vmap block by block, so that all cotangents share P."""

    generate_vmap_rule = False

    @staticmethod
    def forward(settings: Settings, queries: Tensor, keys: Tensor, g: Tensor) -> Tensor:
        return product(settings, queries, keys, g)

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


def operands(settings: Settings, q: Tensor, k: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    """q and k with one more column, from which the swapped kernel makes log P."""
    queries = torch.cat([q, lse.to(q.dtype).unsqueeze(-1) / -settings.scale], -1)
    keys = torch.nn.functional.pad(k, (0, 1), value=1.0)
    # Row i of P sees columns up to i; row j of P^T sees columns from j on, which is causal in reversed order.
    return (queries.flip(-2), keys.flip(-2)) if settings.causal else (queries, keys)


def product(settings: Settings, queries: Tensor, keys: Tensor, g: Tensor) -> Tensor:
    """P^T g, from what `operands` returned."""
    causal, scale = settings.causal, settings.scale
    g = torch.nn.functional.pad(g.flip(-2) if causal else g, (0, 1))
    y, log_z = FLASH(keys, queries, g, 0.0, causal, scale=scale)
    dv: Tensor = y[..., :-1] * log_z.to(y.dtype).exp().unsqueeze(-1)
    return dv.flip(-2) if causal else dv


def fits(q: Tensor, k: Tensor, settings: Settings) -> bool:
    """Whether the swapped kernel can be the backward of unmasked attention.

    Not in half precision, where lse would lose digits; not for causal attention of unequal lengths, which reversed is
    not causal; not for groups.
    """
    if q.device.type != "cpu" or q.dtype not in (torch.float32, torch.float64) or FLASH is None or CHOICE is None:
        return False
    return q.dim() == 4 and q.shape[1] == k.shape[1] and not (settings.causal and q.shape[2] != k.shape[2])


def is_chosen(q: Tensor, k: Tensor, v: Tensor, settings: Settings) -> bool:
    """Whether attention picks the fused kernel."""
    chosen = CHOICE(q, k, v, None, 0.0, settings.causal, scale=settings.given, enable_gqa=settings.grouped)
    return bool(chosen == IS_FLASH)


def within_reach(q: Tensor, k: Tensor, scale: float) -> bool:
    """Whether no score is far from 0: log P is a difference of such numbers.

    A block of whole rows, for comparison, normalizes its rounding errors away.
    """
    longest = [torch.linalg.vector_norm(t, dim=-1).amax().item() if t.numel() else 0.0 for t in (q, k)]
    return bool(longest[0] * longest[1] * abs(scale) <= REACH)


def takes(q: Tensor, k: Tensor, v: Tensor, settings: Settings) -> bool:
    """Whether `Swapped` takes unmasked attention of these operands."""
    if not fits(q, k, settings):
        return False
    try:
        return is_chosen(q, k, v.detach(), settings) and within_reach(q, k, settings.scale)
    except RuntimeError:
        return False  # inputs are traced, or wrapped by vmap
