"""A flow in the JSON form that the viewer of circuit-tracer reads: a column for each token, a row for each cut."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import Any

import networkx as nx

from fxgrad.flows.strongest import edges_of

TYPES = {"input": "embedding", "token": "token", "target": "logit"}
"""Kind of a node -> its type in the viewer. All others are errors there: values that no token explains."""
ERROR = "mlp reconstruction error"
"""The viewer's own word for errors, which it draws as diamonds."""


def circuit(graph: nx.DiGraph[str], slug: str) -> dict[str, Any]:
    """A flow as the viewer of circuit-tracer reads it.

    Tokens are nodes of type "token" in the row of their cut, inputs are embeddings, constants and the rest are errors,
    the target is the logit. What is no token stands in a column of its own, the last. `activation` is a node's share,
    and `influence` is how much of the sum of all |share| this node and all larger ones have together, so the viewer's
    slider leaves the largest. A link's weight is the edge's.

    Args:
        graph: what `fxgrad.flow` returned.
        slug: a name for the graph: its file's, without .json.

    Returns:
        What is written as JSON: `metadata`, `qParams`, `nodes`, `links`.

    Example:
        >>> graph = nx.DiGraph([("x[0]", "target", {"weight": 2.0})], target="class 1", rules="libragrad", value=2.0)
        >>> graph.add_node("x[0]", kind="input", layer=0, name="sky", token=0, share=2.0)
        >>> graph.add_node("target", kind="target", layer=1, name="class 1", share=2.0)
        >>> found = circuit(graph, "sky")
        >>> found["links"], found["metadata"]["prompt_tokens"]
        ([{'source': 'E_0_0', 'target': '1_0_1', 'weight': 2.0}], ['sky', ''])

    Source: Ameisen et al., Circuit Tracing, transformer-circuits.pub 2025; the package circuit-tracer, 0.5.
    """
    columns = _columns(graph)
    last, influences, counts = len(columns), _influences(graph), dict[tuple[str, int], int]()
    nodes: dict[str, dict[str, Any]] = {}
    for name, about in graph.nodes.items():
        row = "E" if about["kind"] == "input" else str(about["layer"])
        column = columns.get(_key(about), last)
        number = counts[row, column] = counts.get((row, column), -1) + 1
        nodes[name] = _node(name, about, row, number, column) | {"influence": influences[name]}
    links = [{"source": nodes[a]["node_id"], "target": nodes[b]["node_id"], "weight": w} for a, b, w in edges_of(graph)]
    metadata = {
        "slug": slug,
        "scan": graph.graph["rules"],
        "transcoder_list": [],
        "prompt_tokens": [*(_plain(key) for key in columns), ""],
        "prompt": f"{graph.graph['target']} = {graph.graph['value']:.4g}",
        "node_threshold": 1.0,
        "schema_version": 0,  # from 1 on, the number of a feature is paired with that of its layer
    }
    view = {"pinnedIds": [], "supernodes": [], "linkType": "either", "clickedId": "", "sg_pos": ""}
    return {"metadata": metadata, "qParams": view, "nodes": list(nodes.values()), "links": links}


def _key(about: Mapping[str, Any]) -> tuple[Hashable, ...]:
    """What nodes in one column have in common: the token, of a divided one as a whole; () of what is no token."""
    if about["kind"] not in ("input", "token"):
        return ()
    name = about["name"].removesuffix(f", {about['part']}") if "part" in about else about["name"]
    return name, about.get("whole", about.get("token")), about.get("rows"), about.get("columns")


def _plain(key: tuple[Hashable, ...]) -> str:
    return str(key[0])


def _columns(graph: nx.DiGraph[str]) -> dict[tuple[Hashable, ...], int]:
    """Each token's column: the inputs' first, in their order, then what the cuts have more, such as a class token."""
    keys = [_key(about) for about in sorted(graph.nodes.values(), key=lambda about: about["layer"])]
    return {key: i for i, key in enumerate(dict.fromkeys(key for key in keys if key))}


def _influences(graph: nx.DiGraph[str]) -> dict[str, float]:
    """Node -> what it and all larger ones have of the sum of all |share|, from 0 to 1."""
    sizes = {name: abs(about["share"]) for name, about in graph.nodes.items()}
    largest = sorted(sizes, key=lambda name: -sizes[name])
    total, found, so_far = math.fsum(sizes.values()) or 1.0, dict[str, float](), 0.0
    for name in largest:
        so_far += sizes[name]
        found[name] = min(1.0, so_far / total)
    return found


def _node(name: str, about: Mapping[str, Any], row: str, number: int, column: int) -> dict[str, Any]:
    target = about["kind"] == "target"
    shown = name if about["name"] == name else f"{name}: {about['name']}"
    return {
        "node_id": f"{row}_{number}_{column}",
        "feature": number,
        "layer": row,
        "ctx_idx": column,
        "feature_type": TYPES.get(about["kind"], ERROR),
        "token_prob": 0.0,
        "is_target_logit": target,
        "run_idx": 0,
        "reverse_ctx_idx": 0,
        "jsNodeId": f"{row}_{number}_{column}",
        "clerp": f'Output "{_unquoted(about["name"])}" (p=unknown)' if target else shown,  # the viewer splits at "(p="
        "activation": about["share"],
    }


def _unquoted(text: str) -> str:
    """With single quotes only: the viewer takes the label between double ones."""
    return text.replace('"', "'")
