"""What flows into a node is what flows out of it; a graph for which this does not hold is refused."""

from __future__ import annotations

import math
from typing import Any

import networkx as nx

from fxgrad.errors import InputError
from fxgrad.methods.completeness import coarsest, own_gradients
from fxgrad.methods.problem import Problem
from fxgrad.proof.ledger import TOLERANCE


def imbalance(graph: nx.DiGraph[str]) -> tuple[float, str]:
    """(the largest difference at a node between its share and what flows in, or out; the node).

    Differences are relative to the target's value, or to the sum of the absolute shares at a layer if that is larger;
    inf where a number is not finite. Nothing flows into inputs and constants, and nothing out of the target.

    Args:
        graph: what `fxgrad.flow` returned.

    Example:
        >>> graph = nx.DiGraph()
        >>> graph.add_node("x", kind="input", layer=0, share=2.0)
        >>> graph.add_node("h", kind="token", layer=1, share=2.0)
        >>> graph.add_node("target", kind="target", layer=2, share=1.5)
        >>> graph.add_weighted_edges_from([("x", "h", 2.0), ("h", "target", 1.5)])
        >>> imbalance(graph)
        (0.25, 'h')
    """
    size: dict[int, float] = {}
    for about in graph.nodes.values():
        size[about["layer"]] = size.get(about["layer"], 0.0) + abs(about["share"])
    scale = max(size.values()) or 1.0
    differences = [(0.0, "")]
    for node, about in graph.nodes.items():
        flows: list[Any] = [graph.in_degree] if about["kind"] not in ("input", "constants") else []
        flows += [graph.out_degree] if about["kind"] != "target" else []
        for flow in flows:
            off = abs(flow(node, weight="weight") - about["share"]) / scale
            differences.append((off if math.isfinite(off) else math.inf, node))
    return max(differences)


def refuse_unbalanced(graph: nx.DiGraph[str], problem: Problem) -> None:
    """Check that the flow is conserved, and note its error in the graph.

    Args:
        graph: changed: gets the attribute `error`.
        problem: the model and the target.

    Raises:
        InputError: it is not, beyond the dtype's tolerance, or a number is not finite.
    """
    error, node = imbalance(graph)
    graph.graph["error"] = error
    if error == math.inf:
        raise InputError(f"at {node!r} a number is not finite: some value of the model overflows at this input.")
    if error <= TOLERANCE[coarsest(problem.aim.values, problem)]:
        return
    if problem.aim.target.note:
        start = f"a flow has to add up, and this one is off by {error:.2g} of the whole"
    else:
        start = f"what flows into {node!r} is not what flows out of it, by {error:.2g} of the whole"
    raise InputError(start + reason(problem))


def reason(problem: Problem) -> str:
    """Why shares do not add up, as the end of a sentence: the target's note, or the policy's own gradients."""
    if note := problem.aim.target.note.removeprefix("Warning: "):
        return f": {note}"
    if own := own_gradients(problem):
        rules = problem.converted.classified.table.name
        return f": under {rules}, {own}. Use libragrad."
    return ". fxgrad.check proves node by node what does not balance."
