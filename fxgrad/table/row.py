"""One row of the rule table: what an op is, with the grammar of rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Union

import torch

from fxgrad.errors import RuleTableError
from fxgrad.graph.axes import MOVES
from fxgrad.kinds import Kind
from fxgrad.ops import TWINS

Twins = Mapping[str, Callable[..., Any]]
Rules = Union[str, Path, Sequence[Union[str, Path, Twins]]]
"""A preset's name, the path of a TOML file, or several of either, and twins of composed ops: op -> function."""
OnUnknown = Literal["error", "native"]
"""What to do about ops without a row: refuse the model, or keep the ops' own gradients and book what they lack."""

OPTIONS: dict[str, type | tuple[type, ...]] = {
    "moves": str,  # linear: how it moves elements, one of fxgrad.graph.axes.MOVES
    "relaid": bool,  # linear: PyTorch's backward is wrong for a cotangent of other strides than the input's
    "saturates": bool,  # piecewise linear: has offsets that no operand names
    "bounded": bool,  # piecewise linear: saturates on both sides, so that f(number + x) is a gate
    "odd": bool,  # squash: odd and bounded, so that number + f(x) is a gate
    "secant": bool,  # gate: finite at 0, so that it can carry attribution by its secant
    "through": (int, float),  # gate: where it is 0, if it is not finite at 0; its secant is taken through there
    "degree": (int, float, str),  # power, gate: degree of homogeneity, or the operand that holds it
    "over": str,  # normalization: the operand that holds the normalized shape
    "groups": str,  # normalization: the operand that holds the number of groups
    "centered": bool,  # normalization: whether the mean is subtracted
    "eps": str,  # normalization: the operand that holds epsilon
}

# For every kind: parts that a row must name, parts that it may name, options that it may set.
GRAMMAR: dict[Kind, tuple[set[str], set[str], set[str]]] = {
    Kind.LINEAR: ({"carrier"}, {"coefficient", "source", "held", "like"}, {"relaid", "moves"}),
    Kind.PIECEWISE_LINEAR: ({"carrier"}, {"coefficient", "source"}, {"saturates", "bounded"}),
    Kind.GATED_ACTIVATION: ({"carrier"}, set(), set()),
    Kind.SQUASH: ({"carrier"}, set(), {"odd"}),
    Kind.GATE: ({"carrier"}, set(), {"secant", "through", "degree"}),
    Kind.PRODUCT: ({"factor"}, {"source"}, set()),
    Kind.QUOTIENT: ({"numerator", "denominator"}, set(), set()),
    Kind.POWER: ({"carrier"}, set(), {"degree"}),
    Kind.SOFTMAX: ({"carrier"}, set(), set()),
    Kind.NORMALIZATION: ({"carrier"}, {"coefficient", "source"}, {"over", "groups", "centered", "eps"}),
    Kind.ATTENTION: ({"query", "key", "value"}, {"mask"}, set()),
    Kind.COMPOSED: ({"carrier"}, {"coefficient", "source", "parameters", "held", "like"}, set()),
    Kind.CONSTANT: (set(), set(), set()),
}


@dataclass(frozen=True)
class Row:
    """What one op is.

    Attributes:
        op: `namespace.name`, which stands for all overloads, or `namespace.name.overload`.
        kind: its kind.
        parts: part -> names of the operands that play it, as in the op's schema.
        options: see `OPTIONS`.
        origin: file and section, for messages.
        twin: for composed ops, the function whose gradient is the balanced one.
        when: values of arguments for which alone the row holds: name -> values.
    """

    op: str
    kind: Kind
    parts: Mapping[str, tuple[str, ...]]
    options: Mapping[str, Any]
    origin: str
    twin: Callable[..., Any] | None = None
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    @property
    def part_of(self) -> dict[str, str]:
        """Operand name -> part."""
        return {name: part for part, names in self.parts.items() for name in names}

    @property
    def operands(self) -> set[str]:
        """Every operand name that the row mentions, in parts or options."""
        named = {self.options[key] for key in ("degree", "over", "groups", "eps") if key in self.options}
        return set(self.part_of) | set(self.when) | {name for name in named if isinstance(name, str)}

    def fits(self, overload: Any) -> bool:
        """Whether the overload's schema has every operand that the row mentions."""
        return self.operands <= {argument.name for argument in overload._schema.arguments}


@dataclass(frozen=True)
class RuleTable:
    """Rows and policy, merged from one or more files.

    Attributes:
        name: how the policy was asked for, as in "libragrad".
        rows: op -> row.
        policy: kind -> name of its backward.
        cite: where the policy comes from.
        on_unknown: what to do about an op without a row.
    """

    name: str
    rows: Mapping[str, Row]
    policy: Mapping[Kind, str]
    cite: str = ""
    on_unknown: OnUnknown = "error"

    def row(self, overload: Any) -> Row | None:
        """The row of an `OpOverload`: its own, else its packet's if that one fits its schema.

        Example:
            >>> load("libragrad").row(torch.ops.aten.gelu.default).kind.value
            'gated_activation'
        """
        name = str(overload)
        exact = self.rows.get(name)
        packet = self.rows.get(name.rpartition(".")[0])
        return exact or (packet if packet is not None and packet.fits(overload) else None)


def row_of(origin: str, op: str, kind: Kind, entry: Any) -> Row:
    def fail(problem: str) -> RuleTableError:
        return RuleTableError(f"{origin} {op!r}: {problem}")

    if not isinstance(entry, dict):
        raise fail(f'a row is a table such as {{ carrier = "self" }}, not {entry!r}.')
    required, optional, options = GRAMMAR[kind]
    parts: dict[str, tuple[str, ...]] = {}
    chosen: dict[str, Any] = {}
    when: dict[str, tuple[Any, ...]] = {}
    for key, value in entry.items():
        if key == "when":
            if not isinstance(value, dict) or not all(isinstance(values, list) for values in value.values()):
                raise fail(f'when must be a table such as {{ reduce = ["sum"] }}, not {value!r}.')
            when = {name: tuple(values) for name, values in value.items()}
        elif key in required | optional:
            names = [value] if isinstance(value, str) else value
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise fail(f"{key} must be an operand's name or a list of names, not {value!r}.")
            parts[key] = tuple(names)
        elif key in options:
            if not isinstance(value, OPTIONS[key]) or (isinstance(value, bool) and OPTIONS[key] is not bool):
                raise fail(f"{key} = {value!r} has the wrong type.")
            chosen[key] = value
        else:
            known = ", ".join(sorted(required | optional | options))
            raise fail(f"unknown key {key!r}. A {kind.value} row takes {known or 'none'}.")
    if missing := required - set(parts):
        raise fail(f"{', '.join(sorted(missing))} is missing.")
    if kind is Kind.POWER and "degree" not in chosen:
        raise fail("degree is missing: a number, or the operand that holds it.")
    if "through" in chosen and not chosen.get("secant"):
        raise fail("through says where the secant is taken, so it needs secant = true.")
    if chosen.get("moves", "same") not in MOVES:
        raise fail(f"moves = {chosen['moves']!r} must be one of {', '.join(MOVES)}.")
    row = Row(op, kind, parts, chosen, origin, TWINS.get(op), when)
    overloads = overloads_of(op)
    if not overloads:
        raise fail("torch has no such op. Import the library that defines it before converting, or correct the name.")
    if not any(row.fits(overload) for overload in overloads):
        schemas = "; ".join(str(overload._schema) for overload in overloads[:3])
        raise fail(f"no overload has the operands {', '.join(sorted(row.operands))}. Its schema: {schemas}.")
    if (kind in (Kind.SQUASH, Kind.GATED_ACTIVATION) or chosen.get("secant")) and not any(
        overload._schema.arguments[0].name == parts["carrier"][0] for overload in overloads if row.fits(overload)
    ):
        raise fail("the carrier must be the op's first operand, for the secant is taken in that.")
    return row


def overloads_of(op: str) -> list[Any]:
    """The functional overloads that a row's name stands for; empty if torch has none."""
    namespace, _, name = op.partition(".")
    name, _, overload = name.partition(".")
    try:
        packet = getattr(getattr(torch.ops, namespace), name)
        return [getattr(packet, o) for o in ([overload] if overload else packet.overloads())]
    except AttributeError:
        return []
