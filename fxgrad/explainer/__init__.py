"""The explainer: forward and attribution in one file that runs without fxgrad, without autograd, without Python.

The path is straight, a file each: settings (what to compute), trace (into one program), and a format.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from fxgrad.errors import ExportError
from fxgrad.explainer.formats import FORMATS
from fxgrad.explainer.settings import METHODS, Settings
from fxgrad.explainer.trace import trace
from fxgrad.module import ConvertedModule

__all__ = ["METHODS", "export_explainer"]


def export_explainer(
    converted: ConvertedModule,
    args: tuple[Any, ...],
    path: str | Path,
    *,
    kwargs: Mapping[str, Any] | None = None,
    method: str = "input_x_gradient",
    targets: int | None = None,
    channels: int | Literal["auto"] | None = "auto",
    pool: int = 1,
    output: str | None = None,
    completeness: bool = True,
    metadata: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write forward and attribution as one program that runs without fxgrad."""
    path = Path(path)
    if path.suffix not in FORMATS:
        raise ExportError(f"{path} must end in {', '.join(FORMATS)}: the ending says which format to write.")
    settings = Settings(method, targets, channels, pool, output, completeness)
    leaves = converted.classified.captured.flatten(args, kwargs or {})
    save, decompositions = FORMATS[path.suffix]
    traced = trace(converted, leaves, settings, decompositions)
    described = {
        "method": method,
        "inputs": list(traced.inputs),
        "outputs": list(traced.outputs),
        **(metadata or {}),
    }
    described |= {
        "policy": converted.classified.table.name, "torch": torch.__version__,
    }
    save(traced, path, {k: v if isinstance(v, str) else json.dumps(v) for k, v in described.items()})
    return described
