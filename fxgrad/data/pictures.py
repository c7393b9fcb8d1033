"""Read pictures from files, and preprocess them for a model."""

from __future__ import annotations

import importlib
import math
import struct
from collections.abc import Callable, Iterable
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
Window = tuple[float, float, float, float]
"""Left, top, right and bottom edge of a part of a picture, in the picture's pixels; outside it where it is padded."""
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Number of channels -> Pillow's mode of 8 bits a channel."""
DIM = 1 / 16
"""A picture of more than 8 bits whose brightest pixel is darker than this is taken for data on another scale."""


def read_image(path: str | Path) -> Image.Image:
    """Read any picture that Pillow supports, upright by its EXIF orientation, with 8 bits a channel.

    Of an animation or a file of several pages it is the first picture.

    Returns:
        A picture of mode L, RGB, or RGBA if it has transparent parts: see `in_8_bits`.

    Raises:
        InputError: there is no such file, it is not a picture, or its pixels have no known white.
    """
    image = open_image(path)
    try:
        return in_8_bits(image)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def open_image(path: str | Path) -> Image.Image:
    """Read a picture with its pixels as they are stored, such as a mask's labels, upright by its EXIF orientation.

    Raises:
        InputError: there is no such file, or it is not a picture.
    """
    try:
        # Not by its path: Pillow would map an uncompressed TIFF into memory by the size of the turned picture.
        with open(path, "rb") as file, Image.open(file) as image:
            return ImageOps.exif_transpose(image)
    except (OSError, ValueError, SyntaxError, TypeError, struct.error, Image.DecompressionBombError) as error:
        raise InputError(f"Pillow cannot read the image {path}: {error}") from error


def pictures_in(paths: Iterable[str | Path]) -> list[Path]:
    """The files named, and of each folder named all files in it that end like a picture, in alphabetical order.

    Raises:
        InputError: there is no such file, or a folder without pictures.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name in ("b.png", "a.JPG", "notes.txt"):
        ...     (folder / name).touch()
        >>> [path.name for path in pictures_in([folder])]
        ['a.JPG', 'b.png']
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            endings = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}
            inside = sorted(file for file in path.iterdir() if file.suffix.lower() in endings and file.is_file())
            if not inside:
                raise InputError(
                    f"the folder {path} has no pictures: no file in it ends in .jpg, .png or another such."
                )
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise InputError(f"Pillow cannot read the image {path}: No such file or directory")
    return found


def in_8_bits(image: Image.Image) -> Image.Image:
    """A picture of any of Pillow's modes as one of mode L, RGB, or RGBA if it has an alpha channel.

    Integers of 16 and 32 bits are read with white at 65,535, floats with white at 1.

    Raises:
        InputError: pixels of more than 8 bits that do not fit that scale: negative, larger than white, not finite, or
            all darker than a sixteenth of white, such as 12-bit data.

    Example:
        >>> in_8_bits(Image.new("I;16", (1, 1), 65535)).getpixel((0, 0)), in_8_bits(Image.new("F", (1, 1), 1.0)).mode
        (255, 'L')
    """
    mode = image.mode
    if mode == "F" or mode.startswith("I"):
        grey = _scaled(image)
        key = image.info.get("transparency")
        if not isinstance(key, int):
            return grey
        alpha = Image.fromarray(np.where(np.asarray(image) == key, 0, 255).astype(np.uint8))
        return Image.merge("RGBA", (grey, grey, grey, alpha))
    if mode == "La":  # alpha multiplied in, which Pillow converts one way only
        return image.convert("LA").convert("RGBA")
    palette = image.palette.mode if image.palette is not None else ""
    if mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in image.info or palette.endswith("A"):
        return image.convert("RGBA")
    return image.convert("L" if mode in ("1", "L") else "RGB")


def _scaled(image: Image.Image) -> Image.Image:
    """Integers of more than 8 bits, or floats, as a grey picture of 8 bits."""
    values = np.asarray(image)
    what, white = ("float", 1.0) if image.mode == "F" else (f"{'16' if ';' in image.mode else '32'}-bit", 65535.0)
    low, high = float(values.min()), float(values.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise InputError("its pixels are not all finite numbers. Replace NaN and infinities, and save it again.")
    # A float's last bit may carry it over the edge.
    if low < -1e-3 * white or high > 1.001 * white or 0 < high < DIM * white:
        raise InputError(
            f"its {what} pixels go from {low:.6g} to {high:.6g}, and are read with black at 0 and white at "
            f"{white:.0f}: that does not fit. Scale them so that it does, or to 8 bits, and save it again."
        )
    levels = (values.astype(np.float64) / white * 255).round().clip(0, 255)
    return Image.fromarray(levels.astype(np.uint8))


def with_channels(image: Image.Image, channels: int) -> Image.Image:
    """A picture of any mode with as many channels of 8 bits as a model takes: 1 is grey, 3 colour, 4 has alpha.

    For 1 and 3 channels, what is transparent is laid on white.

    Raises:
        InputError: another number of channels, or what `in_8_bits` refuses.

    Example:
        >>> clear = Image.new("RGBA", (1, 1), (0, 0, 0, 0))
        >>> with_channels(clear, 3).getpixel((0, 0)), with_channels(clear, 4).getpixel((0, 0))
        ((255, 255, 255), (0, 0, 0, 0))
    """
    if channels not in MODES:
        raise InputError(f"the model takes {channels} channels; a picture has 1, 3 or 4.")
    plain = in_8_bits(image)
    if plain.mode == "RGBA" and channels != 4:
        plain = Image.alpha_composite(Image.new("RGBA", plain.size, "white"), plain).convert("RGB")
    return plain.convert(MODES[channels])


def fitted(width: int, height: int, size: Size, crop: float | None) -> tuple[tuple[int, int], tuple[int, int]]:
    """How a picture is resized and center-cropped to a model's size.

    Args:
        width, height: of the picture.
        size, crop: as of `Preprocessing`.

    Returns:
        (width, height) of the resized picture, and (left, top) of the model's input in it; negative where it is padded.

    Example:
        >>> fitted(640, 480, (3, 224, 224), 0.875)
        ((341, 256), (58, 16))

    Source: timm's and torchvision's evaluation transforms (Resize, CenterCrop), whose rounding this is.
    """
    _, high, wide = size
    if crop is None:
        return (wide, high), (0, 0)
    least_wide, least_high = (math.floor(side / crop) for side in (wide, high))
    if least_wide * height >= least_high * width:
        resized = (least_wide, int(least_wide * height / width))
    else:
        resized = (int(least_high * width / height), least_high)
    return resized, (round((resized[0] - wide) / 2), round((resized[1] - high) / 2))


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
        resized, (left, top) = fitted(width, height, self.size, self.crop)
        x, y = width / resized[0], height / resized[1]
        return left * x, top * y, (left + wide) * x, (top + high) * y

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
