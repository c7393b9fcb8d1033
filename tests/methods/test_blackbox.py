"""Black-box methods against captum on the plain model, exact Shapley values, and masks laid by hand."""

from __future__ import annotations

import itertools
import math

import captum.attr
import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

import fxgrad
from tests.helpers import balanced_vit
from tests.helpers.balanced_vit import PATCH

CLASSES = torch.tensor([3, 1])


@pytest.fixture(scope="module")
def vit() -> tuple[nn.Module, Tensor, fxgrad.ConvertedModule]:
    model, x = balanced_vit.vit()
    return model, x, fxgrad.convert(model, (x,))


class Corners(nn.Module):
    """A picture's four corners, and a product of two of them."""

    def forward(self, x: Tensor) -> Tensor:
        a, b, c, d = (x[..., i : i + 4, j : j + 4].sum((1, 2, 3)) for i in (0, 4) for j in (0, 4))
        return torch.stack([a + 2 * b * c + d, a], 1)


def test_occlusion_is_captum_s(vit: tuple[nn.Module, Tensor, fxgrad.ConvertedModule]) -> None:
    model, x, libra = vit
    found = fxgrad.attribute(libra, (x,), target=CLASSES, method="occlusion", baseline=0.5)
    square = (3, PATCH, PATCH)
    wanted = captum.attr.Occlusion(model).attribute(x, square, strides=square, baselines=0.5, target=CLASSES)
    assert torch.allclose(found.map.float(), wanted[:, 0] / PATCH**2, rtol=1e-5, atol=1e-7)  # captum's are float32
    wide = fxgrad.attribute(libra, (x,), target=CLASSES, method="occlusion", window=6)
    wanted = captum.attr.Occlusion(model).attribute(x, (3, 6, 6), strides=(3, 6, 6), target=CLASSES)
    assert torch.allclose(wide.map.float(), wanted[:, 0] / 36, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("method", ["occlusion", "rise", "kernel_shap"])
def test_no_policy_changes_them(method: str, vit: tuple[nn.Module, Tensor, fxgrad.ConvertedModule]) -> None:
    _, x, libra = vit
    few = {} if method == "occlusion" else {"samples": 40}
    ours, plain = (
        fxgrad.attribute(libra.under(policy), (x,), target=CLASSES, method=method, **few)
        for policy in ("libragrad", "gradient")
    )
    assert torch.equal(ours.map, plain.map) and ours.map.abs().max() > 0


def shapley(model: nn.Module, x: Tensor, target: int) -> Tensor:
    """The exact Shapley values of the four corners, (batch, 2, 2)."""

    def value(kept: tuple[int, ...]) -> Tensor:
        mask = torch.tensor([float(i in kept) for i in range(4)]).reshape(2, 2)
        return model(x * mask.repeat_interleave(4, 0).repeat_interleave(4, 1).to(x))[:, target]

    found = torch.zeros(len(x), 4).to(x)
    for i in range(4):
        others = [j for j in range(4) if j != i]
        for size in range(4):
            for kept in itertools.combinations(others, size):
                weight = math.factorial(size) * math.factorial(3 - size) / math.factorial(4)
                found[:, i] += weight * (value((*kept, i)) - value(kept))
    return found.reshape(-1, 2, 2)


def test_kernel_shap_finds_the_shapley_values() -> None:
    torch.manual_seed(0)
    model, x = Corners().eval(), torch.randn(2, 3, 8, 8).double()
    libra = fxgrad.convert(model, (x,))
    found = fxgrad.attribute(libra, (x,), target=0, method="kernel_shap", samples=3000, window=4)
    corners = torch.nn.functional.avg_pool2d(found.map[:, None], 4, divisor_override=1)[:, 0]
    wanted = shapley(model, x, 0)
    assert torch.allclose(corners, wanted, rtol=0.05, atol=0.05 * wanted.abs().max().item())
    assert torch.allclose(corners.sum((1, 2)), model(x)[:, 0], rtol=1e-3)
    # Without interactions a regression on any coalitions is exact.
    alone = fxgrad.attribute(libra, (x,), target=1, method="kernel_shap", samples=30, window=4)
    corners = torch.nn.functional.avg_pool2d(alone.map[:, None], 4, divisor_override=1)[:, 0]
    assert torch.allclose(corners, shapley(model, x, 1), atol=1e-4 * float(model(x).abs().max()))


def test_kernel_shap_leaves_the_random_state(vit: tuple[nn.Module, Tensor, fxgrad.ConvertedModule]) -> None:
    _, x, libra = vit
    before = torch.random.get_rng_state()

    def found(seed: int) -> Tensor:
        return fxgrad.attribute(libra, (x,), target=0, method="kernel_shap", samples=40, seed=seed).map

    assert torch.equal(found(1), found(1)) and not torch.equal(found(1), found(2))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_rise_is_the_mean_of_masks_by_how_much_they_leave() -> None:
    class Sum(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.squeeze(-1).prod(1, keepdim=True)

    x = torch.randn(3, 6, 1).double()
    found = fxgrad.attribute(
        fxgrad.convert(Sum().eval(), (x,)), (x,), target=0, method="rise", samples=50, share=0.8, baseline=1.0, seed=7
    )
    generator = torch.Generator().manual_seed(7)
    masks = [(torch.rand(6, generator=generator) < 0.8).double() for _ in range(50)]
    values = [(x[..., 0] * mask + 1 - mask).prod(1) for mask in masks]
    apart = torch.stack(values) - torch.stack(values).mean(0)
    wanted = torch.einsum("mb,mt->bt", apart, torch.stack(masks)) / 50 / 0.8
    assert torch.allclose(found.map, wanted, rtol=1e-9, atol=1e-12) and wanted.std() > 0.01


def test_rise_points_at_what_decides() -> None:
    class Corner(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, :, 20:28, 4:12].mean((1, 2, 3))[:, None]

    x = torch.ones(1, 3, 32, 32)
    found = fxgrad.attribute(fxgrad.convert(Corner().eval(), (x,)), (x,), target=0, method="rise", samples=500).map[0]
    row, column = divmod(int(found.argmax()), 32)
    assert 18 <= row < 30 and 2 <= column < 14
    assert found[row, column] > 0.1 > 0.02 > found[:8, 20:].abs().max()


def test_the_parts_of_a_text_are_its_tokens() -> None:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=3
    )
    model, ids = BertForSequenceClassification(config).double().eval(), torch.tensor([[3, 5, 7, 9]])
    libra = fxgrad.convert(model, (ids,))
    words = model.bert.embeddings.word_embeddings.weight
    found = fxgrad.attribute(libra, (ids,), target=1, method="occlusion")

    def logit(covered: int | None) -> Tensor:
        embedded = words[ids].detach().clone()
        if covered is not None:
            embedded[:, covered] = 0
        return model(inputs_embeds=embedded).logits[0, 1]

    differences = torch.stack([logit(None) - logit(i) for i in range(4)])
    own = found.maps[next(name for name in found.maps if "word" in name)] if len(found.maps) > 1 else found.map
    assert torch.allclose(own[0], differences, atol=1e-10)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("rise", {"share": 0}, "share is which part of the input a mask leaves, more than 0 and up to 1, not 0."),
        ("rise", {"samples": 0}, "samples is a whole number of at least 1, not 0."),
        ("kernel_shap", {"samples": 1.5}, "samples is a whole number of at least 1, not 1.5."),
        ("occlusion", {"window": 0}, "window is a whole number of at least 1, not 0."),
    ],
)
def test_wrong_options(
    method: str, options: dict[str, float], message: str, vit: tuple[nn.Module, Tensor, fxgrad.ConvertedModule]
) -> None:
    _, x, libra = vit
    with pytest.raises(fxgrad.InputError, match=message):
        fxgrad.attribute(libra, (x,), target=0, method=method, **options)
