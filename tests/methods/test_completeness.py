"""Shares that do not add up: the reason is said, and what nobody asked for is a warning."""

import warnings

import pytest
import torch
from torch import nn

import fxgrad
from fxgrad.errors import IncompleteWarning
from fxgrad.methods import Map, method


def _model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 3)).double().eval()


X = torch.linspace(-1, 2, 12, dtype=torch.float64).reshape(2, 6)


def test_a_complete_attribution_says_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fxgrad.attribute(fxgrad.convert(_model(), (X,)), (X,), target=1).note == ""


def test_the_plain_gradient_names_the_ops_that_keep_theirs():
    plain = fxgrad.convert(_model(), (X,), rules="gradient")
    found = fxgrad.attribute(plain, (X,), target=1)
    assert found.note.startswith("Not complete by ")
    assert (
        "under gradient, these ops keep their own gradient, which is not balanced: aten.gelu.default (1 x)"
        in found.note
    )
    assert found.note in str(found)


def test_too_few_points_are_named_where_more_would_help():
    plain = fxgrad.convert(_model(), (X,), rules="gradient")
    few, many = (fxgrad.attribute(plain, (X,), target=1, method="integrated_gradients", n_steps=n) for n in (2, 200))
    assert "integrated_gradients is a sum over points. Pass a larger n_steps." in few.note
    assert many.completeness_error < 1e-3 * few.completeness_error


def test_a_path_through_a_balanced_gradient_is_never_complete_and_says_what_is():
    libra = fxgrad.convert(_model(), (X,))
    found = fxgrad.attribute(libra, (X,), target=1, method="integrated_gradients", n_steps=2)
    assert found.note.endswith(
        "under libragrad the gradient is the derivative of no function, so integrated_gradients is not complete with any "
        'n_steps. Use input_x_gradient, which is complete in one step, or converted.under("gradient").'
    )
    assert fxgrad.attribute(libra, (X,), target=1).note == ""


def test_a_method_whose_shares_do_not_add_up_warns():
    @method(shares=True)
    def half(problem):
        found = problem.run().gradients[problem.main[0]]
        return Map(tokens=found / 2, apart=torch.zeros(problem.batch, dtype=found.dtype))

    libra = fxgrad.convert(_model(), (X,))
    with pytest.warns(IncompleteWarning, match=r"half of class 1 is not complete by .*every node is balanced"):
        found = fxgrad.attribute(libra, (X,), target=1, method=half)
    assert "every node is balanced" in found.note


def test_a_value_near_zero_is_no_excess():
    libra = fxgrad.convert(_model(), (X,))
    value = fxgrad.attribute(libra, (X,), target=1).output
    libra = libra.double()
    bias = libra.get_parameter("2.bias")
    with torch.no_grad():
        bias[1] -= value[0]  # the first value becomes rounding noise
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fxgrad.attribute(libra, (X,), target=1)


def test_one_number_per_example_is_a_map_too():
    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.kind, self.head = nn.Embedding(5, 4), nn.Linear(6, 2)

        def forward(self, kind, numbers):
            return self.head(torch.cat([self.kind(kind), numbers], 1))

    inputs = (torch.tensor([1, 4, 2]), torch.randn(3, 2).double())
    found = fxgrad.attribute(fxgrad.convert(Table().double().eval(), inputs), inputs, target=1)
    assert sorted(tuple(values.shape) for values in found.maps.values()) == [(3,), (3, 2)]
    assert found.note == "" and found.completeness_error < 1e-10


def test_a_value_that_is_rounding_noise_is_said_without_a_warning():
    class Equal(nn.Module):
        def forward(self, x):
            return nn.functional.layer_norm((x * 0.125).clamp(min=0.3), (4,)).sum(1)

    x = torch.zeros(1, 4, 4, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = fxgrad.attribute(fxgrad.convert(Equal().eval(), (x,)), (x,), target=1)
    assert "the target's value is rounding noise of larger ones that cancel" in found.note
