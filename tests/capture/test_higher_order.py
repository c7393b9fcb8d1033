"""Programs within the program: opened to what eager PyTorch runs, bit for bit; complete; as autograd has them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._higher_order_ops.associative_scan import associative_scan
from torch._higher_order_ops.map import map as each
from torch._higher_order_ops.scan import scan
from torch._higher_order_ops.strict_mode import strict_mode
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.utils import _pytree as pytree

import fxgrad

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
INFINITE = float("inf")


def causal(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
    return i >= j


def near(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
    return (i >= j) & (i - j < 5)


class Attention(nn.Module):
    """flex_attention with nothing special; subclasses add that."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.bias, self.slopes = nn.Parameter(torch.randn(16, 16)), nn.Parameter(torch.randn(2))
        self.mask = create_block_mask(near, None, None, 16, 16, device="cpu")

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (layer(x).unflatten(-1, (-1, 8)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return q, k, v

    def forward(self, x: Tensor) -> Any:
        return self.attend(*self.heads(x))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Any:
        return flex_attention(q, k, v)

    def score(self, s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        """A bias by position and head, from parameters; causal."""
        return torch.where(i >= j, s + self.bias[i, j] * self.slopes[h], -INFINITE)

    def reference(self, x: Tensor) -> Tensor:
        """The same in plain PyTorch, for autograd."""
        return self.plain(*self.heads(x), torch.zeros(()))

    @staticmethod
    def plain(q: Tensor, k: Tensor, v: Tensor, more: Tensor, scale: float = 8**-0.5) -> Tensor:
        return (q @ k.transpose(-1, -2) * scale + more).softmax(-1) @ v


ROW, COLUMN = torch.arange(16)[:, None], torch.arange(16)
CAUSAL = torch.where(COLUMN <= ROW, 0, -INFINITE)


class Scored(Attention):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return flex_attention(q, k, v, score_mod=self.score)

    def reference(self, x: Tensor) -> Tensor:
        return self.plain(*self.heads(x), CAUSAL + self.bias * self.slopes[:, None, None])


class Masked(Attention):
    """A mask that is made in the forward."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return flex_attention(q, k, v, block_mask=self.block(q.shape[2]))

    def block(self, tokens: int) -> BlockMask:
        return create_block_mask(causal, None, None, tokens, tokens, device="cpu")

    def reference(self, x: Tensor) -> Tensor:
        return self.plain(*self.heads(x), CAUSAL)


class KeptMask(Masked):
    """A mask that the module has."""

    def block(self, tokens: int) -> BlockMask:
        return self.mask

    def reference(self, x: Tensor) -> Tensor:
        return self.plain(*self.heads(x), CAUSAL.masked_fill(ROW - COLUMN >= 5, -INFINITE))


class Grouped(Attention):
    """Two queries for one key, a scale of its own; and the logarithm of the sum, as an auxiliary output."""

    def __init__(self) -> None:
        super().__init__()
        self.k, self.v = nn.Linear(16, 8), nn.Linear(16, 8)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        out, logarithm = flex_attention(q, k, v, enable_gqa=True, scale=0.3, return_lse=True)
        return out, logarithm.detach()

    def reference(self, x: Tensor) -> Tensor:
        return self.plain(*self.heads(x), torch.zeros(()), scale=0.3)


class Compiled(Scored):
    compiled = staticmethod(torch.compile(flex_attention, backend="eager"))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.compiled(q, k, v, score_mod=self.score)


class Tries(Masked):
    """Turns to other code where flex_attention refuses to run, as it does with gradients on a CPU."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        try:
            return flex_attention(q, k, v, block_mask=self.block(q.shape[2]))
        except NotImplementedError:
            return v


def made(build: type[nn.Module]) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return build().double().eval(), torch.randn(2, 16, 16, dtype=torch.float64)


def same_bits(libra: nn.Module, model: nn.Module, *inputs: Tensor) -> None:
    with torch.no_grad():
        for ours, theirs in zip(pytree.tree_leaves(libra(*inputs)), pytree.tree_leaves(model(*inputs))):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("build", [Attention, Scored, Masked, KeptMask, Grouped, Compiled, Tries])
def test_flex_attention_is_attention(build: type[Attention]) -> None:
    model, x = made(build)
    libra = fxgrad.convert(model, (x,))
    same_bits(libra, model, x)
    free = libra.classified.captured.inputs[0].shape[0] is None
    assert free is (torch.__version__ >= (2, 12))  # an older PyTorch fixes the batch
    if free:
        same_bits(libra, model, torch.randn(3, 16, 16, dtype=torch.float64))
    assert {row.kind for row in libra.report if "bmm" in row.op} == {"attention"}
    report = fxgrad.check(libra, (x,), original=model)
    assert report.passed and report.completeness_error < 1e-12

    z, v = x.clone().requires_grad_(), torch.randn(2, 2, 16, 8, dtype=torch.float64)
    plain = pytree.tree_leaves(libra.under("gradient")(z))[0]
    (found,) = torch.autograd.grad(plain, z, v)
    (wanted,) = torch.autograd.grad(model.reference(z), z, v)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11)


def test_the_weights_of_flex_attention_are_held() -> None:
    """LibraGrad's gradient is that of the reference with its weights as constants."""
    model, x = made(Scored)
    v = torch.randn(2, 2, 16, 8, dtype=torch.float64)
    z = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(fxgrad.convert(model, (x,))(z), z, v)
    z = x.clone().requires_grad_()
    q, k, value = model.heads(z)
    more = CAUSAL + model.bias * model.slopes[:, None, None]
    weights = (q @ k.transpose(-1, -2) * 8**-0.5 + more).softmax(-1).detach()
    (wanted,) = torch.autograd.grad(weights @ value, z, v)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11)


class InLowPrecision(Masked):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(x).float()


def test_flex_attention_and_autocast() -> None:
    """Inside the forward, and around it."""
    torch.manual_seed(0)
    x = torch.randn(2, 16, 16)
    inside, plain = InLowPrecision().eval(), Masked().eval()
    same_bits(fxgrad.convert(inside, (x,)), inside, x)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        libra, wanted = fxgrad.convert(plain, (x,)), plain(x)
        assert torch.equal(libra(x), wanted)  # its casts are in the program, and none is made in between
    with torch.no_grad():
        assert torch.equal(libra(x), wanted)
    assert fxgrad.check(fxgrad.convert(inside, (x,)), original=inside).passed


def test_what_was_captured_under_autocast_keeps_its_casts(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 3)).eval(), torch.randn(4, 8)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        libra, wanted = fxgrad.convert(model, (x,)), model(x)
    fxgrad.save(libra, tmp_path / "libra.pt2")
    for one in (libra, fxgrad.load(tmp_path / "libra.pt2"), copy.deepcopy(libra), libra.under("gradient")):
        with torch.no_grad():
            assert wanted.dtype is torch.bfloat16 and torch.equal(one(x), wanted)
            with torch.autocast("cpu", torch.bfloat16):
                assert torch.equal(one(x), wanted)


class Asks(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x * torch.ones(3, requires_grad=True)
        return y.sin() if y.requires_grad else y.cos()


def test_a_question_for_gradients_is_answered_as_without() -> None:
    x = torch.randn(2, 3)
    same_bits(fxgrad.convert(Asks().eval(), (x,)), Asks(), x)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.l = nn.Linear(16, 16)


class Mapped(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return each(lambda row: self.l(row).tanh(), x.transpose(0, 1)).transpose(0, 1)

    def reference(self, x: Tensor) -> Tensor:
        return self.l(x).tanh()


class Scanned(Layer):
    def forward(self, x: Tensor) -> Tensor:
        last, rows = scan(self.step, torch.zeros_like(x[:, 0]), x.transpose(0, 1))
        return last + rows.sum(0)

    def step(self, carry: Tensor, item: Tensor) -> tuple[Tensor, Tensor]:
        return (carry * 0.5 + self.l(item)).tanh(), (carry + item).clone()

    def reference(self, x: Tensor) -> Tensor:
        carry, rows = torch.zeros_like(x[:, 0]), []
        for item in x.unbind(1):
            carry, row = self.step(carry, item)
            rows.append(row)
        return carry + torch.stack(rows).sum(0)


class Associative(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return associative_scan(lambda a, b: a + b, self.l(x), dim=1, combine_mode="generic")

    def reference(self, x: Tensor) -> Tensor:
        return self.l(x).cumsum(1)


class Counts(Layer):
    """A loop whose end is known."""

    def forward(self, x: Tensor) -> Tensor:
        start = (torch.tensor(0), x)
        return torch.while_loop(lambda i, v: i < 3, lambda i, v: (i + 1, self.l(v).tanh()), start)[1]

    def reference(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = self.l(x).tanh()
        return x


class Decided(Layer):
    """A branch whose side is known."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cond(torch.tensor(True), lambda x: self.l(x).sin(), lambda x: x.cos(), (x,))

    def reference(self, x: Tensor) -> Tensor:
        return self.l(x).sin()


class Region(Layer):
    def __init__(self) -> None:
        super().__init__()
        self.part = torch.compiler.nested_compile_region(lambda x: self.l(x).tanh())

    def forward(self, x: Tensor) -> Tensor:
        return self.part(self.part(x))

    def reference(self, x: Tensor) -> Tensor:
        return self.l(self.l(x).tanh()).tanh()


class Strict(Region):
    def __init__(self) -> None:
        super().__init__()
        self.part = lambda x: strict_mode(lambda t: (self.l(t).tanh(),), (x,))[0]


class Checkpointed(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return torch.utils.checkpoint.checkpoint(lambda t: self.l(t).tanh(), x, use_reentrant=False)

    def reference(self, x: Tensor) -> Tensor:
        return self.l(x).tanh()


class Mixed(Layer):
    """In low precision inside, as on another device's autocast outside."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cuda", dtype=torch.float16, enabled=False):
            return self.l(x).tanh()

    def reference(self, x: Tensor) -> Tensor:
        return self.l(x).tanh()


LAYERS = [Mapped, Scanned, Associative, Counts, Decided, Region, Strict, Checkpointed, Mixed]


@pytest.mark.parametrize("build", LAYERS)
def test_what_can_be_unrolled_is(build: type[nn.Module], tmp_path: Path) -> None:
    model, x = made(build)
    libra = fxgrad.convert(model, (x,))
    same_bits(libra, model, x)
    report = fxgrad.check(libra, (x,), original=model)
    assert report.passed and report.completeness_error < 1e-12
    z, v = x.clone().requires_grad_(), None
    plain = libra.under("gradient")(z)
    v = torch.randn_like(plain)
    (found,) = torch.autograd.grad(plain, z, v)
    (wanted,) = torch.autograd.grad(model.reference(z), z, v)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)
    fxgrad.save(libra, tmp_path / "opened.pt2")
    assert torch.equal(fxgrad.load(tmp_path / "opened.pt2")(x), libra(x))


def test_real_control_flow_is_named_with_its_line() -> None:
    class Branch(Layer):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cond(x.sum() > 0, lambda x: self.l(x).sin(), lambda x: x.cos(), (x,))

    with pytest.raises(
        fxgrad.NoRuleError, match=r"cond is control flow \(1 x\)\n.*test_higher_order\.py:\d+"
    ) as caught:
        fxgrad.convert(Branch().double().eval(), (torch.randn(2, 16).double(),))
    assert "on_unknown" not in str(caught.value)  # which would not help


class Counted(nn.Module):
    """Multiplies by how often a mask was doubled: a loop of constants, as far as gradients go."""

    def forward(self, x: Tensor) -> Tensor:
        (n,) = torch.while_loop(lambda n: n.sum() < 100, lambda n: (n * 2 + 1,), ((x > 0).long(),))
        return x * n


class Beside(nn.Module):
    """An output beside one that real control flow makes."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.square(), torch.cond(x.sum() > 0, lambda x: x + 1, lambda x: x - 1, (x,))


@pytest.mark.parametrize("model", [Counted(), Beside()], ids=lambda model: type(model).__name__)
def test_control_flow_that_gets_no_gradient_runs_as_eager_does(model: nn.Module, tmp_path: Path) -> None:
    x = torch.tensor([[1.0, -2.0, 3.0]]).double()
    libra = fxgrad.convert(model.eval(), (x,))
    for other in (x, -2 * x, torch.ones(2, 3).double()):
        for found, wanted in zip(pytree.tree_leaves(libra(other)), pytree.tree_leaves(model(other))):
            assert torch.equal(found, wanted)
    assert fxgrad.check(libra, (x,), original=model).passed
    with pytest.raises(fxgrad.ArtefactError, match=r"cannot be saved: (cond|while_loop) at .*decides by data"):
        fxgrad.save(libra, tmp_path / "closed.pt2")
    with pytest.raises(fxgrad.ExportError, match=r"(cond|while_loop) at .*decides by data"):
        fxgrad.export_explainer(libra, (x,), tmp_path / "explainer.pt2")


def test_the_gradient_of_an_output_of_control_flow_is_refused_when_asked() -> None:
    x = torch.tensor([[1.0, -2.0, 3.0]]).double().requires_grad_()
    kept, refused = fxgrad.convert(Beside().eval(), (x.detach(),))(x)
    (found,) = torch.autograd.grad(kept.sum(), x)
    torch.testing.assert_close(found, x.detach())  # of x * x, half to each
    with pytest.raises(fxgrad.NoRuleError, match="cond is control flow"):
        refused.sum().backward()
