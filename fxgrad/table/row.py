"""One row of the rule table: what an op is, and the grammar of rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from fxgrad.errors import RuleTableError
from fxgrad.graph.axes import MOVES, PICK
from fxgrad.kinds import Kind
from fxgrad.ops import TWINS

Twins = Mapping[str, Callable[..., Any]]
"""Composed op -> the function whose gradient is the balanced one."""

OPTIONS: dict[str, type | tuple[type, ...]] = {
    "moves": str,  # linear, piecewise linear: how it moves elements, a word of fxgrad.graph.axes
    "relaid": bool,  # linear: PyTorch's backward is wrong for a cotangent of other strides than the input's
    "packed": bool,  # linear: a product of rows and a packed matrix, for which PyTorch has no derivative
    "saturates": bool,  # piecewise linear: has offsets that are no operands
    "bounded": bool,  # piecewise linear: saturates on both sides, so that f(number + x) is a gate
    "odd": bool,  # squash: odd and bounded, so that number + f(x) is a gate
    "secant": bool,  # gate: finite at 0, so that it can carry attribution by its secant
    "through": (int, float),  # gate: where it is 0, if it is not finite at 0; its secant goes through that point
    "log": bool,  # softmax: a logarithm, so not the weights of an average
    "degree": (int, float, str),  # power, gate: degree of homogeneity, or the operand that gives it
    "over": str,  # normalization: the operand that gives the normalized shape
    "groups": str,  # normalization: the operand that gives the number of groups
    "centered": bool,  # normalization: whether the mean is subtracted
    "eps": str,  # normalization: the operand that gives epsilon
}

# Per kind: parts that a row must name, parts that it may name, options that it may set.
GRAMMAR: dict[Kind, tuple[set[str], set[str], set[str]]] = {
    Kind.LINEAR: ({"carrier"}, {"coefficient", "source", "held", "like"}, {"relaid", "packed", "moves"}),
    Kind.PIECEWISE_LINEAR: ({"carrier"}, {"coefficient", "source"}, {"saturates", "bounded", "moves"}),
    Kind.GATED_ACTIVATION: ({"carrier"}, set(), set()),
    Kind.SQUASH: ({"carrier"}, set(), {"odd"}),
    Kind.GATE: ({"carrier"}, set(), {"secant", "through", "degree"}),
    Kind.PRODUCT: ({"factor"}, {"source"}, set()),
    Kind.QUOTIENT: ({"numerator", "denominator"}, set(), set()),
    Kind.POWER: ({"carrier"}, set(), {"degree"}),
    Kind.SOFTMAX: ({"carrier"}, set(), {"log"}),
    Kind.NORMALIZATION: ({"carrier"}, {"coefficient", "source"}, {"over", "groups", "centered", "eps"}),
    Kind.ATTENTION: ({"query", "key", "value"}, {"mask"}, set()),
    Kind.COMPOSED: ({"carrier"}, {"coefficient", "source", "parameters", "held", "like"}, set()),
    Kind.CONSTANT: (set(), set(), set()),
}


@dataclass(frozen=True)
class Row:
    """What one op is.

    Attributes:
        op: `namespace.name`, which means all overloads, or `namespace.name.overload`.
        kind: the op's kind.
        parts: part -> names, as in the op's schema, of the operands with this part.
        options: see `OPTIONS`.
        origin: file and section, for messages.
        twin: for composed ops, the function whose gradient is the balanced one.
        when: argument name -> the only values for which the row applies.
        replaces: whether it replaces the shipped table's row of the op.
    """

    op: str
    kind: Kind
    parts: Mapping[str, tuple[str, ...]]
    options: Mapping[str, Any]
    origin: str
    twin: Callable[..., Any] | None = None
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    replaces: bool = field(default=False, compare=False)

    @property
    def part_of(self) -> dict[str, str]:
        """Operand name -> part."""
        return {name: part for part, names in self.parts.items() for name in names}

    @property
    def operands(self) -> set[str]:
        """Every operand name that the row mentions, in parts or options."""
        named = {self.options[key] for key in ("degree", "over", "groups", "eps") if key in self.options}
        return set(self.part_of) | set(self.when) | {name for name in named if isinstance(name, str)}

    def refused(self, arguments: Mapping[str, Any]) -> str | None:
        """The first argument, by name, whose value the row does not provide for; None if it applies."""
        return next((name for name, values in self.when.items() if arguments[name] not in values), None)

    def fits(self, overload: Any) -> bool:
        """Whether the overload's schema has every operand that the row mentions."""
        return self.operands <= {argument.name for argument in overload._schema.arguments}


def row_of(origin: str, op: str, kind: Kind, entry: Any) -> Row:
    """Make a checked row from an op's line in a file.

    Args:
        origin: file and section, for messages.
        op: as in `Row`.
        kind: the section's kind.
        entry: the line's value, as parsed from TOML.

    Raises:
        RuleTableError: an unknown key, a wrong type, an op or operand that torch does not have.

    Example:
        >>> row_of("mine.toml [squash]", "aten.tanh", Kind.SQUASH, {"carrier": "self", "odd": True}).part_of
        {'self': 'carrier'}
    """

    def fail(problem: str) -> RuleTableError:
        return RuleTableError(f"{origin} {op!r}: {problem}")

    if not isinstance(entry, dict):
        raise fail(f'a row is a table such as {{ carrier = "self" }}, not {entry!r}.')
    required, optional, options = GRAMMAR[kind]
    found: dict[str, dict[str, Any]] = {"parts": {}, "options": {}, "when": {}}
    replaces = False
    for key, value in entry.items():
        if key == "when":
            if not isinstance(value, dict) or not all(isinstance(values, list) for values in value.values()):
                raise fail(f'when must be a table such as {{ reduce = ["sum"] }}, not {value!r}.')
            found["when"] = {name: tuple(values) for name, values in value.items()}
        elif key == "replace":
            if not isinstance(value, bool):
                raise fail(f"replace = {value!r} has the wrong type.")
            replaces = value
        elif key in required | optional:
            names = [value] if isinstance(value, str) else value
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise fail(f"{key} must be an operand's name or a list of names, not {value!r}.")
            found["parts"][key] = tuple(names)
        elif key in options:
            if not isinstance(value, OPTIONS[key]) or (isinstance(value, bool) and OPTIONS[key] is not bool):
                raise fail(f"{key} = {value!r} has the wrong type.")
            found["options"][key] = value
        else:
            known = ", ".join(sorted(required | optional | options))
            raise fail(f"unknown key {key!r}. A {kind.value} row takes {known or 'none'}.")
    twin = TWINS.get(op) if kind is Kind.COMPOSED else None
    row = Row(op, kind, found["parts"], found["options"], origin, twin, found["when"], replaces)
    if (problem := _problem(row, required)) is not None:
        raise fail(problem)
    return row


def _problem(row: Row, required: set[str]) -> str | None:
    """What is wrong with a row as a whole (missing parts, names that torch lacks), or None."""
    if missing := required - set(row.parts):
        return f"{', '.join(sorted(missing))} is missing."
    if row.kind is Kind.POWER and "degree" not in row.options:
        return "degree is missing: a number, or the operand that holds it."
    if "through" in row.options and not row.options.get("secant"):
        return "through says where the secant is taken, so it needs secant = true."
    if row.options.get("moves", PICK) not in (*MOVES, PICK):
        return f"moves = {row.options['moves']!r} must be one of {', '.join((*MOVES, PICK))}."
    overloads = overloads_of(row.op)
    if not overloads:
        return "torch has no such op. Import the library that defines it before converting, or correct the name."
    fitting = [overload for overload in overloads if row.fits(overload)]
    if not fitting:
        schemas = "; ".join(str(overload._schema) for overload in overloads[:3])
        return f"no overload has the operands {', '.join(sorted(row.operands))}. Its schema: {schemas}."
    by_secant = row.kind in (Kind.SQUASH, Kind.GATED_ACTIVATION) or row.options.get("secant")
    if by_secant and all(o._schema.arguments[0].name != row.parts["carrier"][0] for o in fitting):
        return "the carrier must be the op's first operand, for the secant is taken in that."
    return None


def overloads_of(op: str) -> list[Any]:
    """The functional overloads that a row's name means; empty if torch has none."""
    namespace, _, name = op.partition(".")
    name, _, overload = name.partition(".")
    try:
        packet = getattr(getattr(torch.ops, namespace), name)
        return [getattr(packet, o) for o in ([overload] if overload else packet.overloads())]
    except AttributeError:
        return []
