"""Is a map more than rounding noise? It is compared with the same method's in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from fxgrad.metrics.metric import Measured, Metric
from fxgrad.metrics.similarity import spearman

DEGENERATE = 0.9
"""A map whose mean rank correlation with its float64 twin is below this is made of rounding errors."""
PICTURES = 4
"""How many pictures of each batch are explained again."""


def float64_agreement(maps: Tensor, exact: Tensor) -> Tensor:
    """The rank correlation of maps with those of the same model and method in float64.

    Where the terms of each number in a map cancel, what is left is rounding, and another precision gives another map.
    HiResCAM with the plain gradient, at the input of the last block of a transformer with a class token, is such a
    case: what reaches the class token from another token h passes through LayerNorm, f(a h) = f(h) for all a > 0, so
    that the derivative along h, the sum of h times the gradient, is 0 by Euler's theorem.

    Args:
        maps: of the model in its own precision, (..., H, W).
        exact: of the model in float64, of the same shape.

    Returns:
        float64 (...): 1 where precision does not matter; 0 for a map that has no order at all.

    Example:
        >>> map = torch.rand(1, 8, 8)
        >>> float64_agreement(map, map.double() * 3).item()
        1.0
    """
    return spearman(maps.flatten(-2), exact.flatten(-2)).nan_to_num(0.0)


def _agreement(measured: Measured) -> Tensor | None:
    """Of the first pictures; the others have no value."""
    if measured.explain is None or measured.x.dtype is torch.float64:
        return None
    some = measured.x[:PICTURES]
    exact = measured.explain(some.double())
    if exact is None:
        return None
    # Both are made anew, since methods may draw noise for a batch as a whole.
    maps = measured.explain(some)
    found = torch.full(measured.maps.shape[:2], torch.nan, dtype=torch.float64)
    if maps is not None:
        found[:, :PICTURES] = float64_agreement(maps, exact)
    return found


METRICS = (Metric("float64_agreement", "higher", _agreement),)
