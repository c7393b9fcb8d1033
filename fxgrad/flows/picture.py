"""A flow as a picture, drawn by matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import networkx as nx

from fxgrad.flows.layout import laid_out
from fxgrad.flows.shown import caption, colour, seen, strengths
from fxgrad.flows.strongest import edges_of
from fxgrad.methods.drawing import Drawing, write

try:
    from matplotlib.collections import LineCollection, PatchCollection
    from matplotlib.patches import Rectangle
except ImportError as missing:
    from fxgrad.errors import InputError

    raise InputError(f'drawing needs matplotlib ({missing}): pip install "fxgrad[cli]"') from missing

EDGES = 300
"""The most edges in a picture, the strongest."""
DOTS = 100
"""How many of the layout's pixels are an inch."""


def draw(graph: nx.DiGraph[str], path: str | Path | None = None, picture: Any = None, edges: int = EDGES) -> Any:
    """Draw a flow: the nodes' shares and the strongest edges, red for the target, blue against it.

    Args:
        graph: what `fxgrad.flow` returned.
        path: of the file, .png, .pdf or .svg; None writes none.
        picture: what the model saw, as for `fxgrad.flows.files.write`.
        edges: how many edges to draw, the strongest.

    Returns:
        The figure of matplotlib.

    Raises:
        InputError: a picture of another form, or the file cannot be written.
    """
    layout = laid_out(graph)
    figure = Drawing(figsize=(layout.width / DOTS, layout.height / DOTS + 0.3), dpi=160)
    axes = figure.add_axes((0, 0, 1, layout.height / DOTS / (layout.height / DOTS + 0.3)))
    axes.set(xlim=(0, layout.width), ylim=(layout.height, 0))
    axes.set_axis_off()
    if picture is not None:
        _patches(axes, graph, layout, picture)
    strongest = edges_of(graph)[:edges]
    largest = max((abs(w) for *_, w in strongest), default=1.0)
    places = {name: (cell.x + cell.side / 2, cell.y + cell.side / 2) for name, cell in layout.cells.items()}
    relative = [(abs(w) / largest) ** 0.5 for *_, w in strongest]
    colours = [colour(w, 0.15 + 0.75 * r) for (*_, w), r in zip(strongest, relative)]
    lines = [(places[a], places[b]) for a, b, _ in strongest]
    axes.add_collection(LineCollection(lines, colors=colours, linewidths=[0.3 + 1.7 * r for r in relative], zorder=2))
    squares = [Rectangle((c.x, c.y), c.side, c.side) for c in map(layout.cells.__getitem__, graph)]
    fills = [colour(s, abs(s) * (0.75 if picture is not None else 1)) for s in strengths(graph).values()]
    axes.add_collection(PatchCollection(squares, facecolors=fills, edgecolors="#999999", linewidths=0.3, zorder=3))
    for x, y, text in layout.captions:
        axes.text(x, y, text, fontsize=6, fontweight="bold", parse_math=False)
    for name, cell in layout.cells.items():
        if cell.named:
            shown = graph.nodes[name]["name"].strip()[:14]
            axes.text(cell.x + cell.side + 4, cell.y + cell.side - 4, shown, fontsize=6, parse_math=False)
    figure.text(0.01, 0.99, caption(graph), fontsize=7, va="top", parse_math=False)
    if path is not None:
        write(figure, path)
    return figure


def _patches(axes: Any, graph: nx.DiGraph[str], layout: Any, picture: Any) -> None:
    """The patches under their nodes: the picture once for each map."""
    pixels = seen(picture)
    corners: dict[tuple[int, str], tuple[float, float, float, float]] = {}
    for name, about in graph.nodes.items():
        if "row" in about:
            cell = layout.cells[name]
            x, y = cell.x - about["column"] * cell.side, cell.y - about["row"] * cell.side
            box = (x, x + about["columns"] * cell.side, y + about["rows"] * cell.side, y)
            corners[about["layer"], about["value"]] = box
    for box in corners.values():
        axes.imshow(pixels, extent=box, aspect="auto", zorder=1, alpha=0.5)
    axes.set(xlim=(0, layout.width), ylim=(layout.height, 0))
