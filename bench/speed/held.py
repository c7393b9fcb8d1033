"""LibraGrad's rules by hand, in ordinary PyTorch and as autograd.Functions: what the hook baselines call.

What is held is detached, or computed without a graph. Parameters get no gradients.
Source: LibraGrad, arXiv:2411.16760, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm


def slope(x: Tensor, y: Tensor) -> Tensor:
    """The gate of y = x * gate(x).

    Args:
        x, y: any shape; y is GELU's or SiLU's, which have the limit 1/2 at x = 0 in common.

    Example:
        >>> x = torch.tensor([-1.0, 0.0, 2.0])
        >>> torch.allclose(slope(x, F.silu(x)), torch.sigmoid(x))
        True
    """
    return (y / x).nan_to_num_(nan=0.5)


def detached_gelu(x: Tensor, approximate: str) -> Tensor:
    """GELU with its gate held.

    Args:
        x: any shape.
        approximate: as torch.nn.GELU's.

    Example:
        >>> x = torch.tensor([-1.0, 2.0], requires_grad=True)
        >>> y = detached_gelu(x, "none")
        >>> torch.allclose(x * torch.autograd.grad(y.sum(), x)[0], y)
        True
    """
    held = x.detach()
    return x * slope(held, F.gelu(held, approximate=approximate))


class HeldGELU(torch.autograd.Function):
    """GELU with its gate held, which only the backward computes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, approximate: str) -> Tensor:
        y = F.gelu(x, approximate=approximate)
        ctx.save_for_backward(x, y)
        return y

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None]:
        return slope(*ctx.saved_tensors).mul_(cotangent), None


def detached_layer_norm(x: Tensor, layer: nn.LayerNorm) -> Tensor:
    """Layer norm with 1/sigma held.

    Args:
        x: (..., width).
        layer: over the width; with or without weight and bias.

    Example:
        >>> x = torch.tensor([[1.0, 2.0, 6.0]], requires_grad=True)
        >>> y = detached_layer_norm(x, nn.LayerNorm(3))
        >>> torch.allclose((x * torch.autograd.grad(y[0, 2], x)[0]).sum(), y[0, 2])
        True
    """
    centre = x - x.mean(-1, keepdim=True)
    y = centre * (centre.detach().square().mean(-1, keepdim=True) + layer.eps).rsqrt()
    if layer.weight is None:
        return y
    return y * layer.weight if layer.bias is None else torch.addcmul(layer.bias, y, layer.weight)


class HeldLayerNorm(torch.autograd.Function):
    """The layer norm kernel with 1/sigma held."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: nn.LayerNorm) -> Tensor:
        y, _, scale = torch.native_layer_norm(x, layer.normalized_shape, layer.weight, layer.bias, layer.eps)
        ctx.layer = layer
        ctx.save_for_backward(scale)
        return y

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None]:
        return through_layer_norm(ctx.layer, ctx.saved_tensors[0], cotangent), None


def through_layer_norm(layer: nn.LayerNorm, scale: Tensor, cotangent: Tensor) -> Tensor:
    """The vjp of a layer norm whose scale is held.

    Args:
        layer: over the width; with or without weight.
        scale: 1/sigma, (..., 1).
        cotangent: (..., width).

    Returns:
        What its input gets, (..., width), in the cotangent's dtype.

    Example:
        >>> through_layer_norm(nn.LayerNorm(2), torch.ones(1, 1), torch.tensor([[3.0, 1.0]])).tolist()
        [[1.0, -1.0]]
    """
    inflow = (cotangent if layer.weight is None else cotangent * layer.weight) * scale
    return (inflow - inflow.mean(-1, keepdim=True)).to(cotangent.dtype)


def rms_scale(x: Tensor, layer: LlamaRMSNorm) -> Tensor:
    """1/rms, held.

    Args:
        x: (..., width), widened.
        layer: whose epsilon is added.

    Returns:
        A tensor (..., 1), without a graph.

    Example:
        >>> rms_scale(torch.tensor([2.0, 2.0]), LlamaRMSNorm(2, eps=0.0))
        tensor([0.5000])
    """
    return torch.rsqrt(x.detach().square().mean(-1, keepdim=True) + layer.variance_epsilon)


def widened(x: Tensor) -> Tensor:
    """x in at least float32, in which Llama computes norms; it computes float64's in float32, too.

    Example:
        >>> widened(torch.ones(1, dtype=torch.bfloat16)).dtype
        torch.float32
    """
    return x.to(torch.promote_types(x.dtype, torch.float32))


Attention = Callable[[Tensor, Tensor, Tensor, "Tensor | None", bool, float], Tensor]
"""(query, key, value, mask, causal, scale) -> output.

All are (batch, heads, tokens, width), and the heads of keys and values divide those of queries; the mask, boolean or
added, is broadcast to (batch, heads, queries, keys). Queries and keys come without a graph.
"""


def fused_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float) -> Tensor:
    """The fused kernel. Its backward computes what queries and keys would get as well, and drops it.

    Args:
        q, k, v, mask, causal, scale: as `Attention` says.

    Example:
        >>> q = torch.randn(1, 2, 3, 4)
        >>> fused_attention(q, q, q, None, True, 0.5).shape
        torch.Size([1, 2, 3, 4])
    """
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=scale, enable_gqa=grouped)


def written_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float) -> Tensor:
    """Weights that are computed without a graph, times values: the backward is one product.

    Args:
        q, k, v, mask, causal, scale: as `Attention` says.

    Example:
        >>> q, k = torch.randn(1, 4, 3, 8), torch.randn(1, 2, 3, 8)
        >>> y = written_attention(q, k, k, None, True, 0.5)
        >>> torch.allclose(y, fused_attention(q, k, k, None, True, 0.5), atol=1e-6)
        True
    """
    with torch.no_grad():
        # The queries that share keys and values, one below the other.
        scores = (q.reshape(*k.shape[:2], -1, q.shape[-1]) * scale) @ k.mT
        by_head = scores.view(*q.shape[:3], -1)
        if causal:
            mask = torch.ones(by_head.shape[-2:], dtype=torch.bool, device=q.device).tril()
        if mask is not None:
            by_head = by_head.masked_fill_(~mask, -math.inf) if mask.dtype == torch.bool else by_head.add_(mask)
        weights = by_head.softmax(-1).view_as(scores)
    return (weights @ v).view(*q.shape[:3], -1)


@dataclass(frozen=True)
class Rules:
    """What the swapped modules call; the two styles differ in nothing else."""

    gelu: Callable[[Tensor, str], Tensor]
    layer_norm: Callable[[Tensor, nn.LayerNorm], Tensor]
    attention: Attention


DETACHED = Rules(detached_gelu, detached_layer_norm, fused_attention)
FUNCTIONS = Rules(HeldGELU.apply, HeldLayerNorm.apply, written_attention)
