"""Models of timm, and what a model's config says of its input: timm's config, or one of yours in the same form."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, cast

from torch import nn

from fxgrad.data import reach
from fxgrad.data.pictures import Size, import_timm, preprocessing_of
from fxgrad.data.specs import Built, Wanted
from fxgrad.errors import CaptureError, one_line

WEIGHTS = "Weights come with --pretrained or --checkpoint."


def timm_model(wanted: Wanted) -> Built:
    """Build a model of timm.

    Args:
        wanted: its options are those of `timm.create_model`; `img_size`, a number or (height, width), is the size of
            its input for models of any kind.

    Raises:
        CaptureError: there is no such model, it cannot be built, or its weights cannot be had.
    """
    timm = import_timm()
    name, on_hub = wanted.name, wanted.name.startswith("hf-hub:")
    wanted.refuse(pretrained=WEIGHTS, checkpoint_path=WEIGHTS)
    if not on_hub and not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), 3)
        near = f" Close to it: {', '.join(close)}." if close else ""
        raise CaptureError(f"timm has no model {name!r}.{near} timm.list_models() has all.")
    if wanted.pretrained and not on_hub and not timm.models.is_model_pretrained(name):
        raise CaptureError(f"timm has no pretrained weights for {name}. Leave out --pretrained for random weights.")
    cfg = None if on_hub else timm.get_pretrained_cfg(name)
    size = _size(wanted, cfg)
    options = dict(wanted.without("img_size").options)
    if size is not None:
        options["in_chans"] = size[0]
        if cfg is not None and cfg.fixed_input_size:
            options["img_size"] = size[1:]
    model = _created(timm, wanted, options, on_hub)
    weights = "pretrained" if wanted.pretrained else "random"
    return described(wanted.spec, model, size, None, weights)


def described(spec: str, model: nn.Module, size: Size | None, names: Sequence[str] | None, weights: str) -> Built:
    """A model with the preprocessing and the class names that its config, in timm's form, says, if it has one.

    Args:
        spec: names the model in errors.
        model: may have a `pretrained_cfg` or `default_cfg`.
        size: of its input, if not the config's.
        names: of its classes, if the config has none.
        weights: where they come from, in words.
    """
    cfg = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None) or {}
    cfg = dict(cfg if isinstance(cfg, Mapping) else cfg.to_dict())
    return Built(model, preprocessing_of(spec, model, cfg, size), weights, _class_names(model, cfg, names))


def _size(wanted: Wanted, cfg: Any) -> Size | None:
    """The size of the input that is asked for, by --input-size or as the option img_size; None: the model's own."""
    side = wanted.options.get("img_size")
    if side is None:
        return wanted.input_size
    sides = (side, side) if isinstance(side, int) else side
    if not isinstance(sides, tuple) or len(sides) != 2 or not all(isinstance(n, int) and n > 0 for n in sides):
        raise CaptureError(f"{wanted.spec}: img_size is a number of pixels, or HEIGHT,WIDTH; not {side!r}.")
    if wanted.input_size is not None and wanted.input_size[1:] != sides:
        raise CaptureError(f"{wanted.spec} and --input-size {' '.join(map(str, wanted.input_size))} differ. Keep one.")
    channels = wanted.input_size[0] if wanted.input_size else wanted.options.get("in_chans")
    return (channels or (cfg.input_size[0] if cfg is not None else 3), *sides)


def _created(timm: Any, wanted: Wanted, options: dict[str, Any], on_hub: bool) -> nn.Module:
    reachable = not (wanted.pretrained or on_hub) or reach.hub_reachable()
    try:
        with reach.hub(reachable):
            return cast(nn.Module, timm.create_model(wanted.name, pretrained=wanted.pretrained, **options))
    except Exception as error:
        if not wanted.pretrained and not on_hub:
            raise CaptureError(f"{wanted.spec} cannot be built: {one_line(error)}") from error
        cause = one_line(error) if reachable else "which is out of reach, and its cache does not have it"
        raise CaptureError(
            f"{wanted.spec} cannot be had from the hub ({cause}). Offline: leave out --pretrained for random weights, "
            "or give --checkpoint FILE.safetensors."
        ) from error


def _class_names(model: nn.Module, cfg: dict[str, Any], beside: Sequence[str] | None) -> tuple[str, ...] | None:
    """Class names from the config, the factory's module, or ImageNet: the first that fits the number of classes."""
    count = getattr(model, "num_classes", cfg.get("num_classes"))
    for names in (cfg.get("label_names"), beside):
        if names and count in (None, len(names)):
            return tuple(map(str, names))
    if not cfg:
        return None
    data = import_timm().data
    subset = data.infer_imagenet_subset({"num_classes": count})
    return tuple(data.ImageNetInfo(subset).label_descriptions()) if subset else None
