"""Elementwise functions whose derivative is replaced by the slope of the secant through 0.

A function f with backward g * (f(x) - f(0)) / x is complete: x times the gradient adds up to
f(x) - f(0), and f(0) is a source. For a gated activation x * g(x) the secant *is* the held gate:
f(0) = 0 and f(x) / x = g(x). So squashes, gated activations and elementwise gates share this file.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

Taylor = tuple[float, ...]
"""f(0), f'(0), f''(0)/2!, ... : the start of the Taylor series of f at 0."""


def taylor(op: Any, *args: Any, **kwargs: Any) -> Taylor:
    """Start of the Taylor series at 0 of the elementwise function `x -> op(x, *args, **kwargs)`.

    The secant needs f'(0) as its limit at 0. Where f(0) is not 0, (f(x) - f(0)) / x also cancels for
    small x, and the series up to the fourth order takes over; where f(0) is 0, two terms suffice.

    Args:
        op: elementwise callable, differentiable at 0 by autograd (four times if f(0) is not 0).
        *args, **kwargs: numbers that follow the first operand.

    Returns:
        2 or 5 coefficients in float64.

    Raises:
        ValueError: autograd knows no derivative of f, or f or a derivative is not finite at 0, as for log.

    Example:
        >>> taylor(torch.ops.aten.sigmoid.default)[:2]
        (0.5, 0.25)
        >>> taylor(torch.ops.aten.gelu.default)
        (0.0, 0.5)
    """
    with torch.enable_grad():
        x = torch.zeros((), dtype=torch.float64, requires_grad=True)
        term = op(x, *args, **kwargs)
        coefficients = [term.item()]
        order = 1 if coefficients[0] == 0 else 4
        factorial = 1
        for n in range(1, order + 1):
            factorial *= n
            if term.requires_grad:
                (term,) = torch.autograd.grad(term, x, create_graph=n < order)
            elif n == 1:
                raise ValueError(f"{op} has no derivative that autograd knows")
            else:
                term = torch.zeros_like(term)  # straight around 0, as hardsigmoid is
            coefficients.append(term.item() / factorial)
    if not all(abs(c) < float("inf") for c in coefficients):
        raise ValueError(f"{op} has no secant through 0: its value or a derivative there is not finite")
    return tuple(coefficients)


def _slope(op: Any, series: Taylor, x: Tensor, y: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """(f(x) - f(0)) / x, exact to a few ulps also around 0. Same shape and dtype as x."""
    if series[0] == 0:
        return torch.where(x == 0, series[1], y / x)
    wide = x
    if x.dtype in (torch.float16, torch.bfloat16):
        # f(x) - f(0) would keep no digits of a rounded f(x).
        wide = x.float()
        y = op(wide, *args, **kwargs)
    # Below this, four terms of the series are closer than a difference that cancels.
    near = wide.abs() < torch.finfo(wide.dtype).eps ** 0.2
    polynomial = torch.zeros_like(wide)
    for coefficient in reversed(series[1:]):
        polynomial = polynomial * wide + coefficient
    return torch.where(near, polynomial, (y - series[0]) / wide).to(x.dtype)


class _Secant(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(op: Any, series: Taylor, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        return op(x, *args, **kwargs)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.op, ctx.series, x, ctx.args, ctx.kwargs = inputs
        ctx.save_for_backward(x, output)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Any, ...]:
        x, y = ctx.saved_tensors
        return None, None, cotangent * _slope(ctx.op, ctx.series, x, y, ctx.args, ctx.kwargs), None, None


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
    return _Secant.apply(op, series, x, args, kwargs)  # type: ignore[no-any-return]
