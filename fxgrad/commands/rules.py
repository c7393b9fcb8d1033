"""`fxgrad rules`."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

import click

from fxgrad.commands.parsing import command
from fxgrad.commands.printing import narrow, say
from fxgrad.errors import InputError
from fxgrad.kinds import Kind
from fxgrad.report import Table
from fxgrad.table.loading import load, presets
from fxgrad.table.row import Row


@dataclass(frozen=True)
class RuleRow:
    """One op as `fxgrad rules` prints it."""

    op: str
    kind: str
    backward: str
    row: str


@dataclass(frozen=True)
class PolicyRow:
    """One kind of a policy as `fxgrad rules --policy` prints it."""

    kind: str
    backward: str
    ops: int


@command()
@click.argument("query", required=False)
@click.option("--policy", metavar="NAME|FILE", help="Show which backward each kind gets under this policy.")
def rules(query: str | None, policy: str | None) -> None:
    """Look up ops, kinds and policies.

    QUERY is a part of an op's name, or of a kind. Without one: all kinds and policies.

    \b
    Examples:
      fxgrad rules softmax
      fxgrad rules normalization --policy gradient
      fxgrad rules --policy libragrad
    """
    table = load(policy or "libragrad")
    rows = list(table.rows.values())
    if query:
        found = [row for row in rows if query.lower() in f"{row.op} {row.kind.value}".lower()]
        if not found:
            known = {name for row in rows for name in (row.op, row.op.partition(".")[2], row.kind.value)}
            close = ", ".join(difflib.get_close_matches(query, sorted(known), 3))
            raise InputError(f"no op and no kind has {query!r} in its name. Close to it: {close or 'nothing'}.")
        backwards = table.backwards  # made anew by every access
        shown = [RuleRow(r.op, r.kind.value, str(backwards.get(r.kind, "-")), _describe(r)) for r in found]
        title = f"{table.name}: ops and kinds with {query!r}"
        say(narrow(Table(title, shown, shown=len(shown)), "op", "kind", "backward", "row"))
    elif policy:
        kinds = [PolicyRow(k.value, str(b), sum(r.kind is k for r in rows)) for k, b in table.backwards.items()]
        say(narrow(Table(f"{table.name}\n{table.cite}", kinds), "kind", "backward", "ops"))
    else:
        for kind in Kind:
            ops = ", ".join(row.op for row in rows if row.kind is kind)
            say(f"{kind.value}\n  {ops}", hang=0)
        say("\npolicies")
        for name, cite in presets().items():
            say(f"  {name}: {cite}")


def _describe(row: Row) -> str:
    parts = [f"{part} = {', '.join(names)}" for part, names in row.parts.items()]
    return "; ".join([*parts, *(f"{key} = {value}" for key, value in row.options.items())])
