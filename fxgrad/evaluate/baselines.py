"""Baselines: maps that no method and no model made, measured beside every method.

What a trivial map reaches, a method has to beat; what the object's own mask reaches is about as much as a map of the
model's tokens can. They take no gradient, and so belong to no policy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fxgrad.data import Batch
from fxgrad.data.pictures import Preprocessing
from fxgrad.methods.placing import resample
from fxgrad.metrics.removal import Grid


@dataclass(frozen=True, eq=False)
class Seen:
    """A batch of pictures, as a baseline sees it.

    Attributes:
        brightness: the mean of the channels, in [0, 1], float32 (batch, H, W).
        masks, others: as in `Batch`.
        grid: rows and columns of the model's patches.
    """

    brightness: Tensor
    masks: Tensor
    others: Tensor
    grid: Grid


@dataclass(frozen=True, eq=False)
class Drawn:
    """A baseline's map; an `Attribution` for `evaluate`.

    Attributes:
        pixels: (batch, H, W).
        patches: (batch, rows, columns).
        known: which pictures have a map, bool (batch,): a picture without a mask has no oracle.
        output: zeros, (batch,): a baseline has no shares to compare with the target's value.
    """

    pixels: Tensor
    patches: Tensor
    known: Tensor
    output: Tensor
    total: Tensor | None = None
    absolute: Tensor | None = None


Made = tuple[Tensor, Tensor]
"""A map of pixels (batch, H, W) and a map of patches (batch, rows, columns)."""


def brightness(seen: Seen) -> Made:
    """The brightness of each pixel."""
    return _of_pixels(seen, seen.brightness)


def local_mean(seen: Seen) -> Made:
    """The mean brightness of the 7 x 7 pixels around each, of those that lie in the picture."""
    return _of_pixels(seen, F.avg_pool2d(seen.brightness[:, None], 7, 1, 3, count_include_pad=False)[:, 0])


def sobel(seen: Seen) -> Made:
    """The length of the brightness's gradient, by Sobel's filter: where the edges are.

    Source: Sobel and Feldman, 1968; as `scipy.ndimage.sobel(mode="nearest")` along both axes.
    """
    across = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
    padded = F.pad(seen.brightness[:, None], (1, 1, 1, 1), mode="replicate")
    return _of_pixels(seen, F.conv2d(padded, torch.stack([across, across.T])[:, None]).norm(dim=1))


def centre(seen: Seen) -> Made:
    """1 in the middle of the picture, falling evenly to 0 in its corners."""
    height, width = seen.brightness.shape[1:]
    rows, columns = torch.linspace(-1, 1, height)[:, None], torch.linspace(-1, 1, width)
    return _of_pixels(seen, (1 - ((rows**2 + columns**2) / 2).sqrt()).expand(len(seen.brightness), -1, -1))


def oracle(seen: Seen) -> Made:
    """How much of each patch the target's object covers: the best place for a map of patches."""
    return _of_patches(seen, seen.masks.float())


def oracle_minus_other(seen: Seen) -> Made:
    """How much of each patch the target's object covers, minus what objects of other classes cover."""
    return _of_patches(seen, seen.masks.float() - seen.others.float())


BASELINES: dict[str, Callable[[Seen], Made]] = {
    f.__name__: f for f in (brightness, local_mean, sobel, centre, oracle, oracle_minus_other)
}
"""Every baseline by its name; the docstrings say what each is."""

ALWAYS = ("random", *BASELINES)
"""What `evaluate` measures in addition to the methods asked for."""


def drawn(name: str, pictures: Batch, preprocess: Preprocessing, grid: Grid) -> Drawn:
    """A baseline's map of each picture.

    Args:
        name: a key of `BASELINES`.
        pictures: the batch, preprocessed.
        preprocess: how.
        grid: rows and columns of the model's patches.

    Returns:
        The maps, float32 on the CPU.

    Example:
        >>> from fxgrad.data import collate, open_data
        >>> from fxgrad.data.models import load_model
        >>> preprocess, digits = load_model("fxgrad.demo:digits_vit").preprocess, open_data("digits")
        >>> pictures = collate([digits[0], digits[1]], preprocess)
        >>> found = drawn("oracle", pictures, preprocess, (8, 8))
        >>> found.pixels.shape, found.patches.amax().item() <= 1, found.known.tolist()
        (torch.Size([2, 48, 48]), True, [True, True])
    """
    pixels = torch.stack([preprocess.invert(x[None]).mean(0) for x in pictures.x])
    own, other = (masks.flatten(1).any(1) for masks in (pictures.masks, pictures.others))
    known = {"oracle": own, "oracle_minus_other": own & other}.get(name, torch.ones_like(own))
    made = BASELINES[name](Seen(pixels, pictures.masks, pictures.others, grid))
    return Drawn(*made, known, torch.zeros(len(pixels)))


def _of_pixels(seen: Seen, pixels: Tensor) -> Made:
    return pixels, resample(pixels, seen.grid)


def _of_patches(seen: Seen, pixels: Tensor) -> Made:
    """The means of the patches, and these as pixels, interpolated as a method's map of tokens is."""
    size = pixels.shape[1:]
    patches = resample(pixels, seen.grid) * (seen.grid[0] * seen.grid[1] / (size[0] * size[1]))
    return F.interpolate(patches[:, None], size, mode="bilinear")[:, 0], patches
