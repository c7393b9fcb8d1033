"""Examples of a batch, free sizes, and calls of one layer: against one example, one size, one call at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import fxgrad
from fxgrad.data.models import randomize
from fxgrad.methods.problem import Problem

SHARES = ("input_x_gradient", "hirescam", "fullgrad", "fullgrad_plus")
AUTO = torch.export.Dim.AUTO


class TokensFirst(nn.Module):
    """As open_clip's older towers: tokens ahead of the batch, inside and out."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 16, activation="gelu") for _ in range(2))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(0, 1)
        for block in self.blocks:
            x = block(x)
        return self.head(x[0])


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Flatten(), nn.Linear(40, 4))


class Conv1D(nn.Module):
    """As in GPT-2: all but the width merged, then addmm."""

    def __init__(self, wide: int, out: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(wide, out)), nn.Parameter(torch.randn(out))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.view(-1, x.shape[-1]), self.weight).view(*x.shape[:-1], -1)


class Block(nn.Module):
    """Attention by matrices of (batch x heads), between two of GPT-2's layers."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = Conv1D(8, 24), Conv1D(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k, v = (y.reshape(b, t, 2, 4).transpose(1, 2).reshape(b * 2, t, 4) for y in self.qkv(x).split(8, -1))
        y = torch.bmm((torch.bmm(q, k.transpose(1, 2)) / 2).softmax(-1), v)
        return x + self.out(y.reshape(b, 2, t, 4).transpose(1, 2).reshape(b, t, 8))


class Merged(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.h, self.head = nn.Sequential(Block(), Block()), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.h(x).mean(1))


def swin() -> nn.Module:
    options: dict[str, Any] = {"img_size": 56, "embed_dim": 12, "depths": (2, 1), "num_heads": (2, 4), "num_classes": 4}
    return timm.create_model("swin_tiny_patch4_window7_224", **options)


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "tokens first": (TokensFirst, (5, 8)),
    "encoder": (encoder, (5, 8)),
    "gpt-2": (Merged, (5, 8)),
    "windows": (swin, (3, 56, 56)),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_batch_is_its_examples_in_one_run(name: str) -> None:
    factory, shape = MODELS[name]
    torch.manual_seed(0)
    model = factory().double().eval()
    randomize(model)
    x = torch.randn(3, *shape).double()
    libra = fxgrad.convert(model, (x,))
    targets = torch.tensor([1, 3, 0])
    for method in SHARES:
        found = fxgrad.attribute(libra, (x,), target=targets, method=method)
        ones = [fxgrad.attribute(libra, (x[i : i + 1],), target=int(t), method=method) for i, t in enumerate(targets)]
        assert torch.allclose(found.map, torch.cat([one.map for one in ones]), rtol=1e-10, atol=1e-10), method
        apart = torch.cat([one.apart for one in ones if one.apart is not None])
        assert found.apart is not None and torch.allclose(found.apart, apart, rtol=1e-10, atol=1e-10), method
        assert found.completeness_error is not None and found.completeness_error < 1e-10, method


@pytest.mark.parametrize("name", MODELS)
def test_examples_need_not_go_one_by_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Problem, example: int) -> Problem:
        raise AssertionError("one by one")

    monkeypatch.setattr(Problem, "only", refuse)
    factory, shape = MODELS[name]
    x = torch.randn(2, *shape)
    libra = fxgrad.convert(factory().eval(), (x,))
    assert fxgrad.attribute(libra, (x,), target=0).map.isfinite().all()


@pytest.mark.parametrize("method", [*SHARES, "gradcam", "genatt", "rollout"])
def test_a_free_picture_size_is_the_one_that_is_given(method: str) -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"num_classes": 5, "depth": 2, "embed_dim": 32, "num_heads": 2, "dynamic_img_size": True}
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, **options).double().eval()
    randomize(model)
    free = fxgrad.convert(model, (torch.randn(2, 3, 80, 64).double(),), dynamic_shapes=({0: AUTO, 2: AUTO, 3: AUTO},))
    x = torch.randn(2, 3, 64, 96).double()
    fixed = fxgrad.convert(model, (x,))
    ours, theirs = (fxgrad.attribute(c, (x,), target=1, method=method) for c in (free, fixed))
    assert ours.patches.shape == (2, 4, 6)
    assert torch.allclose(ours.map, theirs.map, rtol=1e-9, atol=1e-11)


class Siamese(nn.Module):
    def __init__(self, chained: bool = False) -> None:
        super().__init__()
        self.chained = chained
        self.f = nn.Sequential(nn.Conv2d(3, 3, 3, 1, 1), nn.BatchNorm2d(3), nn.ReLU())
        self.h = nn.Linear(3, 2)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        one = self.f(a)
        self.kept = [one, self.f(one if self.chained else b)]
        return self.h((self.kept[0] - self.kept[1]).abs().mean((2, 3)) + b.mean((2, 3)))


def test_a_layer_that_is_called_twice_is_two() -> None:
    torch.manual_seed(0)
    model = Siamese().double().eval()
    a, b = torch.randn(2, 2, 3, 8, 8).double()
    libra = fxgrad.convert(model, (a, b))
    y = model(a, b)
    # The model has no gates: the gradient is the policy's.
    wanted = [(h * g).sum(1) for h, g in zip(model.kept, torch.autograd.grad(y[:, 1].sum(), model.kept))]
    for layers, name, value in ((("f", "f.2", "f@0"), "a", wanted[0]), (("f", "f.2", "f@1", "f.2@1"), "b", wanted[1])):
        for layer in layers:
            found = fxgrad.attribute(
                libra, (a, b), target=1, method="hirescam", layer=layer, input=name, grid=(8, 8), prefix=0
            )
            assert torch.allclose(found.patches, value, rtol=1e-10, atol=1e-12), (layer, name)


def test_a_layer_that_several_calls_fit_is_asked_about() -> None:
    torch.manual_seed(0)
    model = Siamese(chained=True).double().eval()
    a, b = torch.randn(2, 2, 3, 8, 8).double()
    libra = fxgrad.convert(model, (a, b))
    given: dict[str, Any] = {"target": 1, "method": "hirescam", "input": "a", "grid": (8, 8), "prefix": 0}
    with pytest.raises(fxgrad.InputError, match=r"layer 'f' is called 2 times .* Pick a call: 'f@0', 'f@1'\."):
        fxgrad.attribute(libra, (a, b), layer="f", **given)
    y = model(a, b)
    gradients = torch.autograd.grad(y[:, 1].sum(), model.kept)
    for layer, h, g in zip(("f@0", "f@1"), model.kept, gradients):
        found = fxgrad.attribute(libra, (a, b), layer=layer, **given)
        assert torch.allclose(found.patches, (h * g).sum(1), rtol=1e-10, atol=1e-12), layer


class Gathered(nn.Module):
    """One row of words, into which all patches of its pictures flow; the patches' features are an output, too."""

    def __init__(self) -> None:
        super().__init__()
        self.sight, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, patches: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        seen = self.sight(patches)
        return self.head(torch.tanh(words + seen.mean(0))), seen


def test_patches_of_one_example_are_no_examples() -> None:
    torch.manual_seed(0)
    model, words, patches = Gathered().double().eval(), torch.randn(1, 2, 6).double(), torch.randn(7, 4).double()
    libra = fxgrad.convert(model, (patches, words))
    found = fxgrad.attribute(libra, (patches, words), target=lambda outputs: outputs[0][:, 0, 1])
    assert found.output.shape == (1,) and found.apart is not None
    whole = sum(map.sum() for map in found.maps.values()) + found.apart
    assert torch.allclose(whole, model(patches, words)[0][:, 0, 1])
