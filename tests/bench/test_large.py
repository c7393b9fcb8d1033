"""The memory of large models, on small ones."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("transformers")

from bench.speed import large

HELD = """
import gc, torch
from bench.speed.large import held_by_process
MEGA = 2**20
print(held_by_process(lambda: torch.ones(64 * MEGA)) // MEGA)
ring = [torch.ones(64 * MEGA)]
ring.append(ring)
del ring
print(held_by_process(lambda: (gc.collect(), torch.ones(16 * MEGA))) // MEGA)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_a_process_holds_is_seen() -> None:
    """In a process of its own: of one that has run for long, the system may take pages back meanwhile."""
    said = subprocess.run([sys.executable, "-c", HELD], capture_output=True, text=True, check=True).stdout
    held, beside_garbage = map(int, said.split())
    assert 200 < held < 320
    assert 48 < beside_garbage < 96


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_page_of_small_models() -> None:
    text, kept = large.page(small=True)
    assert kept and "| forward and gradient, fxgrad, checkpointed |" in text and "| 2,026 |" in text
