"""Which export works for which model, measured: the page docs/export-table.md.

    python bench/export_table.py [--out docs/export-table.md] [--targets pt2,onnx,aoti,saved] [NAME ...]

Small models of each architecture with random weights, no bias at 0 and no norm at 1. Each is exported at batch 2 and
run at batch 3. Errors are of the attribution, relative to its largest value: .pt2 and AOTInductor in float64 beside
eager fxgrad in float64, ONNX in float32 beside eager fxgrad in float32.
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
from fxgrad.errors import FxgradError, first_line
from fxgrad.explainer.run import OnnxExplainer
from fxgrad.models import randomize

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
    """Target -> its error, or the error's first line."""
    torch.manual_seed(0)
    model, inputs = build()
    model = model.eval().requires_grad_(False)
    randomize(model)
    found = {}
    for name in targets:
        try:
            found[name] = _measured(model, inputs, name)
        except FxgradError as error:
            found[name] = f"{type(error).__name__}: {first_line(error)}"
    return found


def _measured(model: nn.Module, inputs: Callable[[int], Tensor], name: str) -> str:
    dtype = torch.float32 if name == "onnx" else torch.float64
    model = model.to(dtype)

    def given(batch: int) -> Tensor:
        x = inputs(batch)
        return x.to(dtype) if x.is_floating_point() else x

    if name == "saved":
        from saved import saves_and_loads

        return str(saves_and_loads(model, (given(2),)))
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
        if name == "onnx":
            attribution, error = (
                torch.from_numpy(np.asarray(v))
                for k, v in OnnxExplainer(file)(x.numpy(), target.numpy()).items()
                if k != "logits"
            )
        else:
            if name == "pt2":
                explainer = torch.export.load(file).module()
            else:
                with file.open("rb") as opened:
                    explainer = torch._inductor.aoti_load_package(opened)
            _, attribution, error = explainer(x, target)
    wanted = eager(libra, x, target)
    off = float((attribution - wanted).abs().max() / wanted.abs().max())
    return f"{off:.0e}{'' if off <= BARS[name] else ' MISSED'} ({float(error.max()):.0e})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="NAME")
    parser.add_argument("--targets", default="pt2,onnx", help=f"of {','.join(TARGETS)}; aoti takes minutes a model")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    targets = options.targets.split(",")
    header = f"{'model':12}" + "".join(f"{name:26}" for name in targets)
    print(header)
    rows = []
    for name in options.models or MODELS:
        found = measure(MODELS[name], targets)
        rows.append(f"{name:12}" + "".join(f"{found[t]:26}" for t in targets))
        print(rows[-1], flush=True)
    if options.out:
        versions = ", ".join(
            f"{p} {metadata.version(p)}" for p in ("torch", "onnx", "onnxruntime", "timm", "transformers")
        )
        table = "\n".join(["```text", header, *(row.rstrip() for row in rows), "```"])
        options.out.write_text(
            "# Which explainer works for which model\n\n"
            "Small models of each architecture, exported at batch 2, run at batch 3. Numbers are the largest error of "
            "the attribution beside eager fxgrad's, relative to its largest value: .pt2 and AOTInductor in float64, "
            "ONNX (onnxruntime) in float32. In brackets the largest completeness error that the explainer itself "
            f"puts out. Bars: 1e-12, and 1e-4 for ONNX.\n\nWritten by `make export-table` with {versions}, "
            f"{platform.machine()}.\n\n{table}\n"
        )


if __name__ == "__main__":
    main()
