"""What conversion costs beyond torch.export's own time.

    python bench/conversion.py [--repeats 5] [NAME ...]

Capture is torch.export and its decomposition; the rest is fxgrad's. Both are timed in one process,
several times in turn; median and spread of each.
"""

from __future__ import annotations

import argparse
import statistics
import time

import timm
import torch

from fxgrad.capture import capture
from fxgrad.classify import classify
from fxgrad.module import ConvertedModule
from fxgrad.table import load


def spread(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):6.2f} s ({min(seconds):.2f} to {max(seconds):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["vit_base_patch16_224"], metavar="NAME")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    for name in options.models:
        model = timm.create_model(name).eval()
        x = torch.randn(2, *model.pretrained_cfg["input_size"])
        captures, passes, calls = [], [], []
        for _ in range(options.repeats):
            start = time.perf_counter()
            exported = torch.export.export(
                model, (x,), strict=False, dynamic_shapes=({0: torch.export.Dim.AUTO},)
            ).run_decompositions({})
            captures.append(time.perf_counter() - start)
            del exported
            start = time.perf_counter()
            captured = capture(model, (x,))
            calls.append(time.perf_counter() - start - captures[-1])
            start = time.perf_counter()
            classified = classify(captured, load())
            ConvertedModule(classified)
            passes.append(time.perf_counter() - start)
        nodes = len(classified.captured.graph.nodes)
        print(f"{name}, {nodes} nodes, torch {torch.__version__}, {torch.get_num_threads()} threads")
        print(f"  torch.export and decomposition     {spread(captures)}")
        print(f"  capture beyond that (difference)   {spread(calls)}")
        print(f"  load, classify, rewrite, module    {spread(passes)}")


if __name__ == "__main__":
    main()
