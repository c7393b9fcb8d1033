"""Read pictures from files: of every mode that Pillow has, upright, with 8 bits a channel."""

from __future__ import annotations

import contextlib
import math
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from fxgrad.errors import InputError

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
    with _opened(path) as image:
        return ImageOps.exif_transpose(image)


def readable(path: str | Path) -> None:
    """Look at a picture's first bytes only, before work that would be lost if there is no picture.

    Raises:
        InputError: there is no such file, or it does not begin like a picture.
    """
    with _opened(path):
        pass


@contextlib.contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    """A picture's file; whatever Pillow raises meanwhile is an `InputError`."""
    try:
        # Not by its path: Pillow would map an uncompressed TIFF into memory by the size of the turned picture.
        with open(path, "rb") as file, Image.open(file) as image:
            yield image
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
    # A crop of 224/232 is to be of 232 pixels, not of 231.99999.
    least_wide, least_high = (math.floor(side / crop + 1e-6) for side in (wide, high))
    if least_wide * height >= least_high * width:
        resized = (least_wide, int(least_wide * height / width))
    else:
        resized = (int(least_high * width / height), least_high)
    return resized, (round((resized[0] - wide) / 2), round((resized[1] - high) / 2))


def window_of(width: int, height: int, size: Size, crop: float | None) -> Window:
    """Where a model's input lies in a picture that is resized and center-cropped.

    Args:
        width, height, size, crop: as for `fitted`.

    Example:
        >>> window_of(512, 256, (3, 224, 224), 0.875)
        (144.0, 16.0, 368.0, 240.0)
    """
    resized, (left, top) = fitted(width, height, size, crop)
    x, y = width / resized[0], height / resized[1]
    return left * x, top * y, (left + size[2]) * x, (top + size[1]) * y
