"""Forward-identical ops with backwards of their own: what a rewritten graph calls.

Each takes the original op first and a description of its backward second, then the op's own
arguments, and returns what the op returns, bit for bit: `f(op, detail, *args, **kwargs)`.
"""

from fxgrad.ops.normalization import Layout, hold_scale
from fxgrad.ops.secant import Taylor, secant, taylor
from fxgrad.ops.weighted import weighted

REWRITTEN = frozenset({weighted, secant, hold_scale})
"""The functions that stand for a rewritten node."""

__all__ = ["REWRITTEN", "Layout", "Taylor", "hold_scale", "secant", "taylor", "weighted"]
