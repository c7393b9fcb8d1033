"""How alike two maps of the same picture are: by the order of their values, and by their structure."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fxgrad.errors import InputError


def spearman(one: Tensor, other: Tensor) -> Tensor:
    """Rank correlation of maps.

    Args:
        one, other: maps of the same shape, (..., values), floating point.

    Returns:
        float64 (...), 1 for the same order and -1 for the reverse; NaN where all values of a map are the same, so that
        they have no order.

    Raises:
        InputError: shapes that differ.

    Example:
        >>> spearman(torch.tensor([1.0, 2.0, 9.0]), torch.tensor([0.1, 0.2, 0.3])).item()
        1.0

    Source: Spearman, American Journal of Psychology 15 (1904); equal values share the mean of their ranks, as in
    `scipy.stats.spearmanr`.
    """
    _refuse_unlike(one, other)
    ranks = [_ranks(values.double()) for values in (one, other)]
    a, b = (r - r.mean(-1, keepdim=True) for r in ranks)
    found: Tensor = (a * b).sum(-1) / (a.square().sum(-1) * b.square().sum(-1)).sqrt()
    return found


def ssim(one: Tensor, other: Tensor, *, window: int = 7) -> Tensor:
    """Structural similarity of maps, each divided by its largest size, so that they lie in [-1, 1].

    Args:
        one, other: maps of the same shape, (..., H, W), floating point; a map of zeros stays as it is.
        window: side of the square windows that are compared; at most the maps' shorter side.

    Returns:
        float64 (...), the mean over all windows that lie in the map: 1 for equal maps.

    Raises:
        InputError: shapes that differ, or a window that is larger than the maps.

    Example:
        >>> map = torch.rand(2, 16, 16)
        >>> ssim(map, 3 * map).round(decimals=6).tolist()
        [1.0, 1.0]

    Source: Wang, Bovik, Sheikh, Simoncelli, IEEE TIP 13 (2004), eq. 13, with k1 = .01, k2 = .03 and even weights.
    """
    _refuse_unlike(one, other)
    if one.ndim < 2 or window < 1 or window > min(one.shape[-2:]):
        raise InputError(
            f"ssim compares windows of {window} x {window} in maps (..., H, W); {tuple(one.shape)} has none."
        )

    def scaled(maps: Tensor) -> Tensor:
        sizes = maps.double().abs().flatten(-2).amax(-1)[..., None, None]
        return (maps.double() / sizes.where(sizes > 0, 1)).reshape(-1, 1, *maps.shape[-2:])

    def mean(maps: Tensor) -> Tensor:
        return F.avg_pool2d(maps, window, 1)

    a, b = scaled(one), scaled(other)
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2  # values from -1 to 1 span 2
    ma, mb = mean(a), mean(b)
    varied = mean(a * a) - ma * ma + mean(b * b) - mb * mb
    shared = mean(a * b) - ma * mb
    found = (2 * ma * mb + c1) * (2 * shared + c2) / ((ma * ma + mb * mb + c1) * (varied + c2))
    return found.flatten(1).mean(1).reshape(one.shape[:-2])


def _ranks(values: Tensor) -> Tensor:
    """Ranks along the last axis; equal values get the mean of theirs."""
    ordered = values.sort(dim=-1).values
    ends = [torch.searchsorted(ordered, values.contiguous(), right=right) for right in (False, True)]
    return (ends[0] + ends[1] - 1).double() / 2


def _refuse_unlike(one: Tensor, other: Tensor) -> None:
    if one.shape != other.shape or not one.ndim:
        raise InputError(f"maps to compare have the same shape; these are {tuple(one.shape)} and {tuple(other.shape)}.")
