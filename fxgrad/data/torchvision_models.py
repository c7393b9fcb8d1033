"""Models of torchvision, with the preprocessing and the class names of its weights."""

from __future__ import annotations

import difflib
import importlib
from typing import Any

from torch import nn

from fxgrad.data.pictures import Preprocessing
from fxgrad.data.resizing import resizing
from fxgrad.data.specs import Built, Wanted
from fxgrad.data.timm_models import WEIGHTS
from fxgrad.errors import CaptureError, one_line


def torchvision_model(wanted: Wanted) -> Built:
    """Build a model of torchvision.

    Args:
        wanted: its name may end in @TAG, weights such as IMAGENET1K_V2; `pretrained` takes torchvision's default ones.
            Its options are those of the model's function.

    Returns:
        The model. With random weights, it has the preprocessing and the classes of the default weights.

    Raises:
        CaptureError: torchvision is not installed, or has no such model or weights; it cannot be built, or its weights
            cannot be had.
    """
    models = _models()
    name, _, tag = wanted.name.partition("@")
    wanted.refuse(weights=f"{WEIGHTS.removesuffix('.')}, or as torchvision:{name}@TAG.", pretrained=WEIGHTS)
    known_models = models.list_models(module=models)  # the classifiers of pictures
    if name in set(models.list_models()) - set(known_models):
        raise CaptureError(
            f"{wanted.spec} is no classifier of pictures. fxgrad zoo torchvision:{name} checks it; to explain it, give "
            "module.path:factory, a function of yours that returns it within a module from pictures to logits."
        )
    if name not in known_models:
        close = difflib.get_close_matches(name, known_models, 3)
        near = f" Close to it: {', '.join(close)}." if close else ""
        raise CaptureError(f"torchvision has no model {name!r}.{near} torchvision.models.list_models() has all.")
    enum = models.get_model_weights(name)
    known = {weights.name: weights for weights in enum}
    if tag and tag not in known:
        raise CaptureError(f"torchvision has no weights {tag!r} of {name}; it has {', '.join(known) or 'none'}.")
    if tag and wanted.pretrained:
        raise CaptureError(f"{wanted.spec} names its weights already. Leave out --pretrained.")
    chosen = known[tag] if tag else (enum.DEFAULT if wanted.pretrained else None)
    model = _created(models, name, chosen, wanted)
    names = tuple(map(str, (chosen or enum.DEFAULT).meta["categories"]))
    fits = wanted.options.get("num_classes", len(names)) == len(names)
    weights = chosen.name if chosen is not None else "random"
    return Built(model, _preprocessing(wanted, chosen or enum.DEFAULT), weights, names if fits else None)


def _created(models: Any, name: str, weights: Any, wanted: Wanted) -> nn.Module:
    init = {"init_weights": True} if name in ("googlenet", "inception_v3") and weights is None else {}
    try:
        model: nn.Module = models.get_model(name, weights=weights, **{**init, **wanted.options})
    except OSError as error:
        raise CaptureError(
            f"the weights of {wanted.spec} cannot be had ({one_line(error)}). Offline: leave them out for random "
            "weights, or give --checkpoint FILE.pth."
        ) from error
    except Exception as error:
        raise CaptureError(f"{wanted.spec} cannot be built: {one_line(error)}") from error
    return model


def _preprocessing(wanted: Wanted, weights: Any) -> Preprocessing:
    """The preprocessing of weights, as torchvision defines it, or its like for another size."""
    transform = weights.transforms()
    (side,), (resized,) = transform.crop_size, transform.resize_size
    size = wanted.input_size or (len(transform.mean), side, side)
    if size[0] != len(transform.mean):
        raise CaptureError(f"{wanted.spec} takes {len(transform.mean)} channels, not {size[0]}.")
    mean, std, filter = tuple(transform.mean), tuple(transform.std), transform.interpolation.value
    if size[1:] != (side, side):
        return resizing(size, mean, std, filter, side / resized)
    return Preprocessing(size, mean, std, transform, filter, side / resized)


def _models() -> Any:
    try:
        return importlib.import_module("torchvision.models")
    except ImportError as error:
        raise CaptureError(f"this needs torchvision ({error}): pip install torchvision") from error
