"""The rule table: what every op is, and which backward every kind gets. Data, read from TOML.

A file may hold rows (one section per kind, one row per op) and a policy (the section `backward`).
The shipped `rules/ops.toml` has the rows; each shipped policy is a file of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

from fxgrad.errors import RuleTableError
from fxgrad.kinds import Kind
from fxgrad.ops.backwards import BACKWARDS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found,unused-ignore]
from fxgrad.table.row import GRAMMAR, OnUnknown, Row, Rules, RuleTable, Twins, overloads_of, row_of


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
            if shipped and not overloads_of(op):
                continue  # another torch has it, or a library that is not imported: no model here can hold it
            yield row_of(f"{origin} [{section}]", op, Kind(section), entry)


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
