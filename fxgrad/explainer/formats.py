"""The formats that an explainer can be written in, by the ending of the path."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from fxgrad.explainer.decompositions import DECOMPOSITIONS
from fxgrad.explainer.onnx import save_onnx
from fxgrad.explainer.trace import Traced


def save_pt2(traced: Traced, path: Path, metadata: Mapping[str, str]) -> None:
    """Write an explainer for torch alone: `torch.export.load(path).module()(x, target)`."""
    torch.export.save(traced.program, path, extra_files=dict(metadata))


Save = Callable[[Traced, Path, Mapping[str, str]], None]
FORMATS: Mapping[str, tuple[Save, Mapping[Any, Callable[..., Any]]]] = {
    ".onnx": (save_onnx, DECOMPOSITIONS),
    ".pt2": (save_pt2, {}),
}
"""Ending -> what writes the file, and what it wants decomposed."""
