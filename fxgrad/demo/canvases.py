"""Cluttered canvases with two handwritten digits each, and the pixels that belong to each digit.

The digits are the 1,797 real 8x8 scans that scikit-learn ships, enlarged and placed at random. Because this
module places them, it knows the pixels of each digit: a ground truth for attributions without manual labels.
Held-out canvases use scans that training never sees; the people who wrote them may be the same, since
scikit-learn does not say who wrote what. The train split falls into two parts that share no scan either: "fit" to train
on and "validation" to choose by, for trainings whose recipe is still to be found.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

SIDE = 48
"""Height and width of a canvas, in pixels."""
SIZES = (14, 22)
"""Smallest and largest side of a placed digit, in pixels; any two fit side by side on a canvas."""
INK = 0.3
"""An enlarged scan's pixels above this brightness are the digit's own."""
SPLITS = ("train", "heldout", "fit", "validation")
"""Train and heldout share no scan; fit and validation are the parts of train."""
COLOURS = {
    "red": (1.0, 0.25, 0.2),
    "green": (0.2, 0.9, 0.3),
    "blue": (0.3, 0.45, 1.0),
    "yellow": (1.0, 0.9, 0.2),
}
"""The inks of a coloured canvas: name -> (red, green, blue)."""

_SPLIT_SEED = 0
_HELDOUT_SHARE = 0.2

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Canvas:
    """One picture and its ground truth.

    Attributes:
        image: float32 (1, 48, 48) in [0, 1]; ink is bright. In colour (3, 48, 48).
        labels: the classes of the two digits, different from each other, in the order of ``masks``.
        masks: bool (2, 48, 48), the pixels of each digit; no pixel belongs to both.
        scans: index of each digit's scan in ``sklearn.datasets.load_digits()``.
        colours: names of the digits' colours, such as ``("red", "red")``; empty on a grey canvas.
    """

    image: Floats
    labels: tuple[int, int]
    masks: Bools
    scans: tuple[int, int]
    colours: tuple[str, ...] = ()

    @property
    def target(self) -> Floats:
        """Multi-label target: float32 (10,), one at the two classes shown and zero elsewhere."""
        target = np.zeros(10, np.float32)
        target[list(self.labels)] = 1
        return target


def canvas(seed: int, split: str = "heldout", *, colours: bool = False) -> Canvas:
    """The canvas with this number; the same arguments give the same canvas.

    Args:
        seed: any integer from 0 on.
        split: one of `SPLITS`; "train" and "heldout" share no scan, not even in the clutter.
        colours: draw every digit and every piece of clutter in one of `COLOURS`; all else stays as it is.

    Raises:
        ValueError: there is no such ``split``, or ``seed`` is negative.

    Example:
        >>> c = canvas(7)
        >>> c.image.shape, c.image.dtype, c.masks.shape
        ((1, 48, 48), dtype('float32'), (2, 48, 48))
        >>> int(c.target.sum())
        2
        >>> canvas(7, colours=True).colours
        ('blue', 'yellow')
    """
    scans = split_scans(split)
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, got {seed}")
    stream = [seed, SPLITS.index(split)]
    paint = np.random.default_rng([*stream, 2]) if colours else None
    return _compose(np.random.default_rng(stream), scans, paint)


def batches(size: int, seed: int = 0, split: str = "train") -> Iterator[tuple[Floats, Floats]]:
    """Fresh canvases without end, in batches, as plain arrays to train on.

    Args:
        size: canvases per batch, at least 1.
        seed: where the sequence starts; the same seed gives the same sequence.
        split: one of `SPLITS`.

    Yields:
        Images, float32 (size, 1, 48, 48) in [0, 1], and targets, float32 (size, 10).

    Raises:
        ValueError: by the first ``next``, if there is no such ``split``, ``size`` is below 1 or ``seed`` negative.

    Example:
        >>> images, targets = next(batches(4))
        >>> images.shape, targets.shape
        ((4, 1, 48, 48), (4, 10))
    """
    scans = split_scans(split)
    if size < 1 or seed < 0:
        raise ValueError(f"size must be 1 or more and seed 0 or more, got size={size}, seed={seed}")
    # The third number keeps this stream apart from every `canvas(seed, split)`.
    rng = np.random.default_rng([seed, SPLITS.index(split), 1])
    while True:
        batch = [_compose(rng, scans) for _ in range(size)]
        yield np.stack([c.image for c in batch]), np.stack([c.target for c in batch])


@cache
def split_scans(split: str) -> NDArray[np.intp]:
    """A split's scans as indices into ``load_digits()``: int64 (n,), sorted, read-only.

    Raises:
        ValueError: ``split`` is none of `SPLITS`.

    Example:
        >>> [len(split_scans(split)) for split in SPLITS]
        [1438, 359, 1151, 287]
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: use one of {', '.join(map(repr, SPLITS))}")
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(_classes()))
    heldout = int(len(order) * _HELDOUT_SHARE)
    train = order[heldout:]
    validation = int(len(train) * _HELDOUT_SHARE)
    parts = {"train": train, "heldout": order[:heldout], "fit": train[validation:], "validation": train[:validation]}
    indices = np.sort(parts[split])
    indices.flags.writeable = False
    return indices


def _compose(rng: np.random.Generator, scans: NDArray[np.intp], paint: np.random.Generator | None = None) -> Canvas:
    """Draw two digits and clutter from ``scans``, in colours that ``paint`` picks."""
    labels = rng.choice(10, 2, replace=False)
    chosen = [_pick(rng, scans[_classes()[scans] == label]) for label in labels]
    sizes = rng.integers(SIZES[0], SIZES[1], 2, endpoint=True)
    colours = () if paint is None else tuple(paint.choice(list(COLOURS), 2).tolist())
    image = np.repeat(_strokes(rng)[None], 3 if colours else 1, 0)
    masks = np.zeros((2, SIDE, SIDE), np.bool_)
    taken = np.zeros((SIDE, SIDE), np.bool_)
    inks = [_ink(name) for name in colours] or [_ink(None)] * 2
    for ink, mask, scan, size, (top, left) in zip(inks, masks, chosen, sizes, _corners(rng, sizes), strict=True):
        box = np.s_[top : top + size, left : left + size]
        digit = _enlarged(int(size))[scan]
        _draw(image, box, ink * digit)
        mask[box] = digit > INK
        taken[box] = True
    _fragments(rng, scans, image, taken, paint)
    image += rng.normal(0, 0.04, (SIDE, SIDE)).astype(np.float32)
    first, second = labels.tolist()
    return Canvas(image.clip(0, 1), (first, second), masks, (chosen[0], chosen[1]), colours)


def _ink(colour: str | None) -> Floats:
    """The factor that gives a grey picture this colour: (3, 1, 1); (1, 1, 1) for None, which leaves it grey."""
    return np.array(COLOURS[colour] if colour else [1], np.float32)[:, None, None]


def _draw(image: Floats, box: tuple[slice, slice], drawn: Floats) -> None:
    """Draw into a box of an image, in place; the brighter value wins."""
    shown = image[:, box[0], box[1]]
    np.maximum(shown, drawn, out=shown)


def _corners(rng: np.random.Generator, sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Top left corners, (2, 2), of two squares that do not overlap.

    Two boxes are disjoint if and only if they are disjoint along some axis: pick the axis, distribute the slack there.
    """
    axis = rng.integers(2)
    corners: NDArray[np.int64] = rng.integers(0, SIDE - sizes, (2, 2), endpoint=True).T
    corners[:, axis] = np.sort(rng.integers(0, SIDE - sizes.sum(), 2, endpoint=True))
    corners[1, axis] += sizes[0]
    return corners


def _strokes(rng: np.random.Generator) -> Floats:
    """A dark canvas with a few faint straight strokes; digits go on top of them."""
    image = np.zeros((SIDE, SIDE), np.float32)
    ys, xs = np.ogrid[:SIDE, :SIDE]
    for _ in range(rng.integers(1, 4)):
        (y, x), angle, half = rng.uniform(0, SIDE, 2), rng.uniform(0, np.pi), rng.uniform(4, 16)
        along = (ys - y) * np.sin(angle) + (xs - x) * np.cos(angle)
        across = (ys - y) * np.cos(angle) - (xs - x) * np.sin(angle)
        outside = np.maximum(np.abs(along) - half, 0)
        line = (1.5 - np.hypot(across, outside)).clip(0, 1) * rng.uniform(0.15, 0.4)
        np.maximum(image, line, out=image, casting="same_kind")
    return image


def _fragments(
    rng: np.random.Generator, scans: NDArray[np.intp], image: Floats, taken: Bools, paint: np.random.Generator | None
) -> None:
    """Paste pieces of other scans, as bright as digits, wherever they fall clear of ``taken``."""
    for _ in range(rng.integers(3, 9)):
        size = int(rng.integers(SIZES[0], SIZES[1], endpoint=True))
        side = int(rng.integers(size // 3, size // 2, endpoint=True))
        y, x = rng.integers(0, size - side, 2, endpoint=True)
        top, left = rng.integers(0, SIDE - side, 2, endpoint=True)
        box = np.s_[top : top + side, left : left + side]
        if not taken[box].any():
            piece = _enlarged(size)[_pick(rng, scans), y : y + side, x : x + side]
            _draw(image, box, _ink(None if paint is None else paint.choice(list(COLOURS))) * piece)


def _pick(rng: np.random.Generator, scans: NDArray[np.intp]) -> int:
    return int(scans[rng.integers(len(scans))])


@cache
def _digits() -> tuple[Floats, NDArray[np.intp]]:
    bunch = load_digits()
    return (bunch.images / 16).astype(np.float32), bunch.target.astype(np.intp)


def _classes() -> NDArray[np.intp]:
    return _digits()[1]


@cache
def _enlarged(size: int) -> Floats:
    """All scans scaled bilinearly: (1797, size, size). Resizing is linear, so one matrix does both axes."""
    centres = ((np.arange(size) + 0.5) * 8 / size - 0.5).clip(0, 7)
    weights = (1 - np.abs(centres[:, None] - np.arange(8))).clip(0).astype(np.float32)
    enlarged: Floats = weights @ _digits()[0] @ weights.T
    return enlarged
