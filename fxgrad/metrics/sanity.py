"""Sanity checks: does an attribution depend on what the model has learned?

A map that stays the same when the weights are shuffled, or when the model was trained on random labels, shows the
picture and not the model.

Source: Adebayo et al., Sanity Checks for Saliency Maps, NeurIPS 2018, arXiv:1810.03292.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxgrad.errors import InputError
from fxgrad.graph.nodes import placeholders_of
from fxgrad.methods.attribution import Attribution
from fxgrad.methods.definition import Map
from fxgrad.methods.entry import attribute
from fxgrad.methods.targets import Target
from fxgrad.metrics.similarity import spearman, ssim
from fxgrad.module.converted import ConvertedModule

_WINDOW = 7


@dataclass(frozen=True, eq=False)
class Alike:
    """How alike two attributions of the same examples are; each tensor is float64 (..., batch).

    Attributes:
        spearman: rank correlation of the maps.
        absolute: that of their sizes, without signs.
        ssim: structural similarity of the maps of pixels; NaN where the input is no picture.
    """

    spearman: Tensor
    absolute: Tensor
    ssim: Tensor


@dataclass(frozen=True, eq=False)
class Cascade(Alike):
    """An attribution compared with those of ever more shuffled models; each tensor is float64 (stages, batch).

    Attributes:
        stages: what was shuffled last, from the head down; at each stage the parts before it are shuffled, too.
    """

    stages: tuple[str, ...]


def alike(one: Attribution, other: Attribution) -> Alike:
    """How alike two attributions are.

    Args:
        one, other: attributions of the same examples, with maps of the same shape.

    Raises:
        InputError: maps of different shapes.

    Example:
        >>> import fxgrad
        >>> x = torch.rand(2, 1, 8, 8)
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3)).eval()
        >>> found = fxgrad.attribute(fxgrad.convert(model, (x,)), (x,), target=1)
        >>> alike(found, found).spearman.round(decimals=6).tolist()
        [1.0, 1.0]
    """
    maps = [found.map.detach().flatten(1).cpu() for found in (one, other)]
    size = one.anatomy.size
    pictures = size is not None and len(size) == 2
    structure = torch.full((len(maps[0]),), torch.nan, dtype=torch.float64)
    if pictures and size is not None:
        structure = ssim(one.pixels.detach().cpu(), other.pixels.detach().cpu(), window=min(_WINDOW, *size))
    return Alike(spearman(*maps), spearman(*(m.abs() for m in maps)), structure)


def parameter_randomisation(
    converted: ConvertedModule,
    args: tuple[Any, ...] | Tensor = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    target: Target,
    method: str | Callable[..., Map] = "input_x_gradient",
    seed: int = 0,
    **options: Any,
) -> Cascade:
    """Shuffle the weights of a copy from the head down, and compare each stage's attribution with the model's own.

    Each parameter's numbers are permuted, so that they stay as they are distributed. A method that explains the model
    loses all likeness; one that draws the picture keeps it.

    Args:
        converted: a converted model, which stays as it is.
        args, kwargs, method, options: as for `fxgrad.attribute`.
        target: as for `fxgrad.attribute`, but one: each stage explains the same class.
        seed: seed of the permutations.

    Returns:
        The likeness at every stage. A stage is a block (the module path up to its number), or another layer.

    Raises:
        InputError: several targets, or none, which is another class for each model; and as for `fxgrad.attribute`.

    Example:
        >>> import fxgrad, timm
        >>> vit, x = timm.create_model("test_vit", img_size=32).eval(), torch.randn(2, 3, 32, 32)
        >>> found = parameter_randomisation(fxgrad.convert(vit, (x,)), (x,), target=7, method="attcat")
        >>> found.stages[:3], found.spearman.shape
        (('head', 'norm', 'blocks.5'), torch.Size([11, 2]))

    Source: Adebayo et al., arXiv:1810.03292, section 4.1, cascading randomization.
    """
    if target is None or isinstance(target, list):
        raise InputError("every stage explains the same target: give one, such as a class's number.")
    stages: list[str] = []
    found: list[Alike] = []
    own = attribute(converted, args, kwargs, target=target, method=method, **options)
    for stage, shuffled in _shuffled(converted, seed):
        stages.append(stage)
        found.append(alike(own, attribute(shuffled, args, kwargs, target=target, method=method, **options)))
    if not found:
        raise InputError("the model has no parameters to shuffle.")
    return Cascade(
        spearman=torch.stack([one.spearman for one in found]),
        absolute=torch.stack([one.absolute for one in found]),
        ssim=torch.stack([one.ssim for one in found]),
        stages=tuple(stages),
    )


def label_randomisation(
    converted: ConvertedModule,
    other: ConvertedModule,
    args: tuple[Any, ...] | Tensor = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    target: Target,
    method: str | Callable[..., Map] = "input_x_gradient",
    **options: Any,
) -> Alike:
    """Compare a model's attributions with those of the same model trained on random labels.

    Args:
        converted: the model.
        other: the one that was trained on random labels, converted alike.
        args, kwargs, method, options: as for `fxgrad.attribute`.
        target: as for `parameter_randomisation`.

    Returns:
        The likeness of the two maps: none, if the method explains what was learned from the labels.

    Raises:
        InputError: as for `parameter_randomisation`; or the models' maps have different shapes.

    Example:
        >>> import fxgrad
        >>> x = torch.rand(2, 1, 8, 8)
        >>> models = [torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3)).eval() for _ in range(2)]
        >>> one, other = (fxgrad.convert(model, (x,)) for model in models)
        >>> label_randomisation(one, other, (x,), target=1).spearman.shape
        torch.Size([2])

    Source: Adebayo et al., arXiv:1810.03292, section 4.2, data randomization test.
    """
    if target is None or isinstance(target, list):
        raise InputError("both models explain the same target: give one, such as a class's number.")
    found = [attribute(c, args, kwargs, target=target, method=method, **options) for c in (converted, other)]
    return alike(*found)


def _shuffled(converted: ConvertedModule, seed: int) -> Iterator[tuple[str, ConvertedModule]]:
    """A stage's name, and one copy of the module for all stages, which each stage changes further."""
    generator = torch.Generator().manual_seed(seed)
    changed = copy.deepcopy(converted)
    parameters = dict(changed.named_parameters(remove_duplicate=False))
    done: set[int] = set()
    for stage, paths in _stages(converted):
        for path in paths:
            parameter = parameters[path].detach()
            if id(parameters[path]) not in done and parameter.is_floating_point():
                order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
                parameter.copy_(parameter.flatten()[order].reshape(parameter.shape))
            done.add(id(parameters[path]))  # a tied parameter is shuffled once
        yield stage, changed


def _stages(converted: ConvertedModule) -> list[tuple[str, list[str]]]:
    """The parameters by block or layer, the last that the program uses first."""
    captured, parameters = converted.classified.captured, dict(converted.named_parameters(remove_duplicate=False))
    places = {node: place for place, node in enumerate(captured.graph.nodes)}
    first: dict[str, int] = {}
    for path, node in zip(captured.state, placeholders_of(captured.graph)):
        if path in parameters:
            # What only embeds token ids is used before the graph.
            first[path] = min((places[user] for user in node.users), default=-1)
    groups: dict[str, list[str]] = {}
    for path in sorted(first, key=first.__getitem__):
        groups.setdefault(_part(path), []).append(path)
    return list(reversed(groups.items()))


def _part(path: str) -> str:
    """A parameter's module up to its first number, such as blocks.3; its own name if it belongs to no layer."""
    *owner, name = path.split(".")
    head = list(itertools.takewhile(lambda part: not part.isdecimal(), owner))
    return ".".join(owner[: len(head) + 1]) or name
