"""Backward ops that ONNX lacks, written in ATen ops that it has.

Each is the adjoint of a linear map: for a convolution a transposed convolution, for a pooling a transposed convolution
with ones or a scatter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

aten = torch.ops.aten
DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {}
"""ATen op -> its decomposition."""


def _of(op: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        DECOMPOSITIONS[op] = function
        return function

    return register


@_of(aten.convolution_backward.default)
def _convolution_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias_sizes: Sequence[int] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    output_mask: Sequence[bool],
) -> Any:
    """The input's gradient; weights are constants in an explainer and get none."""
    if any(output_mask[1:]):
        return NotImplemented
    zeros = [0] * len(stride)
    if transposed:
        return aten.convolution(grad, weight, None, stride, padding, dilation, False, zeros, groups), None, None
    spans = [
        (out - 1) * s - 2 * p + d * (k - 1) + 1
        for out, s, p, d, k in zip(grad.shape[2:], stride, padding, dilation, weight.shape[2:])
    ]
    rest = [size - span for size, span in zip(x.shape[2:], spans)]
    return aten.convolution(grad, weight, None, stride, padding, dilation, True, rest, groups), None, None


@_of(aten.max_pool2d_with_indices_backward.default)
def _max_pool2d_backward(
    grad: Tensor,
    x: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
    indices: Tensor,
) -> Tensor:
    # onnxruntime adds no float16 on CPUs.
    wide = torch.float32 if grad.dtype is torch.float16 else grad.dtype
    zeros = grad.new_zeros(*x.shape[:-2], x.shape[-2] * x.shape[-1], dtype=wide)
    return zeros.scatter_add(-1, indices.flatten(-2), grad.flatten(-2).to(wide)).reshape(x.shape).to(grad.dtype)


@_of(aten.avg_pool2d_backward.default)
def _avg_pool2d_backward(
    grad: Tensor,
    x: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Tensor:
    stride = stride or kernel_size
    planes = grad.reshape(-1, 1, *grad.shape[-2:])
    sizes = _counts(x.shape[-2:], grad.shape[-2:], kernel_size, stride, padding, count_include_pad)
    planes = planes / (divisor_override or sizes.to(planes))
    ones = planes.new_ones(1, 1, *kernel_size)
    spread = F.conv_transpose2d(planes, ones, stride=stride)
    for axis, (size, pad) in enumerate(zip(x.shape[-2:], padding), 2):
        missing = pad + size - spread.shape[axis]
        if missing > 0:
            spread = F.pad(spread, (0, missing) if axis == 3 else (0, 0, 0, missing))
        spread = spread.narrow(axis, pad, size)
    return spread.reshape(x.shape)


def _counts(
    sizes: Sequence[int],
    outs: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    padded: bool,
) -> Tensor:
    """The divisor of each pooling window: its number of pixels, with or without the padding."""
    counts = []
    for size, out, k, s, p in zip(sizes, outs, kernel, stride, padding):
        low, high = (-p, size + p) if padded else (0, size)
        counts.append([float(min(i * s - p + k, high) - max(i * s - p, low)) for i in range(out)])
    return torch.tensor(counts[0]).unsqueeze(1) * torch.tensor(counts[1])
