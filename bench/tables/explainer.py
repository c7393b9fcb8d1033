"""An explainer in onnxruntime beside eager fxgrad: the time of logits and attribution of ViT-B/16.

    python -m bench.tables.explainer [--model NAME] [--threads 2] [--rounds 15] [--completeness]

Both run in one process, in turn, with the same number of threads; the ratio is of each round's pair.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor

import fxgrad
from fxgrad.explainer.run import OnnxExplainer


def eager(libra: fxgrad.ConvertedModule, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and the map, (batch, height, width), as one writes it with fxgrad."""
    leaf = x.detach().requires_grad_()
    logits = libra(leaf)
    (gradient,) = torch.autograd.grad(logits.gather(1, target[:, None]).sum(), leaf)
    return logits.detach(), (x * gradient).sum(1)


def seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_base_patch16_224")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--completeness", action="store_true", help="put out the completeness error too")
    parser.add_argument("--file", type=Path, help="an .onnx that was exported before, kept; by default a new one")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    model = timm.create_model(options.model).eval().requires_grad_(False)
    x = torch.randn(options.batch, *model.pretrained_cfg["input_size"])
    target = torch.arange(options.batch)
    libra = fxgrad.convert(model, (x,))
    with tempfile.TemporaryDirectory() as folder:
        file = options.file or Path(folder) / "explainer.onnx"
        if not file.exists():
            fxgrad.export_explainer(libra, (x,), file, completeness=options.completeness)
        size = file.stat().st_size
        explainer = OnnxExplainer(file, options.threads)
    given = x.numpy(), target.numpy().astype(np.int64)
    wanted, found = eager(libra, x, target), explainer(*given)
    error = float(np.abs(found["attribution"] - wanted[1].numpy()).max() / wanted[1].abs().max())
    pairs = []
    for _ in range(options.rounds + 2):
        pairs.append((seconds(lambda: eager(libra, x, target)), seconds(lambda: explainer(*given))))
    pairs = pairs[2:]  # the first ones warm up
    ratios = sorted(onnx / ours for ours, onnx in pairs)
    low, median, high = ratios[len(ratios) // 4], statistics.median(ratios), ratios[3 * len(ratios) // 4]
    ours, onnx = (statistics.median(times) for times in zip(*pairs))
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    print(f"{options.model}, batch {options.batch}, {options.threads} threads, outputs {', '.join(explainer.outputs)}")
    print(f"heat map within {error:.1e} of eager; file {size / weights:.3f} x the weights")
    print(f"eager {ours * 1e3:.0f} ms, onnxruntime {onnx * 1e3:.0f} ms")
    print(f"ratio {median:.2f} (quartiles {low:.2f}, {high:.2f})")


if __name__ == "__main__":
    main()
