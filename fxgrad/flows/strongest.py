"""The strongest edges of a flow, with the others booked in one node for each stretch, so that all sums still hold."""

from __future__ import annotations

import networkx as nx


def edges_of(graph: nx.DiGraph[str]) -> list[tuple[str, str, float]]:
    """All edges with their weights, the strongest first.

    Example:
        >>> edges_of(nx.DiGraph([("a", "y", {"weight": 1.0}), ("b", "y", {"weight": -3.0})]))
        [('b', 'y', -3.0), ('a', 'y', 1.0)]
    """
    found: list[tuple[str, str, float]] = list(graph.edges.data("weight"))
    return sorted(found, key=lambda edge: -abs(edge[2]))


def strongest(graph: nx.DiGraph[str], top: int) -> nx.DiGraph[str]:
    """A copy with the strongest edges between two cuts.

    An edge that is left out becomes two, by way of the node "rest before" the later cut. So what flows into and out of
    every node stays as it is.

    Args:
        graph: what `fxgrad.flow` returned.
        top: how many edges to keep between two cuts, by the size of their weights.

    Example:
        >>> graph = nx.DiGraph([("a", "y", {"weight": 3.0}), ("b", "y", {"weight": -1.0}), ("c", "y", {"weight": 2.0})])
        >>> nx.set_node_attributes(graph, {"a": 0, "b": 0, "c": 0, "y": 1}, "layer")
        >>> nx.set_node_attributes(graph, "y", "cut")
        >>> list(strongest(graph, 1).edges.data("weight"))
        [('a', 'y', 3.0), ('b', 'rest before y', -1.0), ('c', 'rest before y', 2.0), ('rest before y', 'y', 1.0)]
    """
    found = graph.copy()
    for layer in sorted({graph.nodes[end]["layer"] for _, end in graph.edges}):
        left_out = [edge for edge in edges_of(graph) if graph.nodes[edge[1]]["layer"] == layer][top:]
        if not left_out:
            continue
        cut = graph.nodes[left_out[0][1]]["cut"]
        rest = f"rest before {cut}"
        share = sum(w for *_, w in left_out)
        found.add_node(rest, kind="rest", cut=cut, layer=layer - 1, name=rest, share=share)
        found.remove_edges_from([(a, b) for a, b, _ in left_out])
        for one, _, weight in left_out:
            _book(found, one, rest, weight)
        for _, other, weight in left_out:
            _book(found, rest, other, weight)
    return found


def _book(graph: nx.DiGraph[str], one: str, other: str, weight: float) -> None:
    graph.add_edge(one, other, weight=weight + graph.get_edge_data(one, other, {"weight": 0.0})["weight"])
