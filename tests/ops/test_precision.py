"""Half precision and autocast on deep models: finite, complete to the dtype's rounding, statistics in float32."""

from __future__ import annotations

import copy
import functools

import pytest
import timm
import torch
from torch import Tensor, nn

import fxgrad
from fxgrad.data.models import randomize


def deep_vit() -> tuple[nn.Module, Tensor]:
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=32, depth=12, embed_dim=64, num_heads=4
    ).eval(), torch.randn(2, 3, 32, 32)


def deep_llama() -> tuple[nn.Module, Tensor]:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=64, intermediate_size=96, num_hidden_layers=12, num_attention_heads=4,
        num_key_value_heads=2, use_cache=False,
    )  # fmt: skip

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.llama = transformers.LlamaForCausalLM(config)

        def forward(self, embedded: Tensor) -> Tensor:
            return self.llama(inputs_embeds=embedded).logits

    return Logits().eval(), torch.randn(2, 12, 64)


MODELS = {"vit": deep_vit, "llama": deep_llama}


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


@functools.cache
def wide(name: str) -> tuple[nn.Module, fxgrad.ConvertedModule, Tensor, Tensor, Tensor]:
    """The model and its conversion in float32; an input, a cotangent, and the gradient that it gives."""
    torch.manual_seed(0)
    model, x = MODELS[name]()
    randomize(model)
    libra = fxgrad.convert(model, (x,))
    leaf = x.clone().requires_grad_()
    y = libra(leaf)
    g = torch.randn_like(y)
    return model, libra, x, g, torch.autograd.grad(y, leaf, g)[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", MODELS)
def test_half_precision(name: str, dtype: torch.dtype) -> None:
    original, _, x, g, wanted = wide(name)
    model, x = copy.deepcopy(original).to(dtype), x.to(dtype)
    libra = fxgrad.convert(model, (x,))
    report = fxgrad.check(libra, (x,), original=model)
    assert report.forward_identical and report.completeness_error < 0.05
    leaf = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(libra(leaf), leaf, g.to(dtype))
    assert found.dtype is dtype and found.isfinite().all()
    # Twelve blocks of roundings.
    assert relative(found, wanted) < 64 * torch.finfo(dtype).eps


@pytest.mark.parametrize("name", MODELS)
def test_autocast_around_a_converted_module(name: str) -> None:
    model, libra, x, g, wanted = wide(name)
    leaf = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = libra(leaf)
        with torch.no_grad():
            assert torch.equal(y, model(x))
    (found,) = torch.autograd.grad(y, leaf, g.to(y.dtype))
    assert found.dtype is torch.float32 and found.isfinite().all()
    assert relative(found, wanted) < 64 * torch.finfo(torch.bfloat16).eps
