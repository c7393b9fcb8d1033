"""The forward-identical ops by themselves: what traces through them, what they record, and the Taylor series."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

import fxgrad
from fxgrad.ops import (
    Layout,
    Rows,
    function,
    hold_scale,
    root_of,
    rows_of,
    secant,
    short,
    taylor,
    through,
    value_only,
    weighted,
)

aten = torch.ops.aten
WEIGHT, BIAS = torch.linspace(0.5, 1.5, 6).double(), torch.linspace(-1, 1, 6).double()
SIGMOID, GELU = (taylor(op) for op in (aten.sigmoid.default, aten.gelu.default))


def norm(x: Tensor, op: Callable[..., Tensor], *args: object, **layout: object) -> Tensor:
    defaults = {"carrier": 0, "weight": 2, "bias": 3, "trailing": 0, "groups": 0, "centered": True, "eps": 1e-5}
    return hold_scale(op, Layout(**{**defaults, **layout}), x, *args)


def attention(x: Tensor, *args: object, **kwargs: object) -> Tensor:
    return value_only(aten.scaled_dot_product_attention.default, x[None], x[None] + 1, x[None], *args, **kwargs)


def of_heads(x: Tensor, causal: bool) -> Tensor:
    """With a batch and heads, for which there is a fused kernel."""
    return attention(x[None], None, 0.0, causal)


PROJECTION = torch.linspace(-1, 1, 54).double().view(9, 6)


def piece(x: Tensor, rows: Rows, cut: Callable[[Tensor], Tensor]) -> Tensor:
    return rows_of(rows, cut(F.linear(x.detach(), PROJECTION, PROJECTION[:, 0])), x, PROJECTION, PROJECTION[:, 0])


OPS: dict[str, Callable[[Tensor], Tensor]] = {
    "weighted, square": lambda x: weighted(aten.mul.Tensor, (0.5, 0.5), x, x),
    "weighted, held": lambda x: weighted(aten.mul.Tensor, (0.0, 1.0), x.exp(), x),
    "weighted, list": lambda x: weighted(aten.cat.default, ((0.25, 0.75), 1.0), [x, 2 * x], -1),
    "weighted, attention": lambda x: weighted(
        aten.scaled_dot_product_attention.default, (0.0, 0.0, 1.0), x[None], x[None] + 1, x[None]
    ),
    "value_only": attention,
    "value_only, fused": lambda x: of_heads(x, False),
    "value_only, fused and causal": lambda x: of_heads(x, True),
    "value_only, causal": lambda x: attention(x, None, 0.0, True),
    "value_only, masked": lambda x: attention(x, torch.ones(4, 4, dtype=torch.bool).tril(), scale=0.5),
    "rows_of": lambda x: piece(x, Rows((0, 1), 3, ((3, 1),)), lambda y: y[:, 3:6]),
    "rows_of, strided": lambda x: piece(x, Rows((1, 0), 1, ((3, 3),)), lambda y: y.view(4, 3, 3)[:, :, 1].T),
    "secant, gelu": lambda x: secant(aten.gelu.default, GELU, x),
    "secant, sigmoid": lambda x: secant(aten.sigmoid.default, SIGMOID, x),
    "through, log": lambda x: through(aten.log.default, (1.0, 1.0), x.square() + 1),
    "layer_norm": lambda x: norm(x, aten.layer_norm.default, [6], WEIGHT, BIAS, trailing=1),
    "rms_norm": lambda x: norm(x, aten.rms_norm.default, [6], WEIGHT, 1e-5, bias=None, trailing=1, centered=False),
    "group_norm": lambda x: norm(x, aten.group_norm.default, 2, WEIGHT, BIAS, groups=2),
}


def inputs(*shape: int) -> Tensor:
    x = torch.randn(shape, dtype=torch.float64)
    x.view(-1)[:2] = torch.tensor([0.0, 1e-9])  # a secant's limit, and its series
    return x


def assert_close(found: Tensor, wanted: Tensor) -> None:
    """To a few ulps: batched kernels may sum in another order."""
    torch.testing.assert_close(found, wanted, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("name", OPS)
def test_batched_cotangents(name: str) -> None:
    x = inputs(4, 6).requires_grad_()
    y = OPS[name](x)
    cotangents = torch.randn(5, *y.shape).double()
    (batched,) = torch.autograd.grad(y, x, cotangents, is_grads_batched=True, retain_graph=True)
    loop = [torch.autograd.grad(y, x, g, retain_graph=True)[0] for g in cotangents]
    assert_close(batched, torch.stack(loop))


@pytest.mark.parametrize("op", ["layer_norm", "group_norm"])
def test_batched_cotangents_of_weights(op: str) -> None:
    x, weight, bias = inputs(4, 6), WEIGHT.clone().requires_grad_(), BIAS.clone().requires_grad_()
    if op == "layer_norm":
        y = norm(x, aten.layer_norm.default, [6], weight, bias, trailing=1)
    else:
        y = norm(x, aten.group_norm.default, 2, weight, bias, groups=2)
    cotangents = torch.randn(5, *y.shape).double()
    batched = torch.autograd.grad(y, [weight, bias], cotangents, is_grads_batched=True, retain_graph=True)
    loop = [torch.autograd.grad(y, [weight, bias], g, retain_graph=True) for g in cotangents]
    for found, wanted in zip(batched, zip(*loop)):
        assert_close(found, torch.stack(wanted))


# PyTorch has no batching rule for the backward of its CPU attention kernel, loops over the batch, and says so.
loops_over_attention = pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")


@loops_over_attention
@pytest.mark.parametrize("name", OPS)
def test_vmap(name: str) -> None:
    xs = inputs(5, 4, 6)
    assert_close(torch.func.vmap(OPS[name])(xs), torch.stack([OPS[name](x) for x in xs]))
    per_item = torch.func.grad(lambda x: OPS[name](x).square().sum())
    assert_close(torch.func.vmap(per_item)(xs), torch.stack([per_item(x) for x in xs]))
    # Another axis than the first.
    assert_close(torch.func.vmap(per_item, in_dims=1)(xs.transpose(0, 1)), torch.func.vmap(per_item)(xs))


@loops_over_attention
@pytest.mark.parametrize("name", OPS)
def test_jacobian(name: str) -> None:
    x = inputs(4, 6)
    jacobian = torch.func.jacrev(OPS[name])(x)
    cotangent = torch.randn_like(OPS[name](x))
    leaf = x.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(OPS[name](leaf), leaf, cotangent)
    assert_close(torch.tensordot(cotangent, jacobian, cotangent.dim()), wanted)


@pytest.mark.parametrize("name", OPS)
def test_traces_to_plain_aten(name: str) -> None:
    gradient = torch.func.grad(lambda x: OPS[name](x).square().sum())
    x = inputs(4, 6)
    traced = make_fx(gradient)(x)
    targets = [n.target for n in traced.graph.nodes if n.op == "call_function"]
    assert targets and all(t is operator.getitem or isinstance(t, torch._ops.OpOverload) for t in targets)
    other = inputs(4, 6)
    assert_close(traced(other), gradient(other))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["weighted, square", "secant, gelu", "secant, sigmoid"])
def test_gradients_have_the_operands_dtype(name: str, dtype: torch.dtype) -> None:
    x = inputs(4, 6).to(dtype).requires_grad_()
    (gradient,) = torch.autograd.grad(OPS[name](x).sum(), x)
    assert gradient.dtype is dtype and gradient.isfinite().all()


def test_held_means_not_recorded() -> None:
    x, y = inputs(4, 6).requires_grad_(), torch.randn(4, 6).double()
    assert not weighted(aten.mul.Tensor, (0.0, 1.0), x, y).requires_grad
    z = weighted(aten.mul.Tensor, (0.0, 1.0), x, y.requires_grad_())
    gradient, held = torch.autograd.grad(z.sum(), [y, x], allow_unused=True)
    assert torch.equal(gradient, x.detach()) and held is None


@pytest.mark.parametrize("name", OPS)
def test_same_gradient_by_the_general_way(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert function.TRANSFORMED is not None, "PyTorch no longer tells; every call goes the slower way"
    monkeypatch.setattr(short, "SCORES", 0)  # what is short goes another way, and only in eager mode
    x = inputs(4, 6).requires_grad_()
    y = OPS[name](x)
    monkeypatch.setattr(function, "TRANSFORMED", None)
    z = OPS[name](x)
    cotangent = torch.randn_like(y)
    ours, wanted = (torch.autograd.grad(out, x, cotangent)[0] for out in (y, z))
    assert torch.equal(y, z) and torch.equal(ours, wanted)


class Small(nn.Module):
    """Every function of `fxgrad.ops` once."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.norm, self.last = nn.Linear(6, 18), nn.LayerNorm(6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.first(self.norm(x)).chunk(3, -1)
        if self.heads:
            q, k, w = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
            x = x + F.scaled_dot_product_attention(q, k, w).transpose(1, 2).flatten(2)
        else:
            x = x + F.scaled_dot_product_attention(q, k, v)
        return self.last(F.gelu(x) * torch.tanh(v) + torch.sigmoid(x))


@pytest.mark.parametrize("heads", [0, 2], ids=["blocks", "fused"])
@pytest.mark.parametrize("frozen", [False, True], ids=["", "frozen"])
@pytest.mark.usefixtures("fresh_compiler")
def test_compiles_into_one_graph(heads: int, frozen: bool) -> None:
    x = torch.randn(2, 4, 6, dtype=torch.float64, requires_grad=True)
    converted = fxgrad.convert(Small(heads).double().eval(), (x,)).requires_grad_(not frozen)
    compiled = torch.compile(converted, fullgraph=True, backend="aot_eager")
    cotangent = torch.randn(2, 4, 3).double()
    (wanted,) = torch.autograd.grad(converted(x), x, cotangent)
    (found,) = torch.autograd.grad(compiled(x), x, cotangent)
    torch.testing.assert_close(found, wanted, rtol=1e-13, atol=1e-14)
    assert torch.equal(compiled(x.detach()), converted(x))  # with gradients on, but none wanted


# The Taylor series at 0.


@pytest.mark.parametrize(
    ("op", "series"),
    [
        (aten.tanh.default, (0, 1)),
        (aten.gelu.default, (0, 1 / 2)),
        (aten.sigmoid.default, (1 / 2, 1 / 4, 0, -1 / 48, 0)),
        (aten.softplus.default, (math.log(2), 1 / 2, 1 / 8, 0, -1 / 192)),
        (aten.exp.default, (1, 1, 1 / 2, 1 / 6, 1 / 24)),
        (aten.cos.default, (1, 0, -1 / 2, 0, 1 / 24)),
        (aten.hardsigmoid.default, (1 / 2, 1 / 6, 0, 0, 0)),
    ],
    ids=lambda value: str(value) if callable(value) else "",
)
def test_taylor(op: Callable[..., Tensor], series: tuple[float, ...]) -> None:
    assert taylor(op) == pytest.approx(series, rel=1e-14, abs=1e-14)


def test_taylor_of_a_function_with_numbers() -> None:
    assert taylor(aten.softplus.default, 2.0, 20.0)[:2] == pytest.approx((math.log(2) / 2, 1 / 2), rel=1e-14)
    assert taylor(aten.gelu.default, approximate="tanh") == (0.0, 0.5)


@pytest.mark.parametrize("op", [torch.log, torch.reciprocal, torch.sqrt, torch.rsqrt], ids=lambda op: op.__name__)
def test_taylor_refuses_a_pole(op: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(ValueError, match=f"{op.__name__}.* has no secant through 0"):
        taylor(op)


def test_taylor_refuses_what_autograd_does_not_know() -> None:
    with pytest.raises(ValueError, match="no derivative"):
        taylor(lambda x: x.detach().exp())


@pytest.mark.parametrize("op", [torch.log, torch.log2, torch.log10], ids=lambda op: op.__name__)
def test_through_one(op: Callable[[Tensor], Tensor]) -> None:
    """At 1 the slope is the derivative, and next to it no digit is lost."""
    apart = torch.tensor([0.0, 2**-52, -(2**-53), 1e-9, -1e-4, 0.5, -1 + 2**-53], dtype=torch.float64)
    x = (1 + apart).requires_grad_()
    y = through(op, root_of(op, 1.0), x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    exact = torch.where(apart == 0, 1, torch.log1p(x - 1) / torch.where(apart == 0, 1, x - 1)) / math.log(2)
    torch.testing.assert_close(slope * op(torch.tensor(2.0).double()).reciprocal(), exact, rtol=1e-15, atol=0)
    assert torch.equal(y, op(x))


def test_root_of_refuses_what_is_not_0_there() -> None:
    with pytest.raises(ValueError, match=r"it is 0\.693147 at 2, with the slope 0\.5"):
        root_of(torch.log, 2)
    assert root_of(torch.sqrt, 0) == (0, math.inf), "there alone, as PyTorch's own gradient is"
    with pytest.raises(ValueError, match="it is 0 at 1, with the slope nan"):
        root_of(lambda x: x.detach().log(), 1)


def test_a_scaled_operand_keeps_the_strides_of_axes_of_size_one() -> None:
    """By them PyTorch picks the kernel of whatever comes next: a convolution of one channels-last sample."""
    x = torch.randn(1, 6, 4, 16).permute(0, 3, 1, 2)  # as from a layer that works channels-last
    gate = x[:, :1]
    scaled = weighted(
        torch.ops.aten.mul.Tensor, (0.5, 0.5), x.detach().requires_grad_(), gate.detach().requires_grad_()
    )
    assert scaled.stride() == (x * gate).stride() == (384, 1, 64, 16)


@pytest.mark.parametrize("sizes", [(1, 3, 3, 3), (1, 3, 1, 3), (3, 3, 3, 1), (3, 1, 3, 3), (3, 3, 3, 3)])
def test_batch_norm_takes_a_cotangent_of_any_strides(sizes: tuple[int, ...]) -> None:
    """PyTorch's own backward is wrong for some of them; the right one is a factor per channel."""
    norm = torch.nn.BatchNorm2d(sizes[1]).double().eval()
    norm.running_var.uniform_(0.5, 2)
    libra = fxgrad.convert(norm, (torch.zeros(sizes).double(),))
    factor = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach()[:, None, None]
    orders = list(itertools.permutations(range(4)))
    for of_input, of_cotangent in itertools.product(orders, orders):
        x, g = (
            torch.randn([sizes[axis] for axis in order]).double().permute([order.index(axis) for axis in range(4)])
            for order in (of_input, of_cotangent)
        )
        x.requires_grad_()
        (found,) = torch.autograd.grad(libra(x), x, g)
        torch.testing.assert_close(found, g * factor)
    each = torch.eye(g.numel()).double().reshape(-1, *sizes)
    (rows,) = torch.autograd.grad(libra(x), x, each, is_grads_batched=True)
    torch.testing.assert_close(rows, each * factor)


@pytest.mark.parametrize("root", [torch.sqrt, lambda x: x**0.5, lambda x: x.pow(0.25)], ids=["sqrt", "power", "fourth"])
def test_a_root_of_zero_passes_nothing_on(root: Callable[[Tensor], Tensor]) -> None:
    """Elsewhere it is x * (root(x) / x), the quotient held; a zero that is cut off before it stays finite."""
    model = Function(lambda x: root(x.clamp(min=0)).sum(-1)).eval()
    x = torch.tensor([[-1.0, 0.0, 4.0], [0.25, -2.0, 9.0]], dtype=torch.float64)
    libra = fxgrad.convert(model, (x,))
    assert fxgrad.check(libra, (x,), original=model).passed
    x.requires_grad_()
    (found,) = torch.autograd.grad(libra(x).sum(), x)
    expected = torch.where(x > 0, root(x.detach().clamp(min=1e-300)) / x.detach(), 0)
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=0)


class Function(torch.nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)
