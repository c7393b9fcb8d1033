"""The notebooks of docs/examples: each runs in a fresh kernel, and shows what a reader is to see."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("nbclient", reason="needs the packages nbclient and ipykernel")
pytest.importorskip("ipykernel", reason="needs the packages nbclient and ipykernel")

import nbformat

from bench.tables.notebooks import FOLDER, executed

NAMES = ["vision", "clip", "language", "new-op", "export"]
PICTURES = {"vision": 4, "clip": 3}
"""How many cells show a picture."""


def outputs(notebook: Any) -> list[list[Any]]:
    return [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]


def test_these_are_all() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == sorted(NAMES)
    listed = (FOLDER / "README.md").read_text("utf-8")
    assert all(f"[{name}.ipynb]({name}.ipynb)" in listed for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_notebook_runs(name: str, tmp_path: Path) -> None:
    shown = outputs(executed(FOLDER / f"{name}.ipynb", tmp_path))
    pictures = [sum("image/png" in output.get("data", {}) for output in cell) for cell in shown]
    assert sum(pictures) == PICTURES.get(name, 0) and max(pictures) <= 1, "a figure shows, and shows once"
    assert not [output for cell in shown for output in cell if output.get("name") == "stderr"]
    assert not list(tmp_path.iterdir()), "nothing is left where it runs"


@pytest.mark.parametrize("name", NAMES)
def test_the_notebook_is_kept_with_a_whole_run(name: str) -> None:
    path = FOLDER / f"{name}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1)), "run `make notebooks`"
    assert path.stat().st_size < 500_000 and not any(
        o.output_type == "error" for cell in outputs(notebook) for o in cell
    )
    assert "/work/" not in path.read_text("utf-8") and "/home/" not in path.read_text("utf-8")
