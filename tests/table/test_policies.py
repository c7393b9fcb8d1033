"""The policies beside libragrad, against lxt, against hand-balanced autograd, and written-out attention against fused."""

from __future__ import annotations

import importlib.util
import math
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxgrad
from fxgrad.kinds import Kind
from fxgrad.module.converted import ConvertedModule
from fxgrad.ops.vocabulary import BACKWARDS
from fxgrad.table.loading import load, presets
from tests.references.textbook import attention_weights, gated, gelu_gate, normalize, power, secant, shared, silu_gate

ROOT = Path(__file__).parents[2]
ABLATED = {
    "attention": {Kind.ATTENTION, Kind.SOFTMAX},
    "gated-activation": {Kind.GATED_ACTIVATION},
    "normalization": {Kind.NORMALIZATION},
    "product": {Kind.PRODUCT, Kind.GATE},
}
LAYERS = {"epsilon", "gamma", "alpha-beta", "z-plus", "z-box"}  # tests/ops/test_propagation.py
OTHERS = ["attnlrp", "cp-lrp", "gradient", "gim", "freeze", "relp", "alilrp", "decompx"]
POLICIES = ["libragrad", *OTHERS, *(f"libragrad-without-{part}" for part in ABLATED)]


def same(ours: Tensor, theirs: Tensor, bound: float = 1e-12) -> bool:
    return bool((ours - theirs).abs().max() <= bound * theirs.abs().max())


def cotangent(output: Tensor) -> Tensor:
    return torch.randn(output.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def gradients(model: Callable[..., Tensor], inputs: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Output, and the gradients of a random cotangent."""
    inputs = [x.clone().requires_grad_() for x in inputs]
    output = model(*inputs)
    found = torch.autograd.grad(output, inputs, cotangent(output), allow_unused=True)
    return output.detach(), [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found)]


class Function(nn.Module):
    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)


# The shipped files.


def test_shipped_policies() -> None:
    assert {*POLICIES, *LAYERS} == set(presets())
    libra = load().policy
    for name in presets():
        policy = load(name).policy
        assert set(policy) == set().union(*(b.kinds for b in BACKWARDS.values())) - {Kind.OPAQUE}, "every kind"
        assert any(where in presets()[name] for where in ("arXiv:", "doi:", "transformer-circuits.pub"))
        if name.startswith("libragrad-without-"):
            changed = {kind: backward for kind, backward in policy.items() if backward != libra[kind]}
            assert changed == dict.fromkeys(ABLATED[name.removeprefix("libragrad-without-")], "native")
    assert {k for k, b in load("attnlrp").policy.items() if b != libra[k]} == {Kind.ATTENTION, Kind.SOFTMAX}
    for name, other in {"relp": "libragrad", "alilrp": "cp-lrp", "decompx": "libragrad-without-product"}.items():
        assert (load(name).policy == load(other).policy) == (name != "alilrp")
    for name in LAYERS:
        assert {k for k, b in load(name).policy.items() if b != libra[k]} == {Kind.LINEAR, Kind.PRODUCT}
    assert {k for k, b in load("cp-lrp").policy.items() if b != libra[k]} == {Kind.PRODUCT}


# lxt, the package that AttnLRP's authors publish: the gradient of the embedded tokens (ViT: of the image).


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of lxt's gradients. It patches classes for the whole process, so it runs in one of its own."""
    if missing := [name for name in ("lxt", "torchvision", "transformers") if importlib.util.find_spec(name) is None]:
        pytest.skip(f"needs {', '.join(missing)}")
    folder = tmp_path_factory.mktemp("lxt")
    command = [sys.executable, "-m", "tests.helpers.lxt_gradients", folder]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "vit"])
def test_lxt(name: str, published: Path) -> None:
    """lxt divides by x + epsilon where the identity rule divides by x; the rest is equal to rounding.

    Its gate d = f(x) / (x + epsilon) is short of the rule's by d * epsilon / x. `lxt_gradients` takes what that is at
    the input from lxt's own graph, to first order. The second order is one epsilon / x times another, of two layers.
    BERT is lxt's own copy of the model, with stand-ins for the methods that transformers 5 has dropped. lxt has no
    map for CP-LRP in BERT, nor for AttnLRP in ViT, and no identity rule for CP-LRP in Llama: the gate is held.
    Norms that compute in float32 whatever the model is in (Llama's) are in float64 on both sides here.
    """
    from safetensors.torch import load_file

    from tests.helpers import lxt_gradients as lxt

    x, found = lxt.example(name), {}
    for attention in ["sdpa"] if name == "vit" else ["eager", "sdpa"]:
        with lxt.float64_throughout():
            converted = fxgrad.convert(lxt.build(name, attn_implementation=attention), (x,), rules="attnlrp")
        for policy in lxt.PUBLISHED:
            module = converted.under(policy)
            if name == "vit":
                found[policy, attention] = gradients(module, [x])[1][0]
                continue
            ((path, leaf),) = module.embed(x).items()
            logits = module.forward_from({path: leaf}, x).logits
            found[policy, attention] = torch.autograd.grad(logits, leaf, lxt.cotangent(logits))[0]

    for (policy, _), ours in found.items():
        assert same(ours, found[policy, "sdpa"]), "written-out attention gets the gradient of the fused op"
        if name in lxt.PUBLISHED[policy]:
            theirs = load_file(published / f"{policy}-{name}.safetensors")
            farthest = lxt.EPSILON / theirs["nearest"]
            second_order = float(farthest.sum() ** 2 - farthest.square().sum()) / 2
            assert same(ours, theirs["gradient"] + theirs["epsilon"], 1e-12 + second_order)
            assert same(ours, theirs["gradient"]) != bool(theirs["epsilon"].any()), "epsilon is all that differs"


# Every policy, by hand: one network, its parts either PyTorch's own or balanced with .detach().

WIDTH, HEADS = 8, 2


def scaled(x: Tensor, weight: float) -> Tensor:
    """x, whose gradient is multiplied by weight."""
    return x * weight + x.detach() * (1 - weight)


def written_out(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), -1) @ v


NATIVE = {
    "norm": lambda x, m: F.layer_norm(x, (WIDTH,), m.weight, m.bias),
    "fused": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
    "written out": written_out,
    "gelu": F.gelu,
    "silu": F.silu,
    "product": torch.mul,
    "gate": lambda x, y: x * torch.sigmoid(y),
    "tanh": torch.tanh,
    "square": torch.square,
}
BALANCED = {
    "norm": lambda x, m: normalize(x, -1, 1e-5) * m.weight + m.bias,
    "fused": lambda q, k, v: attention_weights(q, k, causal=True).detach() @ v,
    "written out": lambda q, k, v: attention_weights(q, k).detach() @ v,
    "gelu": gated(gelu_gate),
    "silu": gated(silu_gate),
    "product": lambda a, b: shared(torch.mul, a, b),
    "gate": lambda x, y: x * torch.sigmoid(y).detach(),
    "tanh": secant("tanh"),
    "square": lambda x: power(x, 2),
}
SPLIT = {
    "fused": lambda q, k, v: NATIVE["fused"](scaled(q, 1 / 4), scaled(k, 1 / 4), scaled(v, 1 / 2)),
    "written out": lambda q, k, v: written_out(scaled(q, 1 / 4), scaled(k, 1 / 4), scaled(v, 1 / 2)),
}


def softened(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> Tensor:
    """GIM's attention: the gradient of softmax at temperature 2, without its factor 1/2; halves for each product."""
    q, k, v = scaled(q, 1 / 4), scaled(k, 1 / 4), scaled(v, 1 / 2)
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -math.inf) if causal else scores
    weights, soft = scores.softmax(-1), (scores / 2).softmax(-1)
    return (2 * soft + (weights - 2 * soft).detach()) @ v


GIM = {
    **NATIVE,
    "norm": BALANCED["norm"],
    "fused": lambda q, k, v: softened(q, k, v, causal=True),
    "written out": softened,
}
BY_HAND = {
    "libragrad": {},
    "attnlrp": SPLIT,
    "cp-lrp": {"product": lambda a, b: a.detach() * b},
    "gradient": NATIVE,
    "gim": GIM,
    "freeze": {"gelu": lambda x: F.gelu(x).detach(), "product": lambda a, b: (a * b).detach()},
    "relp": {},
    "alilrp": {part: NATIVE[part] for part in ("gelu", "silu")},
    "decompx": {part: NATIVE[part] for part in ("product", "gate")},
    "libragrad-without-attention": {part: NATIVE[part] for part in ("fused", "written out")},
    "libragrad-without-gated-activation": {part: NATIVE[part] for part in ("gelu", "silu")},
    "libragrad-without-normalization": {"norm": NATIVE["norm"]},
    "libragrad-without-product": {part: NATIVE[part] for part in ("product", "gate")},
}
# How often each op is left unbalanced. The two matmuls are the written-out scores, and the weights times the values.
UNBALANCED = {
    "libragrad": {},
    "attnlrp": {"scaled_dot_product_attention": 1, "softmax": 1},
    "cp-lrp": {},
    "libragrad-without-attention": {"scaled_dot_product_attention": 1, "softmax": 1, "matmul": 2},
    "libragrad-without-gated-activation": {"gelu": 1, "silu": 1},
    "libragrad-without-normalization": {"layer_norm": 2},
    "libragrad-without-product": {"mul": 2, "sigmoid": 1},
}
UNBALANCED |= {"freeze": {}, "relp": {}}
UNBALANCED["alilrp"] = UNBALANCED["libragrad-without-gated-activation"]
UNBALANCED["decompx"] = UNBALANCED["libragrad-without-product"]
UNBALANCED["gradient"] = {k: n for ops in UNBALANCED.values() for k, n in ops.items()} | {"tanh": 1, "square": 1}
UNBALANCED["gim"] = {k: n for k, n in UNBALANCED["gradient"].items() if k not in ("layer_norm", "matmul")}


class Network(nn.Module):
    """Every kind once, in residual branches."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.linears = nn.ModuleList(nn.Linear(WIDTH, n * WIDTH) for n in (3, 3, 1, 1, 2, 2, 1, 1))
        for parameter in self.parameters():
            parameter.data.add_(torch.randn_like(parameter) * 0.3)

    def forward(self, x: Tensor, parts: dict[str, Callable[..., Tensor]] = NATIVE) -> Tensor:
        f = SimpleNamespace(**{name.replace(" ", "_"): part for name, part in parts.items()})
        fused, written, up, down, gated_up, gate_up, last, head = self.linears
        x = x + self.attend(f.fused, fused(f.norm(x, self.norms[0])))
        x = x + self.attend(f.written_out, written(f.norm(x, self.norms[1])))
        x = x + down(f.gelu(up(x)))
        a, b = gated_up(x).chunk(2, -1)
        x = x + f.product(f.silu(a), b)
        x = x + f.gate(*gate_up(x).chunk(2, -1))
        return head(torch.relu(x) + f.tanh(last(x)) + f.square(x))

    @staticmethod
    def attend(attention: Callable[..., Tensor], qkv: Tensor) -> Tensor:
        q, k, v = qkv.unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        return attention(q, k, v).transpose(1, 2).flatten(2)


@pytest.fixture(scope="module")
def network() -> ConvertedModule:
    torch.manual_seed(0)
    return fxgrad.convert(Network().double().eval(), (torch.randn(2, 5, WIDTH).double(),), rules="gradient")


@pytest.mark.parametrize("policy", POLICIES)
def test_by_hand(policy: str, network: ConvertedModule) -> None:
    model, x = Network().double().eval().requires_grad_(False), torch.randn(2, 5, WIDTH).double()
    model.load_state_dict(network.state_dict())
    converted = fxgrad.convert(model, (x,), rules=policy)
    output, (ours,) = gradients(converted, [x])
    expected, (theirs,) = gradients(lambda x: model(x, {**BALANCED, **BY_HAND[policy]}), [x])
    assert same(output, expected) and same(ours, theirs)
    plain = gradients(model, [x])[1][0]
    assert same(ours, plain) if policy == "gradient" else not same(ours, plain, 1e-3)

    again = network.under(policy)
    assert torch.equal(gradients(again, [x])[1][0], ours)
    assert again.classified.decisions == converted.classified.decisions

    report = fxgrad.check(converted, (x,), original=model)
    wrong = [row for row in report.ledger if row.error > 1e-12]
    assert report.forward_identical and report.unexplained <= 1e-12
    assert Counter(row.op.split(".")[1] for row in wrong) == UNBALANCED[policy]
    assert not wrong or min(row.error for row in wrong) > 1e-6, "not by rounding"
    assert report.completeness_error > 1e-6 if wrong else report.completeness_error <= 1e-12


# A written-out attention has the gradient of the fused one, under every policy.

SCALE = 6**-0.5
CAUSAL = torch.ones(5, 5, dtype=torch.bool).tril()
OFFSETS = torch.linspace(-2, 1, 25).double().reshape(5, 5)
ANGLES = torch.linspace(0, 7, 30).double().reshape(5, 6)
TEMPERATURE = torch.linspace(0.5, 3, 4).double().reshape(4, 1, 1)
PROBE = torch.linspace(-1, 2, 72).double().reshape(4, 3, 6)
sdpa = F.scaled_dot_product_attention


def attend(q: Tensor, k: Tensor, v: Tensor, scores: Callable[[Tensor], Tensor] = lambda s: s) -> Tensor:
    return scores(q @ k.mT * SCALE).softmax(-1) @ v


def rotated(x: Tensor) -> Tensor:
    """Rotary position embedding, in halves."""
    left, right = x.chunk(2, -1)
    return x * ANGLES.cos() + torch.cat([-right, left], -1) * ANGLES.sin()


def turned(x: Tensor) -> Tensor:
    """Rotary position embedding, in complex numbers."""
    z = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
    return torch.view_as_real(z * torch.polar(torch.ones(5, 3).double(), ANGLES[:, :3])).flatten(-2)


def unit(x: Tensor) -> Tensor:
    return F.normalize(x, dim=-1)


def by_heads(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.baddbmm(OFFSETS.expand(8, 5, 5), q.flatten(0, 1), k.flatten(0, 1).mT, alpha=SCALE)
    return torch.bmm(scores.softmax(-1), v.flatten(0, 1)).view_as(q)


def elementwise(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = ((q.unsqueeze(-2) * k.unsqueeze(-3)).sum(-1) * SCALE).softmax(-1)
    return (weights.unsqueeze(-1) * v.unsqueeze(-3)).sum(-2)


def einsums(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.einsum("bhqk,bhkd->bqhd", torch.einsum("bhqd,bhkd->bhqk", q, k).mul(SCALE).softmax(-1), v)


def fewer(x: Tensor) -> Tensor:
    """Two heads of the four, for grouped queries."""
    return x[:, :2]


def expanded(x: Tensor) -> Tensor:
    return fewer(x)[:, :, None].expand(-1, 2, 2, -1, -1).reshape(x.shape)


def grouped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return sdpa(q, fewer(k), fewer(v), enable_gqa=True)


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return sdpa(q, k, v, is_causal=True)


def masked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return sdpa(q, k, v, attn_mask=OFFSETS)


Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
PAIRS: dict[str, tuple[Attend, Attend]] = {
    "query scaled": (sdpa, lambda q, k, v: ((q * SCALE) @ k.mT).softmax(-1) @ v),
    "scores divided": (sdpa, lambda q, k, v: (q @ k.mT / math.sqrt(6)).softmax(-1) @ v),
    "added mask": (masked, lambda q, k, v: attend(q, k, v, lambda s: s + OFFSETS)),
    "filled mask": (causal, lambda q, k, v: attend(q, k, v, lambda s: s.masked_fill(~CAUSAL, -math.inf))),
    "where mask": (causal, lambda q, k, v: attend(q, k, v, lambda s: torch.where(CAUSAL, s, -1e300))),
    "mask from the input": (lambda q, k, v: sdpa(q, k, v, attn_mask=v @ OFFSETS[0].expand(6, 5)), lambda q, k, v: attend(q, k, v, lambda s: s + v @ OFFSETS[0].expand(6, 5))),
    "baddbmm": (masked, by_heads),
    "einsum": (lambda q, k, v: sdpa(q, k, v).transpose(1, 2), einsums),
    "products and sums": (sdpa, elementwise),
    "keys first": (sdpa, lambda q, k, v: (v.mT @ (k @ q.mT * SCALE).softmax(-2)).mT),
    "rotary": (lambda q, k, v: causal(rotated(q), rotated(k), v), lambda q, k, v: attend(rotated(q), rotated(k), v, lambda s: s.masked_fill(~CAUSAL, -math.inf))),
    "rotary, complex": (lambda q, k, v: sdpa(turned(q), turned(k), v), lambda q, k, v: attend(turned(q), turned(k), v)),
    "cosine": (lambda q, k, v: sdpa(unit(q) * TEMPERATURE, unit(k), v, attn_mask=OFFSETS, scale=1.0), lambda q, k, v: (unit(q) @ unit(k).mT * TEMPERATURE + OFFSETS).softmax(-1) @ v),
    "normed query and key": (lambda q, k, v: sdpa(F.rms_norm(q, (6,)), F.layer_norm(k, (6,)), v), lambda q, k, v: attend(F.rms_norm(q, (6,)), F.layer_norm(k, (6,)), v)),
    "weighted heads": (lambda q, k, v: sdpa(q, k, v) * TEMPERATURE, lambda q, k, v: ((q @ k.mT * SCALE).softmax(-1) * TEMPERATURE) @ v),
    "differential": (lambda q, k, v: sdpa(q, k, v) - sdpa(k, q, v) / 2, lambda q, k, v: ((q @ k.mT * SCALE).softmax(-1) - (k @ q.mT * SCALE).softmax(-1) / 2) @ v),
    "grouped, repeated": (grouped, lambda q, k, v: attend(q, *(fewer(x).repeat_interleave(2, 1) for x in (k, v)))),
    "grouped, expanded": (grouped, lambda q, k, v: attend(q, expanded(k), expanded(v))),
    "grouped, broadcast": (grouped, lambda q, k, v: attend(q.unflatten(1, (2, 2)), fewer(k)[:, :, None], fewer(v)[:, :, None]).flatten(1, 2)),
    "shared key and value": (lambda q, k, v: sdpa(q, k, k), lambda q, k, v: attend(q, k, k)),
    "one after another": (lambda q, k, v: sdpa(sdpa(q, k, v), q, k * v), lambda q, k, v: attend(attend(q, k, v), q, k * v)),
    "learned query": (lambda q, k, v: sdpa(PROBE.expand(len(k), -1, -1, -1), k, v), lambda q, k, v: attend(PROBE, k, v)),
    "learned key": (lambda q, k, v: sdpa(q, PROBE.expand(len(k), -1, -1, -1), v[..., :3, :]), lambda q, k, v: attend(q, PROBE, v[..., :3, :])),
    "detached maximum": (sdpa, lambda q, k, v: attend(q, k, v, lambda s: s - s.amax(-1, keepdim=True).detach())),
}  # fmt: skip


class Pairs(nn.Module):
    """One side of all pairs, each with inputs of its own: q, k and v are (batch, pairs, heads, tokens, width)."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.functions = [pair[side] for pair in PAIRS.values()]

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        outputs = [f(q[:, i], k[:, i], v[:, i]).flatten(1) for i, f in enumerate(self.functions)]
        return torch.cat(outputs, 1)


@pytest.fixture(scope="module")
def sides() -> list[ConvertedModule]:
    return [fxgrad.convert(Pairs(side).eval(), (torch.zeros(2, len(PAIRS), 4, 5, 6).double(),) * 3) for side in (0, 1)]


@pytest.mark.parametrize("policy", POLICIES)
def test_written_out_attention(policy: str, sides: list[ConvertedModule]) -> None:
    inputs = [torch.randn(2, len(PAIRS), 4, 5, 6).double() for _ in range(3)]
    (expected, theirs), (output, ours) = (gradients(side.under(policy), inputs) for side in sides)
    assert same(output, expected)
    differ = {name for i, name in enumerate(PAIRS) if not all(same(a[:, i], b[:, i]) for a, b in zip(ours, theirs))}
    # Scores that no op contracts share their product, as all products do, where attention has its own gradient.
    own = policy in ("libragrad-without-attention", "gim")
    assert differ == ({"products and sums"} if own else set())


# Which products CP-LRP holds, and what a policy makes of products ahead of a softmax.

silu = gated(silu_gate)
half = torch.eye(3).double() / 2


def rms_norm(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)


def balanced_rms_norm(x: Tensor) -> Tensor:
    return normalize(x, -1, 1e-5, centered=False)


PRODUCTS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "SwiGLU": (lambda a, b: F.silu(a) * b, lambda a, b: silu(a).detach() * b),
    "GeGLU": (lambda a, b: b * F.gelu(a), lambda a, b: F.gelu(a).detach() * b),
    "ReGLU": (lambda a, b: F.relu(a) * b, lambda a, b: F.relu(a).detach() * b),
    "GLU": (lambda a, b: a * torch.sigmoid(b), lambda a, b: a * torch.sigmoid(b).detach()),
    "bilinear": (lambda a, b: a * b, lambda a, b: shared(torch.mul, a, b)),
    "both activated": (lambda a, b: F.silu(a) * F.silu(b), lambda a, b: shared(torch.mul, silu(a), silu(b))),
    "squeeze-excite": (lambda a, b: F.silu(a) * torch.sigmoid(b), lambda a, b: silu(a) * torch.sigmoid(b).detach()),
    "cell": (lambda a, b: torch.tanh(a) * torch.sigmoid(b), lambda a, b: secant("tanh")(a) * torch.sigmoid(b).detach()),
    "scaled, viewed": (lambda a, b: (2 * F.silu(a)).view(b.shape) * b, lambda a, b: 2 * F.silu(a).detach() * b),
    "silu written out": (lambda a, b: a * torch.sigmoid(a) * b, lambda a, b: F.silu(a).detach() * b),
    "silu as quotient": (lambda a, b: a / (1 + torch.exp(-a)) * b, lambda a, b: F.silu(a).detach() * b),
    "gelu written out": (lambda a, b: 0.5 * a * (1 + torch.erf(a / 2**0.5)) * b, lambda a, b: F.gelu(a).detach() * b),
    "layer between": (lambda a, b: F.linear(F.silu(a), half) * b, lambda a, b: shared(torch.mul, silu(a) / 2, b)),
    "matrix between": (lambda a, b: (F.silu(a) @ half) * b, lambda a, b: shared(torch.mul, silu(a) / 2, b)),
    "norm": (lambda a, b: rms_norm(a) * b, lambda a, b: shared(torch.mul, balanced_rms_norm(a), b)),
    "gated norm": (lambda a, b: F.silu(a) * rms_norm(b), lambda a, b: silu(a).detach() * balanced_rms_norm(b)),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_what_cp_lrp_holds(name: str) -> None:
    product, balanced = PRODUCTS[name]
    inputs = [torch.randn(4, 3).double() for _ in range(2)]
    _, ours = gradients(fxgrad.convert(Function(product).eval(), tuple(inputs), rules="cp-lrp"), inputs)
    assert all(same(a, b) for a, b in zip(ours, gradients(balanced, inputs)[1]))


@pytest.mark.parametrize("policy", ["attnlrp", "libragrad-without-attention"])
def test_products_ahead_of_a_softmax(policy: str) -> None:
    """They are no attention: gates stay held, carriers share, whether a model returns probabilities or not."""
    inputs, head = [torch.randn(4, 3).double() for _ in range(3)], torch.randn(3, 3).double()

    def model(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        return torch.softmax((a * torch.sigmoid(b) + a * c) @ head, -1)

    def balanced(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        return torch.softmax((a * torch.sigmoid(b).detach() + shared(torch.mul, a, c)) @ head, -1)

    _, ours = gradients(fxgrad.convert(Function(model).eval(), tuple(inputs), rules=policy), inputs)
    assert all(same(a, b) for a, b in zip(ours, gradients(balanced, inputs)[1]))
