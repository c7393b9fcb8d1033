"""Rank correlation against SciPy, structural similarity window by window."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch
from numpy.lib.stride_tricks import sliding_window_view

from fxgrad import metrics
from fxgrad.errors import InputError


def test_spearman_is_scipys_with_and_without_ties() -> None:
    one, other = torch.randn(3, 2, 40), torch.randn(3, 2, 40)
    one[1], other[2] = one[1].round(), other[2].round()
    found = metrics.spearman(one, other)
    for place, value in np.ndenumerate(found.numpy()):
        wanted = scipy.stats.spearmanr(one[place].numpy(), other[place].numpy()).statistic
        assert value == pytest.approx(wanted, abs=1e-12)
    assert metrics.spearman(one, -one.exp())[0, 0] == -1
    assert metrics.spearman(torch.zeros(5), torch.randn(5)).isnan()


def textbook(a: np.ndarray, b: np.ndarray, window: int) -> float:
    """The mean over all windows of luminance times contrast times structure, with C3 = C2 / 2."""
    c1, c2 = 0.02**2, 0.06**2
    found = []
    for x, y in zip(*(sliding_window_view(m, (window, window)).reshape(-1, window**2) for m in (a, b))):
        sx, sy, sxy = x.std(), y.std(), np.mean((x - x.mean()) * (y - y.mean()))
        luminance = (2 * x.mean() * y.mean() + c1) / (x.mean() ** 2 + y.mean() ** 2 + c1)
        found.append(luminance * (2 * sx * sy + c2) / (sx**2 + sy**2 + c2) * (sxy + c2 / 2) / (sx * sy + c2 / 2))
    return float(np.mean(found))


@pytest.mark.parametrize("window", [3, 7])
def test_ssim_is_the_textbooks(window: int) -> None:
    one, other = torch.randn(4, 12, 15, dtype=torch.float64), torch.randn(4, 12, 15, dtype=torch.float64)
    other[1:] = one[1:] + 0.3 * other[1:]
    found = metrics.ssim(one, other, window=window)
    for i in range(4):
        a, b = (m[i].numpy() / np.abs(m[i].numpy()).max() for m in (one, other))
        assert found[i].item() == pytest.approx(textbook(a, b, window), abs=1e-9)
    assert metrics.ssim(one, 5 * one, window=window).tolist() == pytest.approx([1] * 4)
    assert metrics.ssim(torch.zeros(8, 8), torch.zeros(8, 8), window=window).item() == 1


def test_maps_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(InputError, match=r"maps to compare have the same shape; these are \(3,\) and \(4,\)"):
        metrics.spearman(torch.zeros(3), torch.zeros(4))
    with pytest.raises(InputError, match=r"ssim compares windows of 7 x 7 in maps \(..., H, W\); \(2, 4, 9\) has none"):
        metrics.ssim(torch.zeros(2, 4, 9), torch.zeros(2, 4, 9))


def test_float64_agreement_is_0_without_an_order() -> None:
    exact = torch.randn(2, 4, 4, dtype=torch.float64)
    maps = torch.stack([exact[0].float(), torch.zeros(4, 4)])
    assert metrics.float64_agreement(maps, exact).tolist() == pytest.approx([1, 0])
