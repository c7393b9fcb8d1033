"""What fewer bits cost an explainer in ONNX, measured against float32: the page bench/measured/precision-table.md.

    python -m bench.tables.precision_table [--out FILE] [NAME ...]

What the columns are: the page itself, or `_PAGE` below.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import fxgrad
from bench.tables.export_table import MODELS
from fxgrad.data.models import randomize
from fxgrad.demo.canvases import canvas
from fxgrad.demo.model import digits_vit
from fxgrad.errors import FxgradError, first_line
from fxgrad.explainer.run import OnnxExplainer

KINDS = ("float32", "float16 weights", "int8 weights", "float16")
"""Weights as they are kept; the last one is a model in float16, which computes in float16."""
BATCH, ROUNDS = 8, 10


def digits() -> tuple[nn.Module, Callable[[int], Tensor]]:
    """The demo's trained ViT, and its pictures."""

    def inputs(batch: int) -> Tensor:
        images = np.stack([canvas(number).image for number in range(batch)])
        return (torch.from_numpy(images).float().reshape(batch, 1, *images.shape[-2:]) - 0.5) / 0.5

    return digits_vit(), inputs


def random_of(name: str) -> Callable[[], tuple[nn.Module, Callable[[int], Tensor]]]:
    """A small model of the export table, with random weights."""

    def build() -> tuple[nn.Module, Callable[[int], Tensor]]:
        model, inputs = MODELS[name]()
        randomize(model)
        return model, inputs

    return build


BUILDS = {"digits ViT, trained": digits, **{f"{name}, random": random_of(name) for name in ("ViT", "ResNet")}}
"""Name in the table -> what builds the model."""


def measure(build: Callable[[], tuple[nn.Module, Callable[[int], Tensor]]]) -> list[list[str]]:
    """A row for each kind: size, errors of logits and map, completeness error, time."""
    torch.manual_seed(0)
    model, inputs = build()
    model = model.eval().requires_grad_(False)
    x = inputs(BATCH)
    with torch.no_grad():
        target = model(x).argmax(1).numpy()
    rows, exact = [], dict[str, NDArray[Any]]()
    for kind in KINDS:
        try:
            size, found, milliseconds = _run(model, x, target, kind)
        except FxgradError as error:
            rows.append([kind, f"{type(error).__name__}: {first_line(error)}", "", "", "", ""])
            continue
        exact = exact or found
        rows.append(
            [
                kind,
                f"{size / 1e6:.2f} MB",
                f"{_off(found['logits'], exact['logits']):.0e}",
                f"{_off(found['attribution'], exact['attribution']):.0e}",
                f"{_alike(found['attribution'], exact['attribution']):.4f}",
                f"{float(np.median(found['completeness_error'])):.0e}",
                f"{milliseconds:.0f} ms",
            ]
        )
    return rows


def _run(model: nn.Module, x: Tensor, target: NDArray[Any], kind: str) -> tuple[int, dict[str, NDArray[Any]], float]:
    """(bytes of the file, what it gives, milliseconds of a run)."""
    half = kind == "float16"
    own, given = (model.half(), x.half()) if half else (model.float(), x)
    weights = kind.split()[0] if "weights" in kind else "float32"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "e.onnx"
        fxgrad.export_explainer(fxgrad.convert(own, (given[:2],)), (given[:2],), file, weights=weights)
        explainer = OnnxExplainer(file, threads=1)
        size = file.stat().st_size
        found = explainer(given.numpy(), target=target)
        times = []
        for _ in range(ROUNDS):
            began = time.perf_counter()
            explainer(given.numpy(), target=target)
            times.append(time.perf_counter() - began)
    took = min(times) * 1e3
    return size, {name: value.astype(np.float64) for name, value in found.items()}, took


def _off(found: NDArray[Any], exact: NDArray[Any]) -> float:
    return float(np.abs(found - exact).max() / np.abs(exact).max())


def _alike(found: NDArray[Any], exact: NDArray[Any]) -> float:
    """The smallest correlation of an item's map with the exact one."""
    pairs = zip(found.reshape(len(found), -1), exact.reshape(len(exact), -1))
    return float(min(np.corrcoef(a, b)[0, 1] for a, b in pairs))


_PAGE = """# What fewer bits cost an explainer in ONNX

{count} pictures of each model in onnxruntime on a CPU, explained for their likeliest class.

- *float32*: the reference. *float16 weights*, *int8 weights*: `weights=` of `fxgrad.export_explainer`; it computes in
  float32. *float16*: a model in float16, `fxgrad.convert(model.half(), ...)`, which computes in float16 where
  onnxruntime has such a kernel.
- *logits*, *map*: the largest error, relative to the largest value of float32. *correlation*: the smallest of an item's
  map with float32's. *completeness*: the median completeness error that the explainer puts out. *time*: of all
  pictures, with one thread, the best of {rounds} runs.

{table}

Written by `make precision-table` with {versions}, {machine}.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="NAME")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    header = ["model", "kept as", "size", "logits", "map", "correlation", "completeness", "time"]
    lines = [header, ["---"] * len(header)]
    for name in options.models or BUILDS:
        for row in measure(BUILDS[name]):
            lines.append([name, *row])
            print("  ".join(lines[-1]), flush=True)
    if options.out:
        packages = ("torch", "onnx", "onnxruntime")
        page = _PAGE.format(
            count=BATCH,
            rounds=ROUNDS,
            table="\n".join("| " + " | ".join(line) + " |" for line in lines),
            versions=", ".join(f"{p} {metadata.version(p)}" for p in packages),
            machine=platform.machine(),
        )
        options.out.write_text(page, "utf-8")


if __name__ == "__main__":
    main()
