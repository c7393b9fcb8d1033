"""The demo's vision transformer: small enough to ship its weights, otherwise as timm builds them."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from timm.models import VisionTransformer

CLASS_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
WEIGHTS = "digits_vit.safetensors"
"""The trained weights' file name, next to this module."""

_CFG: dict[str, Any] = {
    "architecture": "digits_vit",
    "file": WEIGHTS,
    "license": "mit",
    "input_size": (1, 48, 48),
    "fixed_input_size": True,
    "interpolation": "bilinear",
    "crop_pct": 1.0,
    "mean": (0.5,),
    "std": (0.5,),
    "num_classes": len(CLASS_NAMES),
    "label_names": CLASS_NAMES,
    "first_conv": "patch_embed.proj",
    "classifier": "head",
}


def digits_vit(weights: bool = True) -> VisionTransformer:
    """The demo's multi-label ViT in eval mode: preprocessed float32 (N, 1, 48, 48) in, logits (N, 10) out.

    ``timm.data.resolve_model_data_config`` finds its preprocessing as it does for timm's own models.

    Args:
        weights: load the shipped weights; without, the model keeps its random initialisation.

    Raises:
        FileNotFoundError: the weights' file is missing; the message names the command that makes it.
        RuntimeError: the weights' file does not fit this model.

    Example:
        >>> from fxgrad.demo.canvas import canvas
        >>> with torch.no_grad():
        ...     digits_vit()(preprocess(canvas(7).image)).shape
        torch.Size([1, 10])
    """
    model = VisionTransformer(
        img_size=48,
        patch_size=6,
        in_chans=1,
        num_classes=len(CLASS_NAMES),
        embed_dim=80,
        depth=4,
        num_heads=4,
    )
    # timm hangs both names on every model that it builds, and its tools read either.
    cfg = dict(_CFG)
    vars(model).update(pretrained_cfg=cfg, default_cfg=cfg)
    if weights:
        model.load_state_dict(safetensors.torch.load(_read_weights()), strict=True)
    return model.eval()


def preprocess(images: NDArray[np.float32]) -> torch.Tensor:
    """What the model was trained on: pixels from [0, 1] to [-1, 1], in a batch.

    Args:
        images: float32, (1, 48, 48) for one or (N, 1, 48, 48) for many, in [0, 1].

    Returns:
        float32 (N, 1, 48, 48); N is 1 for a single image.

    Raises:
        ValueError: another shape.

    Example:
        >>> preprocess(np.ones((1, 48, 48), np.float32)).shape
        torch.Size([1, 1, 48, 48])
    """
    if images.ndim not in (3, 4) or images.shape[-3:] != _CFG["input_size"]:
        raise ValueError(f"expected images of shape (1, 48, 48) or (N, 1, 48, 48), got {images.shape}")
    mean, std = (torch.tensor(_CFG[key]).view(-1, 1, 1) for key in ("mean", "std"))
    return (torch.from_numpy(images).reshape(-1, *images.shape[-3:]) - mean) / std


def _read_weights() -> bytes:
    path = files(__package__) / WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: `python -m fxgrad.demo.train` makes it in minutes")
    return path.read_bytes()
