"""Conversion over `torch.export.export` alone, in processor time: both in turns in one process, on one thread.

`fxgrad.convert` exports, decides, rewrites, and runs the model and the program once to compare them (in parentheses:
without that, `verify=False`). torch.export is called as fxgrad calls it, not strict, with a free batch. With `--onnx`:
`fxgrad.export_explainer` over `torch.onnx.export` of the plain model, both with the sizes free that the conversion
leaves free.

python -m bench.speed.conversion
python -m bench.speed.conversion --only Swin --out bench/measured/conversion.md
python -m bench.speed.conversion --onnx --rounds 3
"""

from __future__ import annotations

import contextlib
import io
import statistics
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import timm
import torch
from torch import Tensor, nn

import fxgrad
from bench.speed.measure import processor_seconds
from bench.speed.models import BASE, Shape, vit
from bench.speed.script import ONLY, main, rounds
from fxgrad.report import markdown

LIMIT = 1.4
"""The largest ratio."""
ONNX_LIMIT = 3
"""The largest ratio of exports to ONNX."""


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


def in_turns(runs: Sequence[Callable[[], object]], rounds: int) -> tuple[list[float], str, float]:
    """(median seconds of each, the second's ratio to the first in words, and its median), after a run of the first."""
    runs[0]()
    taken = [[processor_seconds(run) for run in runs] for _ in range(rounds)]
    ratios = [turn[1] / turn[0] for turn in taken]
    middle = statistics.median(ratios)
    spread = f"{middle:.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    return [statistics.median(own) for own in zip(*taken)], spread, middle


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
    (export, whole, bare), spread, middle = in_turns(runs, rounds)
    return [name, f"{export:.2f} s", f"{whole:.2f} s ({bare:.2f} s)", spread], middle


SMALL: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "ViT-Ti, 4 blocks": (partial(timm.create_model, "vit_tiny_patch16_224", depth=4), partial(picture, 224)),
    "Swin, 4 blocks": (
        partial(timm.create_model, "swin_tiny_patch4_window7_224", depths=(2, 2), num_heads=(3, 6)),
        partial(picture, 224),
    ),
    "ConvNeXt-Atto": (partial(timm.create_model, "convnext_atto"), partial(picture, 224)),
    "ResNet-18": (partial(timm.create_model, "resnet18"), partial(picture, 224)),
}


def onnx_row(name: str, rounds: int) -> tuple[list[str], float]:
    """A line of the table of ONNX exports, and the ratio."""
    make, example = SMALL[name]
    model, x = make().eval().requires_grad_(False), example()
    libra = fxgrad.convert(model, (x,))
    free = {
        axis: torch.export.Dim.AUTO
        for axis, size in enumerate(libra.classified.captured.inputs[0].shape or ())
        if not size
    }
    options: dict[str, Any] = {"dynamo": True, "opset_version": 18, "external_data": False, "verbose": False}

    def plain(file: str) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            exported = torch.onnx.export(model, (x,), dynamic_shapes=(free,), **options)
        assert exported is not None
        exported.save(file)

    with tempfile.TemporaryDirectory() as folder:
        runs = partial(plain, f"{folder}/plain.onnx"), partial(fxgrad.export_explainer, libra, x, f"{folder}/own.onnx")
        (plainly, own), spread, middle = in_turns(runs, rounds)
    return [name, ", ".join(map(str, free)), f"{plainly:.2f} s", f"{own:.2f} s", spread], middle


def page(only: str, rounds: int, onnx: bool) -> tuple[str, bool]:
    """The table of the rows that have `only` in their names, and whether all keep the limit."""
    rows, line, limit = (SMALL, onnx_row, ONNX_LIMIT) if onnx else (ROWS, row, LIMIT)
    found = [line(name, rounds) for name in rows if only in name]
    head = ["model", "torch.export", "fxgrad.convert", f"ratio, at most {limit:g}"]
    if onnx:
        head = ["model", "free axes", "torch.onnx.export", "fxgrad.export_explainer", head[-1]]
    about = (__doc__ or "").split("\n\npython")[0]
    text = ["# Conversion", "", about, "", *markdown(head, [cells for cells, _ in found])]
    return "\n".join(text) + "\n", all(ratio <= limit for _, ratio in found)


if __name__ == "__main__":
    onnx = {"action": "store_true", "help": "ONNX exports in place of conversions"}
    main(page, __doc__, {"--only": ONLY, "--rounds": rounds(5), "--onnx": onnx})
