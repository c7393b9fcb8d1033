"""Real models: forward identical, complete to machine precision, in every dtype.

Cut down to two of the blocks that are alike; `make completeness` measures them whole.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from bench.architectures import BARS, MODELS, measure


@pytest.mark.parametrize("name", MODELS)
def test_architecture(name: str) -> None:
    for row in measure(name, list(BARS), parameters=1_000_000):
        print(row)
        assert row.identical, row
        assert row.error <= BARS[row.dtype], row
        if row.dtype == torch.float64 and "resnet" not in name:
            # What the pass is for. A ReLU network with frozen batch statistics is complete as it stands.
            assert row.plain > 1e-3 or "efficientnet" in name, row
