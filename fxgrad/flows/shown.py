"""What pages and pictures of a flow share: colours, the caption, the picture under the patches."""

from __future__ import annotations

from typing import Any

import networkx as nx
from numpy.typing import NDArray

from fxgrad.methods.photo import Photo


def strengths(graph: nx.DiGraph[str]) -> dict[str, float]:
    """Node -> its share, from -1 to 1; full at the largest share of a token of its layer, or of all nodes beside it.

    Example:
        >>> graph = nx.DiGraph()
        >>> graph.add_node("a", layer=0, kind="input", share=2.0)
        >>> graph.add_node("b", layer=0, kind="input", share=-1.0)
        >>> strengths(graph)
        {'a': 1.0, 'b': -0.5}
    """
    scale: dict[tuple[int, bool], float] = {}
    for about in graph.nodes.values():
        group = about["layer"], about["kind"] in ("input", "token")
        scale[group] = max(scale.get(group, 0.0), abs(about["share"]))
    groups = {name: (about["layer"], about["kind"] in ("input", "token")) for name, about in graph.nodes.items()}
    return {name: graph.nodes[name]["share"] / (scale[group] or 1.0) for name, group in groups.items()}


def caption(graph: nx.DiGraph[str]) -> str:
    """The target, the policy, and how well all sums hold."""
    known = graph.graph
    return f"{known['target']}: {known['value']:.4g}, {known['rules']}, largest error at a node {known['error']:.1e}"


def part(shown: Photo) -> NDArray[Any]:
    """The pixels that the model sees, uint8 (rows, columns, 3).

    Example:
        >>> import numpy as np
        >>> from fxgrad.methods.photo import photo
        >>> part(photo(np.zeros((3, 8, 16)), (8, 8), window=(4, 0, 12, 8))).shape
        (8, 8, 3)
    """
    left, top, right, bottom = shown.window
    high, wide = shown.pixels.shape[0] / shown.height, shown.pixels.shape[1] / shown.width
    rows, columns = ((round(max(a, 0)), round(b)) for a, b in ((top * high, bottom * high), (left * wide, right * wide)))
    found: NDArray[Any] = shown.pixels[slice(*rows), slice(*columns)]
    return found
