"""A flow as a page: layers side by side, hovering over a node shows its edges in and out, a slider thins them out."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping
from typing import Any

import networkx as nx
from numpy.typing import NDArray

from fxgrad.flows.layout import Layout, laid_out
from fxgrad.flows.shown import caption, seen, strengths
from fxgrad.flows.strongest import edges_of
from fxgrad.methods.html import as_url, rounded
from fxgrad.methods.html import page as framed
from fxgrad.methods.text import AGAINST, FOR

EDGES = 60_000
"""The most edges on a page, the strongest."""
_FRAGMENT = """<div class="fxgrad-flow">
<style>
.fxgrad-flow {{ font: 14px/1.5 system-ui, sans-serif; color: #222; background: #fff; }}
.fxgrad-flow .drawing {{ overflow: auto; border: 1px solid #ddd; }}
.fxgrad-flow text {{ font: 11px system-ui, sans-serif; fill: #333; }}
.fxgrad-flow .cell {{ stroke: #bbb; stroke-width: .5; cursor: pointer; outline: none; }}
.fxgrad-flow .cell.near {{ stroke: #222; stroke-width: 1.5; }}
.fxgrad-flow .cell.chosen {{ stroke: #000; stroke-width: 3; }}
.fxgrad-flow .photos {{ opacity: .5; }}
.fxgrad-flow line {{ pointer-events: none; }}
.fxgrad-flow .said {{ min-height: 6em; white-space: pre-wrap; margin: .5em 0; }}
.fxgrad-flow input {{ width: 20rem; vertical-align: middle; }}
.fxgrad-flow small {{ color: #555; }}
</style>
<p><label>threshold <input type="range" min="0" max="1000"></label> <span class="shown"></span></p>
<div class="drawing"><svg width="{width}" height="{height}" viewBox="0 0 {width} {height}">
<defs>{photo}</defs><g class="photos">{photos}</g><g class="lines"></g><g class="cells">{cells}</g><g>{texts}</g>
</svg></div>
<div class="said" aria-live="polite">Point at a node, or move with Tab.</div><small>{about}</small>
<script type="application/json">{data}</script>
<script>
(() => {{
  const roots = document.querySelectorAll(".fxgrad-flow"), root = roots[roots.length - 1];
  const data = JSON.parse(root.querySelector("script[type='application/json']").textContent);
  const cells = root.querySelectorAll(".cell"), lines = root.querySelector(".lines");
  const slider = root.querySelector("input"), number = (x) => x.toPrecision(3);
  const largest = data.edges.length ? Math.abs(data.edges[0][2]) : 1;
  const least = data.edges.length ? Math.abs(data.edges[data.edges.length - 1][2]) : 1;
  let chosen = null;
  const threshold = () => slider.value >= 1000 ? Infinity : largest * (least / largest) ** (1 - slider.value / 1000);
  const centre = (at) => data.places[at];
  const line = ([from, to, weight]) => {{
    const made = document.createElementNS("http://www.w3.org/2000/svg", "line");
    const [a, b] = [centre(from), centre(to)], strength = Math.sqrt(Math.abs(weight) / largest);
    Object.entries({{x1: a[0], y1: a[1], x2: b[0], y2: b[1]}}).forEach(([k, v]) => made.setAttribute(k, v));
    made.setAttribute("stroke", `rgb(${{data.colours[weight > 0 ? 1 : 0]}})`);
    made.setAttribute("stroke-width", (0.5 + 3 * strength).toFixed(2));
    made.setAttribute("stroke-opacity", (0.15 + 0.75 * strength).toFixed(2));
    return made;
  }};
  const listed = (edges, end) => edges.slice(0, 5).map((e) => `${{data.names[e[end]]}} ${{number(e[2])}}`).join(", ");
  const draw = () => {{
    const limit = threshold();
    const own = (e) => chosen === null || e[0] === chosen || e[1] === chosen;
    const strong = data.edges.filter((e) => own(e) && Math.abs(e[2]) >= limit);
    lines.replaceChildren(...strong.slice(0, data.most).map(line));
    const many = strong.length > data.most ? `, of which the ${{data.most}} strongest are drawn` : "";
    const at_least = limit === Infinity ? "no edges" : `${{strong.length}} edges of at least ${{number(limit)}}`;
    root.querySelector(".shown").textContent = at_least + many;
    const near = new Set(chosen === null ? [] : strong.flatMap((e) => [e[0], e[1]]));
    cells.forEach((cell, at) => {{
      cell.classList.toggle("chosen", at === chosen);
      cell.classList.toggle("near", near.has(at));
    }});
    if (chosen === null) return;
    const into = data.edges.filter((e) => e[1] === chosen), out = data.edges.filter((e) => e[0] === chosen);
    root.querySelector(".said").textContent = `${{data.names[chosen]}}: share ${{number(data.shares[chosen])}}` +
      (into.length ? `\\nin, from ${{into.length}}: ${{listed(into, 0)}}` : "") +
      (out.length ? `\\nout, to ${{out.length}}: ${{listed(out, 1)}}` : "");
  }};
  cells.forEach((cell, at) => ["pointerenter", "focus"].forEach((event) =>
    cell.addEventListener(event, () => {{ chosen = at; draw(); }})));
  root.querySelector("svg").addEventListener("click", (event) => {{
    if (!event.target.classList.contains("cell")) {{ chosen = null; draw(); }}
  }});
  slider.addEventListener("input", draw);
  slider.value = data.start;
  draw();
}})();
</script></div>"""
DRAWN = 1000
"""The most lines that are drawn at once."""
FIRST = 200
"""How many are drawn at first."""


def page(graph: nx.DiGraph[str], picture: Any = None) -> str:
    """A whole page, without other files.

    Args:
        graph: what `fxgrad.flow` returned.
        picture: what the model saw, as for `fxgrad.flows.files.write`.

    Raises:
        InputError: a picture of another form.
    """
    name = graph.graph.get("target", "flow")
    return framed(f"What flows into {name}", fragment(graph, picture), width="90rem")


def fragment(graph: nx.DiGraph[str], picture: Any = None) -> str:
    """What stands on the page, for notebooks, too; see `page`."""
    layout, index = laid_out(graph), {name: i for i, name in enumerate(graph)}
    edges = [(index[a], index[b], w) for a, b, w in edges_of(graph)]
    kept = edges[:EDGES]
    data = {
        "places": [[cell.x + cell.side / 2, cell.y + cell.side / 2] for cell in map(layout.cells.__getitem__, graph)],
        "names": [_name(name, graph.nodes[name]) for name in graph],
        "shares": rounded([graph.nodes[name]["share"] for name in graph]),
        "edges": [[a, b, *rounded([w])] for a, b, w in kept],
        "colours": [", ".join(map(str, colour)) for colour in (AGAINST, FOR)],
        "most": DRAWN,
        "start": _start([abs(w) for *_, w in kept]),
    }
    return _FRAGMENT.format(
        width=round(layout.width),
        height=round(layout.height),
        photo="" if picture is None else _defined(seen(picture)),
        photos="" if picture is None else "".join(_crop(graph.nodes[name], layout, name) for name in graph),
        cells="".join(_cells(graph, layout, picture is not None)),
        texts="".join(_texts(graph, layout)),
        about=html.escape(_about(graph, len(edges), kept)),
        data=json.dumps(data, ensure_ascii=False).replace("<", "\\u003c"),
    )


def _about(graph: nx.DiGraph[str], count: int, kept: list[tuple[int, int, float]]) -> str:
    some = "" if len(kept) == count else f" The page has the {len(kept)} strongest of {count} edges."
    return (
        f"{caption(graph)}. Red speaks for the target, blue against it; nodes are full at the largest share of their "
        f"layer.{some}"
    )


def _name(name: str, about: Mapping[str, Any]) -> str:
    return f"{about['value']}: {about['name'].strip()}" if "value" in about else about["name"]


def _start(weights: list[float]) -> int:
    """Where the slider starts: at a threshold that leaves `FIRST` edges."""
    if len(weights) <= FIRST or weights[0] == weights[-1]:
        return 0
    return round(1000 * (1 - math.log(weights[FIRST - 1] / weights[0]) / math.log(weights[-1] / weights[0])))


def _cells(graph: nx.DiGraph[str], layout: Layout, on_picture: bool) -> list[str]:
    """The nodes' squares; on a picture they let it through."""
    found = []
    for name, strength in strengths(graph).items():
        cell, colour = layout.cells[name], FOR if strength > 0 else AGAINST
        fill = f"rgba({', '.join(map(str, colour))}, {abs(strength) * (0.75 if on_picture else 1):.3f})"
        title = html.escape(_name(name, graph.nodes[name]))
        found.append(
            f'<rect class="cell" tabindex="0" x="{cell.x:g}" y="{cell.y:g}" width="{cell.side:g}" '
            f'height="{cell.side:g}" fill="{fill}"><title>{title}</title></rect>'
        )
    return found


def _texts(graph: nx.DiGraph[str], layout: Layout) -> list[str]:
    captions = [
        f'<text x="{x:g}" y="{y:g}" font-weight="600">{html.escape(text)}</text>' for x, y, text in layout.captions
    ]
    named = ((cell, graph.nodes[name]["name"]) for name, cell in layout.cells.items() if cell.named)
    return captions + [
        f'<text x="{cell.x + cell.side + 4:g}" y="{cell.y + cell.side - 4:g}">{html.escape(name.strip()[:14])}</text>'
        for cell, name in named
    ]


def _defined(pixels: NDArray[Any]) -> str:
    """The picture's part that the model sees, once, one unit wide and high."""
    return f'<image id="fxgrad-photo" href="{as_url(pixels)}" width="1" height="1" preserveAspectRatio="none"/>'


def _crop(about: Mapping[str, Any], layout: Layout, name: str) -> str:
    """A patch of the picture, under its node."""
    if "row" not in about:
        return ""
    cell, wide, high = layout.cells[name], 1 / about["columns"], 1 / about["rows"]
    box = f"{about['column'] * wide:g} {about['row'] * high:g} {wide:g} {high:g}"
    place = f'x="{cell.x:g}" y="{cell.y:g}" width="{cell.side:g}" height="{cell.side:g}"'
    return f'<svg {place} viewBox="{box}" preserveAspectRatio="none"><use href="#fxgrad-photo"/></svg>'
