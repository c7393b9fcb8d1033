"""Save and load a converted module, and compare: the column of the export table, for any model.

python -m bench.tables.saved                  # the architectures of the paper, and some more, as small as they come
python -m bench.tables.saved bert llama
"""

from __future__ import annotations

import argparse
import inspect
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import fxgrad
from fxgrad.data.models import randomize
from fxgrad.zoo import _tiny
from fxgrad.zoo.case import Limits
from fxgrad.zoo.shrink import build_for_images

TIMM = {
    "ViT": "vit_tiny_patch16_224",
    "DeiT3": "deit3_small_patch16_224",
    "BEiT2": "beitv2_base_patch16_224",
    "EVA02": "eva02_tiny_patch14_224",
    "FlexiViT": "flexivit_small",
    "SigLIP": "vit_base_patch16_siglip_224",
    "CLIP": "vit_base_patch16_clip_224",
    "MLP-Mixer": "mixer_s32_224",
    "ResNet": "resnet18",
    "ConvNeXt": "convnext_atto",
    "Swin": "swin_tiny_patch4_window7_224",
}
TRANSFORMERS: dict[str, Any] = {
    "BERT": _tiny.case("BertForSequenceClassification", _tiny.text),
    "Llama": _tiny.case("LlamaForCausalLM", _tiny.unmasked_text, **_tiny.KV),
}


@dataclass(frozen=True)
class Saved:
    """What became of one model.

    Attributes:
        forward, gradient: whether the loaded module's are the converted one's bit for bit, at another batch size too.
        plain: whether `torch.export.load` of the same file gives the original's outputs.
        report: whether every node has the same rule, reason, module path and source line.
        megabytes: size of the file; `extra` is what it has beyond the tensors.
        seconds: to save, to load.
    """

    forward: bool
    gradient: bool
    plain: bool
    report: bool
    megabytes: float
    extra: float
    seconds: tuple[float, float]

    @property
    def identical(self) -> bool:
        return self.forward and self.gradient and self.plain and self.report

    def __str__(self) -> str:
        verdict = "identical" if self.identical else f"DIFFERS: {self}"
        save, load = self.seconds
        return f"{verdict:10} {self.megabytes:8.1f} {self.extra:7.2f} {save:7.2f} {load:7.2f}"


HEADER = f"{'':12} {'loaded':10} {'MB':>8} {'more MB':>7} {'save s':>7} {'load s':>7}"


def saves_and_loads(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None) -> Saved:
    """Convert a model, save it, load it, and compare everything bit for bit.

    Args:
        model: in eval mode.
        args, kwargs: example inputs, a batch of two or more.
    """
    libra = fxgrad.convert(model, args, kwargs)
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/saved.pt2"
        begun = time.perf_counter()
        fxgrad.save(libra, path)
        saved = time.perf_counter()
        loaded = fxgrad.load(path)
        seconds = (saved - begun, time.perf_counter() - saved)
        plain = torch.export.load(path).module()
        size = Path(path).stat().st_size / 1e6
    tensors = {t.untyped_storage().data_ptr(): t.nbytes for t in [*libra.parameters(), *libra.buffers()]}
    forward, gradient, unchanged = [], [], []
    for call in ((args, dict(kwargs or {})), pytree.tree_map_only(Tensor, _grown, (args, dict(kwargs or {})))):
        ours, theirs = _run(libra, *call), _run(loaded, *call)
        forward.append(_equal(ours[0], theirs[0]))
        gradient.append(_equal(ours[1], theirs[1]))
        bound = inspect.signature(model.forward).bind(*call[0], **call[1])  # the plain program's way to be called
        with torch.no_grad():
            unchanged.append(_equal(libra(*call[0], **call[1]), plain(*bound.args, **bound.kwargs)))
    same = loaded.report.to_json() == libra.report.to_json()
    return Saved(all(forward), all(gradient), all(unchanged), same, size, size - sum(tensors.values()) / 1e6, seconds)


def _grown(x: Tensor) -> Tensor:
    return torch.cat([x, x[:1]]) if x.dim() else x


def _run(libra: fxgrad.ConvertedModule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """Outputs, and the gradients of inputs, embedded tokens and parameters."""
    args, kwargs = pytree.tree_map_only(Tensor, _leaf, (args, kwargs))
    tokens = libra.embed(*args, **kwargs)
    outputs = libra.forward_from(tokens, *args, **kwargs)
    wrt = [x for x in pytree.tree_leaves((args, kwargs, tokens)) if isinstance(x, Tensor) and x.requires_grad]
    wrt += [p for p in libra.parameters() if p.requires_grad]
    total = sum(y.sum() for y in pytree.tree_leaves(outputs) if isinstance(y, Tensor) and y.requires_grad)
    return outputs, torch.autograd.grad(total, wrt, allow_unused=True)


def _leaf(x: Tensor) -> Tensor:
    return x.detach().requires_grad_(x.is_floating_point())


def _equal(a: Any, b: Any) -> bool:
    (ours, spec), (theirs, other) = pytree.tree_flatten(a), pytree.tree_flatten(b)
    return spec == other and all(
        torch.equal(x, y) if isinstance(x, Tensor) and isinstance(y, Tensor) else x is y or x == y
        for x, y in zip(ours, theirs)
    )


def build(name: str, parameters: int = 12_000_000) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    """An architecture by its name in the tables above, cut down to a few blocks, with an example of two."""
    torch.manual_seed(0)
    if name in TRANSFORMERS:
        built = TRANSFORMERS[name]()
    else:
        create: Callable[..., nn.Module] = lambda **options: timm.create_model(TIMM[name], **options)  # noqa: E731
        size = timm.get_pretrained_cfg(TIMM[name]).input_size
        built = build_for_images(create, size, Limits(parameters), image_size=size[1])
        randomize(built.model)
    return built.model, built.args, built.kwargs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=[*TIMM, *TRANSFORMERS], metavar="NAME")
    parser.add_argument("--whole", action="store_true", help="the models as they are, not cut down to a few blocks")
    options = parser.parse_args()
    known = {name.lower(): name for name in [*TIMM, *TRANSFORMERS]}
    print(HEADER)
    failed = 0
    for name in options.names:
        model, args, kwargs = build(known[name.lower()], 10**12 if options.whole else 12_000_000)
        row = saves_and_loads(model, args, kwargs)
        failed += not row.identical
        print(f"{name:12} {row}", flush=True)
    print(f"{len(options.names) - failed} passed, {failed} failed")
    raise SystemExit(bool(failed))


if __name__ == "__main__":
    main()
