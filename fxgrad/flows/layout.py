"""Where the nodes of a flow are drawn: a panel for each value, layer after layer from the inputs to the target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import networkx as nx

PANEL = 112
"""Width of a map, in pixels."""
LEAST, MOST = 7, 16
"""Sides of a cell."""
TEXT = 84
"""Room for the names of tokens beside their cells."""
GAP = 72
"""Between layers, where the edges are seen."""
LINE = 16
"""Height of a line of text."""


@dataclass(frozen=True)
class Cell:
    """A node's square.

    Attributes:
        x, y, side: its place, in pixels, from the upper left.
        named: whether its name is written beside it.
    """

    x: float
    y: float
    side: float
    named: bool


@dataclass(frozen=True)
class Layout:
    """Where a flow is drawn.

    Attributes:
        cells: node -> its square.
        captions: (x, y, text) above the panels.
        width, height: of the whole.
    """

    cells: Mapping[str, Cell]
    captions: Sequence[tuple[float, float, str]]
    width: float
    height: float


def laid_out(graph: nx.DiGraph[str]) -> Layout:
    """Where the nodes of a flow are drawn.

    Args:
        graph: what `fxgrad.flow` returned.

    Example:
        >>> graph = nx.DiGraph(value=1.0)
        >>> graph.add_node("x[0]", kind="input", layer=0, value="x", name="patch 0, 0", row=0, column=0, columns=2)
        >>> graph.add_node("x[1]", kind="input", layer=0, value="x", name="patch 0, 1", row=0, column=1, columns=2)
        >>> graph.add_node("target", kind="target", layer=1, name="class 1")
        >>> found = laid_out(graph)
        >>> found.cells["x[1]"].x - found.cells["x[0]"].x, found.captions[0][2]
        (16.0, 'x')
    """
    cells: dict[str, Cell] = {}
    captions: list[tuple[float, float, str]] = []
    x, lowest = 8.0, 0.0
    for layer in sorted({about["layer"] for about in graph.nodes.values()}):
        groups = _groups(graph, layer)
        y, right = float(LINE), x
        for caption, names in groups.items():
            captions.append((x, y, caption))
            own, wide, high = _panel(graph, names, x, y + LINE / 2)
            cells |= own
            y, right = y + high + 2 * LINE, max(right, x + wide)
        x, lowest = right + GAP, max(lowest, y)
    return Layout(cells, captions, x - GAP + 8, lowest)


def _groups(graph: nx.DiGraph[str], layer: int) -> dict[str, list[str]]:
    """Caption -> the nodes below it: the layer's constants and rest, then each of its values."""
    found: dict[str, list[str]] = {}
    for kind in ("constants", "rest", "input", "token", "target"):
        for name, about in graph.nodes.items():
            if about["layer"] == layer and about["kind"] == kind:
                found.setdefault(about.get("value", kind), []).append(name)
    return found


def _panel(graph: nx.DiGraph[str], names: Sequence[str], x: float, y: float) -> tuple[dict[str, Cell], float, float]:
    """(the cells of some nodes, width, height): what has no position goes ahead of the map, or one below another."""
    columns = max(graph.nodes[name].get("columns", 1) for name in names)
    side = float(max(LEAST, min(MOST, PANEL // columns)))
    ahead = [name for name in names if "row" not in graph.nodes[name]]
    below = len(ahead) == len(names)
    named = below and graph.nodes[names[0]]["kind"] not in ("constants", "rest")
    lines = len(ahead) if below else -(-len(ahead) // columns)
    found = {}
    for i, name in enumerate(ahead):
        row, column = (i, 0) if below else divmod(i, columns)
        found[name] = Cell(x + column * side, y + row * side, side, named)
    for name in names:
        about: Mapping[str, Any] = graph.nodes[name]
        if "row" in about:
            found[name] = Cell(x + about["column"] * side, y + (lines + about["row"]) * side, side, False)
    high = max(cell.y for cell in found.values()) + side - y
    return found, columns * side + (TEXT if named else 0), high
