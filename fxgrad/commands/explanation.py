"""Targets of one picture, attributed by methods under policies.

Source: FullGrad (Srinivas & Fleuret, NeurIPS 2019, arXiv:1905.00780), eq. 1: the error that shares are stated with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from fxgrad.errors import InputError
from fxgrad.methods import Attribution, Target, attribute
from fxgrad.methods.classes import class_of
from fxgrad.methods.entry import METHODS, known
from fxgrad.methods.photo import Photo, photo
from fxgrad.methods.scoring import scored
from fxgrad.module.converted import ConvertedModule
from fxgrad.proof.check import CheckReport, check


@dataclass(frozen=True, eq=False)
class Explanation:
    """One target of one picture, attributed by one or several methods under one or several policies.

    Attributes:
        picture: the whole picture, and the part of it that the model sees.
        target: index of the class; None if the target is no class.
        label: the target, in words: its class name, or "class 7".
        logit: the target's value.
        found: one attribution for each method and policy, the policies of a method together. A method that takes no
            gradient has one only.
        name: of the picture.
    """

    picture: Photo
    target: int | None
    label: str
    logit: float
    found: tuple[Attribution, ...]
    name: str = ""

    def rows(self) -> list[tuple[Attribution, ...]]:
        """The attributions, method by method."""
        names = dict.fromkeys(one.method for one in self.found)
        return [tuple(one for one in self.found if one.method == name) for name in names]


def map_of(found: Attribution, pool: int = 1) -> Tensor:
    """The numbers that are drawn: of pixels, summed over blocks of pool x pool, or of patches. float32 on the CPU.

    Args:
        found: a batch of one.
        pool: side of the blocks in pixels; a map of patches stays as it is.

    Raises:
        InputError: they are not all finite.
    """
    values = (found.map if found.of_pixels else found.patches)[0].detach().float().cpu()
    if not bool(values.isfinite().all()):
        raise InputError(
            f"{found.method} of {found.label} under {found.rules} has NaN or infinities. Try a dtype with a larger "
            "range, such as --dtype float32; fxgrad check names the node where they begin."
        )
    return pool_sum(values, pool) if found.of_pixels and pool > 1 else values


def takes_gradient(method: str) -> bool:
    """Whether a method's map depends on the policy."""
    return method not in METHODS or known(method).takes_gradient


def proof(module: ConvertedModule, x: Tensor, target: Target) -> CheckReport:
    """The check of a converted classifier on one picture, for one target."""
    with torch.no_grad():
        logits = module(x)
    (cotangent,) = scored(target, logits).cotangents([logits], pytree.tree_structure(logits))
    return check(module, (x,), cotangent=cotangent)


def explain(
    modules: Sequence[ConvertedModule],
    x: Tensor,
    targets: Sequence[Target] = (None,),
    *,
    picture: Photo | Tensor,
    class_names: Sequence[str] | None = None,
    methods: Sequence[str] = ("input_x_gradient",),
    options: Mapping[str, Mapping[str, Any]] | None = None,
    top: int = 1,
    name: str = "",
) -> list[Explanation]:
    """Attribute targets to one picture.

    Args:
        modules: one classifier of pictures, (N, C, H, W) to logits (N, K), converted under each policy.
        x: one preprocessed picture, floating point (1, C, H, W).
        targets: as for `fxgrad.attribute`; None is the class with the largest logit, or the `top` largest.
        picture: for drawing: x before normalization, in [0, 1], (C, H, W); or the whole picture.
        class_names: one per logit.
        methods: as for `fxgrad.attribute`.
        options: method -> its options.
        top: how many classes None stands for.
        name: of the picture.

    Returns:
        One explanation per target.

    Raises:
        InputError: x is not one picture, the model's output is not one row of logits, there is no such target, or
            the model lacks what a method needs.

    Example:
        >>> import fxgrad
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3)).eval()
        >>> x = torch.randn(1, 1, 4, 4)
        >>> (e,) = explain([fxgrad.convert(model, (x,))], x, [2], picture=torch.zeros(1, 4, 4))
        >>> e.label, e.found[0].map.shape, e.found[0].completeness_error < 1e-5
        ('class 2', torch.Size([1, 4, 4]), True)
    """
    if x.ndim != 4 or x.shape[0] != 1:
        raise InputError(f"explain takes one picture, a tensor of shape (1, C, H, W); this one is {tuple(x.shape)}.")
    with torch.no_grad():
        logits = modules[0](x)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[0] != 1:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(f"explain needs a model that returns logits (N, K); for one picture this one gave {shape}.")
    names = class_names if class_names and len(class_names) == logits.shape[1] else None
    largest: list[Target] = [int(i) for i in logits[0].topk(min(top, logits.shape[1])).indices]
    asked = [one for target in targets for one in (largest if target is None else [target])]
    fitted = [scored(target, logits, names) for target in asked]
    found: list[dict[tuple[str, int], Attribution]] = [{} for _ in asked]
    for number, module in enumerate(modules):
        chosen = [m for m in methods if number == 0 or takes_gradient(m)]
        given: Any = [(m, (options or {}).get(m, {})) for m in chosen]
        several = attribute(module, (x,), target=list(asked), method=given, class_names=names)
        for own, row in zip(found, several):
            own.update({(m, number): one for m, one in zip(chosen, row)})
    order = [(m, number) for m in methods for number in range(len(modules))]
    each = [tuple(own[key] for key in order if key in own) for own in found]
    shown = picture if isinstance(picture, Photo) else photo(picture)
    return [
        Explanation(shown, _index(target, logits, names), one.label, float(one.score(logits)[0]), own, name)
        for target, one, own in zip(asked, fitted, each)
    ]


def _index(target: Target, logits: Tensor, names: Sequence[str] | None) -> int | None:
    return int(class_of(target, logits, names)[0]) if isinstance(target, (int, str)) else None


def pool_sum(attribution: Tensor, pool: int) -> Tensor:
    """Sums over blocks of pool x pool pixels, (H, W) to (ceil(H / pool), ceil(W / pool)); the total stays the same.

    Example:
        >>> import torch
        >>> pool_sum(torch.ones(3, 3), 2).tolist()
        [[4.0, 2.0], [2.0, 1.0]]
    """
    return F.avg_pool2d(attribution[None, None], pool, ceil_mode=True, divisor_override=1)[0, 0]
