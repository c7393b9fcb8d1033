"""Which export works for which model, measured: the page bench/measured/export-table.md.

    python -m bench.tables.export_table [--out FILE] [--targets pt2,onnx,aoti,saved] [NAME ...]

What the columns are: the page itself, or `_PAGE` below.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import transformers
from torch import Tensor, nn

import fxgrad
from bench.tables.saved import saves_and_loads
from fxgrad.data.models import randomize
from fxgrad.errors import FxgradError, first_line
from fxgrad.explainer.run import OnnxExplainer

Example = tuple[nn.Module, Callable[[int], Tensor]]
TARGETS = ("saved", "pt2", "onnx", "aoti")
BARS = {"pt2": 1e-12, "onnx": 1e-4, "aoti": 1e-12}


def image_model(name: str, size: int = 224, **options: Any) -> Callable[[], Example]:
    """A model of timm's, and pictures for it."""

    def build() -> Example:
        model = timm.create_model(name, num_classes=10, **options)
        return model, lambda batch: torch.randn(batch, 3, size, size)

    return build


def text_model(config: str, model: str, **options: Any) -> Callable[[], Example]:
    """A model of transformers', and token ids for it."""

    def build() -> Example:
        sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
        made = getattr(transformers, config)(**sizes, vocab_size=99, use_cache=False, **options)
        return getattr(transformers, model)(made), lambda batch: torch.randint(3, 98, (batch, 7))

    return build


SMALL = {"img_size": 64, "depth": 2, "embed_dim": 48, "num_heads": 3}
MODELS: dict[str, Callable[[], Example]] = {
    "ViT": image_model("vit_tiny_patch16_224", 64, **SMALL),
    "DeiT3": image_model("deit3_small_patch16_224", 64, **SMALL),
    "BEiT2": image_model("beitv2_base_patch16_224", 64, **SMALL),
    "EVA02": image_model("eva02_tiny_patch14_224", 56, **SMALL | {"img_size": 56}),
    "FlexiViT": image_model("flexivit_small", 64, **SMALL),
    "SigLIP": image_model("vit_base_patch16_siglip_224", 64, **SMALL),
    "CLIP": image_model("vit_base_patch16_clip_224", 64, **SMALL),
    "MLP-Mixer": image_model("mixer_s32_224", 64, img_size=64),
    "ResNet": image_model("resnet10t", 64),
    "ResNet-50": image_model("resnet50", 64),
    "ConvNeXt": image_model("convnext_atto", 64, depths=(1, 1, 1, 1), dims=(8, 16, 24, 32)),
    "Swin": image_model(
        "swin_tiny_patch4_window7_224", 112, img_size=112, depths=(2, 2), num_heads=(2, 4), embed_dim=16
    ),
    "BERT": text_model("BertConfig", "BertForSequenceClassification"),
    "Llama": text_model("LlamaConfig", "LlamaForCausalLM", num_key_value_heads=2),
}
"""Architecture -> what builds it."""


def eager(libra: fxgrad.ConvertedModule, x: Tensor, target: Tensor) -> Tensor:
    """The attribution as one writes it with fxgrad: of pixels, or of tokens."""
    tokens = libra.embed(x) if not x.is_floating_point() else {"x": x.detach().clone().requires_grad_()}
    outputs = libra(*tokens.values()) if x.is_floating_point() else libra.forward_from(tokens, x)
    logits = outputs if isinstance(outputs, Tensor) else outputs.logits
    index = target[:, None] if target.dim() == 1 else target
    picked = logits[(torch.arange(len(x)), *index.T)].sum()
    gradients = torch.autograd.grad(picked, list(tokens.values()))
    return sum((v * g).sum(1 if x.is_floating_point() else -1) for v, g in zip(tokens.values(), gradients)).detach()


def measure(build: Callable[[], Example], targets: list[str]) -> dict[str, str]:
    """Column -> its cell: the size of the weights, and for each target what was measured, or the error's first line."""
    torch.manual_seed(0)
    model, inputs = build()
    model = model.eval().requires_grad_(False)
    randomize(model)
    found = {"weights": f"{weights(model):.2f} MB"}
    for name in targets:
        try:
            found[name] = _measured(model, inputs, name)
        except FxgradError as error:
            found[name] = f"{type(error).__name__}: {first_line(error)}"
    return found


def weights(model: nn.Module) -> float:
    """Megabytes of the parameters, in float32."""
    return sum(p.numel() for p in model.parameters()) * 4 / 1e6


def _measured(model: nn.Module, inputs: Callable[[int], Tensor], name: str) -> str:
    dtype = torch.float64 if name in ("pt2", "aoti") else torch.float32
    model = model.to(dtype)

    def given(batch: int) -> Tensor:
        x = inputs(batch)
        return x.to(dtype) if x.is_floating_point() else x

    if name == "saved":
        saved = saves_and_loads(model, (given(2),))
        return f"{'identical' if saved.identical else f'DIFFERS: {saved}'}, {saved.megabytes:.2f} MB"
    libra = fxgrad.convert(model, (given(2),))
    with torch.no_grad():
        outputs = libra(given(2))
    logits = outputs if isinstance(outputs, Tensor) else outputs.logits
    x, target = given(3), torch.tensor([1, 0, 1])
    if logits.dim() == 3:
        target = torch.stack([torch.full((3,), logits.shape[1] - 1), target], 1)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"explainer.{name}"
        fxgrad.export_explainer(libra, (given(2),), file)
        megabytes = file.stat().st_size / 1e6
        attribution, error = _run(file, x, target)
    wanted = eager(libra, x, target)
    off = float((attribution - wanted).abs().max() / wanted.abs().max())
    too_big = megabytes > 1.1 * weights(model) * (dtype.itemsize / 4) + 5
    missed = " MISSED" * (not off <= BARS[name]) + " TOO BIG" * too_big
    return f"{off:.0e} ({float(error.max()):.0e}), {megabytes:.2f} MB{missed}"


def _run(file: Path, x: Tensor, target: Tensor) -> list[Tensor]:
    """Attribution and completeness error of an explainer, by what its users run it with."""
    if file.suffix == ".onnx":
        found = OnnxExplainer(file)(x.numpy(), target.numpy())
        return [torch.from_numpy(np.asarray(v)) for k, v in found.items() if k != "logits"]
    if file.suffix == ".pt2":
        return list(torch.export.load(file).module()(x, target))[1:]
    with file.open("rb") as opened:
        return list(torch._inductor.aoti_load_package(opened)(x, target))[1:]


_PAGE = """# Which export works for which model

Small models of each architecture, random weights, no bias at 0 and no norm at 1; exported at batch 2, run at batch 3.

- *saved*: `fxgrad.save`, then `fxgrad.load`: outputs, gradients, every node's rule and the plain program of
  `torch.export.load` are those of what was saved, bit for bit, at batch 2 and 3 (float32).
- *pt2*, *onnx*, *aoti*: an explainer. The largest error of its attribution beside eager fxgrad's, relative to its
  largest value: .pt2 and AOTInductor in float64 (bar: 1e-12), ONNX in onnxruntime and float32 (bar: 1e-4). In brackets
  the largest completeness error that the explainer itself puts out. Then the file's size; the bar is 1.1 times the
  weights, which are twice as large in float64, and 5 MB.

Llama computes its norms and rotary positions in float32 in a float64 model, too; those a compiler rounds in another
order.

{table}

Written by `make export-table` with {versions}, {machine}.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="NAME")
    parser.add_argument("--targets", default="pt2,onnx", help=f"of {','.join(TARGETS)}; aoti takes minutes a model")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    targets = options.targets.split(",")
    columns = ["weights", *targets]
    rows = []
    for name in options.models or MODELS:
        found = measure(MODELS[name], targets)
        rows.append([name, *(found[column] for column in columns)])
        print("  ".join(rows[-1]), flush=True)
    if options.out:
        packages = ("torch", "onnx", "onnxruntime", "timm", "transformers")
        lines = [["model", *columns], ["---"] * (len(columns) + 1), *rows]
        page = _PAGE.format(
            table="\n".join("| " + " | ".join(line) + " |" for line in lines),
            versions=", ".join(f"{p} {metadata.version(p)}" for p in packages),
            machine=platform.machine(),
        )
        options.out.write_text(page, "utf-8")


if __name__ == "__main__":
    main()
