"""PyTorch's own samples, a few of them."""

from __future__ import annotations

import subprocess
import sys

from bench.tables.torch_ops import COMPLETE, INCOMPLETE, KNOWN, section


def test_samples_of_some_ops() -> None:
    command = [sys.executable, "-m", "bench.tables.torch_ops", "--only", "_scatter", "--samples", "2", "--jobs", "1"]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "| complete |" in found and "crashed" not in found and INCOMPLETE not in found, found
    assert "of 5 ops with a gradient, 10 of" in found


def test_what_is_known_is_explained() -> None:
    name, why = next(iter(KNOWN.items()))
    lines = section({name: [(COMPLETE, ""), (INCOMPLETE, "FAILED: by 3")], "other": [(COMPLETE, "")]}, INCOMPLETE)
    assert lines[-1] == f"| `{name}` | 1 of 2 | {why} |"
