"""Softmax at a temperature (GIM), and models as circuits freeze them: textbook formulas, and other people's packages."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers as tr
from torch import Tensor, nn

import fxgrad
from tests.helpers.language_models import CAUSAL, V


def gradients(function: Callable[..., Tensor], g: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    leaves = [x.clone().requires_grad_() for x in inputs]
    return torch.autograd.grad(function(*leaves), leaves, g)


class Call(nn.Module):
    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_softmax_by_its_formula(temperature: float) -> None:
    """p' (g - <p', g>) with p' = softmax(x / T): the derivative at T, without its factor 1 / T."""
    x, g = torch.randn(4, 6).double(), torch.randn(4, 6).double()
    model = Call(lambda x: torch.softmax(x, -1))
    converted = fxgrad.convert(model.eval(), (x,), rules=f"gim (temperature = {temperature})")
    exponential = torch.exp(x / temperature)
    p = exponential / exponential.sum(-1, keepdim=True)
    wanted = p * (g - (p * g).sum(-1, keepdim=True))
    torch.testing.assert_close(gradients(converted, g, x)[0], wanted, rtol=1e-13, atol=1e-15)
    assert torch.equal(converted(x), model(x))


BOOLEAN = torch.tensor([[True, False, True, True, False]] * 3)
ATTENTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"is_causal": True},
    "boolean mask": {"attn_mask": BOOLEAN},
    "added mask": {"attn_mask": torch.linspace(-2, 1, 15).double().reshape(3, 5)},
    "scale": {"scale": 0.3},
    "groups": {"enable_gqa": True},
}


@pytest.mark.parametrize("name", ATTENTIONS)
def test_attention_by_its_formula(name: str) -> None:
    """With P' = softmax(scores / 2): dS = P' (dP - <P', dP>), a quarter of dS to query and key, half of P^T g to values."""
    options = ATTENTIONS[name]
    heads = 2 if name == "groups" else 4
    q, k, v = (
        torch.randn(2, 4, 3, 6).double(),
        torch.randn(2, heads, 5, 6).double(),
        torch.randn(2, heads, 5, 7).double(),
    )
    model, g = (
        Call(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, **options)),
        torch.randn(2, 4, 3, 7).double(),
    )
    converted = fxgrad.convert(model.eval(), (q, k, v), rules="gim")

    scale, repeat = options.get("scale", 6**-0.5), 4 // heads
    keys, values = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
    scores = torch.einsum("bhqd,bhkd->bhqk", q, keys) * scale
    if name == "causal":
        scores = scores + torch.full((3, 5), -math.inf).triu(1)
    if name == "added mask":
        scores = scores + options["attn_mask"]
    if name == "boolean mask":
        scores = torch.where(BOOLEAN, scores, -math.inf)
    weights, soft = torch.softmax(scores, -1), torch.softmax(scores / 2, -1)
    dv = torch.einsum("bhqk,bhqd->bhkd", weights, g) / 2
    dp = torch.einsum("bhqd,bhkd->bhqk", g, values)
    ds = soft * (dp - (soft * dp).sum(-1, keepdim=True)) * scale / 4
    dq, dk = torch.einsum("bhqk,bhkd->bhqd", ds, keys), torch.einsum("bhqk,bhqd->bhkd", ds, q)
    wanted = [dq, *(t.unflatten(1, (heads, repeat)).sum(2) for t in (dk, dv))]
    for ours, theirs in zip(gradients(converted, g, q, k, v), wanted):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
    assert torch.equal(converted(q, k, v), model(q, k, v))


def test_rows_that_are_masked_altogether_have_no_nan() -> None:
    q = torch.randn(1, 2, 3, 4)
    mask = torch.tensor([[True, True, False], [False, False, False], [True, False, True]])
    model = Call(lambda q: F.scaled_dot_product_attention(q, q, q, attn_mask=mask)).eval()
    for dtype in (torch.float32, torch.bfloat16):
        x = q.to(dtype)
        (found,) = gradients(fxgrad.convert(model, (x,), rules="gim"), torch.ones_like(x), x)
        assert found.isfinite().all() and found.dtype is dtype


def test_a_temperature_is_above_zero() -> None:
    with pytest.raises(fxgrad.RuleTableError, match="temperature must be above 0, not 0"):
        fxgrad.convert(nn.Softmax(-1).eval(), (torch.zeros(1, 2),), rules="gim (temperature = 0)")


# gim-explain, its authors' package. Its softmax is patched where it is called, its halves where fused attention is called:
# so its gradient of fused attention has no temperature, and that of written-out attention no halves. The paper has both;
# `own` asks for the halves in written-out attention by the package's own function. It rounds norms' weights to float32,
# and takes 1e-5 for an RMSNorm's eps where that is None, which for PyTorch is the machine epsilon.


class Block(nn.Module):
    def __init__(self, attend: Callable[..., Tensor], norm: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.attend = attend
        self.norms = nn.ModuleList(norm(8, eps=1e-5) for _ in range(2))
        self.qkv, self.out, self.up, self.down = nn.Linear(8, 24), nn.Linear(8, 8), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norms[0](x)).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        x = x + self.out(self.attend(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norms[1](x))))


def written_out(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.softmax(q @ k.mT / 2, dim=-1) @ v


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
def test_gim_explain(norm: type[nn.Module]) -> None:
    gim = pytest.importorskip("gim")
    from gim.context.attention import scale_grad

    def own(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return written_out(scale_grad(q, 1 / 4), scale_grad(k, 1 / 4), scale_grad(v, 1 / 2))

    torch.manual_seed(0)
    state = Block(own, norm).state_dict()
    state = {name: (tensor + 0.3 * torch.randn_like(tensor)).double() for name, tensor in state.items()}
    x, g = torch.randn(2, 5, 8).double(), torch.randn(2, 5, 8).double()

    def block(attend: Callable[..., Tensor]) -> nn.Module:
        made = Block(attend, norm).double().eval()
        made.load_state_dict(state)
        return made

    fused, theirs = block(lambda *qkv: F.scaled_dot_product_attention(*qkv)), block(own)
    libra = fxgrad.convert(fused, (x,), rules="gim")
    with gim.GIM(theirs):
        (wanted,) = gradients(theirs, g, x)
    for ours in (libra, fxgrad.convert(block(written_out), (x,), rules="gim")):
        torch.testing.assert_close(gradients(ours, g, x)[0], wanted, rtol=1e-11, atol=1e-12)
    with gim.GIM(fused):
        (wanted,) = gradients(fused, g, x)
    torch.testing.assert_close(gradients(libra.under("gim", temperature=1), g, x)[0], wanted, rtol=1e-11, atol=1e-12)


# freeze: LibraGrad's gradient of the same model with its MLPs' outputs detached.


class Detached(nn.Module):
    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        self.mlp = mlp

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x).detach()  # type: ignore[no-any-return]


def llama() -> nn.Module:
    return tr.LlamaForCausalLM(tr.LlamaConfig(**CAUSAL))


def gpt2() -> nn.Module:
    return tr.GPT2LMHeadModel(tr.GPT2Config(vocab_size=V, n_positions=16, n_embd=16, n_layer=2, n_head=2))


@pytest.mark.parametrize("make", [llama, gpt2])
def test_freeze_is_libragrad_with_detached_mlps(make: Callable[[], Any]) -> None:
    torch.manual_seed(0)
    model, ids = make().double().eval(), torch.tensor([[5, 9, 2, 30, 7]])
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.2)

    def found(rules: str) -> Tensor:
        example = {"input_ids": ids, "use_cache": False}
        libra = fxgrad.convert(model, kwargs=example, rules=rules)
        embedded = libra.embed(**example)
        (leaf,) = embedded.values()
        logits = libra.forward_from(embedded, **example).logits
        if rules == "freeze":
            report = fxgrad.check(libra, kwargs=example, original=model)
            assert report.passed, "what the MLPs write is a source"
            own = fxgrad.attribute(libra, kwargs=example, target=lambda output: output.logits[:, -1, 3])
            assert own.note == "" and own.completeness_error < 1e-6, "and attribute has it"
        return torch.autograd.grad(logits[0, -1, 3], leaf)[0]

    frozen = found("freeze")
    for layer in model.model.layers if hasattr(model, "model") else model.transformer.h:
        layer.mlp = Detached(layer.mlp).eval()
    torch.testing.assert_close(frozen, found("libragrad"), rtol=1e-12, atol=1e-14)
