"""Mosaics of 2 x 2 tiles, two of one class and two of another: the tiles are the truth.

An explanation of a class should lie on its tiles, since the others show something else. Focus is the share of its
positive values that does.

Source: Arias-Duart et al., Focus! Rating XAI Methods and Finding Biases, 2022, arXiv:2109.15035.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bench.evidence.real.photographs import Photograph, crop
from fxgrad.metrics import average_precision, relevance_mass

SIZE = 224
BASELINES = ("brightness", "local_mean", "sobel", "centre")
"""Maps of the picture alone; `random` is a method of fxgrad."""


@dataclass(frozen=True)
class Mosaic:
    """A mosaic and the question that is asked of it.

    Attributes:
        pixels: in [0, 1], (3, SIZE, SIZE).
        target, other: the two classes.
        own: bool (2, 2), the target's tiles.
    """

    pixels: Tensor
    target: int
    other: int
    own: Tensor

    def mask(self, rows: int, columns: int) -> Tensor:
        """The target's tiles on a grid with an even number of rows and columns, bool (rows, columns)."""
        return self.own.repeat_interleave(rows // 2, 0).repeat_interleave(columns // 2, 1)


def pairs(classes: int) -> list[tuple[int, int]]:
    """(target, other) of every pair of classes once; each class is the target about as often as not."""
    return [(a, b) if (a + b) % 2 else (b, a) for a, b in combinations(range(classes), 2)]


def mosaic(pictures: Sequence[Photograph], target: int, other: int, seed: int = 0, size: int = SIZE) -> Mosaic:
    """A crop of each held-out quarter of two photographs, in any of the six ways in which two of four tiles can lie."""
    low, high = sorted((target, other))
    generator = np.random.default_rng((seed, low, high))
    places = list(combinations(range(4), 2))[int(generator.integers(6))]
    classes = [low if place in places else high for place in range(4)]
    half = size // 2
    tiles = {c: [crop(quarter, generator, half, 0.5) for quarter in pictures[c].held] for c in (low, high)}
    grid = torch.stack([tiles[c].pop() for c in classes]).reshape(2, 2, 3, half, half)
    own = torch.tensor([c == target for c in classes]).reshape(2, 2)
    return Mosaic(grid.permute(2, 0, 3, 1, 4).reshape(3, size, size), target, other, own)


focus = relevance_mass
"""Focus is the relevance mass of a mosaic's tiles."""


def measured(maps: Tensor, masks: Tensor) -> dict[str, Tensor]:
    """What is kept of each map, float64 (pictures,): focus, average precision, and the signed sums of both sides."""
    return {
        "focus": focus(maps, masks),
        "average_precision": average_precision(maps, masks),
        "own": (maps.double() * masks).sum((-2, -1)),
        "others": (maps.double() * ~masks).sum((-2, -1)),
    }


def baseline(name: str, pixels: Tensor) -> Tensor:
    """A map of the picture alone, (batch, 3, height, width) -> (batch, height, width).

    brightness is the mean of the colours, local_mean that of 7 x 7 pixels, sobel the length of the brightness's
    gradient, centre a Gaussian of a quarter of the side around the middle.
    """
    grey = pixels.mean(1, keepdim=True)
    if name == "brightness":
        return grey[:, 0]
    if name == "local_mean":
        return F.avg_pool2d(grey, 7, 1, 3, count_include_pad=False)[:, 0]
    if name == "sobel":
        kernel = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]]) / 8
        padded = F.pad(grey, (1, 1, 1, 1), mode="replicate")
        return F.conv2d(padded, torch.stack([kernel, kernel.T])[:, None]).norm(dim=1)
    height, width = pixels.shape[-2:]
    rows, columns = ((torch.arange(n) + 0.5) / n - 0.5 for n in (height, width))
    bump = torch.exp(-(rows[:, None] ** 2 + columns**2) / (2 * 0.25**2))
    return bump.expand(len(pixels), height, width)
