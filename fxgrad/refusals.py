"""How classification says no: every place at once, with its reason and what to do next."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from torch import fx

from fxgrad.errors import NoRuleError, NotBalanceableError
from fxgrad.places import Place, place_of

NO_ROW = "has no row"
CONTROL_FLOW = "is control flow"


def not_balanceable(name: str, paths: Sequence[tuple[str, Place, Sequence[str]]]) -> NotBalanceableError:
    """The refusal of ops that can only multiply, but reach an output: (op, place, path to it) each."""
    lines = []
    for op, place, path in paths:
        lines += [f"  {op} at {place}", f"    reaches the output by {' -> '.join(path)}"]
    return NotBalanceableError(
        f"under {name}, {len(paths)} op(s) can only multiply (their backward passes nothing on), but reach the "
        "output as an addend:\n" + "\n".join(lines) + "\nAttribute what comes before: the logits instead of the "
        "probabilities, for example by converting the model without its last softmax."
    )


def no_rule(unruled: Sequence[tuple[fx.Node, str]]) -> NoRuleError:
    """The refusal of all nodes that no rule covers, with the reason for each, grouped by op and reason."""
    groups: dict[tuple[str, str], list[fx.Node]] = defaultdict(list)
    for node, problem in unruled:
        groups[str(node.target), problem].append(node)
    lines = []
    for (op, problem), nodes in groups.items():
        lines.append(f"  {op} {problem} ({len(nodes)} x)")
        lines += [f"    at {place_of(n)}" for n in nodes[:3]]
        lines += [f"    and {len(nodes) - 3} more"] if len(nodes) > 3 else []
        if problem == NO_ROW:
            tensors = [a.name for a in nodes[0].target._schema.arguments if "Tensor" in str(a.type)]  # type: ignore[union-attr]
            first = tensors[0] if tensors else "self"
            lines.append(f'    add to the section of its kind: "{op.rpartition(".")[0]}" = {{ carrier = "{first}" }}')
    return NoRuleError(
        f"{len(groups)} op(s) have no rule:\n" + "\n".join(lines) + "\nPut the rows into a TOML file of your own, "
        "under [linear], [piecewise_linear], [gated_activation], [squash], [gate] or another kind, and pass "
        'rules=["libragrad", "my_rules.toml"]; rules/README.md explains the kinds.'
    )
