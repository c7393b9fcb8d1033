"""Which nodes a cotangent reaches (live), and which are held; and where a cotangent would get stuck."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import networkx as nx

from fxgrad.classify.decision import Decision


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


def stuck_paths(ends: Collection[str], decisions: Mapping[str, Decision]) -> dict[str, list[list[str]]]:
    """Where cotangents get stuck: at nodes that get one, but hand none on.

    Args:
        ends: names of nodes at which cotangents start.
        decisions: one per node.

    Returns:
        End -> a path from each such node to the end; without the ends from which every cotangent reaches an input.
    """
    flow = flow_graph(decisions)
    flow.add_nodes_from(ends)  # an input may be an output
    ending = [n for n, d in decisions.items() if not any(w for o, w in zip(d.operands, d.weights) if o.data)]
    stuck = [name for name in ending if not decisions[name].backward.stops]
    found: dict[str, list[list[str]]] = {}
    for end in dict.fromkeys(ends) if stuck else ():
        reaching = nx.ancestors(flow, end) | {end}
        if here := [nx.shortest_path(flow, name, end) for name in stuck if name in reaching]:
            found[end] = here
    return found


def with_liveness(ends: Collection[str], decisions: Mapping[str, Decision]) -> dict[str, Decision]:
    """Hold every node that no cotangent reaches from the ends."""
    flow = flow_graph(decisions)
    flow.add_nodes_from(ends)
    live = set(ends).union(*(nx.ancestors(flow, name) for name in ends))
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
