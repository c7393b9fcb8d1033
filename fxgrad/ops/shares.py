"""How much of a cotangent each operand gets: one weight per operand, of its role and its part in the op.

By Euler's theorem the weights times the degrees of homogeneity add up to one; see `weights.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from fxgrad.kinds import Kind, Operand, Role

Weigh = Callable[[Sequence[Operand], "float | None"], "list[float]"]
"""Operands and degree of homogeneity -> one weight per operand."""
ACTIVATIONS = frozenset({Kind.GATED_ACTIVATION, Kind.SQUASH, Kind.PIECEWISE_LINEAR})


def share(operands: Sequence[Operand], degree: float | None) -> list[float]:
    """Among the factors, the strongest role takes all, in equal shares; weaker ones are held.

    Operands that enter additively (computed sources) keep their own vjp; operands that the row calls held (read
    positions, say) get 0. The carriers of a linear op are one factor together, its coefficients one factor each.
    """

    def factor(operand: Operand) -> str:
        return operand.part if operand.part == "carrier" else operand.name

    factors: dict[str, Role] = {}
    for o in operands:
        if o.part not in ("source", "held") and o.data:
            factors[factor(o)] = max(o.role, factors.get(factor(o), o.role))
    strongest = max(factors.values(), default=Role.CONSTANT)
    n = sum(role is strongest for role in factors.values())
    shares = {name: 1 / n if role is strongest else 0.0 for name, role in factors.items()}
    return [0.0 if o.part == "held" else shares.get(factor(o), 1.0) for o in operands]


def hold_denominator(operands: Sequence[Operand], degree: float | None) -> list[float]:
    """The numerator takes all; under a constant numerator, the reciprocal has degree -1."""
    constant_numerator = not any(o.data for o in operands if o.part == "numerator")
    return [1.0 if o.part == "numerator" else -1.0 if constant_numerator else 0.0 for o in operands]


def homogeneous(operands: Sequence[Operand], degree: float | None) -> list[float]:
    """Euler: a function of degree n is its own gradient times its operand, divided by n."""
    return [1.0 / degree if degree else 0.0] * len(operands)


def hold_activated(operands: Sequence[Operand], degree: float | None) -> list[float]:
    """Like `share`, but an activation counts as a gate where it multiplies a carrier that is no activation (SwiGLU)."""
    carriers = [o for o in operands if o.role is Role.CARRIER and o.part not in ("source", "held")]
    if all(o.kind in ACTIVATIONS for o in carriers):
        return share(operands, degree)
    return share(
        [replace(o, role=Role.GATE) if o in carriers and o.kind in ACTIVATIONS else o for o in operands], degree
    )


def hold(operands: Sequence[Operand], degree: float | None) -> list[float]:
    """0 for every operand."""
    return [0.0] * len(operands)


def hand_on(operands: Sequence[Operand], degree: float | None) -> list[float]:
    """1 for every operand: the op's own vjp."""
    return [1.0] * len(operands)
