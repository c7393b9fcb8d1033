"""Which nodes a cotangent reaches (live), and which are held."""

from __future__ import annotations

from collections.abc import Mapping

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
