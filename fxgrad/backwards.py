"""The vocabulary of the policies: which operands a backward lets the cotangent reach, and how much.

A policy file gives every kind one of these names. Each is a function from a node's operands to one
weight per operand: 1 leaves the op's own vjp, 0 holds the operand, anything else scales it. Two of
them, the secant and the held scale, also replace the vjp itself; their formulas are in `fxgrad.ops`.

Balance, by Euler's theorem: the weights times the degrees of homogeneity add up to one.
Source: LibraGrad, arXiv:2411.16760, section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fxgrad.roles import Kind, Operand, Role

Weights = Callable[[Sequence[Operand], "float | None"], "list[float]"]


@dataclass(frozen=True)
class Backward:
    """One backward of the vocabulary.

    Attributes:
        kinds: the kinds that it can serve.
        weights: (operands, degree) -> one weight per operand.
        vjp: name of the function of `fxgrad.ops` that replaces the op, or None: the op's own vjp.
    """

    kinds: frozenset[Kind]
    weights: Weights
    vjp: str | None = None


def native(operands: Sequence[Operand], degree: float | None) -> list[float]:
    """The op's own vjp for every operand."""
    return [1.0] * len(operands)


def share(operands: Sequence[Operand], degree: float | None) -> list[float]:
    """Among the factors, the strongest role takes all, in equal shares; weaker ones are held.

    Operands that enter additively (sources that happen to be computed) keep their own vjp. The
    carriers of a linear op are one factor together, its coefficients one factor each.
    """

    def factor(operand: Operand) -> str:
        return operand.part if operand.part == "carrier" else operand.name

    factors: dict[str, Role] = {}
    for o in operands:
        if o.part != "source" and o.data:
            factors[factor(o)] = max(o.role, factors.get(factor(o), o.role))
    strongest = max(factors.values(), default=Role.CONSTANT)
    n = sum(role is strongest for role in factors.values())
    return [1.0 if factor(o) not in factors else 1 / n if factors[factor(o)] is strongest else 0.0 for o in operands]


def hold_denominator(operands: Sequence[Operand], degree: float | None) -> list[float]:
    """The numerator takes all; under a constant numerator, the reciprocal has degree -1."""
    constant_numerator = not any(o.data for o in operands if o.part == "numerator")
    return [1.0 if o.part == "numerator" else -1.0 if constant_numerator else 0.0 for o in operands]


def homogeneous(operands: Sequence[Operand], degree: float | None) -> list[float]:
    """Euler: a function of degree n is its own gradient times its operand, divided by n."""
    return [1.0 / degree if degree else 0.0] * len(operands)


def hold_weights(operands: Sequence[Operand], degree: float | None) -> list[float]:
    """Only the value gets a cotangent: dV = P^T dO."""
    return [1.0 if o.part == "value" else 0.0 for o in operands]


BACKWARDS: dict[str, Backward] = {
    "native": Backward(frozenset(Kind) - {Kind.CONSTANT}, native),
    "share": Backward(frozenset({Kind.PRODUCT}), share),
    "hold_denominator": Backward(frozenset({Kind.QUOTIENT}), hold_denominator),
    "homogeneous": Backward(frozenset({Kind.POWER}), homogeneous),
    "hold_weights": Backward(frozenset({Kind.ATTENTION}), hold_weights),
    # A gate passes what its degree balances; a gate whose row says `secant` gets the secant instead.
    "multiplier": Backward(frozenset({Kind.GATE}), homogeneous),
    "secant": Backward(frozenset({Kind.SQUASH}), native, vjp="secant"),
    # x * g(x) with g held is the secant of x * g(x) through 0.
    "hold_gate": Backward(frozenset({Kind.GATED_ACTIVATION}), native, vjp="secant"),
    "hold_scale": Backward(frozenset({Kind.NORMALIZATION}), native, vjp="hold_scale"),
}
