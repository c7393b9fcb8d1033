"""The vocabulary of the policies: which operands a backward lets the cotangent reach, and how much.

A policy file gives every kind one of these names. Each is a function from a node's operands to one
weight per operand: 1 leaves the op's own vjp, 0 holds the operand, anything else scales it. Some of
them also replace the vjp itself (secant, held scale, twin); their formulas are in `fxgrad.ops`.

Balance, by Euler's theorem: the weights times the degrees of homogeneity add up to one.
Source: LibraGrad, arXiv:2411.16760, section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from fxgrad.kinds import Kind, Operand, Role

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

    Operands that enter additively (sources that happen to be computed) keep their own vjp; those that a
    row calls held (where to read, say) get nothing. The carriers of a linear op are one factor together,
    its coefficients one factor each.
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


ACTIVATIONS = frozenset({Kind.GATED_ACTIVATION, Kind.SQUASH, Kind.PIECEWISE_LINEAR})


def hold_activated(operands: Sequence[Operand], degree: float | None) -> list[float]:
    """As `share`, but an activation counts as a gate where it multiplies a carrier that is none (SwiGLU)."""
    carriers = [o for o in operands if o.role is Role.CARRIER and o.part not in ("source", "held")]
    if all(o.kind in ACTIVATIONS for o in carriers):
        return share(operands, degree)
    return share(
        [replace(o, role=Role.GATE) if o in carriers and o.kind in ACTIVATIONS else o for o in operands], degree
    )


def hold_weights(operands: Sequence[Operand], degree: float | None) -> list[float]:
    """Only the value gets a cotangent: dV = P^T dO. Written out, that is a product with held softmax weights."""
    if not any(o.part == "value" for o in operands):
        return share(operands, degree)
    return [1.0 if o.part == "value" else 0.0 for o in operands]


def split(operands: Sequence[Operand], degree: float | None) -> list[float]:
    """Every factor an equal share, whatever its role: weights and value half each, query and key half of that."""
    parts = {o.part for o in operands if o.data}
    if any(o.part == "value" for o in operands):
        scores = parts & {"query", "key"}
        half = 1 / (("value" in parts) + bool(scores or "mask" in parts))
        shares = {"value": half, "mask": half, **{part: half / len(scores) for part in scores}}
        return [shares.get(o.part, 1.0) for o in operands]
    n = len({o.part if o.part == "carrier" else o.name for o in operands if o.part != "source" and o.data})
    return [1 / n if o.data and o.part != "source" else 1.0 for o in operands]


def hold(operands: Sequence[Operand], degree: float | None) -> list[float]:
    """Nothing is passed on."""
    return [0.0] * len(operands)


def twin(operands: Sequence[Operand], degree: float | None) -> list[float]:
    """The twin decides; what its row calls held gets nothing."""
    return [0.0 if o.part == "held" else 1.0 for o in operands]


BACKWARDS: dict[str, Backward] = {
    "native": Backward(frozenset(Kind) - {Kind.CONSTANT}, native),
    "share": Backward(frozenset({Kind.PRODUCT}), share),
    "hold_activated": Backward(frozenset({Kind.PRODUCT}), hold_activated),
    "hold_denominator": Backward(frozenset({Kind.QUOTIENT}), hold_denominator),
    "homogeneous": Backward(frozenset({Kind.POWER}), homogeneous),
    "hold_weights": Backward(frozenset({Kind.ATTENTION}), hold_weights),
    "split": Backward(frozenset({Kind.ATTENTION}), split),
    "hold": Backward(frozenset({Kind.SOFTMAX}), hold),
    # A gate passes what its degree balances; a gate whose row says `secant` gets the secant instead.
    "multiplier": Backward(frozenset({Kind.GATE}), homogeneous),
    "secant": Backward(frozenset({Kind.SQUASH}), native, vjp="secant"),
    # x * g(x) with g held is the secant of x * g(x) through 0.
    "hold_gate": Backward(frozenset({Kind.GATED_ACTIVATION}), native, vjp="secant"),
    "hold_scale": Backward(frozenset({Kind.NORMALIZATION}), native, vjp="hold_scale"),
    # Forward from the original kernel, gradient from a twin in plain PyTorch.
    "twin": Backward(frozenset({Kind.COMPOSED}), twin, vjp="twin"),
}
