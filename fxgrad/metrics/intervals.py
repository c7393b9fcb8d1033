"""Bootstrap confidence intervals of means over pictures, and the correction for many tests.

All columns share the same resamples, so that two methods are compared on the same pictures.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fxgrad.errors import InputError

RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A mean (or median) and its bounds; NaN if there is nothing to average.

    Attributes:
        mean: the mean over the pictures; the median, where that was asked for.
        low, high: bounds of the confidence interval.
        count: number of pictures that have a value.
        p: two-sided p-value of the hypothesis that it is 0: below 1 - confidence where the interval leaves out 0.
    """

    mean: float
    low: float
    high: float
    count: int
    p: float = 1.0

    @property
    def sign(self) -> int:
        """1 or -1 where the interval lies above or below 0, else 0."""
        return int(self.low > 0) - int(self.high < 0)


def bootstrap(
    values: Tensor,
    *,
    groups: Sequence[Hashable] | None = None,
    statistic: str = "mean",
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Interval]:
    """Percentile bootstrap intervals of the means of columns, by resampling rows.

    Args:
        values: (pictures, columns), floating point; NaN for a missing value, which is left out.
        groups: the group of each picture, such as its patient. Whole groups are resampled then, since pictures of one
            group tell less than pictures of several do. By default each picture is a group.
        statistic: "mean", or "median": the lower one of an even number of values.
        confidence: share of the resampled means that lie within the bounds.
        resamples: how often the groups are resampled.
        seed: seed of the draws, which depend on it and on the number of groups only.

    Returns:
        One interval per column. Its p-value is twice the smaller share of resampled means on one side of 0, the
        observed one counted in.

    Raises:
        InputError: `values` does not have two axes or has no rows; another number of groups than rows; a statistic
            that there is not; or a confidence outside of (0, 1).

    Example:
        >>> (interval,) = bootstrap(torch.tensor([[1.0], [2.0], [3.0], [4.0]]))
        >>> interval.mean, interval.low, interval.high
        (2.5, 1.5, 3.5)
        >>> (wider,) = bootstrap(torch.tensor([[1.0], [2.0], [3.0], [4.0]]), groups=["a", "a", "b", "b"])
        >>> wider.low, wider.high
        (1.5, 3.5)

    Source: Efron, Annals of Statistics 7 (1979); Efron and Tibshirani, An Introduction to the Bootstrap, section 13.3;
    Davison and Hinkley, Bootstrap Methods and their Application, sections 3.8 (groups) and 4.2 (p-values).
    """
    if values.ndim != 2 or not len(values):
        raise InputError(f"bootstrap takes (pictures, columns) with at least one picture, not {tuple(values.shape)}.")
    if statistic not in ("mean", "median"):
        raise InputError(f"a statistic is 'mean' or 'median'; {statistic!r} is neither.")
    group, number = _numbered(groups, len(values))
    values = values.double()
    found = _median if statistic == "median" else _mean
    resampled = torch.cat([found(values, times[:, group]) for times in _drawn(number, len(values), resamples, seed)])
    return _intervals(found(values, values.new_ones(1, len(values)))[0], resampled, values.isnan(), confidence)


def paired(
    values: Tensor,
    baseline: Tensor,
    *,
    groups: Sequence[Hashable] | None = None,
    statistic: str = "mean",
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Interval]:
    """Intervals of the mean difference to a baseline on the same pictures.

    Args:
        values, baseline: (pictures, columns), with the same picture in the same row.
        groups, statistic, confidence, resamples, seed: as for `bootstrap`; the median is that of the differences.

    Returns:
        One interval per column; if it does not contain 0, the difference is significant.

    Raises:
        InputError: as for `bootstrap`.

    Example:
        >>> better = torch.tensor([[0.2], [0.9], [0.5]])
        >>> paired(better + 0.1, better)[0].sign
        1
    """
    return bootstrap(
        values.double() - baseline.double(),
        groups=groups,
        statistic=statistic,
        confidence=confidence,
        resamples=resamples,
        seed=seed,
    )


def two_level(
    values: Tensor,
    *,
    groups: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Interval]:
    """Intervals of means over independent trainings and over pictures: both are resampled.

    Every training is measured on the same pictures, so one draw of pictures serves all trainings of a resample. With
    few trainings such an interval is narrower than it should be: three say little about how trainings differ.

    Args:
        values: (trainings, pictures, columns), floating point; NaN for a missing value.
        groups, confidence, resamples, seed: as for `bootstrap`.

    Returns:
        One interval per column.

    Raises:
        InputError: `values` does not have three axes, or has no trainings or pictures; and as for `bootstrap`.

    Example:
        >>> same = torch.tensor([[[1.0], [2.0], [3.0], [4.0]]])
        >>> two_level(same) == bootstrap(same[0])
        True

    Source: Owen, The Pigeonhole Bootstrap, Annals of Applied Statistics 1 (2007), arXiv:0712.1111.
    """
    if values.ndim != 3 or not len(values) or not values.shape[1]:
        raise InputError(
            "two_level takes (trainings, pictures, columns) with at least one training and one picture, not "
            f"{tuple(values.shape)}."
        )
    trainings, pictures = values.shape[:2]
    group, number = _numbered(groups, pictures)
    flat = values.double().flatten(0, 1)
    of_trainings = _drawn(trainings, pictures, resamples, seed + 1)
    resampled = []
    for times, runs in zip(_drawn(number, pictures, resamples, seed), of_trainings):
        resampled.append(_mean(flat, (runs[:, :, None] * times[:, None, group]).flatten(1)))
    means = _mean(flat, flat.new_ones(1, len(flat)))[0]
    return _intervals(means, torch.cat(resampled), flat.isnan(), confidence)


def holm(p: Sequence[float]) -> list[float]:
    """P-values corrected for their number: the risk of any false discovery among them stays below the level.

    Args:
        p: one p-value per hypothesis.

    Returns:
        The corrected p-values, in the same order, at most 1.

    Raises:
        InputError: a p-value that is not in [0, 1].

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]

    Source: Holm, A Simple Sequentially Rejective Multiple Test Procedure, Scandinavian Journal of Statistics 6 (1979).
    """
    if not all(0 <= one <= 1 for one in p):
        raise InputError(f"p-values lie in [0, 1]; of {list(p)} some do not.")
    corrected, largest = [0.0] * len(p), 0.0
    for rank, index in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        largest = max(largest, min(1.0, (len(p) - rank) * p[index]))
        corrected[index] = largest
    return corrected


def _numbered(groups: Sequence[Hashable] | None, count: int) -> tuple[Tensor, int]:
    """The group of each picture, as numbers from 0 on, and how many groups there are."""
    if groups is None:
        return torch.arange(count), count
    if len(groups) != count:
        raise InputError(f"groups name the group of each picture: there are {len(groups)} for {count} pictures.")
    numbers = {name: number for number, name in enumerate(dict.fromkeys(groups))}
    return torch.tensor([numbers[name] for name in groups]), len(numbers)


def _drawn(count: int, pictures: int, resamples: int, seed: int) -> Iterator[Tensor]:
    """How often each of `count` things is drawn in each resample: float64 (some resamples, count), block by block."""
    generator = torch.Generator().manual_seed(seed)
    # In blocks, since the table of counts has pictures x resamples numbers.
    block = max(1, 10_000_000 // pictures)
    for size in [block] * (resamples // block) + [resamples % block] * (resamples % block > 0):
        drawn = torch.randint(count, (size, count), generator=generator)
        yield torch.zeros(size, count, dtype=torch.float64).scatter_add_(1, drawn, torch.ones_like(drawn).double())


def _mean(values: Tensor, times: Tensor) -> Tensor:
    """Means of columns whose rows count `times`, (resamples, rows): (resamples, columns)."""
    return (times @ values.nan_to_num(0.0)) / (times @ (~values.isnan()).double())


def _median(values: Tensor, times: Tensor) -> Tensor:
    """Medians of columns whose rows count `times`: the first value that at least half of them do not exceed."""
    found = []
    for column in values.unbind(1):
        ranked, order = column[~column.isnan()].sort()
        weights = times[:, ~column.isnan()][:, order].cumsum(1)
        if not len(ranked):
            found.append(times.new_full((len(times),), torch.nan))
            continue
        first = (weights >= weights[:, -1:] / 2).double().argmax(1)
        found.append(ranked[first].where(weights[:, -1] > 0, torch.nan))
    return torch.stack(found, 1)


def _intervals(means: Tensor, resampled: Tensor, missing: Tensor, confidence: float) -> list[Interval]:
    if not 0 < confidence < 1:
        raise InputError(f"the confidence lies between 0 and 1, such as 0.95; {confidence} does not.")
    tail = (1 - confidence) / 2
    bounds = resampled.nanquantile(torch.tensor([tail, 1 - tail], dtype=torch.float64), dim=0)
    drawn = 1 + (~resampled.isnan()).double().sum(0)
    sides = [(1 + side.double().sum(0)) / drawn for side in (resampled <= 0, resampled >= 0)]
    p = (2 * torch.minimum(*sides)).clamp(max=1)
    columns = zip(means.tolist(), *bounds.tolist(), (~missing).sum(0).tolist(), p.tolist())
    return [Interval(*column) for column in columns]
