"""Sanity checks: what is shuffled, what stays, and what comes out for methods whose answer is known."""

from __future__ import annotations

import copy

import pytest
import scipy.stats
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxgrad
from fxgrad import metrics
from fxgrad.errors import InputError
from fxgrad.methods import Map, Problem, method
from fxgrad.metrics.sanity import _shuffled

X = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(64, 6)
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 6), nn.GELU()) for _ in range(2))
        self.head = nn.Linear(6, 10)
        self.scale = nn.Parameter(torch.rand(6))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x.flatten(1)) * self.scale
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


def test_weights_are_permuted_from_the_head_down_and_the_model_stays(net: Net) -> None:
    before = copy.deepcopy(net.state_dict())
    libra = fxgrad.convert(net, (X,))
    parts = ["head", "blocks.1", "blocks.0", "scale", "stem"]
    changed: set[str] = set()
    for part, (stage, shuffled) in zip(parts, _shuffled(libra, 0), strict=True):
        assert stage == part
        changed |= {name for name in before if name.startswith(part)}
        for name, now in shuffled.state_dict().items():
            torch.testing.assert_close(
                now.flatten().sort().values, before[name].flatten().sort().values, rtol=0, atol=0
            )
            constant = bool((before[name] == before[name].flatten()[0]).all())
            assert torch.equal(now, before[name]) == (name not in changed or constant), name
        # It is the model with those weights, no more and no less.
        own = copy.deepcopy(net)
        own.load_state_dict(shuffled.state_dict())
        torch.testing.assert_close(shuffled(X), own(X))
    assert all(torch.equal(now, before[name]) for name, now in net.state_dict().items())
    assert all(torch.equal(now, before[name]) for name, now in libra.state_dict().items())


def test_the_cascade_compares_with_the_model_itself(net: Net) -> None:
    libra = fxgrad.convert(net, (X,))
    found = metrics.parameter_randomisation(libra, (X,), target=1, seed=3)
    own = fxgrad.attribute(libra, (X,), target=1).map
    for number, (stage, shuffled) in enumerate(_shuffled(libra, 3)):
        other = fxgrad.attribute(shuffled, (X,), target=1).map
        assert found.stages[number] == stage
        for i in range(2):
            a, b = own[i].flatten().detach(), other[i].flatten().detach()
            assert found.spearman[number, i] == pytest.approx(scipy.stats.spearmanr(a, b).statistic)
            assert found.absolute[number, i] == pytest.approx(scipy.stats.spearmanr(a.abs(), b.abs()).statistic)
            assert found.ssim[number, i] == pytest.approx(metrics.ssim(own[i].detach(), other[i].detach()).item())


def test_a_method_that_draws_the_picture_is_found_out(net: Net) -> None:
    @method(takes_gradient=False)
    def picture(problem: Problem) -> Map:
        return Map(pixels=problem.entries[0].sum(1))

    libra = fxgrad.convert(net, (X,))
    drawn = metrics.parameter_randomisation(libra, (X,), target=1, method=picture)
    honest = metrics.parameter_randomisation(libra, (X,), target=1, method="gradient")
    assert drawn.spearman.min() > 0.999 and drawn.ssim.min() > 0.999
    assert honest.spearman[-1].abs().max() < 0.5


def test_a_tied_weight_is_shuffled_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
            self.two.weight = self.one.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.two(F.gelu(self.one(x)))

    torch.manual_seed(0)
    model = Tied().eval()
    stages = list(_shuffled(fxgrad.convert(model, (torch.rand(2, 4),)), 0))
    weights = stages[-1][1].state_dict()
    assert torch.equal(weights["one.weight"], weights["two.weight"])
    assert not torch.equal(weights["one.weight"], model.one.weight)


def test_token_ids_are_embedded_at_the_last_stage() -> None:
    model = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 2)).eval()
    ids = torch.tensor([[1, 5, 2], [3, 3, 8]])
    found = metrics.parameter_randomisation(fxgrad.convert(model, (ids,)), (ids,), target=1)
    assert found.stages == ("2", "0") and found.spearman.shape == (2, 2) and found.ssim.isnan().all()


def test_models_of_other_labels_are_compared() -> None:
    torch.manual_seed(0)
    models = [nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).eval() for _ in range(2)]
    one, other = (fxgrad.convert(model, (X,)) for model in models)
    found = metrics.label_randomisation(one, other, (X,), target=2)
    for i in range(2):
        maps = [(X[i].flatten() * model[1].weight[2]).detach() for model in models]
        assert found.spearman[i] == pytest.approx(scipy.stats.spearmanr(*maps).statistic)


def test_targets_that_differ_from_model_to_model_are_refused(net: Net) -> None:
    libra = fxgrad.convert(net, (X,))
    for target in (None, [1, 2]):
        with pytest.raises(
            InputError, match="every stage explains the same target: give one, such as a class's number"
        ):
            metrics.parameter_randomisation(libra, (X,), target=target)
        with pytest.raises(InputError, match="both models explain the same target"):
            metrics.label_randomisation(libra, libra, (X,), target=target)
    bare = fxgrad.convert(nn.GELU().eval(), (torch.rand(2, 3),))
    with pytest.raises(InputError, match="the model has no parameters to shuffle"):
        metrics.parameter_randomisation(bare, (torch.rand(2, 3),), target=0)
