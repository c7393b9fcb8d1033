"""What is cut out of a cat or a stack is what was put in: the model that never joined its parts is the witness."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxgrad

Pair = tuple[Tensor, Tensor]
Apart = Callable[[Tensor, Tensor], Pair]

# What goes in is a carrier (batch, 4, 6) and its softmax (a pure gate) of that shape; the same two must come out.
JOINS: dict[str, Apart] = {
    "cat, slices": lambda a, w: (lambda z: (z[:, :4], z[:, 4:]))(torch.cat([a, w], 1)),
    "the gate first": lambda a, w: (lambda z: (z[:, 4:], z[:, :4]))(torch.cat([w, a], 1)),
    "last axis, negative": lambda a, w: (lambda z: (z[..., :-6], z[..., -6:]))(torch.cat([a, w], -1)),
    "batch": lambda a, w: torch.cat([a, w]).chunk(2),
    "split": lambda a, w: torch.cat([a, w], 1).split(4, 1),
    "split with sizes": lambda a, w: torch.cat([a, w, a], 2).split((6, 6, 6), 2)[:2],
    "tensor_split": lambda a, w: torch.cat([a, w], 1).tensor_split((4,), 1),
    "narrow": lambda a, w: (lambda z: (z.narrow(1, 0, 4), z.narrow(1, 4, 4)))(torch.cat([a, w], 1)),
    "stack, unbind": lambda a, w: torch.stack([a, w]).unbind(0),
    "stack, index": lambda a, w: (lambda z: (z[:, :, 0], z[:, :, -1]))(torch.stack([a, w], 2)),
    "stack, slice": lambda a, w: (lambda z: (z[:1].squeeze(0), z[1:][0]))(torch.stack([a, w])),
    "cat, rows one by one": lambda a, w: (
        lambda z: (torch.stack([z[:, i] for i in range(4)], 1), torch.stack([z[:, i + 4] for i in range(4)], 1))
    )(torch.cat([a, w], 1)),
    "transpose between": lambda a, w: (lambda z: (z[..., :4].mT, z[..., 4:].mT))(torch.cat([a, w], 1).mT),
    "permute between": lambda a, w: (lambda z: (z[0], z[1]))(torch.stack([a, w], 3).permute(3, 0, 1, 2)),
    "another axis cut between": lambda a, w: (
        lambda z: tuple(torch.cat([half[:, at] for half in z.chunk(2, 2)], 2) for at in (slice(4), slice(4, 8)))
    )(torch.cat([a, w], 1)),
    "a stack merged": lambda a, w: torch.stack([a, w], 1).flatten(1, 2).split(4, 1),
    "a cat split up": lambda a, w: torch.cat([a, w], 1).unflatten(1, (2, 4)).unbind(1),
    "other axes merged": lambda a, w: tuple(
        t.unflatten(0, (-1, 4)) for t in torch.cat([a, w], 2).flatten(0, 1).split(6, 1)
    ),
    "expand between": lambda a, w: (lambda z: (z[:, 1, :4], z[:, 2, 4:]))(
        torch.cat([a, w], 1)[:, None].expand(-1, 3, -1, -1)
    ),
    "copies between": lambda a, w: (lambda z: (z[:, :4].clone(), z[:, 4:]))(torch.cat([a, w], 1).mT.contiguous().mT),
    "cat of cats": lambda a, w: (lambda z: (z[:, 4:8], z[:, 8:12]))(torch.cat([torch.cat([w, a], 1), w], 1)),
    "cut in two steps": lambda a, w: (lambda z: (z[:, :4], z[:, 4:]))(torch.cat([w, a, w], 1)[:, 4:]),
    "steps": lambda a, w: (
        lambda z: tuple(torch.stack([z[:, i : i + 3 : 2], z[:, i + 1 : i + 4 : 2]], 2).flatten(1, 2) for i in (0, 4))
    )(torch.cat([a, w], 1)),
    "written into": lambda a, w: (lambda z: (z[:, :4], z[:, 4:]))(_written(a, w)),
    "another dtype": lambda a, w: (lambda z: (z[:, :4], z[:, 4:]))(torch.cat([a, w.float()], 1)),
}


def _written(a: Tensor, w: Tensor) -> Tensor:
    z = a.new_zeros(a.shape[0], 8, 6)
    z[:, :4] = a
    z[:, 4:] = w
    return z


class Gated(nn.Module):
    def __init__(self, apart: Apart) -> None:
        super().__init__()
        self.apart, self.first, self.last = apart, nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        a = self.first(x)
        value, gate = self.apart(a, a.softmax(-1))
        return self.last(value * gate)


def same(apart: Apart, **options: object) -> tuple[fxgrad.ConvertedModule, Gated]:
    """Convert, and compare with the model whose parts were never joined."""
    torch.manual_seed(0)
    model = Gated(apart).double().eval()
    direct = Gated(lambda a, w: (a, w.float().double() if apart is JOINS["another dtype"] else w)).double().eval()
    direct.load_state_dict(model.state_dict())
    x = torch.randn(3, 4, 6).double().requires_grad_()
    libra, witness = (fxgrad.convert(m, (x,), **options) for m in (model, direct))
    report = fxgrad.check(libra, (x,), original=model)
    assert report.passed and report.completeness_error < 1e-13
    g = torch.randn(3, 4, 3).double()
    ours, theirs = (torch.autograd.grad(f(x), x, g)[0] for f in (libra, witness))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
    other = torch.randn(5, 4, 6).double()
    assert torch.equal(libra(other), model(other))
    return libra, model


@pytest.mark.parametrize("name", JOINS)
def test_a_piece_is_what_was_put_in(name: str) -> None:
    libra, _ = same(JOINS[name])
    softmax = next(d for d in libra.classified.decisions.values() if d.kind.value == "softmax")
    assert not softmax.live


@pytest.mark.parametrize("name", ["cat, slices", "stack, unbind", "a cat split up"])
def test_it_is_kept_in_every_form(name: str, tmp_path: Path) -> None:
    libra, model = same(JOINS[name])
    x, g = torch.randn(3, 4, 6).double().requires_grad_(), torch.randn(3, 4, 3).double()
    (wanted,) = torch.autograd.grad(libra(x), x, g)
    fxgrad.save(libra, tmp_path / "libra.pt2")
    for other in (fxgrad.load(tmp_path / "libra.pt2"), libra.unflattened(), pickle.loads(pickle.dumps(libra))):
        assert torch.equal(other(x), libra(x)) and torch.equal(torch.autograd.grad(other(x), x, g)[0], wanted)
    assert torch.equal(libra(x), model(x))
    batched = torch.autograd.grad(libra(x), x, torch.stack([g, -g]), is_grads_batched=True)[0]
    torch.testing.assert_close(batched, torch.stack([wanted, -wanted]))
    compiled = torch.compile(libra, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(x), x, g)[0], wanted)


def test_a_constant_that_was_put_in_comes_out_as_a_constant() -> None:
    """Beside a carrier in one tensor, a class token's product with a carrier was one of two carriers."""

    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            z = torch.cat([torch.full_like(x[:, :1], 3.0), x], 1)
            return z[:, :1] * z[:, 1:]

    x = torch.randn(2, 4).double().requires_grad_()
    libra = fxgrad.convert(Model().eval(), (x,))
    assert torch.equal(torch.autograd.grad(libra(x).sum(), x)[0], torch.full_like(x, 3.0))
    assert fxgrad.check(libra, (x,)).completeness_error < 1e-14


class Free(nn.Module):
    """Joins along an axis of free size, and cuts it at a free place."""

    def __init__(self, cut: Callable[[Tensor, Any], Pair]) -> None:
        super().__init__()
        self.cut, self.first, self.last = cut, nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        a = self.first(x)
        value, gate = self.cut(torch.cat([a, a.softmax(-1)], 1), x.shape[1])
        return self.last(value * gate)


@pytest.mark.parametrize(
    "cut",
    [
        lambda z, n: (z[:, :n], z[:, n:]),
        lambda z, n: (z[:, n:], z[:, :n]),
        lambda z, n: z.split([n, n], 1),
        lambda z, n: z.unflatten(1, (2, n)).unbind(1),
        lambda z, n: (z.mT[..., :n].mT, z.mT[..., n:].mT),
        lambda z, n: tuple(z.unflatten(1, (2, n)).transpose(0, 1).flatten(1, 2).unflatten(1, (-1, n))),
    ],
)
def test_free_sizes(cut: Callable[[Tensor, Any], Pair]) -> None:
    model = Free(cut).double().eval()
    free = {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}
    libra = fxgrad.convert(model, (torch.randn(3, 5, 6).double(),), dynamic_shapes=(free,))
    assert libra.classified.captured.inputs[0].shape == (None, None, 6)
    for shape in ((3, 5, 6), (2, 7, 6)):
        x = torch.randn(shape).double().requires_grad_()
        a = model.first(x)
        gate, value = a.softmax(-1).detach(), a
        wanted = torch.autograd.grad(model.last(value * gate).sum(), x)[0]
        torch.testing.assert_close(torch.autograd.grad(libra(x).sum(), x)[0], wanted, rtol=1e-12, atol=1e-14)
        assert torch.equal(libra(x), model(x)) and fxgrad.check(libra, (x,)).completeness_error < 1e-13


def test_a_cut_whose_place_no_size_tells_is_left_alone() -> None:
    """Where z[:, n - 4:] begins depends on n; the join stays one tensor, so what can only multiply is refused."""

    class Model(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            z = torch.cat([x, y.softmax(-1)], 1)
            return z[:, 3:7]

    free = {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}
    example = (torch.randn(3, 5, 6), torch.randn(3, 8, 6))
    with pytest.raises(fxgrad.NotBalanceableError, match=r"in one tensor, cat, by aten\.cat"):
        fxgrad.convert(Model().eval(), example, dynamic_shapes=(free, free))


def test_the_values_keep_the_strides_of_the_cut() -> None:
    """PyTorch picks kernels by strides, so equal values laid out otherwise might give other bits."""

    class Model(nn.Module):
        def forward(self, x: Tensor, w: Tensor) -> Tensor:
            return torch.cat([x, w], 1)[:, :5]

    x, w = torch.randn(2, 5, 3), torch.randn(2, 4, 3)
    found = fxgrad.convert(Model().eval(), (x, w))(x.requires_grad_(), w)
    assert found.stride() == Model()(x, w).stride() != x.stride()


def test_what_goes_in_and_is_not_taken_out_is_not_recorded() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.first(x), self.second(x)], 1)[:, : x.shape[1]]

    model, x = Model().eval(), torch.randn(2, 4, 6)
    found = fxgrad.convert(model, (x,)).classified.decisions
    assert found["linear"].live and not found["linear_1"].live


@pytest.mark.parametrize("name", ["cat, slices", "narrow", "cut in two steps"])
def test_a_number_in_a_cut_fixes_the_size_that_it_fits(name: str) -> None:
    """With another size the cut would take another part, or parts of two, so the report says which line needs it."""
    libra, _ = same(JOINS[name])
    assert libra.classified.captured.inputs[0].shape == (None, 4, 6)
    assert "Axis 1 is fixed at 4 by test_pieces.py:" in " ".join(libra.classified.captured.about_sizes())
    with pytest.raises(fxgrad.InputError, match=r"Axis 1 is fixed at 4 by test_pieces.py:\d+: "):
        libra(torch.randn(3, 5, 6).double())


def test_a_held_piece_beside_a_live_one() -> None:
    """A product holds a table that is written in place and read in parts; the written values carry elsewhere."""

    class Tables(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            h, table, factors = self.linear(x), x.new_zeros(2, 6, 3), x.new_zeros(2, 6, 3)
            for i in range(2):
                factors[i, :4] = torch.arange(12.0).reshape(4, 3).to(x)
                table[i, :4] = h[i]
                table[i, 4:] = 1.5
            return (table * factors)[0] + torch.cat([table[0, :2], table[1, :2], h[0, :2]])

    torch.manual_seed(0)
    model, x = Tables().double().eval(), torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    converted = fxgrad.convert(model, (x.detach(),))
    report = fxgrad.check(converted, original=model)
    assert report.passed and report.completeness_error < 1e-12
    cotangent = torch.randn(6, 3, dtype=torch.float64)
    expected = torch.autograd.grad(model(x), x, cotangent)[0]  # all is linear in x, so that nothing is rewritten
    assert torch.allclose(torch.autograd.grad(converted(x), x, cotangent)[0], expected, rtol=1e-12)


def test_a_piece_of_a_constant_gets_no_gradient() -> None:
    """A class token goes in, is cut out again, and adds to what carries."""

    class Token(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.token = nn.Linear(3, 3), nn.Parameter(torch.randn(1, 1, 3))

        def forward(self, x: Tensor) -> Tensor:
            joined = torch.cat([self.token.expand(len(x), -1, -1), self.linear(x)], 1)
            token, rest = joined.split([1, x.shape[1]], 1)
            return torch.cat([token.relu() * 2, rest.tanh()], 1).sum(1)

    torch.manual_seed(0)
    model, x = Token().double().eval(), torch.randn(2, 4, 3, dtype=torch.float64)
    for trained in (True, False):
        converted = fxgrad.convert(model.requires_grad_(trained), (x,))
        report = fxgrad.check(converted, (x,), original=model)
        assert report.passed and report.completeness_error < 1e-12
        leaf = x.clone().requires_grad_()
        found = torch.autograd.grad(converted.under("gradient")(leaf).sum(), leaf)[0]
        torch.testing.assert_close(found, torch.autograd.grad(model(leaf).sum(), leaf)[0], rtol=1e-12, atol=1e-12)
