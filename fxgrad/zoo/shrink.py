"""Reduce models that are too large to measure: build them without using memory, and keep a few blocks of each sort.

Blocks of one sort run the same code, so a few of them are enough.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fxgrad.zoo.case import Built, Limits

_LARGE = 1_000_000
"""The number of elements from which a tensor's initialisation is skipped."""
_SIDES = (96, 112, 128, 144, 160, 192, 224, 240, 256, 288, 320, 384, 448, 512)

Create = Callable[..., nn.Module]
Size = tuple[int, int, int]


def parameter_count(create: Create) -> int:
    """The number of a model's parameters, counted on the meta device if possible: nothing is allocated.

    Example:
        >>> parameter_count(lambda: nn.Linear(1000, 1000, bias=False))
        1000000
    """
    try:
        with torch.device("meta"):
            return count(create())
    except NotImplementedError:  # the model computes its sizes with tensors
        return count(create())


def count(model: nn.Module) -> int:
    """The number of a model's parameters."""
    return sum(p.numel() for p in model.parameters())


def build_for_images(create: Create, size: Size, limits: Limits, *, image_size: int, fixed: str | None = None) -> Built:
    """Build a model for images, reduced to the limits as far as the model allows.

    Args:
        create: makes the model; takes the keyword named by `fixed`, if given.
        size: (channels, height, width) of the images that the model was made for.
        limits: see `Limits`.
        image_size: side of the images if the limits have none.
        fixed: the keyword for the side, for models with a fixed input size. It is left out if the model does not know
            it.

    Returns:
        The model in eval mode, with two images of normal noise, float32 (2, C, H, W).

    Raises:
        Exception: any exception of the model on an image of its own size.

    Example:
        >>> net = lambda: nn.Sequential(*(nn.Conv2d(3, 3, 1) for _ in range(9)))
        >>> built = build_for_images(net, (3, 512, 512), Limits(parameters=50), image_size=96)
        >>> built.args[0].shape, built.reduced
        (torch.Size([2, 3, 96, 96]), '512x512 pixels to 96x96; 108 parameters to 24')
    """
    largest = limits.image_size or image_size
    own: tuple[dict[str, Any], Size] = ({}, size)
    tries = [own]
    if max(size[1:]) > largest:
        sides = [s for s in sorted({largest, *_SIDES}) if largest <= s < max(size[1:])]
        tries = [({fixed: s} if fixed else {}, (size[0], s, s)) for s in sides] + [own]
    whole = parameter_count(create)
    reductions = [True, False] if whole > limits.parameters else [False]
    for reduction in reductions:
        for options, tried in tries:
            try:
                model = reduce(partial(create, **options), limits.parameters) if reduction else create(**options)
                example = torch.randn(2, *tried)
                _refuse_failure(model.eval(), example)
            except Exception:
                if (reduction, options, tried) == (False, *own):
                    raise
                continue
            notes = [] if tried == size else [f"{size[1]}x{size[2]} pixels to {tried[1]}x{tried[2]}"]
            notes += [f"{whole} parameters to {count(model)}"] if reduction and count(model) < whole else []
            return Built(model, (example,), {}, "; ".join(notes))
    raise AssertionError("the last try returns or raises")


def _refuse_failure(model: nn.Module, example: Tensor) -> None:
    with torch.no_grad():
        outputs = torch.utils._pytree.tree_leaves(model(example))
    if not all(v.isfinite().all() for v in outputs if isinstance(v, Tensor)):
        raise ArithmeticError("the model's output is not finite")


def reduce(create: Callable[[], nn.Module], parameters: int) -> nn.Module:
    """Build a model of any size and keep only two, else one, of each sort of block.

    Large weights are not written until the model is small enough, so they take no memory. Then normal noise of variance
    1 / fan-in replaces their own initialisation.

    Args:
        create: makes the model.
        parameters: the largest number of parameters to keep, if blocks can be dropped.

    Example:
        >>> net = lambda: nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 5))
        >>> [layer.out_features for layer in reduce(net, 20)]
        [2, 5]
    """
    with _Untouched():
        model = create()
    for keep in (2, 1):
        if count(model) > parameters:
            _drop_repeats(model, keep)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.numel() >= _LARGE:
                parameter.normal_(0, (parameter.numel() / max(parameter.shape[0], 1)) ** -0.5)
    return model


class _Untouched(TorchFunctionMode):
    """Skip in-place ops on large tensors: the system allocates memory only when it is written."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        target = args[0] if args else (kwargs or {}).get("tensor")
        name = getattr(func, "__name__", "")
        in_place = name.endswith("_") and not name.endswith("__")
        if in_place and isinstance(target, Tensor) and target.is_floating_point() and target.numel() >= _LARGE:
            return target
        return func(*args, **(kwargs or {}))


def _drop_repeats(model: nn.Module, keep: int) -> None:
    """Keep the first `keep` blocks of each sort, in every list of modules and in every container with many blocks."""
    for container in list(model.modules()):
        in_list = isinstance(container, (nn.Sequential, nn.ModuleList))
        seen: Counter[Any] = Counter()
        kept: dict[str, nn.Module | None] = {}
        for name, child in container._modules.items():
            # Modules without parameters cost nothing, and their strides may be needed. A single layer outside of a
            # list has its own function.
            if child is None or not count(child) or not (in_list or child._modules):
                kept[name] = child
                continue
            sort = _sort(child)
            seen[sort] += 1
            if seen[sort] <= (keep if in_list else 2):
                kept[name] = child
            elif not in_list:
                kept[name] = nn.Identity()
        if isinstance(container, nn.ModuleList):  # its iteration counts from 0
            kept = {str(i): child for i, child in enumerate(kept.values())}
        container._modules.clear()
        container._modules.update(kept)


def _sort(module: nn.Module | None) -> Any:
    """The sort of a module, as a key: classes, shapes, and settings such as strides and window sizes."""
    if module is None:
        return None
    parts: list[Any] = [(name, tuple(p.shape)) for name, p in module.named_parameters()]
    for name, child in module.named_modules():
        settings = {k: v for k, v in vars(child).items() if not k.startswith("_") and isinstance(v, (int, str, tuple))}
        parts.append((name, type(child), repr(sorted(settings.items()))))
    return tuple(parts)
