"""Load the command line's MODEL with its preprocessing and class names.

MODEL is `timm:NAME`, `open_clip:NAME`, or `module.path:factory` for anything that can be imported.
"""

from __future__ import annotations

import contextlib
import difflib
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from fxgrad.data.checkpoints import load_checkpoint
from fxgrad.data.clip import OpenClip, open_clip_model, open_clip_preprocessing
from fxgrad.data.factory import load_object
from fxgrad.data.pictures import Preprocessing, Size, import_timm, preprocessing_of
from fxgrad.errors import CaptureError, one_line

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
        if prompted is None:
            raise CaptureError(
                f"{self.name} knows no prompts: a model does that has a method prompted(*texts), which returns an "
                "nn.Module from pictures to one similarity per text, (N, C, H, W) to (N, number of texts)."
            )
        return replace(self, model=_placed(prompted(*texts).eval(), self.device, self.dtype), class_names=texts)

    def example(self, batch: int = 2, *, seed: int | None = None, scale: float = 1.0) -> Tensor:
        """Normal noise with standard deviation `scale`, (batch, C, H, W): drawn in float32 on the CPU, then placed.

        The seed is the loaded model's by default.
        """
        generator = torch.Generator().manual_seed(self.seed if seed is None else seed)
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
        spec: `timm:NAME`; `open_clip:NAME`, as for `open_clip_model`; or `module.path:factory`: called without
            arguments, it returns an nn.Module. The module is looked for in the current directory and on sys.path.
        pretrained: load timm's weights from the hub, or from its cache if the hub is unreachable.
        checkpoint, strip_prefix: a file with exactly the model's weights, and what its keys begin with, as for
            `load_checkpoint`.
        num_classes: size of the head of timm's model, whose weights are then random or a checkpoint's.
        input_size: (channels, height, width). Needed unless the model has a `pretrained_cfg` or `default_cfg` with it;
            timm's models are built for this size.
        device, dtype: where the model goes, and in which floating-point dtype; its examples and pictures follow.
        seed: of random weights, and of what a factory draws when it is called. The process's own random state stays.

    Raises:
        CaptureError: there is no such model, or it cannot be built; its weights cannot be loaded or do not fit.
        InputError: the model's input size is unknown.

    Example:
        >>> load_model("timm:test_vit").preprocess.size
        (3, 160, 160)
    """
    device = torch.device(device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        loaded = _loaded(spec, pretrained, checkpoint, strip_prefix, num_classes, input_size)
    transform = loaded.preprocess.transform
    placed = replace(loaded.preprocess, transform=lambda image: transform(image).to(device, dtype))
    model = _placed(loaded.model, device, dtype)
    return replace(loaded, model=model, preprocess=placed, device=device, dtype=dtype, seed=seed)


def _placed(model: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """The model on a device, its floating-point tensors in a dtype; `nn.Module.to` would make complex ones real."""
    model.to(device)
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype)
    return model


def _loaded(
    spec: str,
    pretrained: bool,
    checkpoint: str | Path | None,
    strip_prefix: str,
    num_classes: int | None,
    input_size: Size | None,
) -> LoadedModel:
    """The model on the CPU, in the dtype that it is built in."""
    source, _, name = spec.partition(":")
    if not source or not name:
        raise CaptureError(
            f"MODEL is open_clip:NAME, timm:NAME, as in timm:resnet18, or module.path:factory; {spec!r} is neither."
        )
    if pretrained and (checkpoint or source != "timm"):
        tag = " The weights of an open_clip model are its tag: NAME@TAG." if source == "open_clip" else ""
        raise CaptureError(f"--pretrained is for timm models, without --checkpoint. Leave it out.{tag}")
    if num_classes is not None and (pretrained or source != "timm"):
        raise CaptureError("--num-classes is for timm models whose head's weights are random or a --checkpoint's.")
    if source == "timm":
        model, names = _timm(name, pretrained, input_size, num_classes), None
        weights = "pretrained" if pretrained else "random"
    elif source == "open_clip":
        model, weights = open_clip_model(name, input_size)
        names = None
    else:
        model, names = _from_factory(source, name)
        weights = "the factory's own"
    if checkpoint:
        load_checkpoint(model.clip if isinstance(model, OpenClip) else model, checkpoint, strip_prefix)
        weights = str(checkpoint)
    cfg = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None) or {}
    cfg = dict(cfg if isinstance(cfg, Mapping) else cfg.to_dict())
    if isinstance(model, OpenClip):
        preprocess = open_clip_preprocessing(model)
    else:
        preprocess = preprocessing_of(spec, model, cfg, input_size)
    return LoadedModel(model.eval(), spec, preprocess, _class_names(model, cfg, names), weights)


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


def hub_reachable(timeout: float = 3.0) -> bool:
    """Whether the hub answers within `timeout` seconds; asked once, since the hub's client retries for a minute."""
    from huggingface_hub import constants

    try:
        urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=timeout).close()
    except urllib.error.HTTPError:
        return True  # an HTTP error is an answer
    except (OSError, ValueError):
        return False
    return True


@contextlib.contextmanager
def _hub(reachable: bool) -> Iterator[None]:
    """During one call, restrict the hub's client to its cache if the hub is unreachable."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not reachable
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _timm(name: str, pretrained: bool, input_size: Size | None, num_classes: int | None) -> nn.Module:
    timm = import_timm()
    on_hub = name.startswith("hf-hub:")
    if not on_hub and not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), 3)
        near = f" Close to it: {', '.join(close)}." if close else ""
        raise CaptureError(f"timm has no model {name!r}.{near} timm.list_models() has all.")
    if pretrained and not on_hub and not timm.models.is_model_pretrained(name):
        raise CaptureError(f"timm has no pretrained weights for {name}. Leave out --pretrained for random weights.")
    options: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    if input_size is not None:
        options["in_chans"] = input_size[0]
        cfg = None if on_hub else timm.get_pretrained_cfg(name)
        if cfg is not None and cfg.fixed_input_size:
            options["img_size"] = input_size[1:]
    reachable = not (pretrained or on_hub) or hub_reachable()
    try:
        with _hub(reachable):
            return cast(nn.Module, timm.create_model(name, pretrained=pretrained, **options))
    except Exception as error:
        if not pretrained and not on_hub:
            raise CaptureError(f"timm:{name} cannot be built: {one_line(error)}") from error
        cause = one_line(error) if reachable else "which is out of reach, and its cache does not have it"
        raise CaptureError(
            f"timm:{name} cannot be had from the hub ({cause}). Offline: leave out --pretrained for random weights, "
            "or give --checkpoint FILE.safetensors."
        ) from error


def _from_factory(source: str, name: str) -> tuple[nn.Module, Sequence[str] | None]:
    """(the factory's model, CLASS_NAMES of the factory's module or None)."""
    try:
        module, model = load_object(f"{source}:{name}", call=True)
    except Exception as error:
        raise CaptureError(f"{source}:{name} cannot be imported and called with nothing: {one_line(error)}") from error
    if not isinstance(model, nn.Module):
        raise CaptureError(f"{source}:{name} returned {type(model).__name__}; it must return a torch.nn.Module.")
    return model, getattr(module, "CLASS_NAMES", None)


def _class_names(model: nn.Module, cfg: dict[str, Any], beside: Sequence[str] | None) -> tuple[str, ...] | None:
    """Class names from the config, the factory's module, or ImageNet: the first that fits the number of classes."""
    count = getattr(model, "num_classes", None) or cfg.get("num_classes")
    for names in (cfg.get("label_names"), beside):
        if names and len(names) == (count or len(names)):
            return tuple(map(str, names))
    if not cfg:
        return None
    data = import_timm().data
    subset = data.infer_imagenet_subset({"num_classes": count})
    return tuple(data.ImageNetInfo(subset).label_descriptions()) if subset else None
