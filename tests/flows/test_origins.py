"""`fxgrad.origins`: parts add up, and are what plain autograd gives on the rewritten module, parameter by parameter."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import fxgrad
from fxgrad.data.models import randomize
from fxgrad.demo.models import ARCHITECTURES
from fxgrad.errors import InputError
from fxgrad.methods import Contrast, Probability, Token
from tests.flows.test_flow import PICTURES, converted


def vit() -> tuple[nn.Module, Any, Tensor]:
    torch.manual_seed(0)
    model = timm.create_model("test_vit", img_size=32, num_classes=5).eval().double()
    randomize(model, 0)
    x = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    return model, fxgrad.convert(model, (x,)), x


def test_parts_are_values_times_gradients() -> None:
    """Of the pixels and of every parameter that is added, by plain autograd on the rewritten module."""
    _, libra, x = vit()
    found = fxgrad.origins(libra, (x,), target=3)
    named = dict(libra.named_parameters())
    constants = {part.name: part for part in found.parts if part.kind != "content"}
    assert constants.keys() == {name for name in named if name.endswith("bias") or name in ("pos_embed", "cls_token")}
    leaf = x.clone().requires_grad_()
    grads = torch.autograd.grad(libra(leaf)[0, 3], [leaf, *(named[name] for name in constants)])
    pixels = (grads[0] * x)[0].reshape(3, 2, 16, 2, 16).sum((0, 2, 4)).flatten()
    content = found.parts[0]
    assert content.tokens is not None and torch.allclose(content.tokens, pixels, rtol=0, atol=1e-12)
    for (name, part), g in zip(constants.items(), grads[1:]):
        assert abs(part.value - float((named[name].detach() * g).sum())) < 1e-12
        if name == "pos_embed":
            assert part.tokens is not None and torch.allclose(
                part.tokens, (named[name].detach() * g).sum(2)[0], rtol=0, atol=1e-12
            )
    assert constants["pos_embed"].kind == "position" and constants["cls_token"].kind == "class token"
    assert constants["cls_token"].names[0] == "class token" and not constants["cls_token"].tokens[1:].any()
    assert {part.kind for name, part in constants.items() if name.endswith("bias")} == {"bias"}
    own = sum(part.value for name, part in constants.items() if name.startswith("blocks.2."))
    assert abs(found.layers["blocks.2"] - own) < 1e-14 and list(found.kinds) == [
        "content",
        "position",
        "class token",
        "bias",
    ]
    assert found.parts[1].name == "patch_embed.proj.bias" and found.parts[1].path == "patch_embed.proj"
    assert "| position |" in str(found)


@pytest.mark.parametrize("name", ["gpt2", "masked"])
def test_embeddings_times_gradients(name: str) -> None:
    pytest.importorskip("transformers")
    from tests.helpers.language_models import V, model

    net = model(name).double()
    randomize(net, 0)
    ids = torch.randint(5, V, (1, 5))
    libra = fxgrad.convert(net, (ids,))
    words = ["a", "b", "c", "d", "e"]
    found = fxgrad.origins(libra, (ids,), target=Token(id=7), token_names=words)
    embedded = libra.embed(ids)
    (content,) = embedded
    table = {"gpt2": "transformer.wpe.weight", "masked": "bert.embeddings.position_embeddings.weight"}[name]
    rows = dict(libra.named_parameters())[table].requires_grad_()
    logit = libra.forward_from(embedded, ids).logits[0, -1, 7]
    of_tokens, of_rows = torch.autograd.grad(logit, [embedded[content], rows])
    parts = {part.kind: part for part in found.parts if part.kind in ("content", "position")}
    assert parts["content"].name == content and table in parts["position"].name
    assert parts["content"].names == tuple(words) == parts["position"].names
    wanted = (embedded[content].detach() * of_tokens).sum(2)[0]
    assert torch.allclose(parts["content"].tokens, wanted, rtol=0, atol=1e-12) and wanted.abs().min() > 1e-8
    assert torch.allclose(parts["position"].tokens, (rows.detach() * of_rows).sum(1)[:5], rtol=0, atol=1e-12)
    assert abs(sum(found.kinds.values()) - float(logit.detach())) < 1e-12


@pytest.mark.parametrize("name", PICTURES)
def test_parts_add_up(name: str) -> None:
    libra, x, _ = converted(name)
    adds_up(fxgrad.origins(libra, (x,), target=2), float(libra(x)[0, 2]), 1e-10)
    difference = fxgrad.origins(libra, (x,), target=Contrast(2, 0))
    adds_up(difference, float(libra(x)[0, 2] - libra(x)[0, 0]), 1e-10)


@pytest.mark.parametrize("name", ["llama", "mamba", "t5", "bart"])
def test_parts_of_texts_add_up(name: str) -> None:
    pytest.importorskip("transformers")
    from tests.helpers.language_models import IN_FLOAT32, V, model

    net = model(name)
    randomize(net, 0)
    ids = torch.randint(5, V, (1, 5))
    kwargs = {"decoder_input_ids": torch.randint(5, V, (1, 3))} if name in ("t5", "bart") else {}
    libra = fxgrad.convert(net, (ids,), kwargs)
    found = fxgrad.origins(libra, (ids,), kwargs, target=Token(id=7))
    adds_up(found, float(libra(ids, **kwargs).logits[0, -1, 7]), 1e-6 if name in IN_FLOAT32 else 1e-10)
    assert ("position" in found.kinds) == (name == "bart")  # the others turn queries and keys, or have none
    assert sum(part.kind == "content" for part in found.parts) == 1 + bool(kwargs)


def adds_up(found: fxgrad.Origins, value: float, tolerance: float) -> None:
    assert abs(sum(part.value for part in found.parts) - value) < tolerance * max(1.0, abs(value))
    assert abs(sum(found.kinds.values()) - value) < tolerance * max(1.0, abs(value))
    for part in found.parts:
        assert part.tokens is None or abs(float(part.tokens.sum()) - part.value) < tolerance


@pytest.mark.parametrize("name", ["eva02", "siglip", "beit2"])
def test_class_tokens_and_positions_of_the_demo(name: str) -> None:
    """EVA-02 and SigLIP add positions; BEiT adds them to attention's scores only, which are held."""
    libra = fxgrad.convert(ARCHITECTURES[name]().double(), (torch.zeros(1, 1, 48, 48).double(),))
    found = fxgrad.origins(libra, (torch.rand(1, 1, 48, 48).double(),), target=3)
    assert ("position" in found.kinds) == (name != "beit2")
    assert ("class token" in found.kinds) == (name != "siglip") and found.error < 1e-12


def test_what_functions_have_of_their_own() -> None:
    class Waves(nn.Module):
        """Positions that are computed, and a sigmoid that carries."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            waves = torch.arange(x.shape[1], dtype=x.dtype)[None, :, None].sin().expand(1, -1, 4)
            logits: Tensor = self.b((self.a(x) + waves).sigmoid()).mean(1)
            return logits

    torch.manual_seed(0)
    model, x = Waves().eval().double(), torch.randn(1, 5, 3, dtype=torch.float64)
    found = fxgrad.origins(fxgrad.convert(model, (x,)), (x,), target=1)
    assert abs(found.kinds["function"] - 0.5 * float(model.b.weight[1].sum().detach())) < 1e-12
    adds_up(found, float(model(x)[0, 1].detach()), 1e-10)


def refuse(*args: Any, **options: Any) -> str:
    with pytest.raises(InputError) as error:
        fxgrad.origins(*args, **options)
    return str(error.value)


def test_refusals() -> None:
    _, libra, x = vit()
    assert "own gradient, which is not balanced" in refuse(libra.under("gradient"), (x,), target=2)
    assert "a probability is no sum of contributions" in refuse(libra, (x,), target=Probability(2))
    assert refuse(libra, (x.repeat(2, 1, 1, 1),), target=2) == (
        "fxgrad.origins is of one example, and these are 2. Pass one."
    )
