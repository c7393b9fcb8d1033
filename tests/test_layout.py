"""The order of fxgrad's folders: each imports only from those before it; no cycles; no module hidden by a function."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import networkx as nx

import fxgrad

ROOT = Path(fxgrad.__file__).parents[1]
ORDER = [
    *(
        "lazy",
        "errors",
        "installed",
        "reading",
        "writing",
        "kinds",
        "graph",
        "ops",
        "pt2",
        "table",
        "capture",
        "classify",
        "report",
        "module",
        "pipeline",
        "run",
    ),
    *(
        "proof",
        "methods",
        "flows",
        "text",
        "metrics",
        "explainer",
        "__init__",
        "data",
        "evaluate",
        "zoo",
        "demo",
        "commands",
    ),
]
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "fxgrad").rglob("*.py"))
}


def imports(module: str) -> Iterator[str]:
    """All modules of fxgrad that it imports: at its top, inside functions, for types only."""
    for node in ast.walk(ast.parse(FILES[module].read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}: write the whole path of what is imported from {'.' * node.level}"
            for name in (f"{node.module}.{alias.name}" for alias in node.names):
                yield name if name in FILES else str(node.module)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def folder(module: str) -> str:
    return [*module.split("."), "__init__"][1]


GRAPH = nx.DiGraph({m: [i for i in imports(m) if i in FILES] for m in FILES})


def test_layout() -> None:
    inside = [m for m in FILES if m != "fxgrad" and not m.endswith("__main__")]  # those two may import all
    assert {folder(m) for m in inside} | {"__init__"} == set(ORDER)
    found = {
        f"{m} imports {i}"
        for m in inside
        for i in GRAPH.successors(m)
        if folder(i) not in ORDER[: ORDER.index(folder(m)) + 1]
    }
    for cycle in nx.strongly_connected_components(GRAPH):
        found |= {f"{a} and {b} import each other" for a, b in [sorted(cycle)[:2]]} if len(cycle) > 1 else set()
    modules = {m: importlib.import_module(m) for m in FILES if not m.endswith("__main__")}
    for name, module in modules.items():
        package, _, last = name.rpartition(".")
        if package and getattr(modules[package], last) is not module:
            found.add(f"{name} is hidden by a name of {package}")
    assert not found


def test_names_of_test_files_are_unique() -> None:
    """pytest imports them by name alone, and leaves out the second of two."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
