"""The picture under a map: whole, in colour, with the part of it that the model sees."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fxgrad.errors import InputError
from fxgrad.reading import Window, with_channels

if TYPE_CHECKING:  # an exported explainer is drawn where there is no torch
    from torch import Tensor

LARGEST = 1200
"""Pixels of the longer side that are kept for drawing."""


@dataclass(frozen=True, eq=False)
class Photo:
    """A picture to draw a map on.

    Attributes:
        pixels: uint8 (rows, columns, 3); made smaller where the picture is large.
        width, height: of the picture itself.
        window: where the model's input lies in it, in its pixels.
    """

    pixels: NDArray[Any]
    width: int
    height: int
    window: Window

    @property
    def whole(self) -> bool:
        """Whether the model sees all of the picture, to a pixel."""
        left, top, right, bottom = self.window
        return left < 1 and top < 1 and right > self.width - 1 and bottom > self.height - 1

    @property
    def coloured(self) -> bool:
        """Whether any pixel is not grey."""
        return bool(np.ptp(self.pixels, axis=2).any())

    def seen(self) -> NDArray[Any]:
        """Which of `pixels` the model sees, bool (rows, columns)."""
        rows, columns = self.pixels.shape[:2]
        left, top, right, bottom = self.window
        y = (np.arange(rows) + 0.5) * self.height / rows
        x = (np.arange(columns) + 0.5) * self.width / columns
        found: NDArray[Any] = ((y >= top) & (y < bottom))[:, None] & ((x >= left) & (x < right))
        return found


def photo(
    picture: Tensor | NDArray[Any] | Image.Image, size: Sequence[int] | None = None, window: Window | None = None
) -> Photo:
    """Check a picture that a map is to be drawn on.

    Args:
        picture: a PIL image of any mode, or a tensor or array (C, H, W) in [0, 1] with 1, 3 or 4 channels. What is
            transparent is laid on white.
        size: height and width of the model's input; None: the picture's own.
        window: left, top, right and bottom edge of the model's input in the picture, in the picture's pixels; by
            default the whole picture, which then has the shape of the model's input.

    Raises:
        InputError: the picture is something else, such as (H, W, C) or pixels up to 255; the message has what to pass.

    Example:
        >>> photo(np.zeros((3, 40, 60)), (20, 30)).window
        (0.0, 0.0, 60.0, 40.0)
    """
    pixels = _colours(picture)
    height, width = pixels.shape[:2]
    if window is None:
        wanted = width / height if size is None else size[1] / size[0]
        if abs(math.log(wanted * height / width)) > 0.02:
            assert size is not None
            raise InputError(
                f"the picture is {width} x {height} pixels, the model's input {size[1]} x {size[0]}, another shape. "
                "Pass window=(left, top, right, bottom), the part of the picture that the model sees, in the picture's "
                f"pixels; window=(0, 0, {width}, {height}) where the whole was squeezed."
            )
        window = (0.0, 0.0, float(width), float(height))
    left, top, right, bottom = window
    if not (left < right and top < bottom and left < width and top < height and right > 0 and bottom > 0):
        raise InputError(
            f"window is (left, top, right, bottom) in a picture of {width} x {height} pixels; got {window}."
        )
    return Photo(_smaller(pixels), width, height, window)


def _colours(picture: Any) -> NDArray[Any]:
    """uint8 (H, W, 3)."""
    if isinstance(picture, Image.Image):
        return np.asarray(with_channels(picture, 3))
    values = picture if isinstance(picture, np.ndarray) else _as_array(picture)
    if values.ndim != 3 or values.shape[0] not in (1, 3, 4):
        how = "for example picture.permute(2, 0, 1)" if values.ndim == 3 and values.shape[2] in (1, 3, 4) else ""
        how = how.replace("permute", "transpose") if values is picture else how
        how = "picture[0]" if values.ndim == 4 else how or "one picture"
        raise InputError(f"picture is (C, H, W) with 1, 3 or 4 channels; this one is {values.shape}. Pass {how}.")
    low, high = float(values.min()), float(values.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise InputError("picture has NaN or infinities; its pixels are numbers in [0, 1].")
    if low < -1e-3 or high > 1.001 or values.dtype.kind != "f":
        how = "picture * std + mean, which undoes the normalization, or the PIL image" if low < 0 else "picture / 255"
        raise InputError(f"picture's pixels go from {low:.3g} to {high:.3g}, and must be floats in [0, 1]. Pass {how}.")
    colours = values.astype(np.float32).clip(0, 1)
    if len(colours) == 4:
        colours = 1 - colours[3] * (1 - colours[:3])
    levels = np.rint(colours * 255).astype(np.uint8).transpose(1, 2, 0)
    return np.ascontiguousarray(np.broadcast_to(levels, (*levels.shape[:2], 3)))


def _as_array(picture: Any) -> NDArray[Any]:
    """A tensor as an array; of float32 if it is of any floating-point dtype, which numpy may lack."""
    if not hasattr(picture, "is_floating_point"):
        raise InputError(
            f"picture is a tensor or an array (C, H, W) in [0, 1] or a PIL image, not {type(picture).__name__}."
        )
    values = picture.detach().cpu()
    found: NDArray[Any] = (values.float() if values.is_floating_point() else values).numpy()
    return found


def _smaller(pixels: NDArray[Any]) -> NDArray[Any]:
    """The picture with at most `LARGEST` pixels a side, each the mean of a block."""
    height, width = pixels.shape[:2]
    if max(height, width) <= LARGEST:
        return pixels
    scale = LARGEST / max(height, width)
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BOX))
