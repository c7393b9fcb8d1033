"""The rule table: what every op is, and which backward every kind gets. Data, read from TOML.

A file may have rows (one section per kind, one row per op) and a policy (the section `backward`; with `base`, only what
differs from the base). The shipped `rules/ops.toml` has the rows; each shipped policy is a file of its own.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Union

from fxgrad.errors import RuleTableError
from fxgrad.kinds import Kind
from fxgrad.ops.backward import Backward
from fxgrad.table.policy import Choice, Policy, backward_of, named, policy_of, split_name, with_parameters
from fxgrad.table.row import GRAMMAR, Row, Twins, overloads_of, row_of

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found,unused-ignore]

Rules = Union[str, Path, Sequence[Union[str, Path, Twins]]]
"""A preset's name, the path of a TOML file, or a sequence of these and of twins for composed ops: op -> function.

Behind a name or path may be parameters of the policy: "gamma (gamma = 0.5)"."""
OnUnknown = Literal["error", "native"]
"""For ops without a row: refuse the model, or keep the ops' own gradients (the check shows the error)."""


@dataclass(frozen=True)
class RuleTable:
    """Rows and policy, merged from one or more files.

    Attributes:
        name: the policy's name, such as "libragrad".
        rows: op -> row.
        policy: kind -> its backward: a name, or a table with parameters as in the file.
        cite: the policy's citation.
        on_unknown: "error" or "native", for ops without a row.
    """

    name: str
    rows: Mapping[str, Row]
    policy: Policy
    cite: str = ""
    on_unknown: OnUnknown = "error"

    @property
    def backwards(self) -> dict[Kind, Backward]:
        """Kind -> the backward of its nodes.

        Example:
            >>> load("libragrad").backwards[Kind.SOFTMAX].name
            'hold'
        """
        return {kind: backward_of(choice) for kind, choice in self.policy.items()}

    def row(self, overload: Any, arguments: Mapping[str, Any] | None = None) -> Row | None:
        """The row of an `OpOverload`: its own, else its packet's if that row fits its schema.

        Where there are both, the first one that applies to the arguments counts.

        Args:
            overload: of an op.
            arguments: of a call, by name; without them, a row's `when` is not asked.

        Example:
            >>> import torch
            >>> load("libragrad").row(torch.ops.aten.gelu.default).kind.value
            'gated_activation'
            >>> load("libragrad").row(torch.ops.aten.scatter_reduce.two, {"reduce": "prod"}).kind.value
            'composed'
        """
        name = str(overload)
        own = (self.rows.get(name), self.rows.get(name.rpartition(".")[0]))
        fitting = [row for row in own if row is not None and row.fits(overload)]
        applying = (row for row in fitting if arguments is None or row.refused(arguments) is None)
        return next(applying, fitting[0] if fitting else None)

    def covers(self, overload: Any) -> bool:
        """Whether an `OpOverload` has a row."""
        return self.row(overload) is not None


def presets() -> dict[str, str]:
    """The shipped policies: name -> citation.

    Example:
        >>> "libragrad" in presets()
        True
    """
    names = {f.name.removesuffix(".toml") for f in _shipped().iterdir() if f.name.endswith(".toml")} - {"ops"}
    return {name: _read(name)[1].get("cite", "") for name in sorted(names)}


def load(
    rules: Rules = "libragrad", on_unknown: OnUnknown = "error", parameters: Mapping[str, Any] | None = None
) -> RuleTable:
    """Read the shipped ops and the given policy and row files, and check them against torch.

    Args:
        rules: a preset's name ("libragrad"), the path of a TOML file, or a sequence of these and of mappings from a
            composed op's name to its twin. Rows are added to the shipped ones. At most one file may set a kind's
            backward; the default is libragrad's. "gamma (gamma = 0.5)" gives a policy other parameters.
        on_unknown: "error" refuses a model with ops that have no row; "native" keeps their own gradients.
        parameters: parameter of the policy's backwards -> number; the name tells them.

    Returns:
        The table, checked: ops exist, operands are in their schemas, every kind has a backward.

    Raises:
        RuleTableError: naming the file and the row, and what to change.

    Example:
        >>> table = load("gradient")
        >>> set(table.policy.values())
        {'native'}
        >>> load("gamma", parameters={"gamma": 0.5}).name
        'gamma (gamma = 0.5)'

    Source: LibraGrad, arXiv:2411.16760, for the shipped policy.
    """
    if on_unknown not in ("error", "native"):
        raise RuleTableError(f'on_unknown is "error" or "native", not {on_unknown!r}.')
    given = [rules] if isinstance(rules, (str, Path)) or not isinstance(rules, Sequence) else list(rules)
    if wrong := [item for item in given if not isinstance(item, (str, Path, Mapping))]:
        raise RuleTableError(
            f"rules is the name of a policy, the path of a TOML file, or a list of these and of mappings from an op to "
            f"its twin; {wrong[0]!r} is none of them."
        )
    names, numbers = _with_parameters([item for item in given if isinstance(item, (str, Path))], parameters or {})
    twins = {op: twin for item in given if isinstance(item, Mapping) for op, twin in item.items()}
    rows: dict[str, Row] = {}
    policy: dict[Kind, Choice] = {}
    origins: dict[Kind, str] = {}
    cites = []
    for name in ["ops", *names]:
        origin, content = _read(name)
        cites += [content["cite"]] if "cite" in content else []
        for row in _rows(origin, content, shipped=name == "ops"):
            _add(row, rows)
        for kind, choice in _policy(origin, content).items():
            if kind in policy:
                raise RuleTableError(f"{origin} [backward]: {kind.value} is already set by {origins[kind]}. Keep one.")
            policy[kind], origins[kind] = choice, origin
    attach(twins, rows)
    if not policy:
        policy.update(_policy(*_read("libragrad")))
    missing = [k.value for k in GRAMMAR if k not in policy and k is not Kind.CONSTANT]
    if missing:
        files = ", ".join(map(str, names))
        raise RuleTableError(
            f'{files} [backward]: no backward for {", ".join(missing)}. Add them, or say base = "libragrad" at the '
            "top of the file, and only what differs."
        )
    label = "+".join(Path(n).stem for n in names)
    try:
        policy = with_parameters(policy, numbers)
    except ValueError as error:
        raise RuleTableError(f"rules={named(label, numbers)!r}: {error}.") from error
    return RuleTable(named(label, numbers), rows, policy, "; ".join(cites), on_unknown)


def _with_parameters(
    rules: Sequence[str | Path], parameters: Mapping[str, Any]
) -> tuple[list[str | Path], dict[str, Any]]:
    """Names and paths without the parameters behind them, and all parameters."""
    names: list[str | Path] = []
    given: dict[str, Any] = {}
    for rule in rules:
        try:
            name, own = split_name(rule) if isinstance(rule, str) else (rule, {})
        except ValueError as error:
            raise RuleTableError(f"rules={rule!r}: {error}, as in 'gamma (gamma = 0.5)'.") from error
        names.append(name)
        given |= own
    return names, {**given, **parameters}


def _add(row: Row, rows: dict[str, Row]) -> None:
    """Add a row; it replaces an existing one only if it says so."""
    ours = [op for op in rows if op == row.op or (row.replaces and op.startswith(f"{row.op}."))]
    if row.op in rows and not row.replaces:
        named = {part: names[0] if len(names) == 1 else list(names) for part, names in row.parts.items()}
        entry = ", ".join(f"{key} = {json.dumps(value)}" for key, value in {**named, **row.options}.items())
        raise RuleTableError(
            f"{row.origin}: a second row for {row.op}, which {rows[row.op].origin} has already. Keep one; or, for this "
            f'one to take its place, write\n  "{row.op}" = {{ {entry}{", " if entry else ""}replace = true }}'
        )
    for op in ours:
        del rows[op]
    # A replaced row loses the shipped twin, which belonged to the shipped row.
    rows[row.op] = replace(row, twin=None) if ours else row


def _policy(origin: str, content: dict[str, Any], below: tuple[str, ...] = ()) -> dict[Kind, Choice]:
    """A file's policy: the base's choices, overridden by the file's own."""
    own = policy_of(origin, content.get("backward", {}))
    base = content.get("base")
    if base is None:
        return own
    if not isinstance(base, str):
        raise RuleTableError(f"{origin}: base is a policy's name or the path of a .toml file, not {base!r}.")
    if base in below:
        raise RuleTableError(f"{origin}: the policies {', '.join(below)} are each other's base. Let one stand alone.")
    # A path is relative to the file that names it.
    beside = Path(origin).parent / base
    return {**_policy(*_read(beside if base.endswith(".toml") else base), (*below, base)), **own}


def attach(twins: Twins, rows: dict[str, Row]) -> None:
    """Put the user's twins into the user's composed rows, in place."""
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
    """(origin for messages, content) of a preset or file."""
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
        if section in ("cite", "base", "backward"):
            continue
        if section not in {kind.value for kind in GRAMMAR}:
            raise RuleTableError(
                f"{origin} [{section}]: not a kind. The kinds are {', '.join(kind.value for kind in GRAMMAR)}."
            )
        if not isinstance(entries, dict):
            raise RuleTableError(f"{origin}: {section} must be a section of rows, not {entries!r}.")
        for op, entry in entries.items():
            if shipped and not overloads_of(op):
                continue  # of another torch version, or a library that is not imported: no model here can call it
            yield row_of(f"{origin} [{section}]", op, Kind(section), entry)
