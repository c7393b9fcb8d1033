"""The abstract values of the analysis: what a tensor means to the attribution, and what an op is.

A role says how a value relates to the attributed inputs. Roles are ordered by how much attribution
a value can carry, so that the role of a sum, of a product or of any other linear op is the `max` of
its operands' roles.

Source: LibraGrad (Mehri, Baghshah, Pilehvar, CVPR 2025, arXiv:2411.16760), section 3.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass


class Role(enum.IntEnum):
    """How a value relates to the attributed inputs.

    Example:
        >>> max(Role.GATE, Role.CARRIER).label
        'carrier'
        >>> min(Role.GATE, Role.CARRIER).label
        'gate'
    """

    CONSTANT = 0
    """Does not depend on the attributed inputs: parameters, buffers, masks, comparisons."""
    PURE_GATE = 1
    """Depends on the inputs and can do nothing but multiply: softmax weights."""
    GATE = 2
    """Depends on the inputs and is made to multiply, but can carry attribution: sigmoid, exp, 1/rms."""
    CARRIER = 3
    """Depends on the inputs and carries attribution: hidden states."""

    @property
    def label(self) -> str:
        """The role as it is printed: lower case, with spaces between words."""
        return self.name.lower().replace("_", " ")


class Kind(str, enum.Enum):
    """What an op is, as far as its backward is concerned. Each kind is one section of rules/ops.toml.

    Example:
        >>> Kind("gated_activation").value
        'gated_activation'
    """

    LINEAR = "linear"
    PIECEWISE_LINEAR = "piecewise_linear"
    GATED_ACTIVATION = "gated_activation"
    SQUASH = "squash"
    GATE = "gate"
    PRODUCT = "product"
    QUOTIENT = "quotient"
    POWER = "power"
    SOFTMAX = "softmax"
    NORMALIZATION = "normalization"
    ATTENTION = "attention"
    COMPOSED = "composed"
    CONSTANT = "constant"
    OPAQUE = "opaque"
    """An op without a row, kept with its own gradient on request."""


LINEAR = frozenset({Kind.LINEAR, Kind.PIECEWISE_LINEAR, Kind.CONSTANT})
"""The kinds whose own gradient is balanced as it is."""


@dataclass(frozen=True)
class Operand:
    """One operand of one node, as the analysis sees it.

    Attributes:
        name: as in the op's schema; `tensors[1]` for an item of a list.
        part: its part in the op, by the rule table: carrier, coefficient, source, factor, numerator, ...
        position: index among the op's arguments in schema order.
        item: index inside a list argument, or None.
        value: the name of the node that computes it, or a number.
        role: constant for numbers.
        kind: kind of the op that computes it, moves and scalings skipped; None for inputs and moves of them, constants
            and numbers.
    """

    name: str
    part: str
    position: int
    item: int | None
    value: str | float
    role: Role
    kind: Kind | None = None

    @property
    def data(self) -> bool:
        """Whether it depends on the attributed inputs."""
        return self.role is not Role.CONSTANT


def transfer(kind: Kind, operands: Sequence[Operand], *, degree: float | None = None, carries: bool = True) -> Role:
    """Role of a node's result, given the roles of its operands.

    Args:
        kind: what the op is.
        operands: its operands, at least one of which depends on the attributed inputs.
        degree: degree of homogeneity, for powers (and gates that have one).
        carries: for gates, whether the result can carry attribution where it must.

    Returns:
        The result's role.

    Example:
        >>> x = Operand("self", "carrier", 0, None, "x", Role.CARRIER)
        >>> transfer(Kind.GATE, [x]).label, transfer(Kind.SQUASH, [x]).label
        ('gate', 'carrier')
    """
    role = {part: max(o.role for o in operands if o.part == part) for part in {o.part for o in operands}}
    # If the only data operands are held ones, such as read positions, the result can only multiply.
    strongest = max(r for part, r in role.items() if part != "held") or min(
        role.get("held", Role.CONSTANT), Role.PURE_GATE
    )
    if kind is Kind.CONSTANT or degree == 0:
        return Role.CONSTANT
    if kind is Kind.SOFTMAX:
        return min(strongest, Role.PURE_GATE)
    if kind is Kind.GATE:
        return min(strongest, Role.GATE if carries else Role.PURE_GATE)
    if kind is Kind.QUOTIENT:
        return role["numerator"] or min(strongest, Role.GATE)
    if kind is Kind.POWER:
        return strongest if degree is None or degree > 0 else min(strongest, Role.GATE)
    if kind is Kind.ATTENTION and "value" in role:
        return role["value"] or Role.PURE_GATE
    return strongest
