"""Half precision and autocast on deep models: finite, complete to the dtype's rounding, statistics in float32."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn

import fxgrad
from fxgrad.models import randomize


def deep_vit() -> tuple[nn.Module, Tensor]:
    return timm.create_model("vit_tiny_patch16_224", img_size=32, depth=24, embed_dim=64, num_heads=4).eval(), torch.randn(
        2, 3, 32, 32
    )


def deep_llama() -> tuple[nn.Module, Tensor]:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=64, intermediate_size=96, num_hidden_layers=24, num_attention_heads=4,
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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", MODELS)
def test_half_precision(name: str, dtype: torch.dtype) -> None:
    model, x = MODELS[name]()
    randomize(model)
    wide = fxgrad.convert(model, (x,))
    leaf = x.clone().requires_grad_()
    y = wide(leaf)
    g = torch.randn_like(y)
    (wanted,) = torch.autograd.grad(y, leaf, g)

    model = model.to(dtype)
    x = x.to(dtype)
    libra = fxgrad.convert(model, (x,))
    report = fxgrad.check(libra, (x,), original=model)
    assert report.forward_identical and report.completeness_error < 0.05
    (found,) = torch.autograd.grad(libra(leaf := x.clone().requires_grad_()), leaf, g.to(dtype))
    assert found.dtype is dtype and found.isfinite().all()
    # 24 blocks of roundings; measured 0.01 to 0.06 in bfloat16.
    assert relative(found, wanted) < 64 * torch.finfo(dtype).eps


@pytest.mark.parametrize("name", MODELS)
def test_autocast_around_a_converted_module(name: str) -> None:
    model, x = MODELS[name]()
    randomize(model)
    libra = fxgrad.convert(model, (x,))
    leaf = x.clone().requires_grad_()
    y = libra(leaf)
    g = torch.randn_like(y)
    (wanted,) = torch.autograd.grad(y, leaf, g)
    with torch.autocast("cpu", torch.bfloat16):
        y = libra(leaf)
        with torch.no_grad():
            assert torch.equal(y, model(x))
    (found,) = torch.autograd.grad(y, leaf, g.to(y.dtype))
    assert found.dtype is torch.float32 and found.isfinite().all()
    assert relative(found, wanted) < 64 * torch.finfo(torch.bfloat16).eps
