"""The file formats of an explainer, by the ending of the path."""

from __future__ import annotations

import importlib
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import fx

from fxgrad.errors import ExportError, one_line
from fxgrad.explainer.lowered import onnx_decompositions, onnx_fixes_sizes
from fxgrad.explainer.onnx import save_onnx
from fxgrad.explainer.tracing import Traced

EXTRA = "explainer.json"
"""The extra file of a .pt2 with the explainer's metadata."""


def save_pt2(traced: Traced, path: Path, metadata: Mapping[str, str]) -> None:
    """Write an explainer for torch alone: `torch.export.load(path).module()(x, target)`.

    Its metadata is a JSON object in the extra file `explainer.json`.
    """
    traced.program.example_inputs = None  # zeros, which would make the file larger
    torch.export.save(traced.program, path, extra_files={EXTRA: json.dumps(dict(metadata), indent=1)})


def save_aoti(traced: Traced, path: Path, metadata: Mapping[str, str]) -> None:
    """Compile an explainer by AOTInductor, for C++ or `torch._inductor.aoti_load_package(path)(x, target)`.

    Its metadata is what the loaded package's `get_metadata()` returns.

    Raises:
        ExportError: this PyTorch has no AOTInductor, or its C++ compiler fails.
    """
    try:
        package = importlib.import_module("torch._inductor").aoti_compile_and_package
    except (ImportError, AttributeError) as error:
        raise ExportError("this PyTorch has no AOTInductor packages. Export to .pt2 or .onnx.") from error
    with tempfile.TemporaryDirectory() as folder:
        try:
            # The compiler requires its own ending.
            made = package(
                traced.program,
                package_path=f"{folder}/explainer.pt2",
                # The package can check its inputs, if asked to; the lower bound would then refuse a batch of one.
                inductor_configs={"aot_inductor.metadata": dict(metadata), "aot_inductor.check_lowerbound": False},
            )
        except Exception as error:
            raise ExportError(
                f"AOTInductor cannot compile the explainer: {one_line(error)}. It needs a C++ compiler such as g++. "
                "Export to .pt2 or .onnx, which need none."
            ) from error
        shutil.move(made, path)


class Format(NamedTuple):
    """A file format: what writes it, what gives the ATen ops to decompose for it, and whether it fixes sizes."""

    save: Callable[[Traced, Path, Mapping[str, str]], None]
    decompositions: Callable[[], Mapping[Any, Callable[..., Any]]] = dict
    fixes_sizes: Callable[[fx.Graph], bool] = lambda graph: False


FORMATS: Mapping[str, Format] = {
    ".onnx": Format(save_onnx, onnx_decompositions, onnx_fixes_sizes),
    ".pt2": Format(save_pt2),
    ".aoti": Format(save_aoti),
}
"""Ending of the path -> format."""
