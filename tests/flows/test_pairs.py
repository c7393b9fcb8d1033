"""Pairs of parts: products of matrices that plain autograd on the rewritten towers makes, patch by patch, are the witness."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from helpers import language_models
from torch import Tensor, nn

import fxgrad
from fxgrad.demo.models import clip


class Tower(nn.Module):
    """One side of the demo's CLIP."""

    def __init__(self, side: str) -> None:
        super().__init__()
        self.clip, self.side = clip().double().requires_grad_(False), side

    def forward(self, x: Tensor) -> Tensor:
        return getattr(self.clip, f"encode_{self.side}")(x)


@cache
def towers() -> tuple[fxgrad.ConvertedModule, fxgrad.ConvertedModule, Tensor, Tensor]:
    """Towers of pictures and of texts, and two of each."""
    torch.manual_seed(0)
    pictures = torch.randn(2, 3, 48, 48).double()
    own = [Tower(side).eval() for side in ("image", "text")]
    texts = torch.cat([own[1].clip.tokenize(words) for words in ("a red seven", "a green two and a yellow one")])
    return fxgrad.convert(own[0], (pictures,)), fxgrad.convert(own[1], (texts,)), pictures, texts


@cache
def sentences() -> tuple[fxgrad.ConvertedModule, Tensor, Tensor]:
    torch.manual_seed(0)
    one, other = torch.tensor([[1, 5, 9, 33, 2]]), torch.tensor([[1, 9, 7, 2]])
    return fxgrad.convert(language_models.model("sentence"), (one,)), one, other


def pooled(output: Any) -> Tensor:
    return output.pooler_output


def mean(output: Any) -> Tensor:
    return output.last_hidden_state.mean(1)


def shares(
    converted: fxgrad.ConvertedModule, given: Tensor, parts: int, output: Any = lambda y: y
) -> tuple[Tensor, Tensor]:
    """(embedding, (parts, width) of its shares), of one example: pixels 6 x 6 to a patch, or a row for each token."""
    *ids, leaf = (v.detach() for v in converted.entries((given,), None) if isinstance(v, Tensor))
    leaf.requires_grad_()
    u = output(converted.run([*ids, leaf]))[0]
    products = torch.stack([leaf * torch.autograd.grad(y, leaf, retain_graph=True)[0] for y in u]).detach()
    if given.is_floating_point():
        products = products.reshape(len(u), 3, 8, 6, 8, 6).sum((1, 3, 5))
    return u.detach(), products.reshape(len(u), parts, -1).sum(2).T


def test_words_and_patches() -> None:
    left, right, pictures, texts = towers()
    found = fxgrad.pairs(left, pictures[1:], right, texts[1:])
    (u, U), (v, V) = shares(left, pictures[1:], 64), shares(right, texts[1:], 8)
    near = {"rtol": 0, "atol": 1e-12}
    torch.testing.assert_close(found.matrix, U @ V.T, **near)
    torch.testing.assert_close(found.left, U @ (v - V.sum(0)), **near)
    torch.testing.assert_close(found.right, V @ (u - U.sum(0)), **near)
    torch.testing.assert_close(found.both, (u - U.sum(0)) @ (v - V.sum(0)), **near)
    torch.testing.assert_close(found.total, u @ v, **near)
    assert abs(found.matrix.sum() + found.biases - found.total) < 1e-10 and found.completeness_error < 1e-10
    assert (found.left_grid, found.right_grid) == ((8, 8), None)


def test_a_batch_is_its_pairs_one_by_one() -> None:
    left, right, pictures, texts = towers()
    found = fxgrad.pairs(left, (pictures,), right, {"x": texts})
    assert found.matrix.shape == (2, 64, 8) and found.total.shape == found.biases.shape == (2,)
    for at in range(2):
        alone = fxgrad.pairs(left, (pictures[at : at + 1],), right, (texts[at : at + 1],))
        for name in ("matrix", "left", "right", "both", "total", "biases"):
            torch.testing.assert_close(getattr(found, name)[at], getattr(alone, name), rtol=1e-10, atol=1e-13)
    assert found.completeness_error < 1e-10


@pytest.mark.parametrize("output", [pooled, mean])
@pytest.mark.parametrize("normalize", [True, False])
def test_two_sentences_of_one_encoder(output: Any, normalize: bool) -> None:
    model, one, other = sentences()
    sides = {"left_output": output, "right_output": output}
    found = fxgrad.pairs(model, one, model, {"input_ids": other}, **sides, normalize=normalize)
    (u, U), (v, V) = shares(model, one, 5, output), shares(model, other, 4, output)
    scale = u.norm() * v.norm() if normalize else 1
    torch.testing.assert_close(found.matrix, U @ V.T / scale, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.total, u @ v / scale, rtol=1e-10, atol=1e-12)
    assert abs(found.matrix.sum() + found.biases - found.total) < 1e-10
    turned = fxgrad.pairs(model, other, model, one, **sides, normalize=normalize)
    torch.testing.assert_close(turned.matrix, found.matrix.T)
    torch.testing.assert_close(turned.left, found.right)


def test_of_linear_towers_by_hand() -> None:
    """BiLRP's answer for linear features: (W_i x_i) . (W_j y_j)."""
    words = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 5)).double().eval()
    one, other = torch.tensor([[1, 5, 2]]), torch.tensor([[5, 2, 7]])
    libra = fxgrad.convert(words, (one,))
    found = fxgrad.pairs(libra, one, libra, other, normalize=False)
    columns = words[2].weight.reshape(5, 3, 4)
    U, V = (torch.einsum("dnc,nc->nd", columns, words[0](ids)[0]) for ids in (one, other))
    torch.testing.assert_close(found.matrix, (U @ V.T).detach())
    torch.testing.assert_close(found.left, (U @ words[2].bias).detach())
    torch.testing.assert_close(found.both, words[2].bias.square().sum().detach())


def test_a_grid_of_patches_for_a_model_that_has_none() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(32, 8), nn.GELU(), nn.Linear(8, 4)).double().eval()
    x, y = torch.randn(2, 1, 2, 4, 4).double()
    libra = fxgrad.convert(model, (x,))
    with pytest.raises(fxgrad.InputError, match=r"left model has no grid .* 4 x 4: pass left_grid"):
        fxgrad.pairs(libra, x, libra, y)
    fine, coarse = (fxgrad.pairs(libra, x, libra, y, left_grid=grid, right_grid=(2, 2)) for grid in ((4, 4), (2, 2)))
    assert fine.matrix.shape == (16, 4) and coarse.left_grid == (2, 2)
    squares = fine.matrix.reshape(2, 2, 2, 2, 4).sum((1, 3)).reshape(4, 4)
    torch.testing.assert_close(coarse.matrix, squares)


def test_refusals() -> None:
    left, right, pictures, texts = towers()
    model, ids, _ = sentences()
    with pytest.raises(fxgrad.InputError, match=r"the left embeddings are \(2, 80\), the right ones \(1, 80\)"):
        fxgrad.pairs(left, pictures, right, texts[:1])
    with pytest.raises(
        fxgrad.InputError,
        match=r"the left embeddings are BaseModelOutput.*\. Pass left_output",
    ):
        fxgrad.pairs(model, ids, right, texts[:1])
    with pytest.raises(fxgrad.InputError, match=r"the right embeddings are \(1, 5, 16\), and must be \(batch, width\)"):
        fxgrad.pairs(right, texts[:1], model, ids, right_output=lambda output: output.last_hidden_state)
