"""The demo's vision transformer: small enough to ship its weights, otherwise as timm builds them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from timm.models import VisionTransformer
from torch import nn

from fxgrad.data.checkpoints import load_checkpoint
from fxgrad.errors import CaptureError

Model = TypeVar("Model", bound=nn.Module)

CLASS_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

CFG: dict[str, Any] = {
    "license": "mit",
    "input_size": (1, 48, 48),
    "fixed_input_size": True,
    "interpolation": "bilinear",
    "crop_pct": 1.0,
    "mean": (0.5,),
    "std": (0.5,),
    "num_classes": len(CLASS_NAMES),
    "label_names": CLASS_NAMES,
}
"""The config of models on grey canvases, for timm's tools."""


def digits_vit(weights: bool = True) -> VisionTransformer:
    """The demo's multi-label ViT in eval mode: from preprocessed float32 (N, 1, 48, 48) to logits (N, 10).

    ``timm.data.resolve_model_data_config`` finds its preprocessing as for timm's own models.

    Args:
        weights: load the shipped weights; if False, the model keeps its random initialisation.

    Raises:
        CaptureError: the weights are missing (the message has the command that makes them) or do not fit the model.

    Example:
        >>> from fxgrad.demo.canvases import canvas
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
    return ready(model, "vit", weights)


def checkpoint(name: str) -> Path:
    """The path of a demo model's weights, whether or not the file exists.

    Example:
        >>> checkpoint("vit").name
        'digits_vit.safetensors'
    """
    return Path(__file__).with_name(f"digits_{name}.safetensors")


def ready(model: Model, name: str, weights: bool, cfg: Mapping[str, Any] = CFG) -> Model:
    """Finish a demo model: eval mode, preprocessing, and weights if asked for.

    Args:
        model: the model as built.
        name: name of its factory.
        weights: load its checkpoint; if False, the model keeps its random initialisation.
        cfg: the config for timm's tools.

    Raises:
        CaptureError: the checkpoint is missing (the message has the command that makes it) or does not fit the model.

    Example:
        >>> ready(nn.Linear(2, 2), "linear", weights=False).pretrained_cfg["input_size"]
        (1, 48, 48)
    """
    path = checkpoint(name)
    # timm sets both attributes on every model that it builds, and its tools read either.
    own = {"architecture": f"digits_{name}", "file": path.name, **cfg}
    vars(model).update(pretrained_cfg=own, default_cfg=own)
    if weights:
        if not path.is_file():
            raise CaptureError(f"{path} is missing: `python -m fxgrad.demo.train {name}` makes it in minutes.")
        load_checkpoint(model, path)
    return model.eval()


def preprocess(images: NDArray[np.float32]) -> torch.Tensor:
    """The model's input: pixels scaled from [0, 1] to [-1, 1], as a batch.

    Args:
        images: float32, (1, 48, 48) for one or (N, 1, 48, 48) for many, in [0, 1]; with 3 channels in colour.

    Returns:
        float32 (N, 1, 48, 48), or (N, 3, 48, 48); N is 1 for a single image.

    Raises:
        ValueError: another shape.

    Example:
        >>> preprocess(np.ones((1, 48, 48), np.float32)).shape
        torch.Size([1, 1, 48, 48])
    """
    channels = images.shape[-3] if images.ndim in (3, 4) else 0
    if channels not in (1, 3) or images.shape[-2:] != CFG["input_size"][1:]:
        raise ValueError(
            f"expected images of shape (C, 48, 48) or (N, C, 48, 48), with 1 or 3 channels, got {images.shape}"
        )
    mean: float
    std: float
    (mean,), (std,) = CFG["mean"], CFG["std"]
    return (torch.from_numpy(images).reshape(-1, *images.shape[-3:]) - mean) / std
