"""What can only multiply, but is added or returned: how that comes, and what to do instead.

Each advice is given only where following it works.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from fxgrad.classify.decision import Decision
from fxgrad.classify.idioms import is_sum
from fxgrad.classify.liveness import stuck_paths
from fxgrad.classify.refusals import listed
from fxgrad.errors import NotBalanceableError
from fxgrad.kinds import Kind, Role
from fxgrad.table.loading import presets

SHOWN = 3
"""How many ops a message names, so that it fits on one screen."""


@dataclass(frozen=True)
class Stuck:
    """A node that gets a cotangent but hands none on.

    Attributes:
        decisions: node name -> decision, of all nodes.
        path: names of the nodes from this one to the output.
        output: the output's name.
    """

    decisions: Mapping[str, Decision]
    path: tuple[str, ...]
    output: str

    @property
    def decision(self) -> Decision:
        return self.decisions[self.path[0]]

    def meets(self) -> tuple[Decision, Decision] | None:
        """The node on the path that joins it with a stronger value, and the decision of that value."""
        for before, name in zip(self.path, self.path[1:]):
            decision = self.decisions[name]
            own = max(o.role for o in decision.data if o.value == before)
            others = [o for o in decision.data if o.value != before and o.role > own]
            if others:
                return decision, self.decisions.get(str(others[0].value), decision)
        return None

    def lines(self) -> list[str]:
        """What it is, and how it reaches the output."""
        found = [f"  {self.decision.op} at {self.decision.place}"]
        found += [f"    reaches {self.output} by {' -> '.join(_short(self.path))}"]
        return [*found, f"    {self.how()}"]

    def how(self) -> str:
        """How it reaches the output other than as a multiplier."""
        met = self.meets()
        if met is None:
            what = "the output is that itself" if len(self.path) == 1 else "the output is made of that alone"
            return f"{what}: nothing that carries is multiplied by it"
        node, _ = met
        if self.joins(node):
            return f"it lies beside what carries in one tensor, {node.node}, by {node.op} at {node.place}"
        verb = "is added to what carries" if is_sum(node) else "is mixed with what carries"
        return f"it {verb} in {node.node}, by {node.op} at {node.place}"

    @staticmethod
    def joins(node: Decision) -> bool:
        return node.options.get("moves") == "join"

    def carrier(self) -> Decision | None:
        """The nearest node upstream that carries, and whose own gradient can be balanced."""
        pending, seen = [str(o.value) for o in self.decision.data], set[str]()
        for name in pending:
            found = self.decisions.get(name)
            if found is None or name in seen:
                continue
            seen.add(name)
            if found.role is Role.CARRIER and not stuck_paths([name], self.decisions):
                return found
            pending += [str(o.value) for o in found.data]
        return None

    def moved_from(self, names: Collection[str]) -> str | None:
        """Which of some nodes it is computed of, if only moves lie between."""
        data = self.decision.data
        while len(data) == 1:
            name = str(data[0].value)
            if name in names:
                return name
            decision = self.decisions.get(name)
            data = decision.data if decision is not None and "moves" in decision.options else []
        return None

    def apart(self) -> bool:
        """Whether it is joined with others, and then only moved until it is returned."""
        met = self.meets()
        if met is None or not self.joins(met[0]):
            return False
        behind = self.path[self.path.index(met[0].node) + 1 :]
        return all("moves" in self.decisions[name].options for name in behind)


def not_balanceable(
    policy: str,
    outputs: Sequence[str],
    found: Sequence[Stuck],
    kept: Mapping[str, str],
    native: Callable[[Kind], bool],
    module: Callable[[str], str | None],
    unruled: Sequence[str] = (),
) -> NotBalanceableError:
    """The error for nodes that can only multiply, but reach an output otherwise.

    Args:
        policy: the policy's name.
        outputs: names of the outputs.
        found: these nodes.
        kept: name of each node whose value is an output that can be balanced -> the output's name.
        native: whether another policy, which leaves a kind as PyTorch has it, would get through.
        module: name of a node -> the module whose output is its value, if there is one.
        unruled: ops on the way without a row, which would make no difference.
    """
    lines = [line for stuck in found[:SHOWN] for line in stuck.lines()]
    lines += [f"  and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
    if unruled:
        lines.append(f"  ({', '.join(unruled)} without a row: with one, that would remain)")
    return NotBalanceableError(
        f"under {policy}, {len(found)} op(s) can only multiply (their backward passes nothing on), but reach "
        f"{listed(outputs, 'and')} otherwise:\n"
        + "\n".join([*lines, *_advice(policy, found, kept, native, module, bool(unruled))])
    )


def _advice(
    policy: str,
    found: Sequence[Stuck],
    kept: Mapping[str, str],
    native: Callable[[Kind], bool],
    module: Callable[[str], str | None],
    unruled: bool,
) -> list[str]:
    first = found[0].decision
    carrier = found[0].carrier()
    lines = []
    source = found[0].moved_from(kept)
    if source is not None:
        lines.append(f"Attribute {kept[source]} instead, of which {first.op} is computed.")
    elif kept:
        lines.append(f"Attribute {listed(list(kept.values()), 'or')} instead.")
    if any(stuck.apart() for stuck in found):
        lines.append("Let the model return the joined parts as a tuple: then those that carry can be attributed.")
    if carrier is not None and source is None:
        path = module(carrier.node)
        lines.append(
            f"Let the model return {carrier.node} ({carrier.op} at {carrier.place}), of which {first.op} is computed: "
            f"that can be attributed{f': convert fxgrad.returning(model, {path!r})' if path else ''}."
        )
    if native(first.kind):
        lines.append(_native(policy, first.kind) + (', and pass on_unknown="native".' if unruled else "."))
    return lines or ["Attribute another value of the model: nothing upstream of it carries."]


def _native(policy: str, kind: Kind) -> str:
    """How to keep PyTorch's own gradient of one kind."""
    name = policy.partition("+")[0].partition(" (")[0]
    base = f'base = "{name}"' if name in presets() else "yours as its base"
    return (
        f"For PyTorch's own gradient, incomplete as fxgrad.check shows, write a policy with {base} and, under "
        f'[backward], {kind.value} = "native"'
    )


def _short(path: Sequence[str]) -> Sequence[str]:
    return path if len(path) <= 12 else [*path[:6], "...", *path[-5:]]
