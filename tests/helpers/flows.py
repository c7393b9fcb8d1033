"""Whether a flow is conserved, counted edge by edge, without what fxgrad has for it."""

from __future__ import annotations

from typing import Any


def conserved(graph: Any, value: float, tolerance: float = 1e-10) -> None:
    """Check that roots are inputs and constants, the only sink is the target, and nothing is lost in between."""
    into, out = dict.fromkeys(graph, 0.0), dict.fromkeys(graph, 0.0)
    for a, b, weight in graph.edges.data("weight"):
        out[a] += weight
        into[b] += weight
    scale = max(1.0, abs(value))
    roots = {n for n, about in graph.nodes.items() if about["kind"] in ("input", "constants")}
    for node, about in graph.nodes.items():
        if node != "target":
            assert abs(out[node] - about["share"]) < tolerance * scale, (node, out[node], about["share"])
        if node not in roots:
            assert abs(into[node] - about["share"]) < tolerance * scale, (node, into[node], about["share"])
    assert not any(graph.pred[n] for n in roots) and [n for n in graph if not graph.succ[n] and graph.pred[n]] == [
        "target"
    ]
    assert abs(sum(out[n] for n in roots) - value) < tolerance * scale
    assert graph.nodes["target"]["share"] == graph.graph["value"] == value
    assert all(graph.nodes[a]["layer"] <= graph.nodes[b]["layer"] for a, b in graph.edges)
