"""A flow as a file: a page, numbers that are read back, or a picture."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import networkx as nx

from fxgrad.errors import InputError, one_line
from fxgrad.flows.circuit import circuit
from fxgrad.writing import write_text

PICTURES = (".png", ".pdf", ".svg")
CIRCUIT = ".circuit.json"
ENDINGS = (".html", ".json", ".graphml", CIRCUIT, *PICTURES)
_NOT_IN_XML = re.compile(r"[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def write(graph: nx.DiGraph[str], path: str | Path, picture: Any = None) -> None:
    """Write a flow; the file's ending says what: .html is a page, .json and .graphml are numbers, .png a picture.

    Args:
        graph: what `fxgrad.flow` returned.
        path: of the file; .pdf and .svg are pictures, too, and .circuit.json is for the viewer of circuit-tracer.
        picture: what the model saw, for pages and pictures: a PIL image, or (C, H, W) in [0, 1].

    Raises:
        InputError: another ending, a picture of another form, or the file cannot be written.

    Example:
        >>> import tempfile
        >>> graph = nx.DiGraph([("x", "target", {"weight": 0.1})], value=0.1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write(graph, f"{folder}/flow.json")
        ...     nx.utils.graphs_equal(read(f"{folder}/flow.json"), graph)
        True
    """
    ending = _ending(path)
    if ending not in ENDINGS:
        raise InputError(f"a flow is written to {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}, not to {path}.")
    if ending in PICTURES:
        from fxgrad.flows.picture import draw

        draw(graph, path, picture)
        return
    if ending == ".html":
        from fxgrad.flows.page import page

        text = page(graph, picture)
    elif ending == ".json":
        text = _json(nx.node_link_data(graph, edges="edges"))
    elif ending == CIRCUIT:
        text = _json(circuit(graph, Path(path).name.removesuffix(".json")))
    else:
        text = "\n".join(nx.generate_graphml(_for_xml(graph))) + "\n"
    write_text(path, text)


def read(path: str | Path) -> nx.DiGraph[str]:
    """Read a flow that `write` wrote, from a .json or .graphml file: the same graph, number by number.

    Raises:
        InputError: another ending, or no such graph in the file.
    """
    ending = _ending(path)
    if ending not in (".json", ".graphml"):
        raise InputError(f"a flow is read from .json or .graphml, not from {path}.")
    try:
        text = Path(path).read_text("utf-8")
        if ending == ".json":
            graph = nx.node_link_graph(json.loads(text), edges="edges")
        else:
            graph = nx.parse_graphml(text)
            for name in ("node_default", "edge_default"):
                graph.graph.pop(name, None)
    except (OSError, ValueError, KeyError, SyntaxError, nx.NetworkXException) as error:
        raise InputError(f"{path} is no flow: {one_line(error)}") from error
    if not isinstance(graph, nx.DiGraph) or graph.is_multigraph():
        raise InputError(f"{path} is no flow: its edges have no direction, or there are several between two nodes.")
    return graph


def _ending(path: str | Path) -> str:
    return CIRCUIT if str(path).endswith(CIRCUIT) else Path(path).suffix


def _json(data: Any) -> str:
    return json.dumps(data, ensure_ascii=False, allow_nan=False) + "\n"


def _for_xml(graph: nx.DiGraph[str]) -> nx.DiGraph[str]:
    """The graph, if XML has all of its characters."""
    everything: list[Mapping[str, Any]] = [graph.graph, *graph.nodes.values()]
    for text in [*graph, *(value for about in everything for value in about.values() if isinstance(value, str))]:
        if _NOT_IN_XML.search(text) or not text:
            raise InputError(f"GraphML has no way to write {text!r}. Write a .json file, or give tokens other names.")
    return graph
