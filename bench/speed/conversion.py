"""Conversion over `torch.export.export` alone, in processor time: both in turns in one process, on one thread.

`fxgrad.convert` exports, decides, rewrites, and runs the model and the program once to compare them (in parentheses:
without that, `verify=False`). torch.export is called as fxgrad calls it, not strict, with a free batch.

python -m bench.speed.conversion
python -m bench.speed.conversion --only Swin --out bench/measured/conversion.md
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

import fxgrad
from bench.speed.measure import processor_seconds
from bench.speed.models import BASE, Shape, vit
from fxgrad.report import markdown

LIMIT = 1.4
"""The largest ratio."""


def on_ids() -> nn.Module:
    """A Llama on token ids, of its library's own code."""
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=1000, hidden_size=256, intermediate_size=688, num_hidden_layers=8, num_attention_heads=8,
        num_key_value_heads=4, use_cache=False,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)  # type: ignore[no-any-return]


def picture(side: int) -> Tensor:
    return torch.randn(2, 3, side, side)


ROWS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "ViT-B/16": (vit(BASE), partial(picture, 224)),
    "Swin-T": (partial(timm.create_model, "swin_tiny_patch4_window7_224"), partial(picture, 224)),
    "48 narrow blocks": (vit(Shape(128, 48, 2), 4), partial(picture, 64)),
    "Llama, 8 blocks, on ids": (on_ids, lambda: torch.randint(1000, (2, 32))),
}


def row(name: str, rounds: int) -> tuple[list[str], float]:
    """A line of the table, and the ratio."""
    make, example = ROWS[name]
    model, x = make().eval().requires_grad_(False), example()
    free = ({0: torch.export.Dim.AUTO, **({1: torch.export.Dim.AUTO} if not x.is_floating_point() else {})},)
    runs: tuple[Callable[[], object], ...] = (
        partial(torch.export.export, model, (x,), dynamic_shapes=free, strict=False),
        partial(fxgrad.convert, model, (x,)),
        partial(fxgrad.convert, model, (x,), verify=False),
    )
    runs[0]()
    taken = [[processor_seconds(run) for run in runs] for _ in range(rounds)]
    export, whole, bare = (statistics.median(t[i] for t in taken) for i in range(3))
    ratios = [t[1] / t[0] for t in taken]
    middle = statistics.median(ratios)
    spread = f"{middle:.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    return [name, f"{export:.2f} s", f"{whole:.2f} s ({bare:.2f} s)", spread], middle


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="rows whose names contain this")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write the table there, too")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    found = [row(name, chosen.rounds) for name in ROWS if chosen.only in name]
    head = ["model", "torch.export", "fxgrad.convert", f"ratio, at most {LIMIT:g}"]
    about = (__doc__ or "").split("\n\npython")[0]
    text = "\n".join(["# Conversion", "", about, "", *markdown(head, [line for line, _ in found])]) + "\n"
    print(text, end="")
    if chosen.out:
        chosen.out.write_text(text, "utf-8")
    sys.exit(any(ratio > LIMIT for _, ratio in found))


if __name__ == "__main__":
    main()
