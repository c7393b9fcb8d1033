"""Which rows of a projection get a cotangent, and that these are all that is multiplied."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import fxgrad
from fxgrad.ops.rows import OfRows

D, H = 8, 2
Cut = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]


def heads(x: Tensor) -> Tensor:
    return x.reshape(*x.shape[:-1], H, D // H).transpose(-3, -2)


CUTS: dict[str, Cut] = {
    "timm": lambda y: y.reshape(*y.shape[:2], 3, H, D // H).permute(2, 0, 3, 1, 4).unbind(0),
    "torch.nn": lambda y: tuple(
        heads(t) for t in y.unflatten(-1, (3, D)).unsqueeze(0).transpose(0, -2).squeeze(-2).contiguous().unbind(0)
    ),
    "chunk": lambda y: tuple(heads(t) for t in y.chunk(3, -1)),
    "split": lambda y: tuple(heads(t) for t in y.split((D, D, D), -1)),
    "slices": lambda y: tuple(heads(y[..., i * D : (i + 1) * D]) for i in range(3)),
    "heads first": lambda y: y.reshape(*y.shape[:2], H, 3, D // H).transpose(1, 2).unbind(-2),
    "heads first, halves": lambda y: y.view(*y.shape[:2], H, 3 * (D // H)).transpose(1, 2).chunk(3, -1),
    "every third": lambda y: y.reshape(*y.shape[:2], H, D // H, 3).transpose(1, 2).unbind(-1),
    "steps": lambda y: tuple(heads(y[..., i::3]) for i in range(3)),
    "a step too many": lambda y: tuple(heads(t[0]) for t in y[None].chunk(3, -1)),
}


class Attention(nn.Module):
    def __init__(self, cut: Cut) -> None:
        super().__init__()
        self.cut, self.qkv, self.out = cut, nn.Linear(D, 3 * D), nn.Linear(D, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.cut(self.qkv(x))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2))


def pieces(libra: fxgrad.ConvertedModule) -> list[fxgrad.ops.Rows]:
    return [d.backward.rows for d in libra.classified.decisions.values() if isinstance(d.backward, OfRows)]


@pytest.mark.parametrize("name", CUTS)
def test_only_the_value_gets_a_cotangent(name: str) -> None:
    model = Attention(CUTS[name]).double().eval()
    x = torch.randn(3, 5, D).double().requires_grad_()
    libra = fxgrad.convert(model, (x,))
    (rows,) = pieces(libra)
    assert rows.features == D
    report = fxgrad.check(libra, (x,), original=model)
    assert report.passed and report.completeness_error < 1e-14
    # By hand: queries and keys detached.
    q, k, v = CUTS[name](model.qkv(x))
    y = F.scaled_dot_product_attention(q.detach(), k.detach(), v).transpose(1, 2).flatten(-2)
    g = torch.randn(3, 5, 3).double()
    wanted = torch.autograd.grad(model.out(y), [x, model.qkv.weight, model.qkv.bias], g)
    found = torch.autograd.grad(libra(x), [x, libra.qkv.weight, libra.qkv.bias], g)
    for ours, theirs in zip(found, wanted):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)
    # Other batches, and each cotangent of a batch of them.
    other = torch.randn(4, 5, D).double()
    assert torch.equal(libra(other), model(other))
    each = torch.randn(2, 3, 5, 3).double()
    batched = torch.autograd.grad(libra(x), x, each, is_grads_batched=True)[0]
    for ours, one in zip(batched, each):
        torch.testing.assert_close(ours, torch.autograd.grad(libra(x), x, one)[0])


def test_the_backward_multiplies_by_these_rows_alone() -> None:
    libra = fxgrad.convert(Attention(CUTS["timm"]).eval(), (torch.randn(3, 5, D),)).requires_grad_(False)
    x = torch.randn(3, 5, D, requires_grad=True)
    y = libra(x)
    counter = FlopCounterMode(display=False)
    with counter:
        y.sum().backward()
    # out, the value's third of qkv, and attention's two products
    assert counter.get_total_flops() == 2 * 3 * 5 * (3 * D + D * D + 2 * 5 * D)


class Gated(nn.Module):
    """A packed projection with two live pieces of three."""

    def __init__(self) -> None:
        super().__init__()
        self.all = nn.Linear(D, 3 * D, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, a, b = self.all(x).chunk(3, -1)
        return torch.sigmoid(gate) * a + F.gelu(b)


def test_several_live_pieces() -> None:
    model = Gated().double().eval()
    x = torch.randn(3, D).double()
    libra = fxgrad.convert(model, (x,))
    assert [rows.where for rows in pieces(libra)] == [slice(D, 2 * D), slice(2 * D, 3 * D)]
    assert fxgrad.check(libra, (x,), original=model).completeness_error < 1e-14


def test_a_projection_that_is_live_as_a_whole_stays_as_it_is() -> None:
    model = Attention(CUTS["timm"]).eval()
    libra = fxgrad.convert(model, (torch.randn(3, 5, D),))
    assert len(pieces(libra)) == 1
    assert not pieces(libra.under("attnlrp")) and not pieces(libra.under("gradient"))


class AlsoWhole(Attention):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.qkv(x).sum(-1, keepdim=True)


def test_tokens_that_join_features_are_left_alone() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.all = nn.Linear(D, 2 * D)

        def forward(self, x: Tensor) -> Tensor:
            a, b = self.all(x).transpose(1, 2).flatten(1).chunk(2, -1)
            return a * torch.softmax(b, -1)

    model = Mixed().double().eval()
    x = torch.randn(3, 5, D).double()
    libra = fxgrad.convert(model, (x,))
    assert fxgrad.check(libra, (x,), original=model).completeness_error < 1e-14


NORMS: dict[str, nn.Module] = {
    "layer norm": nn.LayerNorm(3 * D),
    "rms norm": nn.RMSNorm(3 * D),
    "softmax": nn.Softmax(-1),
}


@pytest.mark.parametrize(
    ("name", "policy"),
    [("layer norm", "libragrad"), ("rms norm", "libragrad"), ("layer norm", "attnlrp"), ("softmax", "attnlrp")],
)
def test_what_changes_the_values_is_no_move(name: str, policy: str) -> None:
    """A norm of a fused projection keeps its axes, but the pieces behind it are no rows of the projection."""

    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.norm = nn.Linear(D, 3 * D), NORMS[name]

        def forward(self, x: Tensor) -> Tensor:
            return x + self.norm(self.qkv(x))[..., 2 * D :]

    torch.manual_seed(0)
    model = Normed().double().eval()
    x = torch.randn(3, 5, D).double().requires_grad_()
    libra = fxgrad.convert(model, (x,), rules=policy)
    assert not pieces(libra)
    g = torch.randn(3, 5, D).double()
    (found,) = torch.autograd.grad(libra(x), x, g)
    z = model.qkv(x)
    if name == "softmax":
        wanted = torch.autograd.grad(x + z.softmax(-1)[..., 2 * D :], x, g)[0]
    else:
        centred = z - z.mean(-1, keepdim=True) if name == "layer norm" else z
        eps = model.norm.eps if model.norm.eps is not None else torch.finfo(torch.float64).eps
        scale = (centred.square().mean(-1, keepdim=True) + eps).rsqrt().detach()
        wanted = torch.autograd.grad(x + (centred * scale * model.norm.weight)[..., 2 * D :], x, g)[0]
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


def test_held_rows_are_said_to_be_held() -> None:
    libra = fxgrad.convert(Attention(CUTS["chunk"]).eval(), (torch.randn(3, 5, D),))
    rules = {row.node: row.rule for row in libra.report}
    assert rules["linear"] == "held" and rules["getitem_2"] == "rows"
