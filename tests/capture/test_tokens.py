"""Token ids in: the embedding's output is attributed in their stead, found in the graph."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import fxgrad
from tests.helpers.tagger import tagger


@pytest.fixture(scope="module")
def converted() -> fxgrad.ConvertedModule:
    model, inputs = tagger()
    return fxgrad.convert(model, inputs)


def test_embeddings_are_found_and_positions_are_sources(converted: fxgrad.ConvertedModule) -> None:
    model, inputs = tagger()
    tokens = converted.embed(*inputs)
    assert list(tokens) == ["words", "types"]
    assert all(t.is_leaf and t.requires_grad and t.shape == (3, 6, 8) for t in tokens.values())
    assert torch.equal(tokens["words"], model.words(inputs[0]))
    assert "attributed inputs: words, types" in repr(converted)
    report = fxgrad.check(converted, inputs, original=lambda *a: no_fast_path(model, *a))
    assert report.passed and report.completeness_error < 1e-13
    assert any("positions.weight" in row.source for row in report.sources)
    assert not any("words.weight" in row.source or "types.weight" in row.source for row in report.sources)


def no_fast_path(model: nn.Module, *inputs: Tensor) -> Tensor:
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        return model(*inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def test_gradients_of_every_row_sum_to_its_logit(converted: fxgrad.ConvertedModule) -> None:
    _, inputs = tagger()
    tokens = converted.embed(*inputs)
    logits = converted.forward_from(tokens, *inputs)
    cotangent = torch.zeros_like(logits)
    cotangent[:, 2, 5] = 1
    logits.backward(cotangent)
    report = fxgrad.check(converted, inputs, cotangent=cotangent)
    total = sum((t * t.grad).sum().item() for t in tokens.values())
    assert total == pytest.approx(report.inputs, rel=1e-12)


def test_the_plain_gradient_is_autograd_s(converted: fxgrad.ConvertedModule) -> None:
    """The cut itself changes nothing: under `gradient`, what reaches the embedding is what autograd says."""
    model, inputs = tagger()
    plain = converted.under("gradient")
    tokens = plain.embed(*inputs)
    out = plain.forward_from(tokens, *inputs)
    cotangent = torch.randn_like(out)
    found = torch.autograd.grad(out, list(tokens.values()), cotangent)
    words, types = (t.detach().requires_grad_() for t in (model.words(inputs[0]), model.types(inputs[1])))
    wanted = torch.autograd.grad(model.mix(words, types, inputs[2]), [words, types], cotangent)
    for f, w in zip(found, wanted):
        torch.testing.assert_close(f, w, rtol=1e-10, atol=1e-12)


def test_the_drop_in_call_takes_ids(converted: fxgrad.ConvertedModule) -> None:
    model, inputs = tagger()
    with torch.no_grad():
        assert torch.equal(converted(*inputs), no_fast_path(model, *inputs))
        longer = tuple(torch.cat([t, t]) for t in inputs)
        assert torch.equal(converted(*longer), no_fast_path(model, *longer))
    assert list(converted.state_dict()) == list(model.state_dict())


def test_copies_and_casts_look_up_in_their_own_weights(converted: fxgrad.ConvertedModule) -> None:
    _, inputs = tagger()
    other = copy.deepcopy(converted)
    with torch.no_grad():
        other.get_parameter("words.weight").mul_(2)
    assert torch.equal(other.embed(*inputs)["words"], 2 * converted.embed(*inputs)["words"])
    assert fxgrad.check(other, inputs).passed


def test_wrong_tokens_are_refused(converted: fxgrad.ConvertedModule) -> None:
    _, inputs = tagger()
    tokens = converted.embed(*inputs)
    with pytest.raises(
        fxgrad.InputError, match=r"wanted for words, types, given for words\. Pass what embed\(\) returns"
    ):
        converted.forward_from({"words": tokens["words"]}, *inputs)
    with pytest.raises(fxgrad.InputError, match=r"input 'types' has shape \(3, 6, 4\)"):
        converted.forward_from(tokens | {"types": tokens["types"][..., :4]}, *inputs)
    with pytest.raises(fxgrad.InputError, match=r"wanted for nothing, given for words"):
        fxgrad.convert(nn.Linear(2, 2).eval(), (torch.ones(2, 2),)).forward_from(
            {"words": torch.ones(1)}, torch.ones(2, 2)
        )


class Pair(nn.Module):
    """One embedding, two inputs; and a picture."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 4)

    def forward(self, question: Tensor, answer: Tensor, picture: Tensor) -> Tensor:
        shifted = torch.cat([torch.zeros_like(answer[:, :1]), answer[:, :-1]], 1)  # as a decoder does
        return (self.words(question) * self.words(shifted)).sum((1, 2)) + picture.mean(1)


def test_one_embedding_looked_up_twice() -> None:
    inputs = (torch.randint(11, (3, 5)), torch.randint(11, (3, 5)), torch.randn(3, 2))
    libra = fxgrad.convert(Pair().eval(), inputs)
    assert list(libra.embed(*inputs)) == ["words(question)", "words(answer)"]
    assert libra.embed(*inputs)["words(answer)"].shape == (3, 5, 4)
    assert fxgrad.check(libra.double(), (*inputs[:2], inputs[2].double())).passed


def test_a_dynamic_length() -> None:
    model, inputs = tagger()
    axes = {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}
    libra = fxgrad.convert(model, inputs, dynamic_shapes=(axes, axes, axes))
    shorter = tuple(t[:2, :4] for t in inputs)
    with torch.no_grad():
        assert torch.equal(libra(*shorter), no_fast_path(model, *shorter))
    assert fxgrad.check(libra, shorter).passed
