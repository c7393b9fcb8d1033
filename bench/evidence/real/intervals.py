"""Intervals of means over mosaics, each of which shows two photographs."""

from __future__ import annotations

import torch
from torch import Tensor

from fxgrad.metrics import Interval


def by_photograph(
    values: Tensor, one: Tensor, other: Tensor, *, photographs: int, resamples: int = 2000, seed: int = 0
) -> list[Interval]:
    """Percentile bootstrap intervals of the means of columns, by resampling photographs.

    Mosaics that share a photograph are not independent. So photographs are drawn with replacement, and a mosaic counts
    as often as the product of how often its two were drawn.

    Args:
        values: (mosaics, columns); NaN for a missing value, which is left out.
        one, other: the two photographs of each mosaic, int64 (mosaics,).
        photographs: how many there are.
        resamples: how often they are resampled.
        seed: of the draws.

    Returns:
        One 95 % interval per column.

    Source: Owen, The pigeonhole bootstrap, Annals of Applied Statistics 1 (2007); Davezies et al., Empirical process
    results for exchangeable arrays, Annals of Statistics 49 (2021), for pairs.
    """
    values = values.double()
    present, filled = (~values.isnan()).double(), values.nan_to_num(0.0)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(photographs, (resamples, photographs), generator=generator)
    times = torch.zeros(resamples, photographs, dtype=torch.float64)
    times.scatter_add_(1, drawn, torch.ones_like(drawn).double())
    weights = times[:, one] * times[:, other]
    means = (weights @ filled) / (weights @ present)
    bounds = means.nanquantile(torch.tensor([0.025, 0.975], dtype=torch.float64), dim=0)
    found = zip(values.nanmean(0).tolist(), *bounds.tolist(), present.sum(0).long().tolist())
    return [Interval(*row) for row in found]
