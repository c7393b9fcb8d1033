"""The preprocessing that a processor of transformers does, and a plain one where there is none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fxgrad.data.pictures import Preprocessing, Size

_PILLOW = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
"""Pillow's numbers of filters, as a processor's `resample` has them."""


def plain(size: Size) -> Preprocessing:
    """Pictures resized to a size, with mean and deviation 0.5.

    Example:
        >>> plain((3, 4, 6))(Image.new("RGB", (9, 9), "white")).unique()
        tensor([1.])
    """
    channels, height, width = size
    half = (0.5,) * channels

    def scale(image: Image.Image) -> Tensor:
        pixels = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC), np.float32) / 255
        return torch.tensor(pixels).reshape(height, width, channels).permute(2, 0, 1) * 2 - 1

    return Preprocessing(size=size, mean=half, std=half, transform=scale, interpolation="bicubic", crop=None)


def processed(processor: Any, size: Size | None, channels: int) -> Preprocessing:
    """The preprocessing that a processor of transformers does.

    Args:
        processor: its image processor.
        size: of the model's input; the processor's own sizes follow it. None: the processor's.
        channels: of the model's input.
    """
    resized, cropped = _sides(processor, "size"), _sides(processor, "crop_size")
    crops = bool(getattr(processor, "do_center_crop", False)) and bool(cropped)
    own = cropped if crops else resized
    size = size or (channels, own[0], own[1])
    options: dict[str, Any] = {}
    if size[1:] != own:
        scale = max(size[1:]) / max(own)
        height, width = (round(n * scale) for n in resized)
        edge = "shortest_edge" in _named(processor.size)
        options["size"] = {"shortest_edge": min(height, width)} if edge else dict(zip(("height", "width"), size[1:]))
        options |= {"crop_size": dict(zip(("height", "width"), size[1:]))} if crops else {}
    ratio = getattr(processor, "crop_pct", None) or (min(cropped) / min(resized) if crops else None)

    def transform(image: Image.Image) -> Tensor:
        found: Tensor = processor(images=image, return_tensors="pt", **options)["pixel_values"][0]
        return found

    normalized = getattr(processor, "do_normalize", True)
    mean, std = (
        tuple(getattr(processor, k)) if normalized else (n,) * channels
        for k, n in (("image_mean", 0.0), ("image_std", 1.0))
    )
    return Preprocessing(
        size=size,
        mean=mean,
        std=std,
        transform=transform,
        interpolation=_PILLOW.get(int(getattr(processor, "resample", None) or 3), "bicubic"),
        crop=ratio,
    )


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
