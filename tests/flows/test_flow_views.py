"""A flow as a page, which Chromium opens, as files that are read back, and as a picture."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import networkx as nx
import pytest
import torch
from timm.models import VisionTransformer

import fxgrad
from fxgrad.data.models import randomize
from fxgrad.errors import InputError
from fxgrad.flows.files import read, write
from fxgrad.flows.layout import laid_out
from fxgrad.flows.page import page
from fxgrad.flows.picture import draw

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PHOTO = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))


@cache
def made(top: int | None = None) -> Any:
    torch.manual_seed(0)
    model = VisionTransformer(img_size=32, patch_size=16, embed_dim=16, depth=2, num_heads=2, num_classes=5).eval()
    randomize(model, 0)
    x = torch.randn(1, 3, 32, 32)
    return fxgrad.flow(fxgrad.convert(model, (x,)), (x,), target=3, top=top)


def opened(tmp_path: Path, events: str = "", picture: Any = None) -> str:
    (tmp_path / "a.html").write_text(
        page(made(), picture).replace("</body>", f"<script>{events}</script></body>"), "utf-8"
    )
    call = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", f"file://{tmp_path}/a.html"]
    return subprocess.run(call, capture_output=True, text=True, check=True, timeout=120).stdout


def lines_in(text: str) -> list[str]:
    return re.findall(r"<line ", text.partition('class="lines"')[2].partition("</g>")[0])


@pytest.mark.parametrize("ending", [".json", ".graphml"])
@pytest.mark.parametrize("top", [None, 5])
def test_files_are_read_back_number_by_number(ending: str, top: int | None, tmp_path: Path) -> None:
    graph = made(top).copy()
    graph.nodes["x[2]"]["name"] = " <sky>&\"' \n\t 北"
    write(graph, tmp_path / f"a{ending}")
    again = read(tmp_path / f"a{ending}")
    assert nx.utils.graphs_equal(again, graph) and again.graph == graph.graph and list(again) == list(graph)
    plain = nx.read_graphml(tmp_path / "a.graphml") if ending == ".graphml" else None
    assert plain is None or set(plain.edges) == set(graph.edges)


def test_what_files_refuse(tmp_path: Path) -> None:
    graph = made().copy()
    for call, message in (
        (
            lambda: write(graph, tmp_path / "a.csv"),
            r"a flow is written to \.html, \.json, \.graphml, .* or \.svg, not to",
        ),
        (lambda: read(tmp_path / "a.html"), r"a flow is read from \.json or \.graphml, not from"),
        (lambda: read(tmp_path / "absent.json"), r"absent\.json is no flow: FileNotFoundError"),
        (lambda: write(graph, tmp_path / "no" / "a.json"), "cannot be written: No such file"),
    ):
        with pytest.raises(InputError, match=message):
            call()
    (tmp_path / "b.json").write_text("{}")
    (tmp_path / "b.graphml").write_text("<graphml>")
    for name in ("b.json", "b.graphml"):
        with pytest.raises(InputError, match="is no flow"):
            read(tmp_path / name)
    graph.nodes["x[2]"]["name"] = "\x01"
    with pytest.raises(InputError, match=r"GraphML has no way to write '\\x01'"):
        write(graph, tmp_path / "a.graphml")
    write(graph, tmp_path / "a.json")
    assert nx.utils.graphs_equal(read(tmp_path / "a.json"), graph)


def test_the_layout_has_every_node_once() -> None:
    graph = made(5)
    cells = laid_out(graph).cells
    assert set(cells) == set(graph)
    corners = [(cell.x, cell.y) for cell in cells.values()]
    assert len(set(corners)) == len(corners)
    for a, b in graph.edges:  # the flow goes to the right, but for a layer's own rest
        assert cells[a].x < cells[b].x or "rest" in (graph.nodes[a]["kind"], graph.nodes[b]["kind"])


def test_the_page_needs_no_other_file() -> None:
    text = page(made(), PHOTO)
    assert not re.search(r"(src|href)=\"(?!data:image/png;base64,|#)", text) and "@import" not in text
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_pointing_at_a_node_shows_its_edges(tmp_path: Path) -> None:
    graph, names = made(), list(made())
    at = names.index("blocks.1[0]")
    point = f'document.querySelectorAll(".cell")[{at}].dispatchEvent(new Event("pointerenter"))'
    slide = "const s = document.querySelector('input'); s.value = 0; s.dispatchEvent(new Event('input'));"
    text = opened(tmp_path, slide + point, PHOTO)
    assert len(lines_in(text)) == graph.degree("blocks.1[0]")
    share = re.search(r"blocks\.1: class token: share (\S+)", text)
    assert share and float(share[1]) == pytest.approx(graph.nodes["blocks.1[0]"]["share"], rel=0.01)
    (strongest, *_) = sorted(graph.in_edges("blocks.1[0]", data="weight"), key=lambda edge: -abs(edge[2]))
    first = re.search(rf"in, from {graph.in_degree('blocks.1[0]')}: (.+?) (-?[\d.e-]+),", text)
    assert first and float(first[2]) == pytest.approx(strongest[2], rel=0.01)
    near = len(re.findall(r'class="cell near"', text)) + len(
        re.findall(r'class="cell chosen near"|class="cell near chosen"', text)
    )
    assert near == 1 + graph.degree("blocks.1[0]")
    assert len(re.findall("<use ", text)) == sum("row" in about for about in graph.nodes.values())


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.parametrize("value", [0, 500, 1000])
def test_the_slider_leaves_the_strongest_edges(value: int, tmp_path: Path) -> None:
    slide = f"const s = document.querySelector('input'); s.value = {value}; s.dispatchEvent(new Event('input'));"
    text = opened(tmp_path, slide)
    weights = sorted((abs(w) for *_, w in made().edges.data("weight")), reverse=True)
    limit = {0: 0, 500: (weights[0] * weights[-1]) ** 0.5, 1000: float("inf")}[value]
    expected = sum(w >= limit * 0.99999 for w in weights)
    assert len(lines_in(text)) == expected
    assert (f"{expected} edges of at least" if value < 1000 else "no edges") in text


def test_a_page_has_the_strongest_edges_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxgrad.flows.page.EDGES", 7)
    text = page(made())
    data = json.loads(text.partition('<script type="application/json">')[2].partition("</script>")[0])
    assert len(data["edges"]) == 7
    assert f"The page has the 7 strongest of {made().number_of_edges()} edges." in text
    weights = sorted((abs(w) for *_, w in made().edges.data("weight")), reverse=True)
    assert [abs(w) for *_, w in data["edges"]] == pytest.approx(weights[:7], rel=1e-4)


def test_the_picture(tmp_path: Path) -> None:
    graph = made()
    write(graph, tmp_path / "a.png", PHOTO)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    (axes,) = draw(graph, tmp_path / "a.svg", PHOTO, edges=10).axes
    lines, squares = axes.collections
    assert len(lines.get_segments()) == 10 and len(squares.get_paths()) == len(graph) and len(axes.images) == 3
    text = (tmp_path / "a.svg").read_text("utf-8")
    assert "class 3: " in text and "blocks.1" in text
    with pytest.raises(InputError, match="picture is a tensor or an array"):
        draw(graph, None, "cat.png")
