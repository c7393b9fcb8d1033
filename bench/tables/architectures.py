"""Forward identity and completeness of the architectures that fxgrad promises, measured.

    python -m bench.tables.architectures [--out bench/measured/completeness.md] [NAME ...]

prints one line per model and dtype. Biases, norm shifts and scales, class tokens, position
embeddings and running statistics are randomised, so that nothing is trivially zero.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import timm
import torch

import fxgrad
from fxgrad.data.models import randomize
from fxgrad.zoo.shrink import reduce

MODELS = {
    "vit_tiny_patch16_224": "ViT",
    "deit3_small_patch16_224": "DeiT3",
    "beitv2_base_patch16_224": "BEiT2",
    "eva02_tiny_patch14_224": "EVA02",
    "flexivit_small": "FlexiViT",
    "vit_base_patch16_siglip_224": "SigLIP",
    "vit_base_patch16_clip_224": "CLIP ViT",
    "vit_base_patch16_clip_quickgelu_224": "CLIP ViT, quick-GELU",
    "mixer_s32_224": "MLP-Mixer",
    "gmixer_12_224": "MLP-Mixer, gated",
    "gmlp_ti16_224": "gMLP",
    "resnet18": "ResNet",
    "convnext_atto": "ConvNeXt",
    "convnextv2_atto": "ConvNeXt V2",
    "swin_tiny_patch4_window7_224": "Swin",
    "swinv2_tiny_window8_256": "Swin V2",
    "efficientnet_b0": "EfficientNet",
}
"""timm's name -> architecture: the smallest of each family, at its own image size."""

BARS = {torch.float64: 1e-12, torch.float32: 1e-4, torch.bfloat16: float("inf")}
"""Relative completeness error that must not be exceeded; bfloat16 is reported only."""


@dataclass(frozen=True)
class Measurement:
    """One model in one dtype.

    Attributes:
        model, dtype: what was measured.
        identical: forward equal bit for bit, at the example's batch and at another.
        error: relative completeness error under libragrad.
        plain: the plain gradient's.
        worst: the least balanced node.
    """

    model: str
    dtype: torch.dtype
    identical: bool
    error: float
    plain: float
    worst: str

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        forward = "identical" if self.identical else "DIFFERS"
        return f"{self.model:38} {dtype:9} {forward:10} {self.error:9.1e} {self.plain:9.1e}  {self.worst}"


HEADER = f"{'model':38} {'dtype':9} {'forward':10} {'error':>9} {'plain':>9}  least balanced node"


def measure(name: str, dtypes: list[torch.dtype], parameters: int | None = None) -> Iterator[Measurement]:
    """Convert timm's model `name` in each dtype, and compare and check it.

    With more `parameters` than these, only two of the blocks that are alike are kept.
    """
    torch.manual_seed(0)
    create = partial(timm.create_model, name)
    model = (create() if parameters is None else reduce(create, parameters)).eval().requires_grad_(False)
    randomize(model)
    size = model.pretrained_cfg["input_size"]
    for dtype in dtypes:
        model = model.to(dtype)
        x, other = torch.randn(2, *size).to(dtype), torch.randn(3, *size).to(dtype)
        libra = fxgrad.convert(model, (x,))
        report = fxgrad.check(libra, (x,), original=model)
        with torch.no_grad():
            identical = report.forward_identical and torch.equal(libra(other), model(other))
        plain = fxgrad.check(libra.under("gradient"), (x,))
        yield Measurement(
            name, dtype, identical, report.completeness_error, plain.completeness_error, report.ledger[0].node
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=list(MODELS), metavar="NAME")
    parser.add_argument("--out", type=Path, help="also write the table to this Markdown file")
    options = parser.parse_args()
    rows = []
    print(HEADER)
    for name in options.models:
        for row in measure(name, list(BARS)):
            print(row, flush=True)
            rows.append(row)
    missed = [r for r in rows if not r.identical or not r.error <= BARS[r.dtype]]
    print(f"{len(rows)} passed, 0 failed" if not missed else f"{len(missed)} of {len(rows)} miss the bar")
    if options.out:
        table = "\n".join(["```text", HEADER, *map(str, rows), "```"])
        options.out.write_text(
            "# Completeness, measured\n\n"
            "Relative completeness error of one random cotangent over all logits of two random images; `plain` is the "
            "unrewritten model's. Bars: 1e-12 in float64, 1e-4 in float32; bfloat16 is reported only. The forward is "
            "compared bit for bit at batch 2 (the example's) and 3.\n\n"
            f"Written by `make completeness` on torch {torch.__version__}, timm {timm.__version__}, "
            f"{platform.machine()}, {torch.get_num_threads()} threads.\n\n{table}\n"
        )


if __name__ == "__main__":
    main()
