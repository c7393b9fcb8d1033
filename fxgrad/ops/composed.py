"""Twins of ops that are small programs: the op in plain PyTorch, with `.detach()` on held operands.

Each has the op's own signature, and the op's values up to rounding; `fxgrad.ops.Twin` replaces them by the original
kernel's values.

Source: LibraGrad, arXiv:2411.16760, section 3.2, for gates and norms; Euler's theorem for homogeneous functions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fxgrad.ops import losses
from fxgrad.ops.normalization import Layout, hold_scale
from fxgrad.ops.recurrences import RECURRENCES
from fxgrad.ops.weights import weighted


def glu(self: Tensor, dim: int = -1) -> Tensor:
    """One half of the input times the sigmoid of the other half; the sigmoid, a gate, is held."""
    value, gate = self.chunk(2, dim)
    return value * gate.sigmoid().detach()


def lerp(self: Tensor, end: Tensor, weight: Tensor) -> Tensor:
    """A weighted mean, its weights held."""
    return torch.lerp(self, end, weight.detach())


def addcdiv(self: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: float = 1) -> Tensor:
    """self + value * tensor1 / tensor2, with the denominator held."""
    return torch.addcdiv(self, tensor1, tensor2.detach(), value=value)


def power(self: Tensor, exponent: Tensor) -> Tensor:
    """x^p with a tensor for p: homogeneous of degree p, element by element."""
    return self * self.pow(exponent - 1).detach()


def prod(self: Tensor, dim: int | None = None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Tensor:
    """The product of n numbers: homogeneous of degree n."""
    if dim is None:
        return weighted(torch.prod, (1 / max(self.numel(), 1),), self, dtype=dtype)  # type: ignore[no-any-return]
    share = 1 / (self.shape[dim] if self.dim() else 1)
    return weighted(torch.prod, (share, None, None), self, dim, keepdim, dtype=dtype)  # type: ignore[no-any-return]


def cumprod(self: Tensor, dim: int, *, dtype: torch.dtype | None = None) -> Tensor:
    """The products of the first 1, 2, ... numbers: homogeneous of degree 1, 2, ..."""
    y = torch.cumprod(self, dim, dtype=dtype)
    if not y.dim():
        return y
    shape = [-1 if axis == dim % y.dim() else 1 for axis in range(y.dim())]
    degree = torch.arange(1, y.shape[dim] + 1, dtype=y.dtype, device=y.device).reshape(shape)
    return y / degree + (y * (1 - 1 / degree)).detach()


def scatter_prod(
    self: Tensor, dim: int, index: Tensor, src: Tensor, reduce: str, *, include_self: bool = True
) -> Tensor:
    """Products of the elements of `src` that meet, n of them: homogeneous of degree n; what is met by none stays."""
    y = torch.scatter_reduce(self.detach(), dim, index, src, reduce, include_self=include_self)
    wide = torch.promote_types(self.dtype, torch.float32)  # that counts far enough
    met = torch.zeros_like(self, dtype=wide).scatter_add(dim, index, torch.ones_like(src, dtype=wide))
    return _shared(self, y, met)


def index_prod(
    self: Tensor, dim: int, index: Tensor, source: Tensor, reduce: str, *, include_self: bool = True
) -> Tensor:
    """As `scatter_prod`, for whole slices."""
    y = torch.index_reduce(self.detach(), dim, index, source, reduce, include_self=include_self)
    wide = torch.promote_types(self.dtype, torch.float32)
    met = torch.zeros_like(self, dtype=wide).index_add(dim, index, torch.ones_like(source, dtype=wide))
    return _shared(self, y, met)


def _shared(first: Tensor, y: Tensor, degree: Tensor) -> Tensor:
    """Values homogeneous of these degrees, with balanced gradients; where the degree is 0, the first value itself."""
    share = (1 / degree.clamp(min=1)).to(y.dtype)
    return torch.where(degree > 0, y * share + (y * (1 - share)).detach(), first)


def aminmax(self: Tensor, *, dim: int | None = None, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """Minimum and maximum, piecewise linear; PyTorch 2.11 has no derivative for `aminmax`."""
    axes = [] if dim is None else [dim]
    return self.amin(axes, keepdim), self.amax(axes, keepdim)


def var_mean(
    self: Tensor, dim: Sequence[int] | None = None, *, correction: float | None = None, keepdim: bool = False
) -> tuple[Tensor, Tensor]:
    """A variance, homogeneous of degree 2, and the mean, which is linear."""
    var, mean = torch.var_mean(self, None if dim is None else list(dim), correction=correction, keepdim=keepdim)
    return var / 2 + var.detach() / 2, mean


def entr(self: Tensor) -> Tensor:
    """x * -log x, with the logarithm held."""
    return -torch.xlogy(self, self.detach())


def as_strided_scatter(
    self: Tensor, src: Tensor, size: Sequence[int], stride: Sequence[int], storage_offset: int | None = None
) -> Tensor:
    """The elements of `src` where the op puts them, and those of `self` elsewhere."""
    numbers = torch.arange(1, src.numel() + 1, device=src.device).reshape(src.shape)
    start = torch.zeros_like(self, dtype=torch.int64)
    put = torch.as_strided_scatter(start, numbers, list(size), list(stride), storage_offset)
    return torch.where(put > 0, src.flatten()[(put - 1).clamp(min=0)], self)


def instance_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Tensor:
    """The scale is held where it comes from the input; with running statistics the op is affine already."""
    if not use_input_stats:
        shape = (-1, *[1] * (input.dim() - 2))
        assert running_mean is not None and running_var is not None
        y = (input - running_mean.reshape(shape)) * torch.rsqrt(running_var.reshape(shape) + eps)
        y = y if weight is None else y * weight.reshape(shape)
        return y if bias is None else y + bias.reshape(shape)
    layout = _layout(1, weight, bias, eps, groups=input.shape[1])
    args = (input, weight, bias, running_mean, running_var, use_input_stats, momentum, eps, cudnn_enabled)
    return hold_scale(torch.instance_norm, layout, *args)


def native_layer_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The scale is held. Of the returned statistics, the mean is linear and the scale a gate."""
    layout = _layout(2, weight, bias, eps, trailing=len(normalized_shape))
    y = hold_scale(torch.layer_norm, layout, input, list(normalized_shape), weight, bias, eps)
    _, _, scale = torch.native_layer_norm(input, list(normalized_shape), weight, bias, eps)
    return y, input.mean(list(range(-len(normalized_shape), 0)), keepdim=True), scale.detach()


def native_group_norm(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, N: int, C: int, HxW: int, group: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """As `native_layer_norm`, over groups of channels."""
    layout = _layout(2, weight, bias, eps, groups=group)
    y = hold_scale(torch.group_norm, layout, input, group, weight, bias, eps)
    _, _, scale = torch.native_group_norm(input, weight, bias, N, C, HxW, group, eps)
    return y, input.reshape(N, group, -1).mean(-1), scale.detach()


def _layout(
    weights: int, weight: Tensor | None, bias: Tensor | None, eps: float, trailing: int = 0, groups: int = 0
) -> Layout:
    """The carrier comes first; the weight is at position `weights`, the bias right after it."""
    places = (None if weight is None else weights, None if bias is None else weights + 1)
    return Layout(0, *places, trailing, groups, True, eps)


TWINS: dict[str, Callable[..., Any]] = {
    **RECURRENCES,
    **losses.TWINS,
    "aten.glu": glu,
    "aten.lerp.Tensor": lerp,
    "aten.addcdiv": addcdiv,
    "aten.pow.Tensor_Tensor": power,
    "aten.prod.default": prod,
    "aten.prod.dim_int": prod,
    "aten.cumprod": cumprod,
    "aten.scatter_reduce": scatter_prod,
    "aten.index_reduce.default": index_prod,
    "aten.aminmax": aminmax,
    "aten.special_entr": entr,
    "aten.as_strided_scatter": as_strided_scatter,
    "aten.var_mean.correction": var_mean,
    "aten.instance_norm": instance_norm,
    "aten.native_layer_norm": native_layer_norm,
    "aten.native_group_norm": native_group_norm,
}
"""Op of a composed row in rules/ops.toml -> its twin."""
