"""Run the notebooks of docs/examples and keep what they show: `make notebooks`.

`python -m bench.tables.notebooks FILE...` runs some of them.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "examples"


def executed(path: Path, folder: Path) -> nbformat.NotebookNode:
    """The notebook with the outputs of a run in a fresh kernel.

    Args:
        path: the notebook; it is not changed.
        folder: where the kernel runs.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell raised.
    """
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=120,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        record_timing=False,
        coalesce_streams=True,
    )
    quiet = {"PYTHONWARNINGS": "ignore:IProgress not found", "OMP_NUM_THREADS": "1"}
    client.execute(env={**os.environ, **quiet, "PYTHONPATH": str(ROOT)})
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }  # without the versions of this machine
    return notebook


if __name__ == "__main__":
    for file in map(Path, sys.argv[1:] or sorted(map(str, FOLDER.glob("*.ipynb")))):
        done = executed(file, file.parent)
        file.write_text(nbformat.writes(done, indent=1) + "\n", encoding="utf-8")
