"""Errors of classification: all places in one message, with the reason and what to do next."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import NamedTuple

from torch import fx

from fxgrad.classify.suggest import suggest
from fxgrad.errors import NoRuleError
from fxgrad.graph.places import place_of
from fxgrad.kinds import Kind
from fxgrad.table.loading import RuleTable
from fxgrad.table.row import row_of

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found,unused-ignore]

NO_ROW = "has no row"
CONTROL_FLOW = "is control flow"
WRITES = "writes to its operands"
BRANCHES = ("cond", "while_loop", "map_impl", "scan", "associative_scan")
CLOSED = "is a program within the program, of a sort that fxgrad does not open"


class Unruled(NamedTuple):
    """A node that no rule covers: why, and the names of its operands that depend on the model's inputs."""

    node: fx.Node
    problem: str
    data: list[str]


def with_suggestions(table: RuleTable, unruled: Sequence[Unruled]) -> RuleTable | None:
    """The table with the rows that `no_rule` would suggest; None where these would not be all that is missing."""
    rows = dict(table.rows)
    for node, problem, data in unruled:
        found = suggest(node, data) if problem == NO_ROW else None
        if found is None or found.kind is Kind.COMPOSED:
            return None
        ((op, entry),) = tomllib.loads(found.row).items()
        rows[op] = row_of("the row suggested", op, found.kind, entry)
    return replace(table, rows=rows)


def no_rule(
    unruled: Sequence[Unruled], kept: Sequence[str] = (), *, futile: Collection[str] = (), native: bool = True
) -> NoRuleError:
    """The error for all nodes that no rule covers, grouped by op and reason.

    Args:
        unruled: the nodes.
        kept: names of the outputs that do not depend on them.
        futile: ops that could only multiply if they had the row suggested, but reach an output otherwise.
        native: whether `on_unknown="native"` would help.
    """
    groups: dict[tuple[str, str], list[Unruled]] = defaultdict(list)
    for found in unruled:
        op = found.node.args[0] if found.problem == WRITES else found.node.target
        groups[str(op), found.problem].append(found)
    lines = []
    for (op, problem), group in groups.items():
        nodes = [found.node for found in group]
        lines.append(f"  {op} {problem} ({len(nodes)} x)")
        lines += [f"    at {place_of(n)}" for n in nodes[:3]]
        lines += [f"    and {len(nodes) - 3} more"] if len(nodes) > 3 else []
        if problem == NO_ROW:
            kind, row, because = suggest(*group[0][::2])
            what = "and a twin, {op: function}" if kind is Kind.COMPOSED else "if it is"
            lines += [f"    looks like {kind.value} ({because}); {what}, add", f"      [{kind.value}]", f"      {row}"]
            if op in futile:
                lines.append(f"    but a {kind.value} can only multiply, and this one reaches an output otherwise")
        elif problem == CONTROL_FLOW:
            lines.append("    replace it by torch.where or by a loop over a fixed range; no table can hold a branch")
        elif problem == CLOSED:
            lines.append("    call what it contains directly, without the wrapper")
        elif problem == WRITES:
            lines.append(
                "    PyTorch has no gradient for such an op: let it return its results; docs/new-op.md shows how"
            )
    if all(problem in (CONTROL_FLOW, CLOSED, WRITES) for _, problem in groups):
        text = "\n".join([f"{len(groups)} op(s) have no rule, and can have none:", *lines])
        return NoRuleError(f"{text}\nOr attribute {listed(kept, 'or')}, which does without." if kept else text)
    text = (
        f"{len(groups)} op(s) have no rule:\n" + "\n".join(lines) + "\nPut the rows into a TOML file of your own and "
        'pass rules=["libragrad", "my_ops.toml"]; docs/new-op.md shows how, and how fxgrad.check proves them.'
    )
    if native:
        text += ' Or pass on_unknown="native" to keep these ops\' own gradients, incomplete as they are.'
    return NoRuleError(f"{text} Or attribute {listed(kept, 'or')}, which does without." if kept else text)


def listed(names: Sequence[str], word: str) -> str:
    """Outputs' names as a list with a word between them; of more than three, three and how many more there are.

    Example:
        >>> listed(["output[0]", "output[2]"], "or")
        'output[0] or output[2]'
    """
    left = len(names) - 3
    return f" {word} ".join([*names[:3], *([f"{left} more"] if left > 0 else [])])


def refused_program(node: fx.Node) -> str:
    """Why a call of an op of higher order has no rule."""
    name = str(node.target)
    if name.startswith("auto_functionalized"):  # a call of a custom op that mutates its arguments
        return WRITES
    return CONTROL_FLOW if name in BRANCHES else CLOSED
