"""Objects that torch knows no structure of: caches among the inputs are opened, among the outputs left out."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import fxgrad
from fxgrad.methods import Token

SMALL: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
IDS = torch.tensor([[3, 14, 15, 9, 26, 5]])


def llama() -> nn.Module:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL))


def mistral() -> nn.Module:
    return transformers.MistralForCausalLM(transformers.MistralConfig(**SMALL, sliding_window=4))


def gpt2() -> nn.Module:
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    )


def mamba() -> nn.Module:
    """Its cache is written to in place."""
    return transformers.MambaForCausalLM(
        transformers.MambaConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2, state_size=4)
    )


def t5() -> nn.Module:
    config = transformers.T5Config(vocab_size=50, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    return transformers.T5ForConditionalGeneration(config)


def made(build: Any) -> nn.Module:
    torch.manual_seed(0)
    return build().double().eval()


def cache_of(outputs: Any) -> tuple[str, Any]:
    """The name and the cache; transformers has changed the name."""
    return next((k, v) for k, v in outputs.items() if k in ("past_key_values", "cache", "cache_params"))


@pytest.mark.parametrize("build", [llama, mistral, gpt2, mamba])
def test_language_models_convert_as_they_stand(build: Any) -> None:
    model = made(build)
    before = model.config.to_dict()
    libra = fxgrad.convert(model, (IDS,))
    with torch.no_grad():
        ours, theirs = libra(IDS), model(IDS)
    name, _ = cache_of(theirs)
    assert type(ours) is type(theirs) and torch.equal(ours.logits, theirs.logits)
    assert getattr(ours, name) is None and model.config.to_dict() == before
    report = fxgrad.check(libra, (IDS,), original=model)
    assert report.forward_identical and report.completeness_error < 1e-6
    assert fxgrad.attribute(libra, (IDS,), target=Token(-1)).tokens.shape == (1, 6)


def test_tuples_keep_their_places() -> None:
    model = made(llama)
    libra = fxgrad.convert(model, (IDS,), {"return_dict": False})
    with torch.no_grad():
        ours, theirs = libra(IDS, return_dict=False), model(IDS, return_dict=False)
    assert len(ours) == len(theirs) == 2 and torch.equal(ours[0], theirs[0]) and ours[1] is None


def test_encoder_and_decoder() -> None:
    model, decoder = made(t5), {"decoder_input_ids": IDS[:, :4]}
    libra = fxgrad.convert(model, (IDS,), decoder)
    assert fxgrad.check(libra, (IDS,), decoder, original=model).passed


@pytest.mark.parametrize("build", [llama, gpt2, mamba])
def test_a_step_of_a_generation(build: Any) -> None:
    """The cache that is given stays as it is; its keys and values are attributed, as the past that they are."""
    model = made(build)
    with torch.no_grad():
        name, cache = cache_of(model(IDS[:, :5], use_cache=True))
        wanted = model(IDS[:, 5:], **{name: copy.deepcopy(cache)}).logits
    kept = copy.deepcopy(cache)
    libra = fxgrad.convert(model, (IDS[:, 5:],), {name: cache})
    with torch.no_grad():
        assert torch.equal(libra(IDS[:, 5:], **{name: cache}).logits, wanted)
    for report in (
        fxgrad.check(libra, (IDS[:, 5:],), {name: cache}, original=model),
        fxgrad.check(libra, original=model),
    ):
        assert report.forward_identical and report.completeness_error < 1e-6
    assert str(kept.__dict__) == str(cache.__dict__)
    for layer, before in zip(cache.layers, kept.layers):
        for key, value in vars(layer).items():
            if isinstance(value, Tensor):
                assert torch.equal(value, getattr(before, key))


def test_the_past_s_plain_gradients_are_autograd_s() -> None:
    model = made(gpt2)
    with torch.no_grad():
        name, cache = cache_of(model(IDS[:, :5], use_cache=True))
    plain = fxgrad.convert(model, (IDS[:, 5:],), {name: cache}, rules="gradient")
    gradients = fxgrad.vjp(
        plain,
        (IDS[:, 5:],),
        transformers.modeling_outputs.CausalLMOutputWithCrossAttentions(
            logits=(v := torch.randn(1, 1, 1, 50).double())
        ),
        {name: cache},
    ).gradients
    keys = [layer.keys.detach().clone().requires_grad_() for layer in cache.layers]
    for layer, key in zip(cache.layers, keys):
        layer.keys = key
    wanted = torch.autograd.grad(model(IDS[:, 5:], **{name: cache}).logits, keys, v[0])
    found = [g[0] for entry, g in gradients.items() if entry.endswith("keys']")]
    assert len(found) == len(wanted) == 2
    for f, w in zip(found, wanted):
        torch.testing.assert_close(f, w, rtol=1e-10, atol=1e-12)


def test_another_cache_is_checked_and_saved_modules_take_it(tmp_path: Path) -> None:
    model = made(llama)
    with torch.no_grad():
        name, cache = cache_of(model(IDS[:, :5], use_cache=True))
        _, shorter = cache_of(model(IDS[:, :3], use_cache=True))
    libra = fxgrad.convert(model, (IDS[:, 5:],), {name: cache})
    with torch.no_grad():  # the length of the past is free
        wanted = model(IDS[:, 5:], **{name: copy.deepcopy(shorter)}).logits
        assert torch.equal(libra(IDS[:, 5:], **{name: shorter}).logits, wanted)
    shorter.layers.pop()
    with pytest.raises(fxgrad.InputError, match=r"was captured with the inputs \(.*layers\.1\.keys"):
        libra(IDS[:, 5:], **{name: shorter})
    fxgrad.save(libra, tmp_path / "step.pt2")
    again = fxgrad.load(tmp_path / "step.pt2")
    with torch.no_grad():
        assert torch.equal(again(IDS[:, 5:], **{name: cache}).logits, libra(IDS[:, 5:], **{name: cache}).logits)


class Options:
    def __init__(self, scale: float) -> None:
        self.scale, self.shift = scale, torch.ones(3)


class Scaled(nn.Module):
    def forward(self, x: Tensor, options: Options) -> Tensor:
        return x * options.scale + options.shift


def test_numbers_of_an_object_are_constants_that_are_checked() -> None:
    x, options = torch.randn(2, 3), Options(2.0)
    libra = fxgrad.convert(Scaled().eval(), (x, options))
    assert torch.equal(libra(x, options), Scaled()(x, options))
    other = Options(2.0)
    other.shift = torch.zeros(3)
    assert torch.equal(libra(x, other), x * 2)
    with pytest.raises(fxgrad.InputError, match=r"options\['scale'\]\" was captured as the constant 2\.0"):
        libra(x, Options(3.0))


@dataclasses.dataclass
class Result:
    logits: Tensor


class Returns(nn.Module):
    def __init__(self, beside: bool) -> None:
        super().__init__()
        self.beside = beside

    def forward(self, x: Tensor) -> Any:
        return (x.sum(), Result(x.sin())) if self.beside else Result(x.sin())


@pytest.mark.parametrize("beside", [False, True])
def test_results_are_not_left_out(beside: bool) -> None:
    with pytest.raises(
        fxgrad.CaptureError,
        match=r"returns a Result, of which torch does not know .*register_dataclass\(Result\), or wrap the model",
    ):
        fxgrad.convert(Returns(beside).eval(), (torch.randn(2, 3),))


class Wraps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Returns(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x).logits


def test_wrapped_as_advised() -> None:
    x = torch.randn(2, 3)
    assert torch.equal(fxgrad.convert(Wraps().eval(), (x,))(x), x.sin())


class Keywords(nn.Module):
    def forward(self, x: Tensor, **more: Any) -> Tensor:
        return x.sin() * more["scale"] + more["nested"]["shift"]


def test_inputs_through_kwargs() -> None:
    def inputs(batch: int, length: int = 3) -> tuple[Tensor, dict[str, Any]]:
        return torch.randn(batch, length), {
            "scale": torch.randn(batch, length),
            "nested": {"shift": torch.randn(batch, length)},
        }

    model, (x, more) = Keywords().eval(), inputs(2)
    libra, (y, others) = fxgrad.convert(model, (x,), more), inputs(4)
    assert torch.equal(libra(y, **others), model(y, **others))
    axes = {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}
    shapes = {"x": axes, "more": {"scale": axes, "nested": {"shift": axes}}}  # as torch.export wants them
    libra, (z, longer) = fxgrad.convert(model, (x,), more, dynamic_shapes=shapes), inputs(4, 5)
    assert torch.equal(libra(z, **longer), model(z, **longer))


def test_outputs_whose_keys_change_places_when_they_are_rebuilt() -> None:
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    class Late(nn.Module):
        def forward(self, x: Tensor) -> Any:
            found = BaseModelOutputWithPooling(last_hidden_state=x.exp(), hidden_states=(x.tanh(),))
            found.pooler_output = x.exp().sum(1)  # the class has it before the hidden states
            return found

    x = torch.randn(2, 3)
    libra, model = fxgrad.convert(Late().eval(), (x,)), Late()
    for name, value in model(x).items():
        for ours, theirs in zip(pytree.tree_leaves(libra(x)[name]), pytree.tree_leaves(value)):
            assert torch.equal(ours, theirs)
