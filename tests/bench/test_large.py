"""The memory of large models, on small ones."""

from __future__ import annotations

import sys

import pytest
import torch

pytest.importorskip("transformers")

from bench.speed import large


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_a_process_holds_is_seen() -> None:
    mega = 2**20
    held = large.held_by_process(lambda: torch.ones(64 * mega))
    assert 200 * mega < held < 320 * mega


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_page_of_small_models() -> None:
    text, kept = large.page(small=True)
    assert kept and "| forward and gradient, fxgrad, checkpointed |" in text and "| 2,026 |" in text
