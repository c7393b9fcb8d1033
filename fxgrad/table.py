"""The rule table: what every op is, and which backward every kind gets. Data, read from TOML.

A file may hold rows (one section per kind, one row per op) and a policy (the section `backward`).
The shipped `rules/ops.toml` has the rows; each shipped policy is a file of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Union

import torch

from fxgrad.backwards import BACKWARDS
from fxgrad.errors import RuleTableError
from fxgrad.ops import TWINS
from fxgrad.roles import Kind

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found,unused-ignore]

Twins = Mapping[str, Callable[..., Any]]
Rules = Union[str, Path, Sequence[Union[str, Path, Twins]]]
"""A preset's name, the path of a TOML file, or several of either, and twins of composed ops: op -> function."""
OnUnknown = Literal["error", "native"]
"""What to do about ops without a row: refuse the model, or keep the ops' own gradients and book what they lack."""

OPTIONS: dict[str, type | tuple[type, ...]] = {
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
    Kind.LINEAR: ({"carrier"}, {"coefficient", "source", "held", "like"}, {"relaid"}),
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


def presets() -> dict[str, str]:
    """The shipped policies: name -> citation.

    Example:
        >>> "libragrad" in presets()
        True
    """
    names = {f.name.removesuffix(".toml") for f in _shipped().iterdir() if f.name.endswith(".toml")} - {"ops"}
    return {name: _read(name)[1].get("cite", "") for name in sorted(names)}


def load(rules: Rules = "libragrad", on_unknown: OnUnknown = "error") -> RuleTable:
    """Read the shipped ops and the given policy and row files, and check them against torch.

    Args:
        rules: a preset's name ("libragrad"), the path of a TOML file, or a sequence of either and of
            mappings from a composed op's name to its twin. Rows add to the shipped ones. At most one file may
            set a kind's backward; where none does, it is libragrad's.
        on_unknown: "error" refuses a model with ops that have no row; "native" keeps their own gradients.

    Returns:
        The table, checked: ops exist, operands are in their schemas, every kind has a backward.

    Raises:
        RuleTableError: naming the file and the row, and what to change.

    Example:
        >>> table = load("gradient")
        >>> set(table.policy.values())
        {'native'}

    Source: LibraGrad, arXiv:2411.16760, for the shipped policy.
    """
    if on_unknown not in ("error", "native"):
        raise RuleTableError(f'on_unknown is "error" or "native", not {on_unknown!r}.')
    given = [rules] if isinstance(rules, (str, Path)) else list(rules)
    names = [item for item in given if isinstance(item, (str, Path))]
    twins = {op: twin for item in given if isinstance(item, Mapping) for op, twin in item.items()}
    rows: dict[str, Row] = {}
    policy: dict[Kind, str] = {}
    origins: dict[Kind, str] = {}
    cites = []
    for name in ["ops", *names]:
        origin, content = _read(name)
        cites += [content["cite"]] if "cite" in content else []
        for row in _rows(origin, content, shipped=name == "ops"):
            if row.op in rows:
                raise RuleTableError(
                    f"{row.origin}: a second row for {row.op}, which {rows[row.op].origin} has already. Keep one."
                )
            rows[row.op] = row
        for kind, backward in policy_of(origin, content):
            if kind in policy:
                raise RuleTableError(f"{origin} [backward]: {kind.value} is already set by {origins[kind]}. Keep one.")
            policy[kind], origins[kind] = backward, origin
    attach(twins, rows)
    if not policy:
        policy.update(policy_of(*_read("libragrad")))
    missing = [k.value for k in GRAMMAR if k not in policy and k is not Kind.CONSTANT]
    if missing:
        files = ", ".join(map(str, names))
        raise RuleTableError(f"{files} [backward]: no backward for {', '.join(missing)}. Add them.")
    return RuleTable("+".join(Path(n).stem for n in names), rows, policy, "; ".join(cites), on_unknown)


def attach(twins: Twins, rows: dict[str, Row]) -> None:
    """Give every composed row of the user's its twin."""
    for op, twin in twins.items():
        if not callable(twin):
            raise RuleTableError(f"rules: the twin of {op} must be a function, not {twin!r}.")
        if op not in rows or rows[op].kind is not Kind.COMPOSED:
            raise RuleTableError(
                f"rules: a twin is given for {op}, which has no row in a section [composed]. Add one to a TOML file of "
                f'your own: [composed] "{op}" = {{ carrier = "its first operand" }}.'
            )
        rows[op] = replace(rows[op], twin=twin)
    for row in rows.values():
        if row.kind is Kind.COMPOSED and row.twin is None:
            raise RuleTableError(
                f"{row.origin} {row.op!r}: a composed op needs a twin, a function with its gradient. Pass it among the "
                f'rules: rules=["libragrad", "my_ops.toml", {{"{row.op}": function}}].'
            )


def _shipped() -> Any:
    return resources.files("fxgrad") / "rules"


def _read(name: str | Path) -> tuple[str, dict[str, Any]]:
    """Origin (for messages) and content of a preset or file."""
    try:
        if isinstance(name, Path) or str(name).endswith(".toml"):
            return str(name), tomllib.loads(Path(name).read_text("utf-8"))
        shipped = _shipped() / f"{name}.toml"
        if not shipped.is_file():
            raise RuleTableError(
                f"there is no policy {name!r}. Shipped: {', '.join(presets())}; or give the path of a .toml file."
            )
        return f"rules/{name}.toml", tomllib.loads(shipped.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise RuleTableError(f"{name}: cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise RuleTableError(f"{name}: is not TOML: {error}") from error


def _rows(origin: str, content: dict[str, Any], shipped: bool) -> Iterator[Row]:
    for section, entries in content.items():
        if section in ("cite", "backward"):
            continue
        if section not in {kind.value for kind in GRAMMAR}:
            raise RuleTableError(
                f"{origin} [{section}]: not a kind. The kinds are {', '.join(kind.value for kind in GRAMMAR)}."
            )
        if not isinstance(entries, dict):
            raise RuleTableError(f"{origin}: {section} must be a section of rows, not {entries!r}.")
        for op, entry in entries.items():
            if shipped and not _overloads(op):
                continue  # another torch has it, or a library that is not imported: no model here can hold it
            yield row_of(f"{origin} [{section}]", op, Kind(section), entry)


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
    row = Row(op, kind, parts, chosen, origin, TWINS.get(op), when)
    overloads = _overloads(op)
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


def _overloads(op: str) -> list[Any]:
    """The functional overloads that a row's name stands for; empty if torch has none."""
    namespace, _, name = op.partition(".")
    name, _, overload = name.partition(".")
    try:
        packet = getattr(getattr(torch.ops, namespace), name)
        return [getattr(packet, o) for o in ([overload] if overload else packet.overloads())]
    except AttributeError:
        return []


def policy_of(origin: str, content: dict[str, Any]) -> Iterator[tuple[Kind, str]]:
    section = content.get("backward", {})
    if not isinstance(section, dict):
        raise RuleTableError(f"{origin}: backward must be a section, not {section!r}.")
    for key, backward in section.items():
        if key not in {kind.value for kind in GRAMMAR if kind is not Kind.CONSTANT}:
            raise RuleTableError(f"{origin} [backward] {key!r}: not a kind that has a backward.")
        kind = Kind(key)
        served = [name for name, known in BACKWARDS.items() if kind in known.kinds]
        if backward not in served:
            raise RuleTableError(f"{origin} [backward] {key} = {backward!r}: must be one of {', '.join(served)}.")
        yield kind, backward
