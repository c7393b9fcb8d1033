"""The seam to the attribution methods: what the runner calls for each of them."""

from __future__ import annotations

import ast
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from fxgrad import methods as attributing
from fxgrad.errors import InputError
from fxgrad.metrics.removal import Grid
from fxgrad.module.converted import ConvertedModule

POLICY_FREE = ("raw_attention", "rollout", "random")
"""Methods that take no gradient, and so are the same under every policy."""
LARGEST = 16
"""How many parts a side of a picture is divided into at most, where the model has no patches."""


class Attribution(Protocol):
    """What is measured of an attribution; `fxgrad.methods.Attribution` has it.

    Attributes:
        patches: (batch, rows, columns): the influence of each patch.
        pixels: (batch, H, W).
        output: the value of the target, (batch,).
        total: what all shares of it add up to, (batch,); None for a method whose numbers are no shares.
    """

    @property
    def patches(self) -> Tensor: ...
    @property
    def pixels(self) -> Tensor: ...
    @property
    def output(self) -> Tensor: ...
    @property
    def total(self) -> Tensor | None: ...


Attribute = Callable[[ConvertedModule, Tensor, Tensor, Grid, int], Attribution]
"""Converted model, pictures (batch, C, H, W), targets int64 (batch,), grid of patches, seed -> attribution."""


def attributes(names: Sequence[str], options: Sequence[str] = ()) -> dict[str, Attribute]:
    """The methods by name, with their options set.

    Args:
        names: in `fxgrad.methods.METHODS`.
        options: such as "integrated_gradients.n_steps=20".

    Raises:
        InputError: there is no such method or option, or the value is not a number or the like.

    Example:
        >>> list(attributes(["saliency", "smoothgrad"], ["smoothgrad.samples=5"]))
        ['saliency', 'smoothgrad']
    """
    unknown = [name for name in names if name not in attributing.METHODS]
    if unknown:
        raise InputError(f"there is no method {unknown[0]!r}. There are {', '.join(attributing.METHODS)}.")
    return {name: functools.partial(_attribute, name, chosen) for name, chosen in _parsed(names, options).items()}


def grid_of(converted: ConvertedModule) -> Grid:
    """The model's patches; where it has none, the finest even grid of at most 16 x 16.

    Args:
        converted: a model of pictures.

    Raises:
        InputError: the model's input is no picture.
    """
    anatomy = attributing.anatomy(converted.classified)
    if anatomy.size is None:
        raise InputError("evaluate takes models of pictures, (batch, channels, height, width).")
    height, width = (max(n for n in range(1, LARGEST + 1) if side % n == 0) for side in anatomy.size)
    return anatomy.grid or (height, width)


def _attribute(
    method: str,
    options: Mapping[str, Any],
    converted: ConvertedModule,
    x: Tensor,
    target: Tensor,
    grid: Grid,
    seed: int,
) -> Attribution:
    seeded = {"seed": seed} if "seed" in inspect.signature(attributing.METHODS[method]).parameters else {}
    return attributing.attribute(converted, (x,), target=target, method=method, grid=grid, **{**seeded, **options})


def _parsed(names: Sequence[str], options: Sequence[str]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {name: {} for name in names}
    for option in options:
        left, _, value = option.partition("=")
        method, _, name = left.partition(".")
        known = inspect.signature(attributing.METHODS[method]).parameters if method in attributing.METHODS else {}
        try:
            if name not in list(known)[1:]:
                raise ValueError("there is no such option")
            parsed = ast.literal_eval(value)
        except (ValueError, SyntaxError) as error:
            raise InputError(f"{option!r} is not METHOD.OPTION=VALUE, as in smoothgrad.samples=5: {error}") from error
        found.get(method, {})[name] = parsed
    return found
