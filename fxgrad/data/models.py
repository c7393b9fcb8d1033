"""Load the command line's MODEL with its preprocessing and class names, from whatever source it names."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fxgrad.data.checkpoints import fit_checkpoint, read_checkpoint
from fxgrad.data.clip import Clip
from fxgrad.data.factory import load_object
from fxgrad.data.hf_models import hf_language_model, hf_model
from fxgrad.data.hf_texts import TokenIds
from fxgrad.data.open_clip_models import open_clip_model, twin_of
from fxgrad.data.pictures import Preprocessing, Size
from fxgrad.data.specs import SOURCES, Built, Source, Wanted, wanted_of
from fxgrad.data.timm_models import described, timm_model
from fxgrad.data.torchvision_models import torchvision_model
from fxgrad.errors import CaptureError, one_line

_THEIRS = "timm models, torchvision's and transformers' (hf:)"
CPU = torch.device("cpu")


@dataclass(frozen=True)
class LoadedModel:
    """A model with its preprocessing and class names.

    Attributes:
        model: in eval mode, on `device`, in `dtype`.
        name: its spec.
        preprocess: preprocessing of pictures to the model's input size, on its device, in its dtype.
        class_names: one per output; None if unknown.
        weights: where the weights come from, in words: "random", "pretrained", a checkpoint's path, ...
        device, dtype: of the model, of its examples and of its preprocessed pictures.
        seed: of random weights and of examples.
    """

    model: nn.Module
    name: str
    preprocess: Preprocessing
    class_names: tuple[str, ...] | None
    weights: str
    device: torch.device = CPU
    dtype: torch.dtype = torch.float32
    seed: int = 0

    @property
    def described_weights(self) -> str:
        """Where the weights come from, in words; the seed of random ones included."""
        return f"{self.weights} weights{f' (seed {self.seed})' if self.weights == 'random' else ''}"

    @property
    def patch_size(self) -> int:
        """Side of the model's patches in pixels; 1 if unknown."""
        size: Any = next((part.patch_size for part in self.model.modules() if hasattr(part, "patch_size")), 1)
        return int(max(size) if isinstance(size, Sequence) else size)

    def prompted(self, *texts: str) -> LoadedModel:
        """A copy that classifies pictures by these texts, which are its class names.

        Raises:
            CaptureError: the model has no method `prompted(*texts)` that returns such a classifier.
        """
        prompted = getattr(self.model, "prompted", None)
        if prompted is None and (twin := self._twin()) is not None:
            return twin.prompted(*texts)
        if prompted is None:
            raise CaptureError(
                f"{self.name} knows no prompts. A CLIP does, as open_clip:NAME or hf:NAME, and a model with a method "
                "prompted(*texts), which returns an nn.Module from pictures to one similarity per text, from "
                "(N, C, H, W) to (N, number of texts)."
            )
        return replace(self, model=_placed(prompted(*texts).eval(), self.device, self.dtype), class_names=texts)

    def refuse_without_prompts(self) -> None:
        """Raise `CaptureError` if the model gives embeddings, whose numbers are no classes."""
        if isinstance(self.model, Clip):
            raise CaptureError(
                f"{self.name} classifies by texts, and gives embeddings without: give at least one --prompt, such as "
                '--prompt "a photo of a dog".'
            )

    def _twin(self) -> LoadedModel | None:
        """open_clip's model of both towers, where this is timm's picture tower of one."""
        source, _, name = self.name.partition("?")[0].partition(":")
        if source != "timm" or ("lip" not in name and importlib.util.find_spec("open_clip") is None):
            return None
        spec = twin_of(name, self.weights == "pretrained")
        if not spec:
            return None
        if self.weights not in ("pretrained", "random") or "?" in self.name:
            raise CaptureError(
                f"{self.name} is the picture tower of {spec}. Name that model for prompts, with a --checkpoint of both."
            )
        return load_model(spec, device=self.device, dtype=self.dtype, seed=self.seed)

    def example(self, batch: int = 2, *, seed: int | None = None, scale: float = 1.0) -> Tensor:
        """Normal noise with standard deviation `scale`, (batch, C, H, W): drawn in float32 on the CPU, then placed.

        The seed is the loaded model's by default. A language model gets random token ids, int64 (batch, length).
        """
        generator = torch.Generator().manual_seed(self.seed if seed is None else seed)
        if isinstance(self.preprocess, TokenIds):
            return self.preprocess.drawn(batch, generator).to(self.device)
        return (scale * torch.randn(batch, *self.preprocess.size, generator=generator)).to(self.device, self.dtype)


def load_model(
    spec: str,
    pretrained: bool = False,
    *,
    checkpoint: str | Path | None = None,
    strip_prefix: str = "",
    num_classes: int | None = None,
    input_size: Size | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> LoadedModel:
    """Find, build and describe a model.

    Args:
        spec: `timm:NAME`, `torchvision:NAME`, `hf:NAME` or `open_clip:NAME`, as for `timm_model` and so on; or
            `module.path:factory`, which returns an nn.Module. The module is looked for in the current directory and
            on sys.path. Arguments follow as `?depth=2&norm=layer`, for factories and packages alike.
        pretrained: load the package's weights from the hub, or from its cache if the hub is unreachable.
        checkpoint, strip_prefix: a file with exactly the model's weights, and what its keys begin with, as for
            `load_checkpoint`.
        num_classes: size of the head, whose weights are then random or a checkpoint's; the same as `?num_classes=`.
        input_size: (channels, height, width). A package's model is built for this size; a factory's needs it, unless
            it has a `pretrained_cfg` or `default_cfg` in timm's form.
        device, dtype: where the model goes, and in which floating-point dtype; its examples and pictures follow.
        seed: of random weights, and of what a factory draws when it is called. The process's own random state stays.

    Raises:
        CaptureError: there is no such model, or it cannot be built; its weights cannot be loaded or do not fit.
        InputError: the model's input size is unknown.

    Example:
        >>> load_model("timm:test_vit").preprocess.size
        (3, 160, 160)
    """
    wanted = _wanted(spec, pretrained, checkpoint, num_classes, input_size)
    state = None if checkpoint is None else read_checkpoint(checkpoint)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        built = _BUILDERS.get(wanted.source, _factory)(wanted)
    weights = built.weights
    if checkpoint is not None and state is not None:
        fit_checkpoint(built.holder or built.model, state, checkpoint, strip_prefix)
        weights = str(checkpoint)
    device = torch.device(device)
    model = _placed(built.model.eval(), device, dtype)
    transform = built.preprocess.transform
    preprocess = replace(built.preprocess, transform=lambda image: transform(image).to(device, dtype))
    return LoadedModel(model, spec, preprocess, built.class_names, weights, device, dtype, seed)


def load_language_model(
    spec: str,
    pretrained: bool = False,
    *,
    texts: Sequence[str] = (),
    pictures: bool = False,
    checkpoint: str | Path | None = None,
    strip_prefix: str = "",
    num_classes: int | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> tuple[nn.Module, Any, str]:
    """A language model of transformers and its tokenizer, for `fxgrad.text.explain`.

    Args:
        spec: `hf:NAME` or `hf:FOLDER`, with files of a tokenizer.
        texts: of which the tokenizer is to know words.
        pictures: whether it gets pictures, too.
        pretrained, checkpoint, strip_prefix, num_classes, device, dtype, seed: as for `load_model`.

    Returns:
        (the model in eval mode, its tokenizer, or with pictures its processor, where its weights come from).

    Raises:
        CaptureError: as for `load_model`; it is no model of transformers, or has no tokenizer, or no processor.
    """
    wanted = _wanted(spec, pretrained, checkpoint, num_classes, None)
    if wanted.source != "hf":
        raise CaptureError(f"texts are for models of transformers, hf:NAME or hf:FOLDER; {spec} is none.")
    state = None if checkpoint is None else read_checkpoint(checkpoint)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, tokenizer, weights = hf_language_model(wanted, texts, pictures)
    if checkpoint is not None and state is not None:
        fit_checkpoint(model, state, checkpoint, strip_prefix)
        weights = str(checkpoint)
    return _placed(model.eval(), torch.device(device), dtype), tokenizer, weights


def _wanted(
    spec: str, pretrained: bool, checkpoint: str | Path | None, num_classes: int | None, input_size: Size | None
) -> Wanted:
    """What is asked for, checked for options that do not go together."""
    wanted = wanted_of(spec)
    known = wanted.source in SOURCES
    if pretrained and (checkpoint or not known):
        why = "without --checkpoint" if known else "a factory brings its own"
        raise CaptureError(f"--pretrained is for {_THEIRS}, {why}. Leave it out.")
    if num_classes is not None:
        if "num_classes" in wanted.options:
            raise CaptureError(f"{spec} has num_classes already. Leave out --num-classes.")
        if not known:
            raise CaptureError(
                f"--num-classes is for {_THEIRS}; a factory takes arguments: {spec}?num_classes={num_classes}."
            )
        wanted = replace(wanted, options={**wanted.options, "num_classes": num_classes})
    if pretrained and wanted.options.get("num_classes"):  # 0 is no head
        raise CaptureError(
            f"{spec} with num_classes has a head that no pretrained weights are for. Leave out "
            "--pretrained, or give all weights by --checkpoint."
        )
    return replace(wanted, pretrained=pretrained, input_size=input_size)


def _placed(model: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """The model on a device, its floating-point tensors in a dtype; `nn.Module.to` would make complex ones real."""
    model.to(device)
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype)
    return model


def _factory(wanted: Wanted) -> Built:
    """The model that a factory of the user's returns, with CLASS_NAMES of its module."""
    path = f"{wanted.source}:{wanted.name}"
    try:
        module, model = load_object(path, call=True, options=wanted.options)
    except Exception as error:
        given = ", ".join(wanted.options) or "nothing"
        raise CaptureError(f"{path} cannot be imported and called with {given}: {one_line(error)}") from error
    if not isinstance(model, nn.Module):
        raise CaptureError(f"{path} returned {type(model).__name__}; it must return a torch.nn.Module.")
    names = getattr(module, "CLASS_NAMES", None)
    return described(wanted.spec, model, wanted.input_size, names, "the factory's own")


_BUILDERS: dict[str, Source] = {
    "timm": timm_model,
    "torchvision": torchvision_model,
    "hf": hf_model,
    "open_clip": open_clip_model,
}


def randomize(model: nn.Module, seed: int = 0) -> None:
    """Perturb, in place, parameters and buffers that a new model sets to 0 or 1, so that no source is trivially 0.

    Biases, norm scales and shifts, class tokens, position embeddings, weights that are next to zero and
    running means get normal noise of standard deviation 0.1; running variances are multiplied by exp of such noise.

    Example:
        >>> model = nn.BatchNorm1d(2)
        >>> randomize(model)
        >>> bool((model.running_mean != 0).all())
        True
    """
    generator = torch.Generator().manual_seed(seed)

    def noise(like: Tensor) -> Tensor:
        return 0.1 * torch.randn(like.shape, generator=generator).to(like)

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            named = any(part in name for part in ("bias", "token", "pos_", "position"))
            if parameter.ndim <= 1 or named or parameter.abs().mean() < 1e-3:  # such as a head initialized to 0
                parameter.add_(noise(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.add_(noise(buffer))
            elif name.endswith("running_var"):
                buffer.mul_(noise(buffer).exp())
