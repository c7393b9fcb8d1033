"""What is captured is what the model computes: convert compares them on the example."""

import itertools

import pytest
import timm
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import fxgrad
from fxgrad.data.models import randomize
from fxgrad.errors import CaptureError


def traced(x):
    """Whether a tensor has no data, as while it is traced."""
    try:
        x.detach().numpy()
    except Exception:
        return True
    return False


class Exporting(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x):
        y = self.linear(x).tanh()
        if traced(x):
            return y * 2
        return y


class Asking(Exporting):
    def forward(self, x):
        y = self.linear(x).tanh()
        if torch.compiler.is_exporting() or torch.compiler.is_compiling():
            return y * 2
        return y


def test_a_model_that_asks_whether_it_is_exported_is_captured_as_it_runs():
    model, x = Asking().eval(), torch.randn(2, 4)
    libra = fxgrad.convert(model, (x,))
    assert torch.equal(libra(x), model(x)) and torch.equal(libra(x[:1]), model(x[:1]))
    assert not torch.compiler.is_exporting()


def test_a_picture_model_that_skips_the_resizing_of_its_positions_where_it_can():
    """When it is exported it always resizes; at the size that needs none, what it runs holds for this size only."""
    options = {"num_classes": 5, "depth": 1, "embed_dim": 32, "num_heads": 2, "dynamic_img_size": True}
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, **options).double().eval()
    randomize(model)
    x = torch.randn(2, 3, 64, 64).double()
    libra = fxgrad.convert(model, (x,))
    assert torch.equal(libra(x), model(x))
    assert libra.classified.captured.inputs[0].shape == (None, 3, 64, 64)
    with pytest.raises(fxgrad.InputError, match=r"is fixed at 64 by timm/layers/pos_embed.py:\d+: "):
        libra(torch.randn(2, 3, 64, 96).double())


def test_a_model_that_is_captured_otherwise_than_it_runs_is_refused():
    with pytest.raises(CaptureError, match="does not compute what the model computes: output 0 differs") as caught:
        fxgrad.convert(Exporting().eval(), (torch.randn(2, 4),))
    assert "The first node that differs is mul" in str(caught.value)
    assert "return y * 2" in str(caught.value)


def test_the_refused_model_converts_without_verification():
    model, x = Exporting().eval(), torch.randn(2, 4)
    libra = fxgrad.convert(model, (x,), verify=False)
    assert torch.equal(libra(x), model(x) * 2)


class Falling(Exporting):
    def forward(self, x):
        y = self.linear(x)
        try:
            return y.detach().numpy().sum() * y.tanh()
        except Exception:
            return y.sin()


def test_a_model_that_falls_back_while_it_is_captured_is_refused():
    with pytest.raises(CaptureError, match="does not compute what the model computes"):
        fxgrad.convert(Falling().eval(), (torch.randn(2, 4),))


class Rounding(Exporting):
    def forward(self, x):
        y = self.linear(x).tanh()
        return y if traced(x) else y * (1 + 2**-22)


def test_other_rounding_is_said_to_be_that():
    with pytest.raises(
        CaptureError, match=r"not bit for bit: output 0 .*, as by rounding.*torch\.compile.*verify=False"
    ):
        fxgrad.convert(Rounding().eval(), (torch.randn(2, 4),))


class Counting(Exporting):
    def __init__(self):
        super().__init__()
        self.calls = itertools.count()

    def forward(self, x):
        return self.linear(x) * next(self.calls)


def test_a_model_that_changes_from_run_to_run_is_refused():
    with pytest.raises(CaptureError, match="gives other outputs each time it runs on the same inputs"):
        fxgrad.convert(Counting().eval(), (torch.randn(2, 4),))


def test_not_a_number_equals_itself():
    class Root(nn.Module):
        def forward(self, x):
            return x.sqrt()

    fxgrad.convert(Root().eval(), (torch.tensor([[-1.0, 4.0]]),))


def test_a_program_is_verified_too():
    program = torch.export.export(nn.Sequential(nn.Linear(4, 3), nn.GELU()).eval(), (torch.randn(2, 4),))
    fxgrad.convert(program)


class Residual(nn.Module):
    """A reentrant checkpoint, or an autograd.Function, between ops that follow; then a part without gradients."""

    def __init__(self, inner):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.inner = inner

    def forward(self, x):
        y = self.second(x + self.inner(lambda t: nn.functional.silu(self.first(t)), x))
        with torch.no_grad():
            positions = torch.arange(4, dtype=x.dtype)
        return self.last(y + x * positions).relu()


class Silent(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        with torch.no_grad():
            y = x * 3
        with torch.enable_grad():
            return y.sin()

    @staticmethod
    def backward(ctx, cotangent):
        (x,) = ctx.saved_tensors
        return 3 * cotangent * (3 * x).cos()


class Nested(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        with torch.enable_grad():
            return Silent.apply(x) + x

    @staticmethod
    def backward(ctx, cotangent):
        (x,) = ctx.saved_tensors
        return cotangent * (3 * (3 * x).cos() + 1)


def _reentrant(function, x):
    return checkpoint(function, x, use_reentrant=True)


def _twice(function, x):
    return _reentrant(lambda t: _reentrant(function, t), x)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")
@pytest.mark.parametrize(
    ("inner", "plain"),
    [
        (_reentrant, lambda f, x: f(x)),
        (_twice, lambda f, x: f(x)),
        (lambda f, x: Silent.apply(f(x)), lambda f, x: (f(x) * 3).sin()),
        (lambda f, x: Nested.apply(f(x)), lambda f, x: (f(x) * 3).sin() + f(x)),
    ],
)
def test_what_follows_a_checkpoint_is_no_constant(inner, plain):
    torch.manual_seed(0)
    model, x = Residual(inner).double().eval(), torch.randn(2, 4).double()
    same = Residual(plain).double().eval()
    same.load_state_dict(model.state_dict())
    found, wanted = (fxgrad.attribute(fxgrad.convert(m, (x,)), (x,), target=1) for m in (model, same))
    assert torch.allclose(found.map, wanted.map, rtol=0, atol=1e-12)
    own = x.clone().requires_grad_()
    (ours,) = torch.autograd.grad(fxgrad.convert(model, (x,), rules="gradient")(own).sum(), own)
    own = x.clone().requires_grad_()
    model(own).sum().backward()
    assert torch.allclose(ours, own.grad, rtol=0, atol=1e-12)


def test_a_region_without_gradients_stays_constant_behind_a_checkpoint():
    class Frozen(Residual):
        def forward(self, x):
            y = self.inner(lambda t: self.first(t).relu(), x)
            with torch.no_grad():
                gate = self.second(x).sigmoid()
            return self.last(y * gate)

    torch.manual_seed(0)
    model, x = Frozen(_reentrant).double().eval(), torch.randn(2, 4).double()
    own = x.clone().requires_grad_()
    (ours,) = torch.autograd.grad(fxgrad.convert(model, (x,), rules="gradient")(own).sum(), own)
    own = x.clone().requires_grad_()
    model(own).sum().backward()
    assert torch.allclose(ours, own.grad, rtol=0, atol=1e-12)
