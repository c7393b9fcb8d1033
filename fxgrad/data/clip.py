"""Models of open_clip, which classify a picture by the texts that they are prompted with."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from fxgrad.data.pictures import Preprocessing, Size
from fxgrad.errors import CaptureError, one_line


class OpenClip(nn.Module):
    """The picture's half of a CLIP: from pictures to embeddings.

    Args:
        clip: open_clip's model.
        tokenizer: texts -> token ids, (texts, length).
    """

    clip: Any

    def __init__(self, clip: nn.Module, tokenizer: Callable[[list[str]], Tensor]) -> None:
        super().__init__()
        self.clip, self.tokenizer = clip, tokenizer

    def forward(self, image: Tensor) -> Tensor:
        """Pictures (batch, C, H, W) -> embeddings (batch, width)."""
        embedded: Tensor = self.clip.encode_image(image)
        return embedded

    def prompted(self, *texts: str) -> Prompted:
        """The classifier of pictures by these texts.

        Raises:
            CaptureError: there are none.
        """
        if not texts:
            raise CaptureError("a CLIP classifies by texts: give at least one --prompt.")
        with torch.no_grad():
            embedded = self.clip.encode_text(self.tokenizer(list(texts)), normalize=True)
        return Prompted(self.clip, embedded)


class Prompted(nn.Module):
    """A CLIP with constant texts: from pictures to one logit per text, its scale times their cosine, plus its bias."""

    clip: Any
    texts: Tensor
    bias: Tensor

    def __init__(self, clip: nn.Module, texts: Tensor) -> None:
        super().__init__()
        self.clip, self.num_classes = clip, len(texts)
        scale, bias = cast(Tensor, clip.logit_scale), cast(Any, getattr(clip, "logit_bias", None))
        self.register_buffer("texts", scale.detach().exp() * texts.detach())
        self.register_buffer("bias", torch.zeros_like(scale.detach()) if bias is None else bias.detach().clone())

    def forward(self, image: Tensor) -> Tensor:
        """Pictures (batch, C, H, W) -> logits (batch, texts)."""
        embedded: Tensor = self.clip.encode_image(image, normalize=True)
        return embedded @ self.texts.T + self.bias


def open_clip_model(name: str, size: Size | None = None) -> tuple[OpenClip, str]:
    """A model of open_clip, in eval mode, and where its weights come from, in words.

    Args:
        name: NAME, with random weights; NAME@TAG, with open_clip's weights of that tag; hf-hub:REPOSITORY or
            local-dir:FOLDER, with the weights there.
        size: (channels, height, width) of the pictures, if not the model's own.

    Raises:
        CaptureError: open_clip is not installed, has no such model or weights, or cannot reach them.
    """
    module = _open_clip()
    model, _, tag = name.partition("@")
    elsewhere = model.startswith(("hf-hub:", "local-dir:"))
    if not elsewhere and model not in module.list_models():
        raise CaptureError(
            f"open_clip has no model {model!r}. open_clip.list_models() has all; hf-hub:REPOSITORY, too."
        )
    tags = [] if elsewhere else module.list_pretrained_tags_by_model(model)
    if tag and tag not in tags:
        raise CaptureError(f"open_clip has no weights {tag!r} of {model}; it has {', '.join(tags) or 'none'}.")
    options = {} if size is None else {"force_image_size": size[1:]}
    try:
        clip = module.create_model(model, pretrained=tag or None, load_weights=bool(tag) or elsewhere, **options)
        tokenizer = module.get_tokenizer(model)
    except Exception as error:
        raise CaptureError(f"open_clip:{name} cannot be had: {one_line(error)}") from error
    return OpenClip(clip, tokenizer).eval(), tag or (model if elsewhere else "random")


def open_clip_preprocessing(model: OpenClip) -> Preprocessing:
    """The preprocessing of open_clip's model, as open_clip defines it."""
    transform = _open_clip().transform
    config = transform.PreprocessCfg(**model.clip.visual.preprocess_cfg)
    size = config.size if isinstance(config.size, (tuple, list)) else (config.size, config.size)
    return Preprocessing(
        (len(config.mean), *size),
        tuple(config.mean),
        tuple(config.std),
        transform.image_transform_v2(config, is_train=False),
        config.interpolation,
        None if config.resize_mode == "squash" else 1.0,
    )


def _open_clip() -> Any:
    try:
        return importlib.import_module("open_clip")
    except ImportError as error:
        raise CaptureError(f'this needs open_clip ({error}): pip install "fxgrad[clip]"') from error
