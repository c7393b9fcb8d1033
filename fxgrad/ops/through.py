"""Elementwise functions that are not finite at 0, carried by the secant through the point where they are 0.

f(x) = s * (x - r) with s = f(x) / (x - r), held: what a shift by the constant -r, a source, and a secant through 0
would give. So a logarithm is carried as log1p(x - 1) is.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fxgrad.ops.function import Function


def root_of(op: Any, point: float, *args: Any, **kwargs: Any) -> tuple[float, float]:
    """The point where the elementwise function `x -> op(x, *args, **kwargs)` is 0, and its derivative there.

    Args:
        op: elementwise callable, differentiable by autograd.
        point: where it is to be 0.
        *args, **kwargs: numbers that follow the first operand.

    Raises:
        ValueError: it is not 0 there, or its derivative is not finite.

    Example:
        >>> root_of(torch.log, 1.0)
        (1.0, 1.0)
    """
    x = torch.tensor(point, dtype=torch.float64, requires_grad=True)
    with torch.enable_grad():
        y = op(x, *args, **kwargs)
    slope = float(torch.autograd.grad(y, x)[0]) if y.requires_grad else math.nan
    if y.item() != 0 or not math.isfinite(slope):
        raise ValueError(f"it is {y.item():g} at {point:g}, with the slope {slope:g}")
    return float(point), slope


class _Through(Function):
    @staticmethod
    def forward(op: Any, root: tuple[float, float], x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        return op(x, *args, **kwargs)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.root = inputs[1]
        ctx.save_for_backward(inputs[2], output)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Any, ...]:
        (x, y), (point, limit) = ctx.saved_tensors, ctx.root
        # Near the root the difference is exact, and f(x) has all its digits.
        apart = x - point
        return None, None, cotangent * torch.where(apart == 0, limit, y / apart), None, None


def through(op: Any, root: tuple[float, float], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Call the elementwise `op`; its vjp is g * f(x) / (x - r), with the limit f'(r) at x = r.

    Args:
        op: elementwise callable, usually a `torch._ops.OpOverload`; 0 at r, and exact to a few ulps around it.
        root: r and f'(r), from `root_of`.
        x: any shape, any floating dtype.
        *args, **kwargs: numbers that follow x.

    Returns:
        `op(x, *args, **kwargs)`, bit for bit; same shape as x. What x times the gradient lacks of it is the
        source -r, held slope included.

    Example:
        >>> x = torch.tensor([0.5, 1.0, 3.0], requires_grad=True)
        >>> y = through(torch.log, (1.0, 1.0), x)
        >>> torch.allclose((x - 1) * torch.autograd.grad(y.sum(), x)[0], y)
        True

    Source: DeepLIFT's Rescale rule (Shrikumar et al., arXiv:1704.02685, eq. 10) with reference r.
    """
    return _Through.call(op, root, x, args, kwargs)  # type: ignore[no-any-return]
