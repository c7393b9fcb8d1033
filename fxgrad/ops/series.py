"""What a secant must know of a function before it runs: its Taylor series at 0 or at another point, or its root."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch

Taylor = tuple[float, ...]
"""The series of f at 0. If f(0) is not 0: f(0), f'(0), f''(0)/2!, ... If f(0) is 0: 0 and f'(0), or, if f has
a kink at 0, 0 and the slopes to its right and left."""


def taylor(op: Any, *args: Any, **kwargs: Any) -> Taylor:
    """The Taylor series of the elementwise function `x -> op(x, *args, **kwargs)` at 0.

    The secant needs f'(0) as its limit at 0. Where f(0) is not 0, (f(x) - f(0)) / x cancels for small x, and the
    series replaces it, up to the fourth order or as far as autograd knows derivatives.

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
        # So close to 0, neither rounding nor the second derivative matters to the quotient.
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


def _derivatives(op: Any, *args: Any, point: float = 0.0, **kwargs: Any) -> Iterator[float]:
    """f'(r), f''(r)/2!, ... up to the fourth, or as far as autograd knows them; r is 0 by default."""
    with torch.enable_grad():
        x = torch.tensor(point, dtype=torch.float64, requires_grad=True)
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
"""A point close enough to 0 that a function has the same slope there as at 0."""


def _straight(f: Callable[[float], float], series: list[float], reach: float = 1 / 16) -> list[float]:
    """The series of a function that is linear around 0, such as hardsigmoid, with its slope measured.

    Such a function may have an inexact derivative: PyTorch's of hardsigmoid has 1/6 in float32.
    """
    right, left, half = f(reach) - series[0], series[0] - f(-reach), f(reach / 2) - series[0]
    if max(abs(right - left), abs(right - 2 * half)) > 8 * torch.finfo(torch.float64).eps * abs(series[0]):
        return series
    return [series[0], (right + left) / (2 * reach), 0.0, 0.0, 0.0]


Reference = tuple[float, Taylor]
"""A point r, and the series of f there: f(r), f'(r), f''(r)/2!, ..."""


def reference(op: Any, point: float, *args: Any, **kwargs: Any) -> Reference:
    """The Taylor series of the elementwise function `x -> op(x, *args, **kwargs)` at a point.

    Args:
        op: elementwise callable, differentiable by autograd.
        point: the point r that the secant goes through.
        *args, **kwargs: numbers that follow the first operand.

    Returns:
        The point, and 2 to 5 numbers in float64.

    Raises:
        ValueError: f or its slope is not finite at the point, or autograd knows no derivative.

    Example:
        >>> reference(torch.exp, 0.0)[1][:3]
        (1.0, 1.0, 0.5)
    """
    value = float(op(torch.tensor(point, dtype=torch.float64), *args, **kwargs))
    series = (value, *_derivatives(op, *args, point=point, **kwargs))
    if not all(math.isfinite(c) for c in series):
        raise ValueError(f"{op} has no secant through {point:g}: its value or slope there is not finite")
    return float(point), series


def root_of(op: Any, point: float, *args: Any, **kwargs: Any) -> tuple[float, float]:
    """The point where the elementwise function `x -> op(x, *args, **kwargs)` is 0, and its derivative there.

    Args:
        op: elementwise callable, differentiable by autograd.
        point: the expected root r.
        *args, **kwargs: numbers that follow the first operand.

    Raises:
        ValueError: the function is not 0 there, or has no derivative.

    Example:
        >>> root_of(torch.log, 1.0)
        (1.0, 1.0)
    """
    x = torch.tensor(point, dtype=torch.float64, requires_grad=True)
    with torch.enable_grad():
        y = op(x, *args, **kwargs)
    slope = float(torch.autograd.grad(y, x)[0]) if y.requires_grad else math.nan
    if y.item() != 0 or math.isnan(slope):
        raise ValueError(f"it is {y.item():g} at {point:g}, with the slope {slope:g}")
    return float(point), slope
