"""The losses of the demo's models on batches of canvases, one for each way of training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from timm.layers.patch_embed import resample_patch_embed
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models import VisionTransformer
from torch import Tensor
from torch.nn import functional as F

from fxgrad.demo.canvases import COLOURS
from fxgrad.demo.clip import DigitsClip, caption
from fxgrad.demo.model import CLASS_NAMES

PATCHES = (6, 8, 12)
"""FlexiViT's patch sizes in training: sides in pixels."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Canvases as tensors.

    Attributes:
        pixels: uint8 (N, C, 48, 48).
        labels: int64 (N, 2), the two digits.
        colours: int64 (N, 2), their colours as indices into `COLOURS`; (N, 0) on grey canvases.
        hints: float16 (N, 2, 64, W), the outputs of the teacher's middle block and last block; (N, 0) without a
            teacher.
    """

    pixels: Tensor
    labels: Tensor
    colours: Tensor
    hints: Tensor

    def __len__(self) -> int:
        return len(self.pixels)

    def at(self, indices: Tensor) -> Batch:
        """Some of the canvases."""
        return Batch(*(getattr(self, field.name)[indices] for field in fields(self)))

    @property
    def images(self) -> Tensor:
        """The models' input: float32 (N, C, 48, 48) in [-1, 1]."""
        return self.pixels.float() / 127.5 - 1

    @property
    def targets(self) -> Tensor:
        """float32 (N, 10), one at the two classes shown and zero elsewhere."""
        return torch.zeros(len(self), len(CLASS_NAMES)).scatter_(1, self.labels, 1.0)


def multilabel(model: torch.nn.Module, batch: Batch) -> Tensor:
    """Binary cross-entropy of each class."""
    images, targets = _beside(model, batch.images, batch.targets)
    return F.binary_cross_entropy_with_logits(model(images), targets)


def flexible(model: VisionTransformer, batch: Batch) -> Tensor:
    """Like `multilabel`, with a random patch size for each batch.

    Source: FlexiViT (Beyer et al., arXiv:2212.08013), section 3.
    """
    side = PATCHES[int(torch.randint(len(PATCHES), ()))]
    images, targets = _beside(model, batch.images, batch.targets)
    return F.binary_cross_entropy_with_logits(at_patch_size(model, images, side), targets)


def at_patch_size(model: VisionTransformer, images: Tensor, side: int) -> Tensor:
    """Logits of a ViT at another patch size: its patch embedding and positions are resized.

    Args:
        model: a ViT whose class token has no position, trained at another patch size, or at several.
        images: preprocessed, float32 (N, C, H, W).
        side: side of a patch in pixels; divides H and W.

    Returns:
        float32 (N, 10).

    Source: FlexiViT (Beyer et al., arXiv:2212.08013), section 3.4.
    """
    proj = model.patch_embed.proj
    grid = [images.shape[2] // side, images.shape[3] // side]
    tokens = F.conv2d(images, resample_patch_embed(proj.weight, [side, side]), proj.bias, stride=side)
    assert model.pos_embed is not None and model.cls_token is not None
    tokens = tokens.flatten(2).mT + resample_abs_pos_embed(model.pos_embed, grid, num_prefix_tokens=0)
    tokens = torch.cat([model.cls_token.expand(len(images), -1, -1), tokens], 1)
    logits: Tensor = model.forward_head(model.norm(model.blocks(tokens)))
    return logits


def contrastive(model: DigitsClip, batch: Batch) -> Tensor:
    """The sigmoid loss on all pairs of a picture and a text: is the text true of the picture?

    The texts are one random caption per picture, and every single thing: "a seven", "a red seven".

    Source: Zhai et al., Sigmoid Loss for Language Image Pre-Training, arXiv:2303.15343, section 3.2.
    """
    texts, truth = captions(batch)
    digits, colours = range(len(CLASS_NAMES)), range(len(COLOURS))
    single = [describe([d], [c]) for c in (-1, *colours) for d in digits]
    coloured = torch.zeros(len(batch), len(colours), len(digits))
    coloured[torch.arange(len(batch))[:, None], batch.colours, batch.labels] = 1.0
    truth = torch.cat([truth, batch.targets, coloured.flatten(1)], 1)
    ids = torch.cat([model.tokenize(text) for text in [*texts, *single]])
    images, ids, truth = _beside(model, batch.images, ids, truth)
    return F.binary_cross_entropy_with_logits(model(images, ids), truth)


def _beside(model: torch.nn.Module, *tensors: Tensor) -> list[Tensor]:
    """The tensors on the model's device. What is drawn at random is drawn on the CPU, so it is the same everywhere."""
    device = next(model.parameters()).device
    return [tensor.to(device) for tensor in tensors]


def captions(batch: Batch) -> tuple[list[str], Tensor]:
    """A random caption for each picture, and which captions are true of which pictures.

    A caption names one digit or both, in either order, each with or without its colour.

    Returns:
        N texts, and float32 (N, N): 1 where picture i shows everything that caption j names, else 0.
    """
    swap = torch.rand(len(batch), 1) < 0.5
    digits, colours = (torch.where(swap, pair.flip(1), pair) for pair in (batch.labels, batch.colours))
    colours = torch.where(torch.rand(len(batch), 2) < 0.75, colours, -1)
    both = torch.rand(len(batch)) < 0.5
    texts = [describe(d[: 1 + b], c[: 1 + b]) for d, c, b in zip(digits.tolist(), colours.tolist(), both.tolist())]
    # Axes: picture i, caption j, the caption's thing k, the picture's digit.
    same_digit = batch.labels[:, None, None] == digits[None, :, :, None]
    same_colour = (batch.colours[:, None, None] == colours[None, :, :, None]) | (colours < 0)[None, :, :, None]
    shown = (same_digit & same_colour).any(3)
    return texts, (shown[..., 0] & (shown[..., 1] | ~both)).float()


def describe(digits: Sequence[int], colours: Sequence[int]) -> str:
    """A caption of digits; colours are indices into `COLOURS`, or -1 to leave the colour out.

    Example:
        >>> describe([7, 2], [0, -1])
        'a red seven and a two'
    """
    inks = list(COLOURS)
    return caption([f"{inks[c]} {CLASS_NAMES[d]}" if c >= 0 else CLASS_NAMES[d] for d, c in zip(digits, colours)])
