"""Does an attribution lie where the object is? Per picture, against a mask of its pixels.

Maps count with their sign: negative attribution should lie outside of the object. These metrics measure agreement with
people, not faithfulness to the model, which may rightly look elsewhere.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fxgrad.errors import InputError
from fxgrad.metrics.metric import Metric


def average_precision(maps: Tensor, masks: Tensor) -> Tensor:
    """The area under each picture's precision-recall curve, its pixels ranked by their attribution.

    Args:
        maps: attributions, floating point (..., H, W).
        masks: bool, of a shape that broadcasts to that of the maps.

    Returns:
        float64 (...); NaN where a mask is empty.

    Raises:
        InputError: shapes that do not fit.

    Example:
        >>> average_precision(torch.tensor([[4.0, 3.0], [2.0, 1.0]]), torch.tensor([[True, False], [True, False]]))
        tensor(0.8333, dtype=torch.float64)

    Source: as `sklearn.metrics.average_precision_score` defines it, without interpolation; here for many maps at once.
    """
    scores, truth = _flat(maps, masks)
    scores, order = scores.sort(dim=-1, descending=True)
    truth = truth.gather(-1, order).double()
    found = truth.cumsum(-1)
    # Pixels of equal score are retrieved together: each counts like the last of them.
    ends = torch.ones_like(scores, dtype=torch.bool)
    ends[..., :-1] = scores[..., 1:] != scores[..., :-1]
    places = torch.arange(1, scores.shape[-1] + 1, device=scores.device)
    last = torch.where(ends, places, scores.shape[-1] + 1).flip(-1).cummin(-1).values.flip(-1)
    precision = found.gather(-1, last - 1) / last
    return (precision * truth).sum(-1) / truth.sum(-1)


def pointing_game(maps: Tensor, masks: Tensor) -> Tensor:
    """Whether the pixel with the largest attribution lies on the object.

    Args:
        maps, masks: as for `average_precision`.

    Returns:
        float64 (...): 1 or 0; if several pixels are largest, the share of those on the object. NaN for an empty mask.

    Raises:
        InputError: shapes that do not fit.

    Example:
        >>> pointing_game(torch.tensor([[4.0, 3.0]]), torch.tensor([[False, True]])).item()
        0.0

    Source: Zhang et al., ECCV 2016, arXiv:1608.00507, section 4.1; without their tolerance of 15 pixels.
    """
    scores, truth = _flat(maps, masks)
    largest = (scores == scores.amax(-1, keepdim=True)).double()
    hit = (largest * truth).sum(-1) / largest.sum(-1)
    return hit.where(truth.any(-1), torch.nan)


def iou(maps: Tensor, masks: Tensor) -> Tensor:
    """Intersection over union of the object and the pixels above the map's mean.

    Args:
        maps, masks: as for `average_precision`.

    Returns:
        float64 (...); NaN where a mask is empty.

    Raises:
        InputError: shapes that do not fit.

    Example:
        >>> iou(torch.tensor([[4.0, 3.0, 0.0, 0.0]]), torch.tensor([[True, False, False, False]])).item()
        0.5

    Source: Chefer et al., CVPR 2021, arXiv:2012.09838, section 4.2, for the threshold.
    """
    scores, truth = _flat(maps, masks)
    above = scores > scores.mean(-1, keepdim=True)
    both, either = (above & truth).sum(-1).double(), (above | truth).sum(-1)
    return (both / either).where(truth.any(-1), torch.nan)


def relevance_mass(maps: Tensor, masks: Tensor) -> Tensor:
    """The share of the positive attribution that lies on the object.

    On a mosaic of pictures, with the tiles of the target's class as the mask, this is Focus.

    Args:
        maps, masks: as for `average_precision`.

    Returns:
        float64 (...), in [0, 1]; NaN for an empty mask, and for a map that is positive nowhere.

    Raises:
        InputError: shapes that do not fit.

    Example:
        >>> relevance_mass(torch.tensor([[3.0, 1.0, -9.0]]), torch.tensor([[True, False, True]])).item()
        0.75

    Source: Arras, Osman, Samek, CLEVR-XAI, Information Fusion 2022, arXiv:2003.07258; Arias-Duart et al., Focus!
    Rating XAI Methods and Finding Biases, FUZZ-IEEE 2022, arXiv:2109.15035.
    """
    scores, truth = _flat(maps, masks)
    positive = scores.clamp(min=0)
    share = (positive * truth).sum(-1) / positive.sum(-1)
    return share.where(truth.any(-1), torch.nan)


def own_over_other(maps: Tensor, masks: Tensor, others: Tensor) -> Tensor:
    """Whether a pixel of the target's object has more attribution, on average, than one of another class's object.

    A method that is blind to the class is right in half of the pictures.

    Args:
        maps, masks: as for `average_precision`.
        others: the objects of other classes, like `masks`.

    Returns:
        float64 (...): 1 or 0, and a half where both are equal; NaN where a mask is empty.

    Raises:
        InputError: shapes that do not fit.

    Example:
        >>> own, other = torch.tensor([[True, True, False]]), torch.tensor([[False, False, True]])
        >>> own_over_other(torch.tensor([[1.0, 2.0, 1.0]]), own, other).item()
        1.0

    Source: the question that Mehri et al., LibraGrad, CVPR 2025, arXiv:2411.16760, put to pictures of two animals.
    """
    (scores, own), (_, other) = _flat(maps, masks), _flat(maps, others)
    means = [(scores * mask).sum(-1) / mask.sum(-1) for mask in (own, other)]
    found = ((means[0] > means[1]).double() + (means[0] >= means[1]).double()) / 2
    return found.where(own.any(-1) & other.any(-1), torch.nan)


def _flat(maps: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Maps and masks with the pixels in one last axis, (..., H * W), both of the same shape."""
    if maps.ndim < 2 or masks.dtype is not torch.bool or masks.shape[-2:] != maps.shape[-2:]:
        raise InputError(
            f"maps must be (..., H, W) and masks bool of the same H and W; these are {tuple(maps.shape)} and "
            f"{tuple(masks.shape)} of {masks.dtype}."
        )
    return maps.double().flatten(-2), masks.expand(maps.shape).flatten(-2)


METRICS = (
    Metric("average_precision", "higher", lambda m: average_precision(m.maps, m.masks)),
    Metric("pointing_game", "higher", lambda m: pointing_game(m.maps, m.masks)),
    Metric("iou", "higher", lambda m: iou(m.maps, m.masks)),
    Metric("relevance_mass", "higher", lambda m: relevance_mass(m.maps, m.masks)),
    Metric("own_over_other", "higher", lambda m: own_over_other(m.maps, m.masks, m.others)),
)
