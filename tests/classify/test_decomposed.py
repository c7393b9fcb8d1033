"""A function written out in elementary ops gets the gradient of the op that does it in one.

Every pair is compared alone, and inside a small net in which the function's result meets other branches.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxgrad
from fxgrad.kinds import Role

EPS = 1e-5
ROOT_2 = math.sqrt(2)
WEIGHT, BIAS = torch.linspace(0.5, 1.5, 6).double(), torch.linspace(-1, 1, 6).double()


def tanh_gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


def layer_norm_var(x: Tensor) -> Tensor:
    centre = x - x.mean(-1, keepdim=True)
    return centre / torch.sqrt(x.var(-1, unbiased=False, keepdim=True) + EPS) * WEIGHT + BIAS


def layer_norm_square(x: Tensor) -> Tensor:
    centre = x - x.mean(-1, keepdim=True)
    return centre * torch.rsqrt((centre**2).mean(-1, keepdim=True) + EPS) * WEIGHT + BIAS


def rms(x: Tensor) -> Tensor:
    return F.rms_norm(x, (6,), eps=EPS)


def layer_norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, (6,), WEIGHT, BIAS, EPS)


def tanh_gelu_fused(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


PAIRS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "silu as product": (F.silu, lambda x: x * torch.sigmoid(x)),
    "silu as quotient": (F.silu, lambda x: x / (1 + torch.exp(-x))),
    "quick gelu": (lambda x: F.silu(1.702 * x) / 1.702, lambda x: x * torch.sigmoid(1.702 * x)),
    "gelu, half x first": (F.gelu, lambda x: x * 0.5 * (1 + torch.erf(x / ROOT_2))),
    "gelu, half first": (F.gelu, lambda x: 0.5 * x * (1.0 + torch.erf(x * (1 / ROOT_2)))),
    "gelu, half inside": (F.gelu, lambda x: x * (0.5 + 0.5 * torch.erf(x / ROOT_2))),
    "gelu, number last": (F.gelu, lambda x: x * (torch.erf(x / ROOT_2) + 1) / 2),
    "gelu by erfc": (F.gelu, lambda x: x * (0.5 * torch.erfc(-x / ROOT_2))),
    "tanh gelu": (tanh_gelu_fused, tanh_gelu),
    "mish": (F.mish, lambda x: x * torch.tanh(F.softplus(x))),
    "hardswish": (F.hardswish, lambda x: x * F.hardsigmoid(x)),
    "rms norm, rsqrt": (rms, lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS)),
    "rms norm, sqrt": (rms, lambda x: x / torch.sqrt((x**2).mean(-1, keepdim=True) + EPS)),
    "layer norm, var": (layer_norm, layer_norm_var),
    "layer norm, mean of squares": (layer_norm, layer_norm_square),
}

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
SCALE = 6**-0.5
CAUSAL = torch.ones(5, 5, dtype=torch.bool).tril()
OFFSETS = torch.linspace(-2, 1, 25).double().reshape(5, 5)


def attend(scores: Callable[[Tensor], Tensor] = lambda s: s) -> Attend:
    return lambda q, k, v: scores(q @ k.transpose(-2, -1) * SCALE).softmax(-1) @ v


def fused(**options: object) -> Attend:
    return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, **options)


def einsum_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = (torch.einsum("nqd,nkd->nqk", q, k) * SCALE).softmax(-1)
    return torch.einsum("nqk,nkd->nqd", weights, v)


ATTENTION_PAIRS: dict[str, tuple[Attend, Attend]] = {
    "no mask": (fused(), attend()),
    "query scaled": (fused(), lambda q, k, v: torch.softmax((q * SCALE) @ k.mT, dim=-1) @ v),
    "scores divided": (fused(), lambda q, k, v: ((q @ k.mT) / math.sqrt(6)).softmax(-1) @ v),
    "einsum": (fused(scale=SCALE), einsum_attention),
    "added mask": (fused(attn_mask=OFFSETS), attend(lambda s: s + OFFSETS)),
    "filled with -inf": (fused(is_causal=True), attend(lambda s: s.masked_fill(~CAUSAL, -math.inf))),
    "filled with -1e9": (fused(attn_mask=CAUSAL), attend(lambda s: s.masked_fill(~CAUSAL, -1e9))),
    "where": (fused(attn_mask=CAUSAL), attend(lambda s: torch.where(CAUSAL, s, -math.inf))),
}  # fmt: skip


class Alone(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Net(nn.Module):
    """The function's argument also travels past it, and its result is added, multiplied and projected."""

    def __init__(self, function: Callable[..., Tensor], arguments: int = 1) -> None:
        super().__init__()
        self.function = function
        self.first, self.other, self.last = nn.Linear(6, 6 * arguments), nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x).split(6, -1)
        y = self.function(*hidden)
        return self.last(hidden[0] + y + self.other(y) * torch.tanh(self.other(x)))


class AttentionAlone(nn.Module):
    def __init__(self, function: Attend) -> None:
        super().__init__()
        self.function = function

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.function(q, k, v)


def gradients(model: nn.Module, inputs: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Output, and the gradients of a random cotangent; the conversion itself is checked on the way."""
    converted = fxgrad.convert(model, tuple(inputs))
    report = fxgrad.check(converted, tuple(inputs), original=model)
    assert report.passed and report.completeness_error <= 1e-12, report
    inputs = [x.clone().requires_grad_() for x in inputs]
    output = converted(*inputs)
    cotangent = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = torch.autograd.grad(output, inputs, cotangent, allow_unused=True)
    return output.detach(), [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found)]


def assert_same(one: nn.Module, other: nn.Module, inputs: list[Tensor]) -> None:
    assert_gives(gradients(one.double().eval(), inputs), one, other, inputs)


def assert_gives(wanted: tuple[Tensor, list[Tensor]], one: nn.Module, other: nn.Module, inputs: list[Tensor]) -> None:
    """The other, with the weights of the one, has the one's output and gradients."""
    other.load_state_dict(one.state_dict())
    outputs, found = zip(wanted, gradients(other.double().eval(), inputs))
    for ours, theirs in [outputs, *zip(*found)]:
        assert (ours - theirs).abs().max() <= 1e-12 * theirs.abs().max()


def hidden_states(*shape: int) -> Tensor:
    """Normal, over three orders of magnitude, with exact zeros."""
    x = torch.randn(shape, dtype=torch.float64) * torch.logspace(-2, 1, shape[-1], dtype=torch.float64)
    x[0, 0] = 0
    return x


@functools.cache
def fused_one(
    function: Callable[[Tensor], Tensor], wrap: Callable[..., nn.Module]
) -> tuple[nn.Module, list[Tensor], tuple[Tensor, list[Tensor]]]:
    """The op that does it in one, which several are compared with: its module, inputs and gradients."""
    torch.manual_seed(0)
    model, inputs = wrap(function).double().eval(), [hidden_states(3, 5, 6)]
    return model, inputs, gradients(model, inputs)


@pytest.mark.parametrize("wrap", [Alone, Net])
@pytest.mark.parametrize("name", PAIRS)
def test_elementwise_and_norms(name: str, wrap: type[nn.Module]) -> None:
    one, written_out = PAIRS[name]
    model, inputs, wanted = fused_one(one, wrap)
    assert_gives(wanted, model, wrap(written_out), inputs)


@pytest.mark.parametrize("name", ATTENTION_PAIRS)
def test_attention(name: str) -> None:
    pair = ATTENTION_PAIRS[name]
    assert_same(*(AttentionAlone(function) for function in pair), [hidden_states(2, 5, 6) for _ in range(3)])
    assert_same(*(Net(function, arguments=3) for function in pair), [hidden_states(2, 5, 6)])


class Lifted(nn.Module):
    """An odd squash plus something, times another carrier."""

    def __init__(self, lift: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.lift, self.bias = lift, nn.Parameter(torch.linspace(0.5, 1.5, 3).double())

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.lift(x, self.bias) * y


@pytest.mark.parametrize(
    ("lift", "role"),
    [
        (lambda x, bias: torch.tanh(x) + bias, Role.CARRIER),  # the output of a layer
        (lambda x, bias: torch.tanh(x), Role.CARRIER),
        (lambda x, bias: 1 + torch.tanh(x), Role.GATE),
        (lambda x, bias: 1 - torch.tanh(x), Role.GATE),
        (lambda x, bias: 0.5 * torch.tanh(x / 2) + 0.5, Role.GATE),  # a sigmoid
        (lambda x, bias: torch.atan(x) + 1, Role.GATE),
        (lambda x, bias: x + 1, Role.CARRIER),  # no squash
        (lambda x, bias: torch.tanh(x) + x, Role.CARRIER),
    ],
    ids=["tanh + bias", "tanh", "1 + tanh", "1 - tanh", "tanh/2 + 1/2", "atan + 1", "x + 1", "tanh + x"],
)
def test_a_number_plus_an_odd_squash_is_a_gate(lift: Callable[[Tensor, Tensor], Tensor], role: Role) -> None:
    inputs = [torch.randn(4, 3).double().requires_grad_() for _ in range(2)]
    model = Lifted(lift).eval()
    converted = fxgrad.convert(model, tuple(inputs))
    *_, lifted, _ = converted.classified.decisions.values()
    assert lifted.role is role

    found = torch.autograd.grad(converted(*inputs).sum(), inputs[1])[0]
    factor = lift(inputs[0], model.bias).detach()
    # Two carriers share the product; a gate leaves all of it to the carrier.
    torch.testing.assert_close(found, factor if role is Role.GATE else factor / 2, rtol=1e-14, atol=0)


@pytest.mark.parametrize(
    "hard", [lambda x: F.relu6(x + 3) / 6, lambda x: (x + 3).clamp(0, 6) / 6, lambda x: F.hardtanh(3 + x, 0, 6) / 6]
)
def test_a_hard_sigmoid_written_out_is_a_gate(hard: Callable[[Tensor], Tensor]) -> None:
    """x * relu6(x + 3) / 6 is hardswish: it gets hardswish's gradient, not half of it through the gate."""
    x = torch.linspace(-4, 4, 24).double().reshape(4, 6).requires_grad_()
    gradients = []
    for function in (lambda x: x * hard(x), F.hardswish):
        libra = fxgrad.convert(Alone(function).eval(), (x.detach(),))
        gradients.append(torch.autograd.grad(libra(x).sum(), x)[0])
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-15)


def test_a_relu6_of_a_layer_is_no_gate() -> None:
    for function in (
        lambda x: F.relu6(x) * x,
        lambda x: torch.where(x > 0, torch.tanh(x), 0.5) * x,
    ):  # a choice is no sum
        libra = fxgrad.convert(Alone(function).eval(), (torch.randn(2, 3),))
        (product,) = (d for d in libra.classified.decisions.values() if d.op == "aten.mul.Tensor")
        assert product.weights == (0.5, 0.5)
