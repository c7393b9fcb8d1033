"""Which nodes a cotangent reaches (live), and which are held."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import networkx as nx

from fxgrad.classify.decision import Decision
from fxgrad.classify.refusals import not_balanceable


def flow_graph(decisions: Mapping[str, Decision]) -> nx.DiGraph[str]:
    """The graph of the operands that receive a cotangent: an edge operand -> node for every weight but 0.

    Example:
        >>> from fxgrad.capture.export import capture
        >>> from fxgrad.table.loading import load
        >>> import torch
        >>> from fxgrad.classify.walk import classify
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


def with_liveness(outputs: list[str], decisions: Mapping[str, Decision], policy: str) -> dict[str, Decision]:
    """Hold every node that no cotangent reaches; refuse nodes that get a cotangent but hand none on."""
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


def handed_on(decisions: Mapping[str, Decision]) -> dict[str, list[str]]:
    """Node -> the operands that it hands a cotangent on to.

    Example:
        >>> import fxgrad, torch
        >>> decisions = fxgrad.convert(torch.nn.SiLU().eval(), (torch.zeros(2, 3),)).classified.decisions
        >>> handed_on(decisions)
        {'silu': ['input_']}
    """
    found = {}
    for name, decision in decisions.items():
        pairs = zip(decision.operands, decision.weights)
        found[name] = [str(operand.value) for operand, weight in pairs if operand.data and weight != 0]
    return found


def passed_by(start: Collection[str], through: Collection[str], before: Mapping[str, Collection[str]]) -> set[str]:
    """What is met on the way back from some nodes, without going through others.

    Args:
        start: the nodes to start from.
        through: the nodes that end the way.
        before: node -> the nodes before it.

    Example:
        >>> sorted(passed_by({"y"}, {"b"}, {"y": {"b", "c"}, "b": {"x"}, "c": {"x"}}))
        ['c', 'x', 'y']
    """
    seen = set(start) - set(through)
    pending = list(seen)
    while pending:
        for name in before.get(pending.pop(), ()):
            if name not in seen and name not in through:
                seen.add(name)
                pending.append(name)
    return seen
