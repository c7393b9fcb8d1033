"""Methods at sizes other than the example's: as for a model that was converted at that size, and example by example."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

import fxgrad
from fxgrad.data.models import randomize

METHODS = ("input_x_gradient", "fullgrad", "fullgrad_plus", "gradcam", "hirescam")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c = nn.Conv2d(8, 8, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.c(x).relu()


class Pictures(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.layer = nn.Conv2d(3, 8, 3, 2, 1), nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.layer:
            x = block(x)
        return self.head(x.mean((2, 3)))


def vit() -> nn.Module:
    options: dict[str, Any] = {"num_classes": 5, "depth": 2, "embed_dim": 32, "num_heads": 2, "dynamic_img_size": True}
    return timm.create_model("vit_tiny_patch16_224", img_size=64, **options)


def compare(
    free: fxgrad.ConvertedModule, fixed: fxgrad.ConvertedModule, inputs: tuple[Tensor, ...], **more: Any
) -> None:
    """The same maps from both, and from each example alone."""
    for method in METHODS:
        ours, theirs = (fxgrad.attribute(c, inputs, target=1, method=method, **more) for c in (free, fixed))
        assert torch.allclose(ours.map, theirs.map, rtol=1e-9, atol=1e-11), method
        ones = [
            fxgrad.attribute(free, tuple(x[i : i + 1] for x in inputs), target=1, method=method, **more) for i in (0, 1)
        ]
        assert torch.allclose(ours.map, torch.cat([one.map for one in ones]), rtol=1e-10, atol=1e-10), method


@pytest.mark.parametrize("factory", [Pictures, vit])
def test_pictures_of_another_size(factory: Any) -> None:
    model = factory().double().eval()
    randomize(model)
    # At its own size, 64 x 64, the vision transformer takes its positions as they are.
    free = fxgrad.convert(model, (torch.randn(1, 3, 80, 64).double(),))
    assert free.classified.captured.inputs[0].shape == (None, 3, None, None)
    x = torch.randn(2, 3, 48, 96).double()
    with torch.no_grad():
        assert torch.equal(free(x), model(x))
    compare(free, fxgrad.convert(model, (x,), dynamic_shapes=({0: torch.export.Dim.AUTO},)), (x,))


def test_longer_and_shorter_texts() -> None:
    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=12,
    )  # fmt: skip
    model = BertForSequenceClassification(config).double().eval()
    randomize(model)
    ids = torch.randint(50, (2, 6))
    free = fxgrad.convert(model, (ids, torch.ones_like(ids)))
    for length in (4, 12):
        ids = torch.randint(50, (2, length))
        mask = torch.ones_like(ids)
        mask[1, -2:] = 0
        with torch.no_grad():
            assert torch.equal(free(ids, mask).logits, model(ids, mask).logits)
        batch = {0: torch.export.Dim.AUTO}
        compare(free, fxgrad.convert(model, (ids, mask), dynamic_shapes=(batch, batch)), (ids, mask))
    with pytest.raises(fxgrad.InputError, match=r"input_ids.shape\[1\] <= 12"):
        fxgrad.attribute(free, (torch.zeros(2, 13, dtype=torch.int64),) * 2, target=1)
