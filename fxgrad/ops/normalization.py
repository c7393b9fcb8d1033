"""Normalizations whose scale is held: layer_norm, rms_norm, group_norm, instance_norm.

y = (x - mean(x)) * s * w + b with s = 1/sigma(x), or y = x * s * w with s = 1/rms(x). With s held, y
is affine in x: the mean subtraction stays linear, and the shift b is a source.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Layout(NamedTuple):
    """Where a normalization's operands are among its arguments, and over what it normalizes.

    Attributes:
        carrier: position of x, shaped (..., *trailing axes) or (N, C, *).
        weight: position of w, or None; w has the shape of the trailing axes, or (C,).
        bias: position of b, or None; shaped as w.
        trailing: number of trailing axes that form a group (layer_norm, rms_norm), or 0.
        groups: number of channel groups (group_norm; C for instance_norm) where trailing is 0.
        centered: whether the mean is subtracted.
        eps: added to the variance or mean square; None stands for the machine epsilon.
    """

    carrier: int
    weight: int | None
    bias: int | None
    trailing: int
    groups: int
    centered: bool
    eps: float | None

    def grouped(self, x: Tensor) -> Tensor:
        """x with every group along the last axis."""
        return x.reshape(*x.shape[: -self.trailing], -1) if self.trailing else x.reshape(x.shape[0], self.groups, -1)

    def broadcast(self, weight: Tensor, x: Tensor) -> Tensor:
        """w, viewed so that it multiplies x."""
        return weight if self.trailing else weight.reshape(-1, *[1] * (x.dim() - 2))

    def reduced(self, gradient: Tensor) -> Tensor:
        """A gradient shaped as x, summed to the shape of w."""
        if self.trailing:
            return gradient.reshape(-1, *gradient.shape[-self.trailing :]).sum(0)
        return gradient.transpose(0, 1).reshape(gradient.shape[1], -1).sum(1)


def _standardize(layout: Layout, x: Tensor) -> tuple[Tensor, Tensor]:
    """The groups of x, centered where the layout says so, and their scale (..., 1)."""
    groups = layout.grouped(x)
    if layout.centered:
        groups = groups - groups.mean(-1, keepdim=True)
    eps = torch.finfo(x.dtype).eps if layout.eps is None else layout.eps
    return groups, torch.rsqrt(groups.square().mean(-1, keepdim=True) + eps)


class _HoldScale(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(op: Any, layout: Layout, *args: Any) -> Tensor:
        return op(*args)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.layout, args = inputs[1], inputs[2:]
        layout = ctx.layout
        ctx.count = len(args)
        ctx.save_for_backward(args[layout.carrier], None if layout.weight is None else args[layout.weight])

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Any, ...]:
        layout, (x, weight) = ctx.layout, ctx.saved_tensors
        # Statistics of half precision in float32, as the kernels themselves keep them.
        half = x.dtype in (torch.float16, torch.bfloat16)
        wide, g = (x.float(), cotangent.float()) if half else (x, cotangent)
        groups, scale = _standardize(layout, wide)
        gradients: list[Tensor | None] = [None] * ctx.count

        weighted = g if weight is None else g * layout.broadcast(weight, x)
        inflow = layout.grouped(weighted) * scale
        if layout.centered:
            inflow = inflow - inflow.mean(-1, keepdim=True)
        gradients[layout.carrier] = inflow.reshape(x.shape).to(x.dtype)
        if weight is not None and ctx.needs_input_grad[2 + layout.weight]:
            gradients[layout.weight] = layout.reduced(g * (groups * scale).reshape(x.shape)).to(weight.dtype)
        if layout.bias is not None and ctx.needs_input_grad[2 + layout.bias]:
            gradients[layout.bias] = layout.reduced(g).to(cotangent.dtype)
        return None, None, *gradients


def hold_scale(op: Any, layout: Layout, *args: Any) -> Tensor:
    """Call a normalization; its vjp treats 1/sigma (or 1/rms) as a constant.

    Args:
        op: the normalization, usually a `torch._ops.OpOverload`.
        layout: where its operands are and over what it normalizes.
        *args: the op's positional arguments; the carrier of any floating dtype (statistics of the
            backward are float32 below float32).

    Returns:
        `op(*args)`, bit for bit. Cotangents flow to the carrier, the weight and the bias.

    Example:
        >>> x = torch.tensor([[1.0, 2.0, 6.0]], dtype=torch.float64, requires_grad=True)
        >>> layout = Layout(0, None, None, trailing=1, groups=0, centered=True, eps=1e-5)
        >>> y = hold_scale(torch.nn.functional.layer_norm, layout, x, [3])
        >>> g = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)
        >>> torch.allclose((x * torch.autograd.grad(y, x, g)[0]).sum(), y[0, 0])
        True

    Source: LibraGrad, arXiv:2411.16760, section 3.2 (layer normalization: the standard deviation is
    treated as a constant).
    """
    return _HoldScale.apply(op, layout, *args)  # type: ignore[no-any-return]
