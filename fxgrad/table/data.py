"""Convert a rule table (rows and policy) to the plain data of an artefact, and back."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from fxgrad.errors import ArtefactError, RuleTableError
from fxgrad.kinds import Kind
from fxgrad.ops import TWINS
from fxgrad.table.loading import RuleTable, attach, load
from fxgrad.table.policy import policy_of
from fxgrad.table.row import GRAMMAR, Row, Twins, row_of


def own_twins(table: RuleTable) -> dict[str, str]:
    """The user's own twins: op -> import path of the function, for people to read.

    Example:
        >>> from fxgrad.table.loading import load
        >>> own_twins(load("libragrad"))
        {}
    """
    mine = {op: row.twin for op, row in table.rows.items() if row.twin is not None and row.twin is not TWINS.get(op)}
    return {op: f"{t.__module__}.{getattr(t, '__qualname__', type(t).__name__)}" for op, t in mine.items()}


def to_data(table: RuleTable) -> dict[str, Any]:
    """The table as JSON values, without functions.

    Example:
        >>> from fxgrad.table.loading import load
        >>> to_data(load("gradient"))["rows"]["aten.gelu"]
        {'kind': 'gated_activation', 'origin': 'rules/ops.toml [gated_activation]', 'is': {'carrier': ['self']}}
    """
    rows = {
        op: {"kind": row.kind.value, "origin": row.origin, "is": _entry(row)} for op, row in sorted(table.rows.items())
    }
    policy = {kind.value: choice for kind, choice in table.policy.items()}
    return {
        "name": table.name,
        "cite": table.cite,
        "on_unknown": table.on_unknown,
        "backward": policy,
        "rows": rows,
    }


def _entry(row: Row) -> dict[str, Any]:
    """The row as TOML spells it."""
    when = {"when": {name: list(values) for name, values in row.when.items()}} if row.when else {}
    known = _shipped_moves().get(row.op)
    options = {k: v for k, v in row.options.items() if k != "moves" or v != known}
    return {**{part: list(names) for part, names in row.parts.items()}, **options, **when}


@functools.cache
def _shipped_moves() -> Mapping[str, str]:
    """Op -> how it moves elements, for PyTorch's own ops: a fact that an artefact need not repeat."""
    return {op: row.options["moves"] for op, row in load().rows.items() if "moves" in row.options}


def from_data(data: Any, twins: Twins, own: Mapping[str, str], needed: set[str]) -> RuleTable:
    """The table that `to_data` wrote, checked like any rule file.

    Args:
        data: what `to_data` returned; not trusted.
        twins: the user's twins: op -> function.
        own: what `own_twins` returned: the ops that need a twin.
        needed: the ops that the program calls, as torch prints them. Rows of other ops are left out if this PyTorch
            lacks the op.

    Raises:
        ArtefactError: `data` is no such table, or there are too few or too many twins.

    Example:
        >>> from fxgrad.table.loading import load
        >>> table = load("gradient")
        >>> from_data(to_data(table), {}, {}, set()) == table
        True
    """
    if missing := sorted(set(own) - set(twins)):
        wanted = ", ".join(f"{op} (was {own[op]})" for op in missing)
        given = ", ".join(f'"{op}": function' for op in missing)
        raise ArtefactError(
            f"the model was converted with twins of the user's own for {wanted}. Functions are not saved: "
            f"pass them to load, twins={{{given}}}."
        )
    if stray := sorted(set(twins) - set(own)):
        raise ArtefactError(
            f"twins are given for {', '.join(stray)}, but the model was converted without. Leave them out."
        )
    try:
        known = {kind.value for kind in GRAMMAR}
        strange = {str(row["kind"]) for row in data["rows"].values()} - known
        if strange or data["on_unknown"] not in ("error", "native"):
            raise ArtefactError(f"the rule table has the kind {', '.join(strange)}, which this fxgrad does not know.")
        rows: dict[str, Row] = {}
        moves = _shipped_moves()
        for op, row in data["rows"].items():
            try:
                fits = op in moves and "moves" in GRAMMAR[Kind(row["kind"])][2]
                fact = {"moves": moves[op]} if fits else {}
                rows[op] = row_of(str(row["origin"]), op, Kind(row["kind"]), {**fact, **row["is"]})
            except RuleTableError:
                if op in needed or op.rpartition(".")[0] in needed or any(n.startswith(f"{op}.") for n in needed):
                    raise
        attach({op: twin for op, twin in twins.items() if op in rows}, rows)
        policy = policy_of("the artefact's rule table", data["backward"])
        if set(policy) != set(GRAMMAR) - {Kind.CONSTANT}:
            raise ArtefactError("the rule table lacks a backward for some kind.")
        return RuleTable(str(data["name"]), rows, policy, str(data["cite"]), data["on_unknown"])
    except (RuleTableError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ArtefactError(
            f"the rule table was edited, and is none any more: {type(error).__name__}: {error}"
        ) from error
