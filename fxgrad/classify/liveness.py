"""Which nodes a cotangent reaches, and which are only ever held."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import networkx as nx

from fxgrad.classify.decision import Decision
from fxgrad.classify.idioms import SOFTMAXES, SUMS, mixes
from fxgrad.classify.refusals import not_balanceable
from fxgrad.kinds import Kind


def flow_graph(decisions: Mapping[str, Decision]) -> nx.DiGraph[str]:
    """The data flow along which cotangents travel: an edge operand -> node for every weight but 0.

    Example:
        >>> from fxgrad.capture.export import capture
        >>> from fxgrad.table.load import load
        >>> captured = capture(torch.nn.Softplus().eval(), (torch.zeros(2, 3),))
        >>> list(flow_graph(classify(captured, load()).decisions).edges)
        [('input_', 'softplus')]
    """
    flow: nx.DiGraph[str] = nx.DiGraph()
    flow.add_nodes_from(decisions)
    for decision in decisions.values():
        for operand, weight in zip(decision.operands, decision.weights):
            if operand.data and weight != 0:
                flow.add_edge(str(operand.value), decision.node)
    return flow


def _with_averages_as_sources(decisions: Mapping[str, Decision]) -> dict[str, Decision]:
    """Sums of a carrier and an average of constants, such as attention to a learned memory.

    Once its weights are held, the average is a constant like a class token's value, and a source. On its own it
    would leave nothing to attribute.
    """
    weights: set[str] = set()  # a held softmax, or what is linear in it
    averages: set[str] = set()
    sums: dict[str, Decision] = {}
    for name, decision in decisions.items():
        passing = {str(o.value) for o, w in zip(decision.operands, decision.weights) if o.data and w != 0}
        if not passing:
            if decision.op.startswith(SOFTMAXES):
                weights.add(name)
            elif decision.kind is Kind.ATTENTION and _averages_constants(decision):
                averages.add(name)
        elif passing <= averages or (passing <= weights and _averages_constants(decision)):
            averages.add(name)
        elif passing <= weights and decision.kind in (Kind.LINEAR, Kind.PRODUCT, Kind.QUOTIENT):
            weights.add(name)
        elif passing & averages and decision.op.startswith(SUMS):
            held = [str(o.value) in averages for o in decision.operands]
            shares = tuple(0.0 if h else w for h, w in zip(held, decision.weights))
            names = tuple(f"{o.value}, its weights held" for o, h in zip(decision.operands, held) if h)
            sums[name] = replace(decision, weights=shares, sources=decision.sources + names)
    return sums


def _averages_constants(decision: Decision) -> bool:
    """Whether it is a contraction of weights with constants."""
    averaged = [o for o in decision.operands if o.part in ("coefficient", "factor", "value")]
    return mixes(decision) and any(not o.data and isinstance(o.value, str) for o in averaged)


def with_liveness(outputs: list[str], decisions: Mapping[str, Decision], policy: str) -> dict[str, Decision]:
    """Mark as held whatever no cotangent reaches; refuse what a cotangent reaches but cannot pass."""
    decisions = {**decisions, **_with_averages_as_sources(decisions)}
    flow = flow_graph(decisions)
    flow.add_nodes_from(outputs)  # an input may be an output
    live = set(outputs).union(*(nx.ancestors(flow, name) for name in outputs))
    stuck = [
        decision
        for name, decision in decisions.items()
        if name in live and not any(w for o, w in zip(decision.operands, decision.weights) if o.data)
    ]
    if stuck:
        ends = [next(o for o in outputs if nx.has_path(flow, d.node, o)) for d in stuck]
        raise not_balanceable(
            policy, [(d.op, d.place, nx.shortest_path(flow, d.node, end)) for d, end in zip(stuck, ends)]
        )
    return {name: d if name in live else d.held() for name, d in decisions.items()}
