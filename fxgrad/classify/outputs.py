"""Which outputs can be balanced, and what is live for these; the others are refused when their gradient is asked for.

What only refused outputs need is as if it were not there: the decisions are those of the model without these outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import fx

from fxgrad.capture.captured import Captured
from fxgrad.classify.advice import Stuck, not_balanceable
from fxgrad.classify.decision import Decision, Refusal
from fxgrad.classify.idioms import with_averages, with_scores
from fxgrad.classify.liveness import stuck_paths, with_liveness
from fxgrad.classify.refusals import Unruled, no_rule, with_suggestions
from fxgrad.errors import FxgradError
from fxgrad.graph.places import returned_by
from fxgrad.kinds import Kind
from fxgrad.table.loading import RuleTable


@dataclass(frozen=True)
class Facts:
    """What the walk found, before any policy.

    Attributes:
        decisions: node name -> kind, role and operands.
        unruled: the nodes that no rule covers.
        ends: index of each output that depends on the attributed inputs -> the name of its node.
    """

    decisions: Mapping[str, Decision]
    unruled: Sequence[Unruled]
    ends: Mapping[int, str]


Walk = Callable[[Captured, RuleTable], Facts]


def settled(captured: Captured, table: RuleTable, walk: Walk) -> tuple[dict[str, Decision], tuple[Refusal, ...]]:
    """Decide what is live, for all outputs that can be balanced.

    Args:
        captured: what `capture` returned.
        table: what `fxgrad.table.load` returned.
        walk: finds the facts, under this table or another.

    Returns:
        (node name -> decision, the outputs that cannot be balanced).

    Raises:
        NoRuleError, NotBalanceableError: no output can be balanced.
    """
    facts, graph = walk(captured, table), captured.graph
    unknown = _downstream(graph, {u.node.name for u in facts.unruled})
    refused = {index for index, name in facts.ends.items() if name in unknown}
    while True:
        kept = {index: name for index, name in facts.ends.items() if index not in refused}
        decided = _decided(graph, facts.decisions, table, kept.values())
        stuck = stuck_paths(kept.values(), decided)
        if not stuck:
            break
        refused |= {index for index, name in kept.items() if name in stuck}
    live = with_liveness(kept.values(), decided)
    decisions = {name: live.get(name, fact.held()) for name, fact in facts.decisions.items()}
    if not refused:
        return decisions, ()
    names: dict[str, str] = {}
    for index, name in kept.items():
        names.setdefault(name, captured.output_names[index])
    problem = _Problem(captured, table, walk, facts, names)
    if not kept:
        raise problem.of(sorted(refused))
    return decisions, tuple(problem.refusal(index) for index in sorted(refused))


def _decided(
    graph: fx.Graph, facts: Mapping[str, Decision], table: RuleTable, ends: Collection[str]
) -> dict[str, Decision]:
    """The policy's decisions for the nodes that these outputs depend on."""
    needed = _upstream(graph, ends)
    scored = with_scores(graph, {name: fact for name, fact in facts.items() if name in needed}, ends)
    return with_averages({name: fact.under(table.backwards) for name, fact in scored.items()})


def _upstream(graph: fx.Graph, names: Iterable[str]) -> set[str]:
    """Names of nodes, and of all that they depend on."""
    found = set(names)
    for node in reversed(graph.nodes):
        if node.name in found:
            found |= {n.name for n in node.all_input_nodes}
    return found


def _downstream(graph: fx.Graph, names: Iterable[str]) -> set[str]:
    """Names of nodes, and of all that depends on them."""
    found = set(names)
    for node in graph.nodes if found else ():
        if any(n.name in found for n in node.all_input_nodes):
            found.add(node.name)
    return found


@dataclass(frozen=True)
class _Problem:
    """Why outputs cannot be balanced, and what to do instead.

    Attributes:
        captured, table, walk, facts: as in `settled`.
        kept: name of each node whose value is an output that can be balanced -> the output's name.
    """

    captured: Captured
    table: RuleTable
    walk: Walk
    facts: Facts
    kept: Mapping[str, str]

    def refusal(self, index: int) -> Refusal:
        """The refusal of one output."""
        error, name = self.of([index]), self.captured.output_names[index]
        return Refusal(index, name, type(error).__name__, f"{name} has no balanced gradient: {error}")

    def of(self, indices: Sequence[int]) -> FxgradError:
        """The error for these outputs together."""
        needed = _upstream(self.captured.graph, [self.facts.ends[i] for i in indices])
        unruled = [u for u in self.facts.unruled if u.node.name in needed]
        if not unruled:
            return self.stuck(indices, self.table, self.facts)
        suggested = with_suggestions(self.table, unruled)
        sure, futile = self.beyond(indices, suggested, unruled) if suggested else (None, set())
        if sure is not None:
            return sure
        native, _ = self.beyond(indices, replace(self.table, on_unknown="native"), unruled)
        return no_rule(unruled, list(self.kept.values()), futile=futile, native=native is None)

    def beyond(
        self, indices: Sequence[int], table: RuleTable, unruled: Sequence[Unruled]
    ) -> tuple[FxgradError | None, set[str]]:
        """What would come once the ops without a rule have one, as in this table.

        Returns:
            (the error, if none of these outputs could be balanced whatever these ops are; those of these ops that
            could only multiply, but reach an output otherwise).
        """
        facts = self.walk(self.captured, table)
        ends = {facts.ends[i] for i in indices}
        guessed = {u.node.name: str(u.node.target) for u in unruled}
        paths = stuck_paths(ends, self.decided(facts, table))
        futile = {guessed[path[0]] for here in paths.values() for path in here if path[0] in guessed}
        sure = [here for here in paths.values() if any(path[0] not in guessed for path in here)]
        if facts.unruled or len(sure) < len(ends):
            return None, futile
        return self.stuck(indices, table, facts, list(dict.fromkeys(guessed.values()))), futile

    def decided(self, facts: Facts, table: RuleTable) -> dict[str, Decision]:
        return _decided(self.captured.graph, facts.decisions, table, facts.ends.values())

    def stuck(self, indices: Sequence[int], table: RuleTable, facts: Facts, unruled: Sequence[str] = ()) -> FxgradError:
        """The error for outputs from which cotangents get stuck."""
        decided = self.decided(facts, table)
        paths = stuck_paths([facts.ends[i] for i in indices], decided)
        names = {facts.ends[i]: self.captured.output_names[i] for i in reversed(indices)}
        named = [self.captured.output_names[i] for i in indices if facts.ends[i] in paths]
        found: dict[str, Stuck] = {}
        for end, here in paths.items():
            for path in here:
                found.setdefault(path[0], Stuck(decided, tuple(path), names[end]))

        def works(kind: Kind) -> bool:
            """Whether a policy that leaves this kind alone would balance nothing less."""
            other = replace(table, policy={**table.policy, kind: "native"})
            return not stuck_paths(paths, self.decided(facts, other))

        return not_balanceable(table.name, named, list(found.values()), self.kept, works, self.module, unruled)

    def module(self, name: str) -> str | None:
        """The module whose output a node's value is, which the model could be made to return."""
        captured = self.captured
        return None if captured.signature is None else returned_by(captured.graph, name)
