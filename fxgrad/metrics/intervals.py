"""Bootstrap confidence intervals of means over pictures.

All columns share the same resamples, so that two methods are compared on the same pictures.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fxgrad.errors import InputError

RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A mean and its bounds; NaN if there is nothing to average.

    Attributes:
        mean: the mean over the pictures.
        low, high: bounds of the confidence interval.
        count: number of pictures that have a value.
    """

    mean: float
    low: float
    high: float
    count: int

    @property
    def sign(self) -> int:
        """1 or -1 where the interval lies above or below 0, else 0."""
        return int(self.low > 0) - int(self.high < 0)


def bootstrap(values: Tensor, *, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0) -> list[Interval]:
    """Percentile bootstrap intervals of the means of columns, by resampling rows.

    Args:
        values: (pictures, columns), floating point; NaN for a missing value, which is left out.
        confidence: share of the resampled means that lie within the bounds.
        resamples: how often the pictures are resampled.
        seed: seed of the draws, which depend on it and on the number of pictures only.

    Returns:
        One interval per column.

    Raises:
        InputError: `values` does not have two axes or has no rows; or a confidence outside of (0, 1).

    Example:
        >>> (interval,) = bootstrap(torch.tensor([[1.0], [2.0], [3.0], [4.0]]))
        >>> interval.mean, interval.low, interval.high
        (2.5, 1.5, 3.5)

    Source: Efron, Annals of Statistics 7 (1979); Efron and Tibshirani, An Introduction to the Bootstrap, section 13.3.
    """
    if values.ndim != 2 or not len(values):
        raise InputError(f"bootstrap takes (pictures, columns) with at least one picture, not {tuple(values.shape)}.")
    if not 0 < confidence < 1:
        raise InputError(f"the confidence lies between 0 and 1, such as 0.95; {confidence} does not.")
    values, count = values.double(), len(values)
    present, filled = (~values.isnan()).double(), values.nan_to_num(0.0)
    generator = torch.Generator().manual_seed(seed)
    means: list[Tensor] = []
    # In blocks, since the table of counts has pictures x resamples numbers.
    block = max(1, 10_000_000 // count)
    for size in [block] * (resamples // block) + [resamples % block] * (resamples % block > 0):
        drawn = torch.randint(count, (size, count), generator=generator)
        times = torch.zeros(size, count, dtype=torch.float64).scatter_add_(1, drawn, torch.ones_like(drawn).double())
        means.append((times @ filled) / (times @ present))
    tail = (1 - confidence) / 2
    bounds = torch.cat(means).nanquantile(torch.tensor([tail, 1 - tail], dtype=torch.float64), dim=0)
    found = zip(values.nanmean(0).tolist(), *bounds.tolist(), present.sum(0).long().tolist())
    return [Interval(mean, low, high, n) for mean, low, high, n in found]


def paired(values: Tensor, baseline: Tensor, *, confidence: float = 0.95, seed: int = 0) -> list[Interval]:
    """Intervals of the mean difference to a baseline on the same pictures.

    Args:
        values, baseline: (pictures, columns), with the same picture in the same row.
        confidence, seed: as for `bootstrap`.

    Returns:
        One interval per column; if it does not contain 0, the difference is significant.

    Raises:
        InputError: as for `bootstrap`.

    Example:
        >>> better = torch.tensor([[0.2], [0.9], [0.5]])
        >>> paired(better + 0.1, better)[0].sign
        1
    """
    return bootstrap(values.double() - baseline.double(), confidence=confidence, seed=seed)
