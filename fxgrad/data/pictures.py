"""Pictures: read from files, and made into what a model was trained on."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from fxgrad.errors import CaptureError, InputError

Size = tuple[int, int, int]
"""Channels, height, width."""
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def read_image(path: str | Path) -> Image.Image:
    """Any picture that Pillow reads, turned the way that its camera says.

    Raises:
        InputError: there is no such file, or it is not a picture.
    """
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"Pillow cannot read the image {path}: {error}") from error


@dataclass(frozen=True)
class Preprocessing:
    """From a picture to the tensor that the model was trained on, and back again for display.

    Attributes:
        size: of the model's input; one channel makes the picture grey.
        mean, std: per channel, of pixels in [0, 1].
        transform: resizes, crops and normalizes a PIL image to float32 (C, H, W).
        interpolation: the name of Pillow's filter that it resizes with.
        crop: the side of the crop from the middle, relative to the resized picture; None where it resizes to the
            model's size, whatever the picture's shape.
    """

    size: Size
    mean: tuple[float, ...]
    std: tuple[float, ...]
    transform: Callable[[Image.Image], Tensor]
    interpolation: str = "bicubic"
    crop: float | None = None

    def __call__(self, image: Image.Image) -> Tensor:
        """A batch of one, float32 (1, C, H, W).

        Raises:
            InputError: the model takes a number of channels that no picture has.
        """
        if self.size[0] not in _MODES:
            raise InputError(f"the model takes {self.size[0]} channels; a picture has 1, 3 or 4.")
        return self.transform(image.convert(_MODES[self.size[0]]))[None]

    def constants(self) -> dict[str, Any]:
        """What another program needs to do the same, as JSON values; pixels are in [0, 1] before mean and std."""
        names = ("size", "mean", "std", "interpolation", "crop")
        return {name: getattr(self, name) for name in names}

    def invert(self, x: Tensor) -> Tensor:
        """Pixels in [0, 1], float32 (C, H, W), of a batch of one (1, C, H, W)."""
        mean, std = (torch.tensor(v)[:, None, None] for v in (self.mean, self.std))
        return (x.detach()[0].float().cpu() * std + mean).clamp(0, 1)


def preprocessing_of(spec: str, model: nn.Module, cfg: dict[str, Any], size: Size | None) -> Preprocessing:
    """What a model's config says about its input, or a given size.

    Raises:
        InputError: nothing says how large the model's input is.
    """
    if cfg:
        data = import_timm().data
        config = data.resolve_model_data_config(model, pretrained_cfg=cfg, args={"input_size": size} if size else None)
        size = cast(Size, tuple(config["input_size"]))
        for key in ("mean", "std"):
            if len(config[key]) != size[0]:  # built for another number of channels than it was trained on
                config[key] = (sum(config[key]) / len(config[key]),) * size[0]
        transform = data.create_transform(**config, is_training=False)
        crop = None if config["crop_mode"] == "squash" else config["crop_pct"]
        return Preprocessing(
            size, tuple(config["mean"]), tuple(config["std"]), transform, config["interpolation"], crop
        )
    if size is None:
        raise InputError(
            f"{spec} does not say how large its input is. Give --input-size C H W, or attach a pretrained_cfg with "
            "input_size, mean and std to the model."
        )
    channels, height, width = size

    def scale(image: Image.Image) -> Tensor:
        """Pixels in [0, 1], for a model that says nothing else."""
        pixels = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC), np.float32) / 255
        return torch.tensor(pixels).reshape(height, width, channels).permute(2, 0, 1)

    return Preprocessing(size, (0.0,) * channels, (1.0,) * channels, scale)


def import_timm() -> ModuleType:
    """timm.

    Raises:
        CaptureError: it is not installed.
    """
    try:
        return importlib.import_module("timm")
    except ImportError as error:
        raise CaptureError(f'this needs timm ({error}): pip install "fxgrad[timm]"') from error
