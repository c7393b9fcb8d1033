"""A preprocessing of pictures by Pillow, for models that bring none of their own for their size."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fxgrad.data.pictures import Preprocessing
from fxgrad.reading import Size, fitted


def resizing(
    size: Size,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    interpolation: str = "bicubic",
    crop: float | None = None,
) -> Preprocessing:
    """Resize, crop the centre, and normalize.

    Args:
        size, mean, std, interpolation, crop: as of `Preprocessing`.

    Example:
        >>> resizing((3, 4, 6), (0.5,) * 3, (0.5,) * 3)(Image.new("RGB", (9, 9), "white")).unique()
        tensor([1.])
    """
    channels, height, width = size
    filter = Image.Resampling[interpolation.upper()]

    def transform(image: Image.Image) -> Tensor:
        resized, (left, top) = fitted(*image.size, size, crop)
        window = image.resize(resized, filter).crop((left, top, left + width, top + height))
        pixels = torch.from_numpy(np.asarray(window, np.float32).reshape(height, width, channels) / 255)
        return ((pixels - torch.tensor(mean)) / torch.tensor(std)).permute(2, 0, 1)

    return Preprocessing(size, mean, std, transform, interpolation, crop)
