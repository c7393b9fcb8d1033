"""Errors of classification: all places in one message, with the reason and what to do next."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

from torch import fx

from fxgrad.classify.suggest import suggest
from fxgrad.errors import NoRuleError, NotBalanceableError
from fxgrad.graph.places import Place, place_of
from fxgrad.kinds import Kind

NO_ROW = "has no row"
CONTROL_FLOW = "is control flow"
WRITES = "writes to its operands"
BRANCHES = ("cond", "while_loop", "map_impl", "scan", "associative_scan")
CLOSED = "is a program within the program, of a sort that fxgrad does not open"


def not_balanceable(name: str, paths: Sequence[tuple[str, Place, Sequence[str]]]) -> NotBalanceableError:
    """The error for pure gates that reach an output; `paths` has (op, place, path to the output) for each."""
    lines = []
    for op, place, path in paths:
        lines += [f"  {op} at {place}", f"    reaches the output by {' -> '.join(path)}"]
    return NotBalanceableError(
        f"under {name}, {len(paths)} op(s) can only multiply (their backward passes nothing on), but reach the "
        "output as an addend:\n" + "\n".join(lines) + "\nAttribute what comes before: the logits instead of the "
        "probabilities, for example by converting the model without its last softmax."
    )


def no_rule(unruled: Sequence[tuple[fx.Node, str]], data: Callable[[fx.Node], list[str]]) -> NoRuleError:
    """The error for all nodes that no rule covers, grouped by op and reason.

    Args:
        unruled: (node, reason) each.
        data: node -> names of the operands that depend on the model's inputs.
    """
    groups: dict[tuple[str, str], list[fx.Node]] = defaultdict(list)
    for node, problem in unruled:
        op = node.args[0] if problem == WRITES else node.target
        groups[str(op), problem].append(node)
    lines = []
    for (op, problem), nodes in groups.items():
        lines.append(f"  {op} {problem} ({len(nodes)} x)")
        lines += [f"    at {place_of(n)}" for n in nodes[:3]]
        lines += [f"    and {len(nodes) - 3} more"] if len(nodes) > 3 else []
        if problem == NO_ROW:
            kind, row, because = suggest(nodes[0], data(nodes[0]))
            what = "and a twin, {op: function}" if kind is Kind.COMPOSED else "if it is"
            lines += [f"    looks like {kind.value} ({because}); {what}, add", f"      [{kind.value}]", f"      {row}"]
        elif problem == CONTROL_FLOW:
            lines.append("    replace it by torch.where or by a loop over a fixed range; no table can hold a branch")
        elif problem == CLOSED:
            lines.append("    call what it contains directly, without the wrapper")
        elif problem == WRITES:
            lines.append(
                "    PyTorch has no gradient for such an op: let it return its results; docs/new-op.md shows how"
            )
    if all(problem in (CONTROL_FLOW, CLOSED, WRITES) for _, problem in groups):
        return NoRuleError("\n".join([f"{len(groups)} op(s) have no rule, and can have none:", *lines]))
    return NoRuleError(
        f"{len(groups)} op(s) have no rule:\n" + "\n".join(lines) + "\nPut the rows into a TOML file of your own and "
        'pass rules=["libragrad", "my_ops.toml"]; docs/new-op.md shows how, and how fxgrad.check proves them. '
        'Or pass on_unknown="native" to keep these ops\' own gradients, incomplete as they are.'
    )


def refused_program(node: fx.Node) -> str:
    """Why a call of an op of higher order has no rule."""
    name = str(node.target)
    if name.startswith("auto_functionalized"):  # a call of a custom op that mutates its arguments
        return WRITES
    return CONTROL_FLOW if name in BRANCHES else CLOSED
