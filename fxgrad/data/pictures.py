"""Preprocess pictures for a model."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from fxgrad.errors import CaptureError, InputError
from fxgrad.reading import Size as Size
from fxgrad.reading import Window, window_of, with_channels


@dataclass(frozen=True)
class Preprocessing:
    """Converts a picture to the model's input tensor, and back for display.

    Attributes:
        size: (C, H, W) of the model's input; with one channel the picture is converted to grey.
        mean, std: per channel, for pixels in [0, 1].
        transform: resizes, crops and normalizes a PIL image to float32 (C, H, W).
        interpolation: name of Pillow's filter for resizing.
        crop: side of the center crop, relative to the resized picture; None: resize to the model's size without keeping
            the aspect ratio.
        letterbox: resize the whole picture into the model's size, and pad it there; `crop` is then 1.
    """

    size: Size
    mean: tuple[float, ...]
    std: tuple[float, ...]
    transform: Callable[[Image.Image], Tensor]
    interpolation: str = "bicubic"
    crop: float | None = None
    letterbox: bool = False

    def __call__(self, image: Image.Image) -> Tensor:
        """A picture of any mode as a batch of one, float32 (1, C, H, W).

        Raises:
            InputError: the model's number of channels is not 1, 3 or 4, or the picture's pixels have no known white.
        """
        return self.transform(with_channels(image, self.size[0]))[None]

    def window(self, width: int, height: int) -> Window:
        """Where the model's input lies in a picture of this size.

        Example:
            >>> squashed = Preprocessing((3, 224, 224), (0.0,) * 3, (1.0,) * 3, lambda image: torch.zeros(3, 224, 224))
            >>> squashed.window(640, 480)
            (0.0, 0.0, 640.0, 480.0)
        """
        high, wide = self.size[1:]
        if self.letterbox:
            scale = max(width / wide, height / high)
            left, top = (width - wide * scale) / 2, (height - high * scale) / 2
            return left, top, left + wide * scale, top + high * scale
        return window_of(width, height, self.size, self.crop)

    def constants(self) -> dict[str, Any]:
        """The preprocessing as JSON values, for other programs; mean and std apply to pixels in [0, 1]."""
        names = ("size", "mean", "std", "interpolation", "crop", *(["letterbox"] if self.letterbox else []))
        return {name: getattr(self, name) for name in names}

    def invert(self, x: Tensor) -> Tensor:
        """From a batch of one (1, C, H, W) to its pixels in [0, 1], float32 (C, H, W)."""
        mean, std = (torch.tensor(v)[:, None, None] for v in (self.mean, self.std))
        return (x.detach()[0].float().cpu() * std + mean).clamp(0, 1)


def preprocessing_of(spec: str, model: nn.Module, cfg: dict[str, Any], size: Size | None) -> Preprocessing:
    """The preprocessing from a model's config, or for a given size.

    Raises:
        InputError: the model's input size is unknown.
    """
    if cfg:
        data = import_timm().data
        config = data.resolve_model_data_config(model, pretrained_cfg=cfg, args={"input_size": size} if size else None)
        size = cast(Size, tuple(config["input_size"]))
        for key in ("mean", "std"):
            if len(config[key]) != size[0]:  # built for another number of channels than the pretrained weights
                config[key] = (sum(config[key]) / len(config[key]),) * size[0]
        transform = data.create_transform(**config, is_training=False)
        crop = None if config["crop_mode"] == "squash" else config["crop_pct"]
        mean, std, letterbox = tuple(config["mean"]), tuple(config["std"]), config["crop_mode"] == "border"
        return Preprocessing(size, mean, std, transform, config["interpolation"], crop, letterbox)
    if size is None:
        raise InputError(
            f"{spec} does not say how large its input is. Give --input-size C H W, or attach a pretrained_cfg with "
            "input_size, mean and std to the model."
        )
    channels, height, width = size

    def scale(image: Image.Image) -> Tensor:
        """Pixels in [0, 1], for a model without a config."""
        pixels = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC), np.float32) / 255
        return torch.tensor(pixels).reshape(height, width, channels).permute(2, 0, 1)

    return Preprocessing(size, (0.0,) * channels, (1.0,) * channels, scale)


def import_timm() -> ModuleType:
    """The module timm.

    Raises:
        CaptureError: timm is not installed.
    """
    try:
        return importlib.import_module("timm")
    except ImportError as error:
        raise CaptureError(f'this needs timm ({error}): pip install "fxgrad[timm]"') from error
