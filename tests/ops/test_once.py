"""A balanced gradient is taken once; what would be a wrong second derivative is an error."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import fxgrad
from fxgrad.errors import InputError
from fxgrad.ops.once import once

SAID = (
    "a balanced gradient cannot be differentiated again: what it holds constant, such as gates and scales, would be "
    'missing. For second derivatives, use converted.under("gradient"), the gradient of PyTorch itself.'
)


class Gated(nn.Module):
    """A product, whose own second derivative autograd would find, times a gate, which it would leave out."""

    def __init__(self) -> None:
        super().__init__()
        self.l = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.silu(self.l(x)) * x


@pytest.fixture
def model() -> Gated:
    torch.manual_seed(0)
    return Gated().double().eval()


X = torch.randn(2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def gradient(module: nn.Module, x: Tensor) -> Tensor:
    return torch.autograd.grad(module(x)[:, 1].sum(), x, create_graph=True)[0]


def test_a_second_derivative_is_an_error_that_says_what_to_use(model: Gated) -> None:
    libra, x = fxgrad.convert(model, (X,)), X.clone().requires_grad_()
    with pytest.raises(InputError) as error:
        gradient(libra, x).square().sum().backward()
    assert str(error.value) == SAID
    # Of a parameter as well: a loss of attributions would train on a part of its gradient.
    with pytest.raises(InputError, match="cannot be differentiated again"):
        torch.autograd.grad(gradient(libra, x).square().sum(), libra.l.weight)
    with pytest.raises(InputError, match="cannot be differentiated again"):
        torch.func.jacrev(torch.func.jacrev(lambda x: libra(x)[:, 1].sum()))(X)


def test_the_advice_holds(model: Gated) -> None:
    plain = fxgrad.convert(model, (X,)).under("gradient")
    wanted, found = (
        torch.autograd.functional.hessian(lambda x, module=module: module(x)[:, 1].sum(), X)
        for module in (model, plain)
    )
    assert torch.equal(wanted, found)


def test_a_first_derivative_is_as_before_in_any_way_of_taking_it(model: Gated) -> None:
    libra, x = fxgrad.convert(model, (X,)), X.clone().requires_grad_()
    libra(x)[:, 1].sum().backward()
    assert torch.equal(gradient(libra, x), x.grad)
    assert torch.equal(torch.func.grad(lambda x: libra(x)[:, 1].sum())(X), x.grad)
    one_by_one = torch.func.vmap(torch.func.grad(lambda x: libra(x[None])[0, 1]))(X)
    assert torch.allclose(one_by_one, x.grad, rtol=1e-12)
    assert torch.equal(gradient(copy.deepcopy(libra), x), x.grad)


def test_what_needs_no_gradient_is_the_same_object() -> None:
    x = torch.ones(2, requires_grad=True)
    with torch.no_grad():
        assert once(x) is x
    assert once(X) is X and once(3) == 3


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # torch's own, when it first meets a jvp
def test_forward_mode_is_an_error_that_says_what_to_use(model: Gated) -> None:
    libra = fxgrad.convert(model, (X,))
    with pytest.raises(
        InputError,
        match=r"^balanced ops have no forward-mode derivative: use reverse mode, such as torch\.func\.jacrev\.$",
    ):
        torch.func.jvp(libra, (X,), (X,))
    assert torch.func.jacrev(libra)(X).shape == (2, 4, 2, 4)


def test_vmap_runs_a_program_that_asks_for_sizes() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Flatten(0), nn.Unflatten(0, (-1, 2)), nn.GELU()).eval()
    libra = fxgrad.convert(model, (torch.randn(3, 4),))
    x = torch.randn(5, 3, 4)
    assert torch.allclose(torch.func.vmap(libra)(x), torch.stack([libra(one) for one in x]))
