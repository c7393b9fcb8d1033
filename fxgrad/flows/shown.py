"""What pages and pictures of a flow share: colours, the caption, the picture under the patches."""

from __future__ import annotations

from typing import Any

import networkx as nx
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fxgrad.methods.photo import Photo, photo
from fxgrad.methods.text import AGAINST, FOR

LARGEST = 448
"""The most pixels of a side of the picture under the patches."""


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


def colour(sign: float, strength: float) -> tuple[float, float, float, float]:
    """Red for, blue against: (red, green, blue, opacity), all from 0 to 1.

    Example:
        >>> [round(part, 2) for part in colour(-3.0, 0.5)]
        [0.12, 0.37, 0.84, 0.5]
    """
    red, green, blue = (part / 255 for part in (FOR if sign > 0 else AGAINST))
    return red, green, blue, min(1.0, strength)


def caption(graph: nx.DiGraph[str]) -> str:
    """The target, the policy, and how well all sums hold."""
    known = graph.graph
    return f"{known['target']}: {known['value']:.4g}, {known['rules']}, largest error at a node {known['error']:.1e}"


def seen(picture: Any) -> NDArray[Any]:
    """The pixels that the model sees, uint8 (rows, columns, 3), at most `LARGEST` a side.

    Args:
        picture: a PIL image, (C, H, W) in [0, 1], or a `Photo`, which knows the part that the model sees.

    Raises:
        InputError: it is something else.

    Example:
        >>> seen(photo(np.zeros((3, 8, 16)), (8, 8), window=(4, 0, 12, 8))).shape
        (8, 8, 3)
    """
    shown = picture if isinstance(picture, Photo) else photo(picture)
    high, wide = shown.pixels.shape[0] / shown.height, shown.pixels.shape[1] / shown.width
    left, top, right, bottom = (max(edge, 0.0) for edge in shown.window)
    rows, columns = slice(round(top * high), round(bottom * high)), slice(round(left * wide), round(right * wide))
    found = Image.fromarray(shown.pixels[rows, columns])
    found.thumbnail((LARGEST, LARGEST))
    return np.asarray(found)
