"""The preprocessing that a processor of transformers does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from PIL import Image
from torch import Tensor

from fxgrad.data.pictures import Preprocessing
from fxgrad.data.resizing import resizing
from fxgrad.reading import Size

_PILLOW = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
"""Pillow's numbers of filters, as a processor's `resample` has them."""


def processed(processor: Any, size: Size | None, channels: int) -> Preprocessing:
    """The preprocessing that a processor of transformers does.

    Args:
        processor: its image processor.
        size: of the model's input; None: the processor's. Where they differ, pictures are resized to the model's in the
            same way, by Pillow.
        channels: of the model's input.
    """
    resized, cropped = _sides(processor, "size"), _sides(processor, "crop_size")
    crops = bool(getattr(processor, "do_center_crop", False)) and bool(cropped)
    own = cropped if crops else resized
    ratio = getattr(processor, "crop_pct", None) or (min(cropped) / min(resized) if crops else None)
    normalized = getattr(processor, "do_normalize", True)
    mean = tuple(processor.image_mean) if normalized else (0.0,) * channels
    std = tuple(processor.image_std) if normalized else (1.0,) * channels
    resample = getattr(processor, "resample", None)
    interpolation = "bicubic" if resample is None else _PILLOW[int(resample)]
    if size is not None and size[1:] != own:
        return resizing(size, mean, std, interpolation, ratio)

    def transform(image: Image.Image) -> Tensor:
        found: Tensor = processor(images=image, return_tensors="pt")["pixel_values"][0]
        return found

    return Preprocessing((channels, own[0], own[1]), mean, std, transform, interpolation, ratio)


def _named(size: Any) -> Mapping[str, int]:
    """A processor's size by the names that are set; a number is the shortest edge."""
    if isinstance(size, int):
        return {"shortest_edge": size}
    return {name: size[name] for name in ("shortest_edge", "height", "width") if size.get(name)}


def _sides(processor: Any, which: str) -> tuple[int, ...]:
    """(height, width) of a processor's size; () if it has none."""
    sides = _named(getattr(processor, which, None) or {})
    if "shortest_edge" in sides:
        return (sides["shortest_edge"],) * 2
    return (sides["height"], sides["width"]) if sides else ()
