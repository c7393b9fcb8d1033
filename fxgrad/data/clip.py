"""CLIP and its kind: two towers, of open_clip or transformers, and the classifiers of pictures that texts make of them.

Source: Radford et al., arXiv:2103.00020 (CLIP); Zhai et al., arXiv:2303.15343 (SigLIP, whose logits have a bias).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxgrad.errors import CaptureError

Tokenizer = Callable[[list[str]], Tensor]
"""Texts -> token ids, int64 (texts, length); the length is always the text tower's own."""


class Clip(nn.Module):
    """A picture tower and a text tower, one interface for all packages.

    Args:
        clip: the package's model, with `logit_scale` and, where it has one, `logit_bias`.
        tokenizer: of its texts.
    """

    clip: Any

    def __init__(self, clip: nn.Module, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.clip, self.tokenizer = clip, tokenizer

    def encode_image(self, image: Tensor) -> Tensor:
        """Pictures (batch, C, H, W) -> embeddings (batch, width), of any length."""
        raise NotImplementedError

    def encode_text(self, ids: Tensor) -> Tensor:
        """Token ids (texts, length) -> embeddings (texts, width), of any length."""
        raise NotImplementedError

    def forward(self, image: Tensor, ids: Tensor | None = None) -> Tensor:
        """Pictures -> embeddings (batch, width); pictures and token ids -> logits (batch, texts), by both towers."""
        if ids is None:
            return self.encode_image(image)
        return self.logits(self.encode_image(image), F.normalize(self.encode_text(ids), dim=-1))

    def logits(self, image: Tensor, texts: Tensor) -> Tensor:
        """The scaled cosines of embeddings (batch, width) with unit vectors (texts, width), plus the bias."""
        found: Tensor = self.clip.logit_scale.exp() * F.normalize(image, dim=-1) @ texts.T
        bias = getattr(self.clip, "logit_bias", None)
        return found if bias is None else torch.add(found, bias)

    def prompted(self, *texts: str) -> Prompted:
        """The classifier of pictures by these texts.

        Raises:
            CaptureError: there are none.
        """
        if not texts:
            raise CaptureError("a CLIP classifies by texts: give at least one --prompt.")
        with torch.no_grad():
            ids = self.tokenizer(list(texts)).to(self.clip.logit_scale.device)
            return Prompted(self, F.normalize(self.encode_text(ids), dim=-1))


class Prompted(nn.Module):
    """A CLIP with constant texts: from pictures to one logit per text."""

    texts: Tensor

    def __init__(self, clip: Clip, texts: Tensor) -> None:
        super().__init__()
        self.clip, self.num_classes = clip, len(texts)
        self.register_buffer("texts", texts.detach())

    def forward(self, image: Tensor) -> Tensor:
        """Pictures (batch, C, H, W) -> logits (batch, texts)."""
        return self.clip.logits(self.clip.encode_image(image), self.texts)
