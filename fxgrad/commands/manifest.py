"""What an explanation was made of and from: the record that goes with its pictures."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fxgrad.commands.explanation import Explanation
from fxgrad.data.models import LoadedModel
from fxgrad.installed import version

PACKAGES = ("torch", "timm", "torchvision", "transformers", "open_clip_torch", "Pillow", "numpy")


def manifest(loaded: LoadedModel, entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The record of a call of `fxgrad explain`, as JSON values.

    Args:
        loaded: the model.
        entries: one per explanation.
    """
    return {
        "model": loaded.name,
        "weights": loaded.described_weights,
        "weights_sha256": digest_of(loaded.model),
        "preprocessing": loaded.preprocess.constants(),
        "device": str(loaded.device),
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "versions": versions(),
        "explanations": list(entries),
    }


def entry(one: Explanation, file: Path, figure: str | None = None) -> dict[str, Any]:
    """What the manifest says of an explanation.

    Args:
        one: the explanation.
        file: its picture.
        figure: the file's name in which it is drawn, if it has one of its own.
    """
    return {
        "picture": str(file),
        "picture_sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "size": [one.picture.width, one.picture.height],
        "window": list(one.picture.window),
        "target": one.target,
        "label": one.label,
        "value": one.logit,
        "maps": [
            {
                "method": found.method,
                "policy": found.rules,
                "completeness_error": found.completeness_error,
                **({"note": found.note} if found.note else {}),
            }
            for found in one.found
        ],
        **({"figure": figure} if figure else {}),
    }


def digest_of(model: nn.Module) -> str:
    """SHA-256 of the names and bytes of all parameters and buffers, in hexadecimal.

    Example:
        >>> digest_of(nn.Identity())[:8]
        'e3b0c442'
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Versions of Python, fxgrad and the packages that models come from, as far as they are installed."""
    found = {"python": platform.python_version(), "fxgrad": version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
