"""Elementwise functions whose derivative is replaced by the slope of the secant through 0.

A function f with backward g * (f(x) - f(0)) / x is complete: x times the gradient adds up to
f(x) - f(0), and f(0) is a source. For a gated activation x * g(x) the secant *is* the held gate:
f(0) = 0 and f(x) / x = g(x). So squashes, gated activations and elementwise gates share this file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from fxgrad.ops.function import Function
from fxgrad.ops.weighted import recording

Taylor = tuple[float, ...]
"""How f starts at 0. Where f(0) is not 0: f(0), f'(0), f''(0)/2!, ... Where it is: 0 and f'(0), or, if f has
a kink at 0, 0 and the slopes to its right and left."""


def taylor(op: Any, *args: Any, **kwargs: Any) -> Taylor:
    """How the elementwise function `x -> op(x, *args, **kwargs)` starts at 0.

    The secant needs f'(0) as its limit at 0. Where f(0) is not 0, (f(x) - f(0)) / x also cancels for
    small x, and the series takes over, up to the fourth order or as far as autograd knows derivatives.

    Args:
        op: elementwise callable; if f(0) is not 0, differentiable by autograd.
        *args, **kwargs: numbers that follow the first operand.

    Returns:
        2 to 5 numbers in float64; see `Taylor`.

    Raises:
        ValueError: f or its slope is not finite at 0, as for log; or f(0) is not 0 and autograd knows no derivative.

    Example:
        >>> taylor(torch.ops.aten.sigmoid.default)[:2]
        (0.5, 0.25)
        >>> taylor(torch.ops.aten.gelu.default)
        (0.0, 0.5)
        >>> taylor(torch.ops.aten.leaky_relu.default, 0.25)
        (0.0, 1.0, 0.25)
    """

    def f(x: float) -> float:
        return float(op(torch.tensor(x, dtype=torch.float64), *args, **kwargs))

    value = f(0.0)
    if value == 0:
        # So close to 0 the quotient has no rounding to fear, nor a second derivative.
        right, left, nearer = f(_TINY) / _TINY, f(-_TINY) / -_TINY, f(_TINY / 1024) / (_TINY / 1024)
        series = [value, right] if right == left else [value, right, left]
        if not math.isclose(right, nearer, rel_tol=1e-9):
            series = [value, math.inf]
    else:
        series = [value, *_derivatives(op, *args, **kwargs)]
        if len(series) == 2:
            series = _straight(f, series)
    if not all(math.isfinite(c) for c in series):
        raise ValueError(f"{op} has no secant through 0: its value or slope there is not finite")
    return tuple(series)


def _derivatives(op: Any, *args: Any, **kwargs: Any) -> Iterator[float]:
    """f'(0), f''(0)/2!, ... up to the fourth, or as far as autograd knows them."""
    with torch.enable_grad():
        x = torch.zeros((), dtype=torch.float64, requires_grad=True)
        term = op(x, *args, **kwargs)
        if not term.requires_grad:
            raise ValueError(f"{op} has no derivative that autograd knows")
        for n in range(1, 5):
            try:
                (term,) = torch.autograd.grad(term, x, create_graph=n < 4)
            except RuntimeError:
                return
            yield term.item() / math.factorial(n)


_TINY = 2.0**-100
"""A point beside 0 where a function has the slope that it has at 0."""


def _straight(f: Callable[[float], float], series: list[float], reach: float = 1 / 16) -> list[float]:
    """The series of a function that is straight around 0, as hardsigmoid is, with its slope measured.

    A derivative that exists only once may be rough too: PyTorch's of hardsigmoid has float32's sixth.
    """
    right, left, half = f(reach) - series[0], series[0] - f(-reach), f(reach / 2) - series[0]
    if max(abs(right - left), abs(right - 2 * half)) > 8 * torch.finfo(torch.float64).eps * abs(series[0]):
        return series
    return [series[0], (right + left) / (2 * reach), 0.0, 0.0, 0.0]


def _slope(op: Any, series: Taylor, x: Tensor, y: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """(f(x) - f(0)) / x, also around 0. Same shape and dtype as x.

    Where f(0) is 0, exact to a few ulps. Elsewhere the error is largest where the series takes over: some
    6e-13 of a sigmoid's slope in float64, 33 eps in float32, while x times the slope stays exact.
    """
    if series[0] == 0:
        return _quotient(series, x, y)
    wide = x
    if x.dtype in (torch.float16, torch.bfloat16):
        # f(x) - f(0) would keep no digits of a rounded f(x).
        wide = x.float()
        y = op(wide, *args, **kwargs)
    # Below this, what the series leaves out is less than what a difference that cancels loses.
    near = wide.abs() < torch.finfo(wide.dtype).eps ** (1 / len(series))
    polynomial = torch.zeros_like(wide)
    for coefficient in reversed(series[1:]):
        polynomial = polynomial * wide + coefficient
    return torch.where(near, polynomial, (y - series[0]) / wide).to(x.dtype)


def _quotient(series: Taylor, x: Tensor, y: Tensor) -> Tensor:
    """f(x) / x. Closer to 0 than eps its limit, exact to rounding where f(x) may have lost its digits.

    In one new tensor, since what a pass costs most by is memory that was not there yet: an x that close becomes 0, its
    reciprocal infinite, the quotient infinite or NaN, and these become the limit. So a slope at an x or f(x) that is
    not finite means nothing; the forward shows it.
    """
    slope = torch.nn.functional.hardshrink(x, torch.finfo(x.dtype).eps).reciprocal_().mul_(y)
    if len(series) == 2:
        return slope.nan_to_num_(series[1], series[1], series[1])
    kinked = torch.where(x > 0, series[1], torch.full_like(x, series[2]))
    return torch.where(slope.isfinite(), slope, kinked)


class _Secant(Function):
    @staticmethod
    def forward(
        op: Any, series: Taylor, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        y = op(x, *args, **kwargs)
        # The slope is all that the backward needs, so neither x nor y is kept.
        return y, _slope(op, series, x, y, args, kwargs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor | None, _: None) -> tuple[Any, ...]:
        (slope,) = ctx.saved_tensors
        return None, None, None if cotangent is None else cotangent * slope, None, None


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
    return _Secant.call(op, series, x, args, kwargs)[0]  # type: ignore[no-any-return]
