"""Real models: forward identical, complete to machine precision.

Cut down to two of the blocks that are alike, and most of them in float64 only; `make completeness` measures them whole
and in every dtype.
"""

from __future__ import annotations

import pytest
import torch

from bench.tables.architectures import BARS, MODELS, measure

SMALLER = ("vit_tiny_patch16_224", "convnext_atto", "swin_tiny_patch4_window7_224")
"""In the dtypes below float64, too."""


def examine(name: str, dtypes: list[torch.dtype]) -> None:
    for row in measure(name, dtypes, parameters=1_000_000):
        assert row.identical, row
        assert row.error <= BARS[row.dtype], row
        if row.dtype == torch.float64 and "resnet" not in name:
            # What the pass is for. A ReLU network with frozen batch statistics is complete as it stands.
            assert row.plain > 1e-3 or "efficientnet" in name, row


@pytest.mark.parametrize("name", MODELS)
def test_architecture(name: str) -> None:
    examine(name, [torch.float64])


@pytest.mark.parametrize("name", SMALLER)
def test_architecture_in_lower_precision(name: str) -> None:
    examine(name, [torch.float32, torch.bfloat16])
