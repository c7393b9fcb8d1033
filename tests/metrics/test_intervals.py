"""Intervals of groups, of medians and of trainings, and Holm's correction, against full enumeration and SciPy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.stats
import torch

from fxgrad import metrics
from fxgrad.errors import InputError

GROUPS = ["a", "b", "a", "c", "a", "b"]
COLUMN = [1.0, 4.0, 2.0, -7.0, 3.0, 6.5]


def all_draws(values: np.ndarray, groups: list[str]) -> list[float]:
    """The mean of every way to draw as many trainings and groups as there are; values are (trainings, pictures)."""
    names = sorted(set(groups))
    found = []
    for runs in itertools.product(range(len(values)), repeat=len(values)):
        for drawn in itertools.product(names, repeat=len(names)):
            found.append(np.mean([v for r in runs for d in drawn for v, g in zip(values[r], groups) if g == d]))
    return found


def check(found: metrics.Interval, means: list[float], observed: float) -> None:
    means = sorted(means)
    assert found.mean == pytest.approx(observed)
    # The bounds are quantiles of a discrete distribution: between those of neighbouring levels.
    for bound, level in ((found.low, 0.025), (found.high, 0.975)):
        near = [np.quantile(means, level + shift, method="inverted_cdf") for shift in (-0.006, 0.006)]
        assert near[0] - 1e-9 <= bound <= near[1] + 1e-9
    p = 2 * min(np.mean([m <= 0 for m in means]), np.mean([m >= 0 for m in means]))
    assert found.p == pytest.approx(min(1, p), abs=0.02)


def test_groups_are_drawn_whole() -> None:
    for shift in (0.0, 2.0, -3.0):
        values = torch.tensor(COLUMN)[:, None] + shift
        (found,) = metrics.bootstrap(values, groups=GROUPS, resamples=20_000)
        check(found, all_draws(values.T.numpy(), GROUPS), float(values.mean()))


def test_trainings_and_groups_are_drawn() -> None:
    values = torch.tensor([COLUMN, [2.0, 4.5, 2.0, 1.0, 0.0, 6.0], [1.0, 9.0, 5.0, 2.0, 8.0, 1.0]])
    (found,) = metrics.two_level(values[:, :, None], groups=GROUPS, resamples=20_000)
    check(found, all_draws(values.numpy(), GROUPS), float(values.mean()))


def test_trainings_that_differ_widen_the_interval() -> None:
    pictures = torch.randn(40, 1)
    alike, apart = pictures.expand(3, -1, -1), pictures + torch.tensor([-1.0, 0.0, 1.0])[:, None, None]
    (one,), (other,) = metrics.two_level(alike), metrics.two_level(apart)
    (alone,) = metrics.bootstrap(pictures)
    assert one.high - one.low == pytest.approx(alone.high - alone.low) and other.high - other.low > 1.5
    assert other.count == 120


def test_medians_are_scipys() -> None:
    rng = np.random.default_rng(0)
    column = rng.exponential(size=41)
    (found,) = metrics.bootstrap(torch.from_numpy(column)[:, None], statistic="median", resamples=20_000)
    wanted = scipy.stats.bootstrap(
        (column,), np.median, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    width = wanted.high - wanted.low
    assert found.mean == np.median(column)
    assert found.low == pytest.approx(wanted.low, abs=0.05 * width)
    assert found.high == pytest.approx(wanted.high, abs=0.05 * width)


def test_medians_leave_out_what_is_missing_and_heed_no_outlier() -> None:
    values = torch.tensor([[1.0, torch.nan], [2.0, torch.nan], [1e9, torch.nan], [torch.nan, torch.nan]])
    one, none = metrics.bootstrap(values, statistic="median")
    assert (one.mean, one.count, none.count) == (2.0, 3, 0) and none.mean != none.mean
    (difference,) = metrics.paired(values[:3, :1], torch.zeros(3, 1), statistic="median", groups=["a", "b", "a"])
    assert difference.mean == 2.0


def test_p_values_agree_with_intervals() -> None:
    for shift in torch.linspace(-0.6, 0.6, 13).tolist():
        (found,) = metrics.bootstrap(torch.randn(30, 1, generator=torch.Generator().manual_seed(0)) + shift)
        assert (found.p < 0.05) == bool(found.sign) or 0.03 < found.p < 0.07
    assert metrics.bootstrap(torch.zeros(5, 1))[0].p == 1
    assert metrics.bootstrap(torch.ones(5, 1), resamples=999)[0].p == 2 / 1000


@pytest.mark.parametrize("seed", range(4))
def test_holm_is_the_closure_of_bonferronis_test(seed: int) -> None:
    """A hypothesis falls if every set of hypotheses with it does; a set falls by its smallest p times its size."""
    p = np.random.default_rng(seed).uniform(0, 0.3, 5).round(3).tolist()
    p[1] = p[0]  # a tie
    wanted = [
        max(
            min(1.0, len(chosen) * min(p[j] for j in chosen))
            for size in range(1, 6)
            for chosen in itertools.combinations(range(5), size)
            if i in chosen
        )
        for i in range(5)
    ]
    assert metrics.holm(p) == pytest.approx(wanted)


def test_what_makes_no_sense_is_refused() -> None:
    one = torch.zeros(2, 1)
    with pytest.raises(InputError, match="groups name the group of each picture: there are 3 for 2 pictures"):
        metrics.bootstrap(one, groups=["a", "b", "c"])
    with pytest.raises(InputError, match="a statistic is 'mean' or 'median'; 'mode' is neither"):
        metrics.bootstrap(one, statistic="mode")
    with pytest.raises(InputError, match=r"two_level takes \(trainings, pictures, columns\) .*, not \(2, 1\)"):
        metrics.two_level(one)
    with pytest.raises(InputError, match=r"p-values lie in \[0, 1\]"):
        metrics.holm([0.5, 1.5])
