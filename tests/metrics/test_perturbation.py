"""Infidelity and max-sensitivity are captum's for the same perturbations; imputation is ROAD's authors' way, solved by SciPy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import captum.metrics
import pytest
import scipy.sparse.linalg
import torch
from pytorch_grad_cam.metrics.road import NoisyLinearImputer, neighbors_weights
from torch import Tensor, nn

from fxgrad import metrics
from fxgrad.errors import InputError
from fxgrad.evaluate import evaluate
from fxgrad.evaluate.measure import named_metric
from fxgrad.metrics import Replacing
from fxgrad.metrics.perturbation import _squares
from tests.helpers import evaluated

TARGET = torch.tensor([2, 0, 1])


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.GELU(), nn.Linear(8, 3)).eval().double()


def pictures() -> Tensor:
    return torch.rand(3, 1, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_infidelity_is_captums(model: nn.Module) -> None:
    x, maps = pictures(), torch.randn(2, 3, 6, 6, dtype=torch.float64)
    squares = _squares((6, 6), 20, 5).reshape(20, 1, 1, 6, 6)
    found = metrics.infidelity(Replacing(model, (6, 6)), x, maps.flatten(2), TARGET, squares=20, seed=5, batch=2)
    turn = iter(squares)

    def perturbed(inputs: Tensor) -> tuple[Tensor, Tensor]:
        square = next(turn)
        return square.double().expand_as(inputs), inputs * ~square

    for row, map in zip(found, maps):
        turn = iter(squares)
        wanted = captum.metrics.infidelity(
            model,
            perturbed,
            x,
            map[:, None],
            target=TARGET,
            n_perturb_samples=20,
            max_examples_per_batch=3,
            normalize=True,
        )
        torch.testing.assert_close(row, wanted.detach())


def test_infidelity_of_what_the_removals_do_is_0() -> None:
    """In a linear model, at any scale; a map of zeros tells nothing, so that all of the drop is missed."""
    linear = nn.Sequential(nn.Flatten(), nn.Linear(36, 3)).double()
    x = pictures()
    shares = x.flatten(1) * linear[1].weight[TARGET]
    removal = Replacing(linear, (6, 6))
    found = metrics.infidelity(removal, x, torch.stack([shares, -7 * shares, 0 * shares]).detach(), TARGET)
    assert found[:2].max() < 1e-20
    drops = _squares((6, 6), 50, 0).double() @ shares.detach().T
    torch.testing.assert_close(found[2], drops.square().mean(0))


def test_squares_lie_in_the_grid_and_leave_a_part() -> None:
    for grid in ((6, 6), (1, 1), (2, 7)):
        sides = {
            tuple(int(s) for s in (q.any(1).sum(), q.any(0).sum())) for q in _squares(grid, 200, 0).reshape(-1, *grid)
        }
        assert sides == {(s, s) for s in range(1, 1 + max(1, min(grid) // 2))}


def test_max_sensitivity_is_captums(model: nn.Module) -> None:
    x = pictures()

    def explain(given: Any) -> Any:
        changed = (given[0] if isinstance(given, tuple) else given).detach()
        with torch.enable_grad():  # captum switches it off
            changed = changed.requires_grad_()
            (g,) = torch.autograd.grad(model(changed).gather(1, TARGET[:, None]).sum(), changed)
        found = (g * changed).detach()
        return (found,) if isinstance(given, tuple) else found  # captum asks with a tuple, and wants one

    found = metrics.max_sensitivity(lambda c: explain(c)[:, 0], x, radius=0.1, samples=6, seed=4)
    generator = torch.Generator().manual_seed(4)

    def perturbed(inputs: Tensor, radius: float) -> Tensor:
        inputs = inputs[0] if isinstance(inputs, tuple) else inputs
        return inputs + (radius * (2 * torch.rand(inputs.shape, generator=generator) - 1)).double()

    wanted = captum.metrics.sensitivity_max(
        explain, x, perturbed, perturb_radius=0.1, n_perturb_samples=6, max_examples_per_batch=3
    )
    torch.testing.assert_close(found, wanted)
    assert metrics.max_sensitivity(lambda c: torch.zeros(3, 6, 6), x).isnan().all()


def test_imputation_is_the_authors_without_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(4, 3, 9, 11, generator=generator)
    removed = torch.rand(4, 9, 11, generator=generator) < torch.tensor([0.1, 0.5, 0.9, 0.97])[:, None, None]
    removed[:, 0, 0] = True
    found = metrics.imputed(x, removed)
    for i in range(4):
        kept = (~removed[i]).numpy()
        matrix, right = NoisyLinearImputer.setup_sparse_system(kept, x[i].numpy(), neighbors_weights)
        wanted = torch.from_numpy(scipy.sparse.linalg.spsolve(scipy.sparse.csc_matrix(matrix), right)).float()
        torch.testing.assert_close(found[i][:, removed[i]].T, wanted, atol=1e-5, rtol=0)
        assert torch.equal(found[i][:, ~removed[i]], x[i][:, ~removed[i]])


def test_imputing_runs_the_model_on_imputed_pictures_with_noise(model: nn.Module) -> None:
    x, keep = pictures(), torch.tensor([[0, 3], [1, 2], [2, 3]])
    removal = metrics.Imputing(model, (2, 2), noise=0.5)
    gone = torch.ones(3, 4).scatter_(1, keep, 0).reshape(3, 1, 2, 2).repeat_interleave(3, 2).repeat_interleave(3, 3) > 0
    noise = 0.5 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).double()
    wanted = model(torch.where(gone, metrics.imputed(x, gone) + noise, x))
    torch.testing.assert_close(removal(removal.prepare(x), keep), wanted.detach())


def test_what_makes_no_sense_is_refused(model: nn.Module) -> None:
    x, removal = pictures(), Replacing(model, (6, 6))
    with pytest.raises(InputError, match=r"scores of shape \(3, 5\) do not fit 3 pictures of 6 x 6 parts"):
        metrics.infidelity(removal, x, torch.zeros(3, 5), TARGET)
    with pytest.raises(InputError, match="squares is at least 1, not 0"):
        metrics.infidelity(removal, x, torch.zeros(3, 36), TARGET, squares=0)
    with pytest.raises(InputError, match=r"there is at least 1 sample, and no radius below 0; not 0 and 0\.02"):
        metrics.max_sensitivity(lambda c: c[:, 0], x, samples=0)
    with pytest.raises(InputError, match="all pixels of a picture are removed"):
        metrics.imputed(x, torch.ones(3, 6, 6, dtype=torch.bool))
    with pytest.raises(InputError, match="a picture of 6 x 6 pixels has no even grid of"):
        metrics.Imputing(model, (4, 4)).prepare(x)


def test_evaluate_measures_them_where_they_are_named(tmp_path: Path) -> None:
    names = tuple(metrics.OPTIONAL)
    plan = replace(
        evaluated.plan(count=2), methods=("saliency", "gradient"), policies=("gradient",), metrics=names, steps=0
    )
    results = evaluate(plan, str(tmp_path))
    column = results.values[evaluated.MODEL, "gradient", "gradient"]
    assert set(names) <= set(column) and results.facts["settings"]["metrics"] == {
        name: metric.better for name, metric in metrics.OPTIONAL.items()
    }
    assert all(v == 0 for v in results.values[evaluated.MODEL, "any", "centre"]["max_sensitivity"].values())
    assert all(v > 0 for name in ("infidelity", "max_sensitivity") for v in column[name].values())
    assert not set(names) & set(metrics.METRICS)
    with pytest.raises(InputError, match=r"'road' is not: .* fxgrad has infidelity, max_sensitivity, road_srg_aopc"):
        named_metric("road")
