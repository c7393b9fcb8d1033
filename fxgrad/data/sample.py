"""Data sets of pictures: samples by index, each a picture, its label and perhaps its object's mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fxgrad.data.pictures import Preprocessing
from fxgrad.errors import InputError


@dataclass(frozen=True, eq=False)
class Sample:
    """One picture with its label and mask.

    Attributes:
        image: the picture before preprocessing.
        label: index of the class.
        mask: the pixels of the label's object: a picture of mode "L" and the image's size, 255 inside and 0 outside;
            None if there is no mask.
        id: unique name of the sample in its data set, independent of the order.
        other: the pixels of the objects of other classes, such as the second animal, as for `mask`; None if unknown.
        group: name of what this sample shares with others, such as a patient or a scan: intervals resample whole
            groups; "" if it is a group of its own.
    """

    image: Image.Image
    label: int
    mask: Image.Image | None
    id: str
    other: Image.Image | None = None
    group: str = ""


class Data(Protocol):
    """A data set: samples by index, and the meaning of their labels.

    Attributes:
        class_names: one per label; None if unknown.
        multilabel: whether classes are independent (sigmoid), or a picture has exactly one (softmax).
    """

    @property
    def class_names(self) -> Sequence[str] | None: ...
    @property
    def multilabel(self) -> bool: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Sample: ...


@dataclass(frozen=True, eq=False)
class Batch:
    """Samples as tensors, preprocessed for one model.

    Attributes:
        x: float32 (batch, C, H, W).
        labels: int64 (batch,).
        masks: bool (batch, H, W), all False for a sample without a mask.
        ids: one per sample.
        others: bool (batch, H, W), the objects of other classes; all False for a sample without such a mask.
        groups: one per sample; its id if it is a group of its own.
    """

    x: Tensor
    labels: Tensor
    masks: Tensor
    ids: tuple[str, ...]
    others: Tensor
    groups: tuple[str, ...]

    def first(self, count: int, x: Tensor) -> Batch:
        """The first samples, with other pictures `x`, (count, C, H, W)."""
        kept = slice(count)
        return Batch(x, self.labels[kept], self.masks[kept], self.ids[kept], self.others[kept], self.groups[kept])


def collate(samples: Sequence[Sample], preprocess: Preprocessing) -> Batch:
    """Samples as one batch; a mask is resized and cropped like its picture.

    Args:
        samples: at least one.
        preprocess: the model's preprocessing.

    Returns:
        The batch, on the CPU.

    Raises:
        InputError: no samples; or a mask of another size than its picture.

    Example:
        >>> from fxgrad.data.models import load_model
        >>> picture = Image.new("RGB", (8, 8), "white")
        >>> batch = collate([Sample(picture, 3, picture.convert("L"), "a")], load_model("timm:test_vit").preprocess)
        >>> batch.x.shape, batch.masks.all().item(), batch.labels.tolist()
        (torch.Size([1, 3, 160, 160]), True, [3])
    """
    if not samples:
        raise InputError("there are no samples to make a batch of.")
    x = torch.cat([preprocess(s.image) for s in samples])
    return Batch(
        x,
        torch.tensor([s.label for s in samples]),
        torch.stack([_mask(s, s.mask, preprocess) for s in samples]),
        tuple(s.id for s in samples),
        torch.stack([_mask(s, s.other, preprocess) for s in samples]),
        tuple(s.group or s.id for s in samples),
    )


def _mask(sample: Sample, mask: Image.Image | None, preprocess: Preprocessing) -> Tensor:
    """A mask of the sample, preprocessed like its picture, so that they stay aligned, then thresholded."""
    if mask is None:
        return torch.zeros(preprocess.size[1:], dtype=torch.bool)
    if mask.size != sample.image.size:
        raise InputError(f"{sample.id}: the mask is {mask.size} pixels large, the picture {sample.image.size}.")
    return preprocess.invert(preprocess(mask)).mean(0) > 0.5


def mask_of(pixels: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> Image.Image:
    """A `Sample`'s mask from bool (H, W).

    Example:
        >>> mask_of(np.array([[True, False]])).getextrema()
        (0, 255)
    """
    return Image.fromarray(pixels.astype(np.uint8) * 255)
