"""Elementwise functions whose derivative is replaced by the slope of a secant: through 0, or through another point.

A function f with backward g * (f(x) - f(0)) / x is complete: x times the gradient adds up to
f(x) - f(0), and f(0) is a source. For a gated activation x * g(x) the secant *is* the held gate:
f(0) = 0 and f(x) / x = g(x). So squashes, gated activations and elementwise gates share this file.

Through another point r, it is g * (f(x) - f(r)) / (x - r), and the source is f(r) - r * slope, slope held. A function
that is not finite at 0 takes the secant through the point where it is 0: a logarithm as log1p(x - 1) would.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from fxgrad.errors import NoRuleError
from fxgrad.graph.nodes import tensors_of
from fxgrad.graph.replay import Replay
from fxgrad.kinds import Kind
from fxgrad.ops.backward import Backward, Decided, Pairs, Rewriting, replace_call
from fxgrad.ops.function import Function, recording, transformed
from fxgrad.ops.series import Reference, Taylor, reference, root_of, taylor
from fxgrad.ops.shares import homogeneous
from fxgrad.ops.weights import Weighted


def _slope(
    op: Any, series: Taylor, x: Tensor, y: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], point: float = 0.0
) -> Tensor:
    """(f(x) - f(r)) / (x - r), also near r. Same shape and dtype as x.

    For r = 0: exact to a few ulps if f(0) is 0. Else the error is largest where the series starts to be used: some
    6e-13 of a sigmoid's slope in float64, 33 eps in float32, while x times the slope stays exact.
    """
    if series[0] == 0 and not point:
        return _quotient(series, x, y)
    wide = x
    if x.dtype in (torch.float16, torch.bfloat16):
        # In low precision, f(x) - f(0) would lose all digits.
        wide = x.float()
        y = op(wide, *args, **kwargs)
    wide = wide - point if point else wide
    # Below this, the series' remainder is smaller than the cancellation error of the difference.
    near = wide.abs() < torch.finfo(wide.dtype).eps ** (1 / len(series))
    polynomial = torch.zeros_like(wide)
    for coefficient in reversed(series[1:]):
        polynomial = polynomial * wide + coefficient
    return torch.where(near, polynomial, (y - series[0]) / wide).to(x.dtype)


def _quotient(series: Taylor, x: Tensor, y: Tensor) -> Tensor:
    """f(x) / x; for |x| below eps the limit, which is exact there, while f(x) may have lost digits.

    Allocates one tensor, since allocation costs most here: a tiny x becomes 0, the quotient infinite or NaN, and these
    become the limit. So the slope means nothing where x or f(x) is not finite; the forward shows that.
    """
    slope = torch.hardshrink(x, torch.finfo(x.dtype).eps)
    slope = y / slope if transformed() else torch.div(y, slope, out=slope)
    if len(series) == 2:
        return slope.nan_to_num_(series[1], series[1], series[1])
    kinked = torch.where(x > 0, series[1], torch.full_like(x, series[2]))
    return torch.where(slope.isfinite(), slope, kinked)


class _Secant(Function):
    keeps = True

    @staticmethod
    def forward(
        op: Any, series: Taylor, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], point: float
    ) -> tuple[Tensor, Tensor]:
        y = op(x, *args, **kwargs)
        # The backward needs the slope only, so neither x nor y is kept.
        return y, _slope(op, series, x, y, args, kwargs, point)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(output[1])

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Any, ...]:
        (slope,) = ctx.saved_tensors
        return None, None, cotangent * slope, None, None, None


def secant(op: Any, series: Taylor, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Call the elementwise `op`; its vjp is g * (f(x) - f(0)) / x, with the limit f'(0) at x = 0.

    Args:
        op: elementwise callable, usually a `torch._ops.OpOverload`.
        series: `taylor(op, *args, **kwargs)`.
        x: any shape, any floating dtype; below float32 the slope is computed in float32.
        *args, **kwargs: numbers that follow x.

    Returns:
        `op(x, *args, **kwargs)`, bit for bit; same shape as x.

    Example:
        >>> x = torch.tensor([-2.0, 0.0, 3.0], requires_grad=True)
        >>> y = secant(torch.tanh, (0.0, 1.0), x)
        >>> torch.allclose(x * torch.autograd.grad(y.sum(), x)[0], y)
        True

    Source: LibraGrad, arXiv:2411.16760, section 3.2 (gated activations); the secant through a reference
    is DeepLIFT's Rescale rule (Shrikumar et al., arXiv:1704.02685, eq. 10) with reference 0.
    """
    if not recording(x):
        return op(x, *args, **kwargs)  # type: ignore[no-any-return]
    return _Secant.call(op, series, x, args, kwargs, 0.0)  # type: ignore[no-any-return]


def rescale(op: Any, about: Reference, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Call the elementwise `op`; its vjp is g * (f(x) - f(r)) / (x - r), with the limit f'(r) at x = r.

    Args:
        op: elementwise callable, usually a `torch._ops.OpOverload`.
        about: `reference(op, r, *args, **kwargs)`.
        x: any shape, any floating dtype; below float32 the slope is computed in float32.
        *args, **kwargs: numbers that follow x.

    Returns:
        `op(x, *args, **kwargs)`, bit for bit; same shape as x. The source is f(r) - r * slope.

    Example:
        >>> x = torch.tensor([0.5, 1.0, 3.0], requires_grad=True)
        >>> y = rescale(torch.tanh, reference(torch.tanh, 1.0), x)
        >>> torch.allclose((x - 1) * torch.autograd.grad(y.sum(), x)[0], y - torch.tanh(torch.ones(3)))
        True

    Source: DeepLIFT's Rescale rule (Shrikumar et al., arXiv:1704.02685, eq. 10) with reference r.
    """
    if not recording(x):
        return op(x, *args, **kwargs)  # type: ignore[no-any-return]
    return _Secant.call(op, about[1], x, args, kwargs, about[0])  # type: ignore[no-any-return]


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
        # Near the root, the difference x - r is exact, and f(x) has all its digits.
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
        `op(x, *args, **kwargs)`, bit for bit; same shape as x. The source is -r * slope.

    Example:
        >>> x = torch.tensor([0.5, 1.0, 3.0], requires_grad=True)
        >>> y = through(torch.log, (1.0, 1.0), x)
        >>> torch.allclose((x - 1) * torch.autograd.grad(y.sum(), x)[0], y)
        True

    Source: DeepLIFT's Rescale rule (Shrikumar et al., arXiv:1704.02685, eq. 10) with reference r.
    """
    return _Through.call(op, root, x, args, kwargs)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Secant(Backward):
    """The slope of the secant through a point instead of the derivative.

    Attributes:
        reference: the point, unless the op's row names one.
    """

    reference: float = 0.0
    parameters: ClassVar[tuple[str, ...]] = ("reference",)

    def point(self, decided: Decided) -> float:
        return float(decided.options.get("through", self.reference))

    def call(self, node: fx.Node, decided: Decided, done: Rewriting) -> fx.Node:
        point, numbers = self.point(decided), (node.args[1:], node.kwargs)
        if any(v.is_complex() for v in tensors_of(node)):
            raise NoRuleError(
                f"{decided.op} at {decided.place} bends complex numbers, and a secant is of real ones. Apply it to the "
                "real and imaginary parts, by torch.view_as_real; or give the op a row in a section [composed] and a "
                "twin; docs/new-op.md shows how."
            )
        try:
            replace_call(node, *self._carried_by(node.target, point, decided, *numbers))
        except (TypeError, ValueError, RuntimeError) as error:
            raise NoRuleError(
                f"{decided.op} at {decided.place}: {decided.origin} lists it, but it has no secant through "
                f"{point:g}: {error}"
            ) from error
        return node

    def _carried_by(
        self, op: Any, point: float, decided: Decided, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[Callable[..., Any], Any]:
        """The function of `fxgrad.ops` that the node calls, and its `detail` argument."""
        if "through" in decided.options:
            return through, root_of(op, point, *args, **kwargs)
        if point:
            return rescale, reference(op, point, *args, **kwargs)
        return secant, taylor(op, *args, **kwargs)

    def keeps(self, decided: Decided) -> bool:
        return super().keeps(decided) or self.point(decided) != 0

    def offset(self, decided: Decided, original: Replay, carrying: list[str], g: Any) -> Pairs:
        point, (name, *_) = self.point(decided), carrying
        x, y = original.values[name], original.values[decided.node]
        with torch.no_grad():
            start = original.call(decided.node, {name: torch.full_like(x, point)})
        if not point:
            return [(g, start)]
        limit = original.vjp(decided.node, [name], torch.ones_like(y))[name]
        return [(g, start - point * torch.where(x == point, limit, (y - start) / (x - point)))]

    def limit_error(self, decided: Decided, ours: Replay, original: Replay) -> float:
        """The relative error of the slope at the point: no sum shows it, for 0 times anything is 0."""
        name = str(decided.operands[0].value)
        one = torch.ones_like(ours.values[name])
        at = functools.partial(torch.full_like, fill_value=self.point(decided))
        slope = ours.vjp(decided.node, [name], one, at=at)[name]
        try:
            exact = original.vjp(decided.node, [name], one, at=at).get(name)
        except (RuntimeError, NotImplementedError):  # PyTorch has no derivative for the op
            return 0.0
        if exact is None:
            return 0.0
        error = (slope - exact).abs().max() / exact.abs().max().clamp(min=1)
        # Some of PyTorch's own derivatives have constants in float32 (hardsigmoid's 1/6, selu's scale).
        return float(error) if error > max(1e-7, 4 * torch.finfo(error.dtype).eps) else 0.0


SECANT = Secant("secant", frozenset({Kind.SQUASH}))


@dataclass(frozen=True)
class Multiplier(Weighted):
    """The backward of a gate that may have to carry: scaled by its degree, or its secant if the row says so."""

    def given(self, decided: Decided) -> Backward:
        return SECANT if decided.options.get("secant") else self


BACKWARDS = (
    SECANT,
    # x * g(x) with g held is the secant of x * g(x) through 0.
    Secant("hold_gate", frozenset({Kind.GATED_ACTIVATION})),
    Multiplier("multiplier", frozenset({Kind.GATE}), homogeneous),
)
