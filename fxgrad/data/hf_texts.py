"""Language models of transformers, which commands that need no picture take: random token ids stand for a text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn, cast

import torch
from PIL import Image
from torch import Tensor, nn

from fxgrad.data.pictures import Preprocessing
from fxgrad.errors import InputError
from fxgrad.reading import Size

LENGTH = 16
"""Tokens of an example."""


@dataclass(frozen=True)
class TokenIds(Preprocessing):
    """In the place of a preprocessing of pictures: says that the input is token ids, `size` of them.

    Attributes:
        vocabulary: how many ids there are.
    """

    vocabulary: int = 0

    def drawn(self, batch: int, generator: torch.Generator) -> Tensor:
        """Random token ids, int64 (batch, length)."""
        return torch.randint(self.vocabulary, (batch, *self.size), generator=generator)

    def __call__(self, image: Image.Image) -> NoReturn:
        """No picture is taken.

        Raises:
            InputError: always.
        """
        raise InputError(
            "the model takes token ids, no pictures: convert and check take it here; in Python, fxgrad.attribute with "
            "a Token as the target."
        )

    def constants(self) -> NoReturn:
        """There are none: see `__call__`."""
        self(Image.new("L", (1, 1)))


class TextLogits(nn.Module):
    """A language model of transformers, from token ids to its logits alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        """Token ids (batch, length) -> logits (batch, length, vocabulary), or (batch, classes)."""
        found: Tensor = self.model(input_ids=ids).logits
        return found


def text_model(transformers: Any, config: Any, classes: bool) -> Any:
    """The class of transformers that builds a language model of a config; None if it is no language model.

    Args:
        transformers: the module.
        config: its `architectures` decide, if it has any.
        classes: whether it is to classify texts.
    """
    kinds = {
        "ForMaskedLM": "MASKED_LM",
        "ForCausalLM": "CAUSAL_LM",
        "ForSequenceClassification": "SEQUENCE_CLASSIFICATION",
    }
    named = [kind for kind in kinds if any(kind in name for name in config.architectures or ())]
    order = ["ForSequenceClassification"] if classes else [*named, "ForMaskedLM", "ForCausalLM"]
    for kind in order:
        if type(config) in getattr(transformers, f"MODEL_FOR_{kinds[kind]}_MAPPING"):
            return getattr(transformers, f"AutoModel{kind}")
    return None


def token_ids(config: Any) -> TokenIds:
    """What stands for the preprocessing of a language model's config."""
    own = config.get_text_config()
    length = min(LENGTH, getattr(own, "max_position_embeddings", None) or LENGTH)
    size = cast(Size, (length,))
    return TokenIds(size, (), (), lambda image: torch.empty(0), vocabulary=own.vocab_size)
