"""Photographs that libraries install with themselves, half of each one's area to train on, half held out.

Nothing is downloaded and none is redistributed: the files are read where pip put them.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch import Tensor

from fxgrad import InputError
from fxgrad.reading import read_image

FOLDERS = {"skimage": "data", "sklearn": "datasets/images", "matplotlib": "mpl-data/sample_data"}
NAMES = {
    "skimage": (
        *("astronaut.png", "brick.png", "camera.png", "cell.png", "chelsea.png", "clock_motion.png", "coffee.png"),
        *("coins.png", "grass.png", "gravel.png", "hubble_deep_field.jpg", "ihc.png", "moon.png"),
        *("motorcycle_left.png", "page.png", "retina.jpg", "rocket.jpg", "text.png"),
    ),
    "sklearn": ("china.jpg", "flower.jpg"),
    "matplotlib": ("grace_hopper.jpg",),
}
"""Every photograph of these packages but second shots of one scene and thumbnails; drawings are none."""

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's, which DINOv2 was trained with."""


@dataclass(frozen=True)
class Photograph:
    """A photograph in colour, and its quarters.

    Attributes:
        name: the file's, without its ending.
        whole: all of it.
        trained: the upper left and the lower right quarter.
        held: the upper right and the lower left one; no pixel is in both.
    """

    name: str
    whole: Image.Image
    trained: tuple[Image.Image, Image.Image]
    held: tuple[Image.Image, Image.Image]


def photographs() -> list[Photograph]:
    """All of them, in order of package and name.

    Raises:
        InputError: a package or a file is missing.
    """
    return [quartered(file.stem, read_image(file)) for package in NAMES for file in _files(package)]


def _files(package: str) -> list[Path]:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"{package} is not installed, whose photographs these measurements use. Install fxgrad[real].")
    folder = Path(spec.submodule_search_locations[0]) / FOLDERS[package]
    for name in NAMES[package]:
        if not (folder / name).exists():
            raise InputError(f"{package} installs no {folder / name}. Another version of it does.")
    return [folder / name for name in NAMES[package]]


def quartered(name: str, image: Image.Image) -> Photograph:
    """A picture as a photograph; an odd row or column in the middle belongs to no quarter."""
    image = image.convert("RGB")
    (width, height), (across, down) = image.size, (length // 2 for length in image.size)
    left, right = (0, across), (width - across, width)
    upper, lower = (0, down), (height - down, height)
    quarter = {(x, y): image.crop((x[0], y[0], x[1], y[1])) for x in (left, right) for y in (upper, lower)}
    trained = (quarter[left, upper], quarter[right, lower])
    return Photograph(name, image, trained, (quarter[right, upper], quarter[left, lower]))


def crop(image: Image.Image, generator: np.random.Generator, size: int, smallest: float, jitter: float = 0.0) -> Tensor:
    """A random square of a picture, mirrored at random, in [0, 1], (3, size, size).

    Args:
        image: what it is cut from.
        generator: of the random numbers.
        size: side of the result.
        smallest: least side of the square, as a share of the picture's shorter one.
        jitter: largest change of brightness and contrast, as a share.
    """
    side = round(min(image.size) * generator.uniform(smallest, 1))
    left, top = (int(generator.integers(length - side + 1)) for length in image.size)
    square = image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BICUBIC)
    if generator.random() < 0.5:
        square = square.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast) if jitter else ():
        square = enhance(square).enhance(1 + generator.uniform(-jitter, jitter))
    return torch.from_numpy(np.array(square)).permute(2, 0, 1).float() / 255


def normalized(pixels: Tensor) -> Tensor:
    """Pixels in [0, 1], (..., 3, height, width), as the model takes them."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return (pixels - mean) / std


def central(image: Image.Image, size: int) -> Tensor:
    """The middle square of a picture in [0, 1], (3, size, size)."""
    side = min(image.size)
    left, top = ((length - side) // 2 for length in image.size)
    square = image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1).float() / 255
