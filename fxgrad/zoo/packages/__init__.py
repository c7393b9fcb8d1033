"""Models of packages that nobody tuned the pass for, written down as recipes: one file per group of packages."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from importlib import metadata
from importlib.util import find_spec

from fxgrad.zoo.case import Built, Case
from fxgrad.zoo.packages._diffusers import DIFFUSERS
from fxgrad.zoo.packages._ideas import IDEAS
from fxgrad.zoo.packages._layers import LAYERS
from fxgrad.zoo.packages._pictures import KORNIA, MONAI, OPEN_CLIP, SEGMENT_ANYTHING, SMP
from fxgrad.zoo.packages._sound_text import ESM, NEURALOP, SENTENCES, TORCHAUDIO, ULTRALYTICS
from fxgrad.zoo.packages._tables_graphs import E3NN, GEOMETRIC, LIGHTLY, NUM_EMBEDDINGS, RTDL, TABM, TABNET
from fxgrad.zoo.packages._vit_pytorch import VIT_PYTORCH
from fxgrad.zoo.packages._x_transformers import X_TRANSFORMERS
from fxgrad.zoo.packages.recipe import Package

_ALL = (
    *(VIT_PYTORCH, X_TRANSFORMERS, SMP, MONAI, KORNIA, SEGMENT_ANYTHING, OPEN_CLIP, DIFFUSERS, TORCHAUDIO, ESM),
    *(SENTENCES, ULTRALYTICS, NEURALOP, RTDL, TABM, NUM_EMBEDDINGS, TABNET, GEOMETRIC, E3NN, LIGHTLY),
    *LAYERS,
    *IDEAS,
)
PACKAGES: dict[str, Package] = {package.name: package for package in _ALL}
"""Name of a package, as pip knows it -> its recipes."""


def cases(package: Package) -> Iterator[Case]:
    """The cases of a package, installed or not.

    Example:
        >>> next(cases(PACKAGES["vit-pytorch"])).name
        'vit-pytorch:vit'
    """
    for name in package.recipes:
        yield Case(f"{package.name}:{name}", name.partition("/")[0], partial(_build, package.name, name))


def missing(package: Package) -> list[str]:
    """What pip must install before the package's models can be built.

    Example:
        >>> missing(Package("no-such-package", "no_such_package", {}))
        ['no-such-package']
    """
    absent = [] if find_spec(package.imported) else [package.name]
    for name in package.needs:
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            absent.append(name)
    return absent


def _build(package: str, name: str) -> Built:
    return PACKAGES[package].recipes[name].build()
