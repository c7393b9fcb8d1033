"""Normalizations whose scale is held: layer_norm, rms_norm, group_norm, instance_norm.

y = (x - mean(x)) * s * w + b with s = 1/sigma(x), or y = x * s * w with s = 1/rms(x). With s held, y
is affine in x: the mean subtraction stays linear, and the shift b is a source.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from fxgrad.graph.nodes import arguments_of
from fxgrad.kinds import Kind
from fxgrad.ops.backward import Backward, Decided, Rewriting, replace_call
from fxgrad.ops.function import Function, recording


class Layout(NamedTuple):
    """The positions of a normalization's operands, and the groups that it normalizes over.

    Attributes:
        carrier: position of x, shaped (..., *trailing axes) or (N, C, *).
        weight: position of w, or None; w has the shape of the trailing axes, or (C,).
        bias: position of b, or None; shaped as w.
        trailing: number of trailing axes that form a group (layer_norm, rms_norm), or 0.
        groups: number of channel groups (group_norm; C for instance_norm) where trailing is 0.
        centered: whether the mean is subtracted.
        eps: added to the variance or mean square; None means the machine epsilon.
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
        if self.trailing == 1:
            return x
        return x.reshape(*x.shape[: -self.trailing], -1) if self.trailing else x.reshape(x.shape[0], self.groups, -1)

    def broadcast(self, weight: Tensor, x: Tensor) -> Tensor:
        """A view of w that broadcasts against x."""
        return weight if self.trailing else weight.reshape(-1, *[1] * (x.dim() - 2))

    def reduced(self, gradient: Tensor) -> Tensor:
        """A gradient shaped as x, summed to the shape of w."""
        if self.trailing:
            return gradient.reshape(-1, *gradient.shape[-self.trailing :]).sum(0)
        return gradient.transpose(0, 1).reshape(gradient.shape[1], -1).sum(1)


def _scale(layout: Layout, x: Tensor) -> Tensor:
    """1/sigma or 1/rms of every group, (..., 1), in at least float32, as the kernels keep it."""
    groups = layout.grouped(x.float() if x.dtype in HALF else x)
    eps = torch.finfo(groups.dtype).eps if layout.eps is None else layout.eps
    if layout.centered:
        return torch.rsqrt(groups.var(-1, correction=0, keepdim=True) + eps)
    # vector_norm takes one pass over memory; a mean of squares takes two.
    norm = torch.linalg.vector_norm(groups, dim=-1, keepdim=True)
    return torch.rsqrt(norm.square() / groups.shape[-1] + eps)


HALF = (torch.float16, torch.bfloat16)
LAYER_NORM = torch.ops.aten.layer_norm.default


def _forward(op: Any, layout: Layout, args: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
    """The normalized tensor, and the scale that the backward needs."""
    if op is LAYER_NORM:
        # layer_norm itself calls native_layer_norm, which also returns the scale.
        weight = None if layout.weight is None else args[layout.weight]
        bias = None if layout.bias is None else args[layout.bias]
        y, _, scale = torch.native_layer_norm(args[0], args[1], weight, bias, layout.eps)  # type: ignore[arg-type]
        return y, scale if layout.trailing == 1 else scale.flatten(-layout.trailing).narrow(-1, 0, 1)
    return op(*args), _scale(layout, args[layout.carrier])


def _inflow(layout: Layout, g: Tensor, scale: Tensor, weight: Tensor | None) -> Tensor:
    """The carrier's cotangent: g w, without its mean if the layout is centered, times the scale."""
    # One new tensor, the rest in place: allocating memory is what costs most here.
    inflow = layout.grouped(g.clone() if weight is None else g * layout.broadcast(weight, g))
    if layout.centered:  # as a sum: of small tensors it takes a third of the time of a mean
        inflow.sub_(inflow.sum(-1, keepdim=True), alpha=1 / inflow.shape[-1])
    inflow.mul_(scale)
    return inflow if layout.trailing == 1 else inflow.reshape(g.shape)


class _HoldScale(Function):
    keeps = True

    @staticmethod
    def forward(op: Any, layout: Layout, *args: Any) -> tuple[Tensor, Tensor]:
        return _forward(op, layout, args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        layout, args, scale = inputs[1], inputs[2:], output[1]
        ctx.layout, ctx.count = layout, len(args)
        weight = None if layout.weight is None else args[layout.weight]
        # Only the weight's own gradient looks at x.
        wanted = weight is not None and ctx.needs_input_grad[2 + layout.weight]
        x = args[layout.carrier]
        ctx.dtype = x.dtype
        ctx.save_for_backward(scale, weight, x if wanted else None)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Any, ...]:
        layout, (scale, weight, x) = ctx.layout, ctx.saved_tensors
        gradients: list[Tensor | None] = [None] * (2 + ctx.count)
        g = cotangent.float() if ctx.dtype in HALF else cotangent
        if ctx.needs_input_grad[2 + layout.carrier]:
            inflow = _inflow(layout, g, scale, weight)
            gradients[2 + layout.carrier] = inflow if inflow.dtype is ctx.dtype else inflow.to(ctx.dtype)
        if x is not None:
            groups = layout.grouped(x.to(g.dtype))
            groups = groups - groups.mean(-1, keepdim=True) if layout.centered else groups
            gradients[2 + layout.weight] = layout.reduced(g * (groups * scale).reshape(x.shape)).to(weight.dtype)
        if layout.bias is not None and ctx.needs_input_grad[2 + layout.bias]:
            gradients[2 + layout.bias] = layout.reduced(g).to(cotangent.dtype)
        return tuple(gradients)


def hold_scale(op: Any, layout: Layout, *args: Any) -> Tensor:
    """Call a normalization; its vjp treats 1/sigma (or 1/rms) as a constant.

    Args:
        op: the normalization, usually a `torch._ops.OpOverload`.
        layout: positions of its operands, and its groups.
        *args: the op's positional arguments; the carrier has any floating dtype (below float32, the backward
            computes its statistics in float32).

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
    if not recording(*args):
        return op(*args)  # type: ignore[no-any-return]
    return _HoldScale.call(op, layout, *args)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class HoldScale(Backward):
    """The backward of a normalization with its scale held."""

    def call(self, node: fx.Node, decided: Decided, done: Rewriting) -> fx.Node:
        node.args, node.kwargs = tuple(arguments_of(node).values()), {}
        replace_call(node, hold_scale, _layout(node, decided))
        return node


def _layout(node: fx.Node, decided: Decided) -> Layout:
    arguments = arguments_of(node)
    places = {name: position for position, name in enumerate(arguments)}

    def place(part: str) -> int | None:
        names = [n for n in decided.parts.get(part, ()) if arguments[n] is not None]
        return places[names[0]] if names else None

    carrier = places[decided.parts["carrier"][0]]
    x = node.args[carrier]
    over, groups, eps = (decided.options.get(key) for key in ("over", "groups", "eps"))
    # Read the channel count only if needed: int() on a symbolic size would specialize the graph to it.
    channels = int(x.meta["val"].shape[1]) if isinstance(x, fx.Node) and not (over or groups) else 0
    return Layout(
        carrier=carrier,
        weight=place("coefficient"),
        bias=place("source"),
        trailing=len(arguments[over]) if over else 0,
        groups=arguments[groups] if groups else channels,
        centered=decided.options.get("centered", True),
        eps=arguments[eps] if eps else 0.0,
    )


BACKWARDS = (HoldScale("hold_scale", frozenset({Kind.NORMALIZATION})),)
