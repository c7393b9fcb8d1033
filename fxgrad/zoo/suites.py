"""The suites: the models of the zoo, by package."""

from __future__ import annotations

import difflib
import importlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from fxgrad.data.factory import load_object
from fxgrad.data.models import load_model
from fxgrad.data.specs import SOURCES, wanted_of
from fxgrad.errors import InputError, one_line
from fxgrad.zoo.case import Built, Case, Limits
from fxgrad.zoo.packages import PACKAGES, cases, missing
from fxgrad.zoo.shrink import build_for_images, parameter_count

SUITES = {
    "timm-families": "the smallest model of every family of timm, at up to 256 pixels",
    "timm": "every model that timm registers, the largest families first, at 128 pixels where it can",
    "torchvision": "every model for classification, segmentation and video, and a feature pyramid",
    "transformers": "one tiny model of every architecture of Hugging Face that there is a case for",
    "packages": "small models of packages that nobody tuned the pass for, of those that are installed",
}
"""Name of a suite -> its content."""
DEFAULT = Limits()


def suite(name: str, limits: Limits = DEFAULT) -> list[Case]:
    """The cases of a suite.

    Args:
        name: a key of `SUITES`.
        limits: see `Limits`.

    Raises:
        InputError: no such suite, or its package is not installed.

    Example:
        >>> suite("torchvision")[0].name
        'torchvision:alexnet'
    """
    if name not in SUITES:
        raise InputError(f"no suite {name!r}; there are {', '.join(SUITES)}.")
    return list(_LISTS[name](limits))


def named(spec: str, limits: Limits = DEFAULT) -> Case:
    """The case of one model.

    Args:
        spec: `timm:NAME`, `torchvision:NAME`, `transformers:NAME`; `hf:NAME` and `open_clip:NAME` as for
            `fxgrad.data.models.load_model`; any of these with arguments, as in `timm:NAME?img_size=64`; or
            `module.path:factory`, which returns (model, args, kwargs). The module is looked for in the current
            directory and on sys.path.
        limits: see `Limits`.

    Raises:
        InputError: there is no such model.

    Example:
        >>> named("timm:resnet18").family
        'resnet'
    """
    package, _, name = spec.partition(":")
    if not package or not name:
        raise InputError(f"a model is PACKAGE:NAME, as in timm:resnet18; {spec!r} is not.")
    if package in SOURCES and ("?" in spec or package not in _FINDERS):
        return Case(spec, package, partial(_from_source, spec))
    if package not in _FINDERS and package not in PACKAGES:
        return Case(spec, package, partial(_from_factory, spec, os.getcwd()))
    find = _FINDERS.get(package) or partial(_find_in_package, package)
    found = {case.name: case for case in find(name, limits)}
    if spec not in found:
        close = ", ".join(difflib.get_close_matches(spec, found, 3)) or "nothing"
        raise InputError(f"{package} has no model {name!r}. Close to it: {close}.")
    return found[spec]


def _need(package: str) -> ModuleType:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise InputError(
            f"this needs {package.partition('.')[0]}, which cannot be imported: {one_line(error)}"
        ) from error


# timm


def _timm_case(name: str, family: str, limits: Limits, image_size: int = 128) -> Case:
    return Case(f"timm:{name}", family, partial(_build_timm, name, limits, image_size))


def _build_timm(name: str, limits: Limits, image_size: int) -> Built:
    timm = _need("timm")
    create = partial(timm.create_model, name)
    with torch.device("meta"):
        config = create().pretrained_cfg
    fixed = "img_size" if config.get("fixed_input_size") else None
    return build_for_images(create, tuple(config["input_size"]), limits, image_size=image_size, fixed=fixed)


def _timm_families() -> dict[str, list[str]]:
    """Family -> its models; a family is a module of timm."""
    timm = _need("timm")
    return {family: timm.list_models(module=family) for family in timm.list_modules()}


def _timm_suite(limits: Limits) -> Iterator[Case]:
    for family, names in sorted(_timm_families().items(), key=lambda item: (-len(item[1]), item[0])):
        yield from (_timm_case(name, family, limits) for name in names)


def _timm_smallest(limits: Limits) -> Iterator[Case]:
    counts = _timm_counts()
    for family, names in sorted(_timm_families().items()):
        yield _timm_case(min(names, key=lambda n: (counts[n], n)), family, limits, image_size=256)


def _timm_counts() -> dict[str, int]:
    """Model -> number of parameters. Counting takes minutes, so it is done once per version of timm."""
    timm = _need("timm")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    cache = home / "fxgrad" / f"timm-{timm.__version__}-parameters.json"
    names = timm.list_models()
    try:
        counts: dict[str, int] = json.loads(cache.read_text("utf-8"))
    except (OSError, ValueError):
        counts = {}
    if counts.keys() != set(names):
        sys.stderr.write(f"counting the parameters of {len(names)} models of timm, once: some minutes ...\n")
        counts = {name: parameter_count(partial(timm.create_model, name)) for name in names}
        try:
            cache.parent.mkdir(parents=True, exist_ok=True)
            cache.write_text(json.dumps(counts), "utf-8")
        except OSError as error:
            sys.stderr.write(f"the counts cannot be kept in {cache}: {error.strerror}\n")
    return counts


def _find_timm(name: str, limits: Limits) -> Iterator[Case]:
    for family, names in _timm_families().items():
        yield from (_timm_case(name, family, limits) for name in names)


# torchvision

_TOO_SPECIAL = ("quantization", "detection", "optical_flow")
"""torchvision's modules with integer weights, data-dependent boxes, or pairs of images; left out."""
_CLIPS: dict[str, tuple[int, ...]] = {
    "s3d": (3, 16, 224, 224),
    "mvit_v1": (3, 16, 224, 224),
    "mvit_v2": (3, 16, 128, 128),
    "": (3, 8, 64, 64),
}
"""Start of a video model's name -> shape of the smallest clip that it takes."""
_PYRAMID = "resnet_fpn_backbone"


def _torchvision_suite(limits: Limits) -> Iterator[Case]:
    models = _need("torchvision.models")
    for name in models.list_models():
        *_, package, family = models.get_model_builder(name).__module__.split(".")
        if package not in _TOO_SPECIAL:
            yield Case(f"torchvision:{name}", family, partial(_build_torchvision, name, package, limits))
    yield Case(f"torchvision:{_PYRAMID}", "detection", _build_pyramid)


def _build_torchvision(name: str, package: str, limits: Limits) -> Built:
    models = _need("torchvision.models")
    weights: dict[str, Any] = {"weights": None}
    if package == "segmentation":
        weights["weights_backbone"] = None
    if package == "video":
        clip = next(value for start, value in _CLIPS.items() if name.startswith(start))
        model = models.get_model(name, **weights)
        notes = ["clips of " + "x".join(map(str, clip))]
        if name.startswith("mvit_v2"):
            # Built for 224 pixels; its relative positions are interpolated for another grid.
            notes.insert(0, f"224x224 pixels to {clip[-2]}x{clip[-1]}")
            model.pos_encoding.spatial_size = tuple(s // p for s, p in zip(clip[-2:], model.conv_proj.stride[-2:]))
        return Built(model.eval(), (torch.randn(2, *clip),), {}, "; ".join(notes))
    create: Callable[..., nn.Module] = partial(models.get_model, name, **weights)
    side = 299 if name.startswith("inception") else 224
    # torchvision's transformers take the size as a keyword; other models neither know nor need it.
    fixed = "image_size" if name.startswith("vit_") else None
    return build_for_images(create, (3, side, side), limits, image_size=128, fixed=fixed)


def _build_pyramid() -> Built:
    backbones = _need("torchvision.models.detection.backbone_utils")
    model = backbones.resnet_fpn_backbone(backbone_name="resnet18", weights=None)
    return Built(model.eval(), (torch.randn(2, 3, 128, 128),), {})


# transformers


def _transformers_suite(limits: Limits) -> Iterator[Case]:
    _need("transformers")
    for name in _need("fxgrad.zoo.transformers").CASES:
        yield Case(f"transformers:{name}", name, partial(_build_transformers, name))


def _build_transformers(name: str) -> Built:
    built: Built = _need("fxgrad.zoo.transformers").CASES[name]()
    return built


# packages


def _packages_suite(limits: Limits) -> Iterator[Case]:
    absences = {name: missing(package) for name, package in PACKAGES.items()}
    if all(absences.values()):
        raise InputError(f"none of the packages is installed. One of them: pip install {next(iter(PACKAGES))}")
    for package in PACKAGES.values():
        absent = absences[package.name]
        if absent:
            count = len(package.recipes)
            sys.stderr.write(f"skipped {package.name}, {count} models: pip install {' '.join(absent)}\n")
        else:
            yield from cases(package)


def _find_in_package(package: str, name: str, limits: Limits) -> Iterator[Case]:
    absent = missing(PACKAGES[package])
    if absent:
        raise InputError(f"{package}:{name} needs what is not installed: pip install {' '.join(absent)}")
    yield from cases(PACKAGES[package])


def _from_source(spec: str) -> Built:
    loaded = load_model(spec)
    return Built(loaded.model, (loaded.example(),), {})


def _from_factory(spec: str, directory: str) -> Built:
    wanted = wanted_of(spec)
    path = f"{wanted.source}:{wanted.name}"
    model, args, kwargs = load_object(path, call=True, directory=directory, options=wanted.options)[1]
    return Built(model, args, kwargs)


_LISTS: dict[str, Callable[[Limits], Iterator[Case]]] = {
    "timm-families": _timm_smallest,
    "timm": _timm_suite,
    "torchvision": _torchvision_suite,
    "transformers": _transformers_suite,
    "packages": _packages_suite,
}
_FINDERS: dict[str, Callable[[str, Limits], Iterator[Case]]] = {
    "timm": _find_timm,
    "torchvision": lambda name, limits: _torchvision_suite(limits),
    "transformers": lambda name, limits: _transformers_suite(limits),
}
