"""A small CLIP: an image tower and a text tower for coloured canvases and their captions."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from timm.models import VisionTransformer
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from fxgrad.demo.canvases import COLOURS, SIDE
from fxgrad.demo.model import CFG, CLASS_NAMES
from fxgrad.errors import InputError

WORDS = ("", "a", "an", "and", *CLASS_NAMES, *COLOURS)
"""The vocabulary; a word's id is its index. The first is no word, but starts a text and pads it."""
TOKENS = 8
"""Length of a text in tokens: the first token, and "a red seven and a green two"."""
COLOUR_CFG: dict[str, Any] = {**CFG, "input_size": (3, SIDE, SIDE), "mean": (0.5,) * 3, "std": (0.5,) * 3}
"""The config of models on coloured canvases, for timm's tools."""


class DigitsClip(nn.Module):
    """How well texts fit pictures: the scaled cosine of the angle between their embeddings.

    Args:
        width: width of both towers.
        depth: number of blocks of the image tower; the text tower has two.

    Attributes:
        visual: the image tower, timm's CLIP vision transformer; (N, 3, 48, 48) to (N, width).
        prompts: int64 (10, 8), the ids of "a zero" to "a nine": the default texts, which make the model a classifier.

    Example:
        >>> model = DigitsClip().eval()
        >>> pictures = torch.zeros(2, 3, 48, 48)
        >>> model(pictures).shape, model(pictures, model.tokenize("a red seven and a green two")).shape
        (torch.Size([2, 10]), torch.Size([2, 1]))

    Source: Radford et al., Learning Transferable Visual Models From Natural Language Supervision, arXiv:2103.00020.
    """

    prompts: Tensor

    def __init__(self, width: int = 80, depth: int = 4) -> None:
        super().__init__()
        self.num_classes = len(CLASS_NAMES)
        self.visual = VisionTransformer(
            img_size=SIDE,
            patch_size=6,
            in_chans=3,
            num_classes=width,
            embed_dim=width,
            depth=depth,
            num_heads=4,
            pre_norm=True,
        )
        self.words = nn.Embedding(len(WORDS), width)
        self.positions = nn.Parameter(torch.empty(TOKENS, width))
        self.text_blocks = nn.Sequential(*(Block(width, num_heads=4, mlp_ratio=2, qkv_bias=True) for _ in range(2)))
        self.text_norm = nn.LayerNorm(width)
        self.text_head = nn.Linear(width, width, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        for embedding in (self.words.weight, self.positions):
            nn.init.normal_(embedding, std=0.02)
        self.register_buffer("prompts", torch.cat([self.tokenize(caption([name])) for name in CLASS_NAMES]), False)

    def tokenize(self, text: str) -> Tensor:
        """Ids of a prompt's words, padded; case does not matter: int64 (1, 8).

        Raises:
            InputError: the prompt is empty or too long, or has a word that is not in the vocabulary.

        Example:
            >>> DigitsClip().tokenize("a seven").tolist()
            [[0, 1, 11, 0, 0, 0, 0, 0]]
        """
        words = text.lower().split()
        unknown = [word for word in words if word not in WORDS]
        if unknown:
            raise InputError(
                f"the prompt {text!r} has the unknown word {unknown[0]!r}. The model knows {', '.join(WORDS[1:])}."
            )
        if not 0 < len(words) < TOKENS:
            raise InputError(f"the prompt {text!r} has {len(words)} words; the model takes 1 to {TOKENS - 1}.")
        ids = [0, *map(WORDS.index, words)]
        return torch.tensor([ids + [0] * (TOKENS - len(ids))])

    def prompted(self, *texts: str) -> DigitsClip:
        """The same model with other prompts: a classifier of pictures, (N, 3, 48, 48) to (N, number of texts).

        The texts are constants in it, so that only the picture is attributed. Shares the parameters.

        Raises:
            InputError: as `tokenize` does; or no prompt is given.

        Example:
            >>> model = DigitsClip().eval().prompted("a red seven", "a green two")
            >>> model(torch.zeros(1, 3, 48, 48)).shape
            torch.Size([1, 2])
        """
        if not texts:
            raise InputError('give at least one prompt, such as "a red seven".')
        other = copy.copy(self)
        other._buffers = {"prompts": torch.cat([self.tokenize(text) for text in texts]).to(self.prompts.device)}
        other.num_classes = len(texts)
        return other

    def encode_image(self, image: Tensor) -> Tensor:
        """The embeddings of pictures, unit vectors: float32 (N, 3, 48, 48) to (N, width)."""
        return F.normalize(self.visual(image), dim=-1)

    def encode_text(self, text: Tensor) -> Tensor:
        """The embeddings of texts, unit vectors: int64 (M, 8) from `tokenize` to float32 (M, width)."""
        tokens = self.text_blocks(self.words(text) + self.positions)
        return F.normalize(self.text_head(self.text_norm(tokens[:, 0])), dim=-1)

    def forward(self, image: Tensor, text: Tensor | None = None) -> Tensor:
        """Similarities of every picture with every text.

        Args:
            image: preprocessed, float32 (N, 3, 48, 48).
            text: int64 (M, 8) from `tokenize`; by default `prompts`.

        Returns:
            float32 (N, M).
        """
        features = self.encode_text(self.prompts if text is None else text)
        return self.log_scale.exp() * self.encode_image(image) @ features.mT


def caption(things: list[str]) -> str:
    """A text that names things, each a digit with or without its colour.

    Example:
        >>> caption(["red seven", "eight"])
        'a red seven and an eight'
    """
    return " and ".join(f"{'an' if thing == 'eight' else 'a'} {thing}" for thing in things)
