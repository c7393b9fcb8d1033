"""Methods of attention that run the model more than once, against plain autograd on a ViT that was balanced by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import fxgrad
from tests.helpers import balanced_vit
from tests.helpers.balanced_vit import TOKENS, Trace, ViT, trace

CLASSES = torch.tensor([3, 1])
POLICIES = {"libragrad": True, "gradient": False}


def rolled(matrices: list[Tensor]) -> Tensor:
    product = torch.eye(TOKENS).to(matrices[0])
    for matrix in matrices:
        product = (torch.eye(TOKENS).to(matrix) + matrix) @ product
    return product


def transatt(model: ViT, x: Tensor, balanced: bool) -> Tensor:
    t, plain = trace(model, x, CLASSES, balanced), trace(model, x, CLASSES, False)
    relevance = [a * g for a, g in zip(t.weights, t.gradients(t.weights))]
    slopes = plain.gradients(plain.weights)
    return rolled([(r * s).relu().mean(1) for r, s in zip(relevance, slopes)])[:, 0] / 4


def biattn(model: ViT, x: Tensor, balanced: bool) -> Tensor:
    t = trace(model, x, CLASSES, balanced)
    matrices = []
    for a, g in zip(t.weights, t.gradients(t.weights)):
        shares = torch.stack([torch.stack([(a[b, h].T @ g[b, h]).abs().mean() for h in range(2)]) for b in range(2)])
        shares = shares / shares.sum(1, keepdim=True)
        matrices.append(torch.einsum("bh,bhij->bij", shares, a))

    def last_slope(t: Trace) -> Tensor:
        return t.gradients(t.weights)[-1]

    line = [
        last_slope(trace(model, share * x, CLASSES, balanced))
        for share in torch.linspace(0, 1, 20, dtype=torch.float64).tolist()
    ]
    return (torch.stack(line).mean(0).relu().mean(1) * rolled(matrices))[:, 0]


def legrad(model: ViT, x: Tensor, balanced: bool) -> Tensor:
    total = torch.zeros(2, TOKENS).double()
    for depth in (1, 2):
        short = copy.deepcopy(model)
        short.blocks = short.blocks[:depth]
        t = trace(short, x, CLASSES, balanced)
        total += t.gradients(t.weights)[-1].relu().mean((1, 2))
    return total


@pytest.fixture(scope="module")
def model() -> tuple[ViT, Tensor, fxgrad.ConvertedModule]:
    vit, x = balanced_vit.vit()
    return vit, x, fxgrad.convert(vit, (x,))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("direct", [transatt, biattn, legrad])
def test_against_plain_autograd(
    direct: Callable[..., Tensor], policy: str, model: tuple[ViT, Tensor, fxgrad.ConvertedModule]
) -> None:
    vit, x, libra = model
    found = fxgrad.attribute(libra.under(policy), (x,), target=CLASSES, method=direct.__name__)
    wanted = direct(vit, x, POLICIES[policy]).detach()
    assert torch.allclose(found.map, wanted, rtol=1e-9, atol=1e-12) and wanted.abs().max() > 0


def test_transatt_under_the_plain_gradient_has_the_square(model: tuple[ViT, Tensor, fxgrad.ConvertedModule]) -> None:
    vit, x, libra = model
    t = trace(vit, x, CLASSES, False)
    squares = [(a * g**2).mean(1) for a, g in zip(t.weights, t.gradients(t.weights))]
    found = fxgrad.attribute(libra.under("gradient"), (x,), target=CLASSES, method="transatt")
    assert torch.allclose(found.map, rolled(squares)[:, 0] / 4, rtol=1e-9, atol=1e-12)


def test_legrad_needs_blocks_of_one_shape() -> None:
    timm = pytest.importorskip("timm")
    tiny = {"embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2), "window_size": 4}
    swin = timm.create_model("swin_tiny_patch4_window7_224", img_size=32, num_classes=3, **tiny).eval()
    x = torch.randn(1, 3, 32, 32)
    with pytest.raises(fxgrad.InputError, match="legrad"):
        fxgrad.attribute(fxgrad.convert(swin, (x,)), (x,), target=0, method="legrad")
