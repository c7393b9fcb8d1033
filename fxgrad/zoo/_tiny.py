"""Helpers for the cases of `fxgrad.zoo.transformers`: tiny configurations, example inputs, building a model."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fxgrad.zoo.case import Built

Case = Callable[[], Built]
Inputs = Callable[[], dict[str, Any]]

BATCH, LENGTH, VOCABULARY, SIDE, PLACEHOLDER = 2, 7, 98, 32, 98
"""Sizes of the examples. Ids are below VOCABULARY; PLACEHOLDER is the id that an image's embedding replaces."""

TINY: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": VOCABULARY + 1,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "use_cache": False,  # a cache is an output that torch.export does not know
    "tie_word_embeddings": False,
    "image_size": SIDE,
    "patch_size": 8,
}
"""The usual keys for sizes in configurations; cases with other keys name them."""
KV: dict[str, Any] = {"num_key_value_heads": 2, "head_dim": 8}
BART: dict[str, Any] = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
}


def case(
    model: str,
    inputs: Inputs,
    /,
    part: str = "",
    omit: Sequence[str] = (),
    through_no_grad: bool = False,
    **config: Any,
) -> Case:
    """The case of one model.

    Args:
        model: name of its class in transformers.
        inputs: makes the keyword arguments of its forward.
        part: path of the submodule to take instead of the whole model.
        omit: keys of `TINY` that the configuration does not take.
        through_no_grad: as for `fxgrad.convert`.
        **config: further values of the configuration.

    Returns:
        A function that builds the model and its example.
    """

    def build() -> Built:
        cls = getattr(importlib.import_module("transformers"), model)
        renamed = cls.config_class.attribute_map  # GPT-2's hidden_size is n_embd: both names are accepted
        general = {k: v for k, v in TINY.items() if k not in omit and renamed.get(k) not in config}
        built = cls(cls.config_class(**general | config)).eval()
        _train(built)
        return Built(built.get_submodule(part), (), inputs(), through_no_grad=through_no_grad)

    return build


def tiny(model_type: str = "", /, **config: Any) -> dict[str, Any]:
    """A configuration nested in another one."""
    return TINY | ({"model_type": model_type} if model_type else {}) | config


def _train(model: nn.Module) -> None:
    """Make weights like trained ones, in place: no bias of 0, no norm of 1, no vanishing signal."""
    with torch.no_grad():
        for parameter in model.parameters():
            matrix = parameter.dim() > 1 and len(parameter) > 1
            parameter.add_(torch.randn_like(parameter), alpha=parameter[0].numel() ** -0.5 if matrix else 0.1)


def ids(length: int = LENGTH, below: int = VOCABULARY) -> Tensor:
    """Token ids (batch, length), without special tokens."""
    return torch.randint(3, below, (BATCH, length))


def ones(*shape: int) -> Tensor:
    """Integers (batch, *shape), all one."""
    return torch.ones(BATCH, *shape, dtype=torch.long)


def _padded() -> Tensor:
    """A mask whose second row ends in padding."""
    mask = ones(LENGTH)
    mask[1, -1] = 0
    return mask


def given(**shapes: Sequence[int]) -> Inputs:
    """Standard normal tensors; shapes are given without the batch."""
    return lambda: {name: torch.randn(BATCH, *shape) for name, shape in shapes.items()}


def text() -> dict[str, Any]:
    return {"input_ids": ids(), "attention_mask": _padded()}


def unmasked_text() -> dict[str, Any]:
    return {"input_ids": ids()}


def typed_text() -> dict[str, Any]:
    return text() | {"token_type_ids": (torch.arange(LENGTH) > 3).long().repeat(BATCH, 1)}


def seq2seq() -> dict[str, Any]:
    return text() | {"decoder_input_ids": ids(5)}


image = given(pixel_values=(3, SIDE, SIDE))
large_image = given(pixel_values=(3, 64, 64))
video = given(pixel_values=(4, 3, SIDE, SIDE))
waveform = given(input_values=(800,))


def to_text(inputs: Inputs) -> Inputs:
    """The inputs, and the decoder's tokens so far."""
    return lambda: inputs() | {"decoder_input_ids": ids(5)}


def text_image() -> dict[str, Any]:
    return text() | image()


def one_of_images(tokens: int) -> Inputs:
    """Like `image_in_text`, for texts with several images: (batch, images, channels, height, width)."""

    def inputs() -> dict[str, Any]:
        call = image_in_text(tokens)()
        return call | {"pixel_values": call["pixel_values"][:, None]}

    return inputs


def image_in_text(tokens: int, **extra: Callable[[], Tensor]) -> Inputs:
    """Text that starts with an image's placeholders, and the image."""

    def inputs() -> dict[str, Any]:
        written = torch.cat([torch.full((BATCH, tokens), PLACEHOLDER), ids(5, below=90)], 1)
        more = {name: make() for name, make in extra.items()}
        return image() | {"input_ids": written, "attention_mask": ones(tokens + 5)} | more

    return inputs
