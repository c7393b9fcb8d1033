"""Black-box methods: the target's values where parts of the inputs are covered. No policy changes them.

They are what the other methods can be compared with, and take hundreds of forward passes. A part is a patch of the
model's grid or a square of `window` pixels, a token of a text, an element of other inputs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fxgrad.errors import InputError
from fxgrad.methods.definition import Map, method
from fxgrad.methods.ends import Ends
from fxgrad.methods.options import refuse_few
from fxgrad.methods.parts import NOTHING
from fxgrad.methods.problem import Problem

ACROSS = 14
"""How many parts there are along each axis of a picture whose model has no patches."""
CELLS = 7
"""How many cells RISE's coarse masks have along each axis."""


@method(takes_gradient=False, of_inputs=True, reads=NOTHING, passes="hundreds")
def occlusion(problem: Problem, window: int | None = None, baseline: float = 0.0) -> Map:
    """For each part, the target's value less that where the part has the baseline's value, spread over its elements.

    Source: Zeiler, Fergus, Visualizing and Understanding Convolutional Networks, ECCV 2014, arXiv:1311.2901,
    section 4.2; by captum's FeatureAblation.
    """
    game = _Game(problem, window, baseline)
    ablation = _captum("FeatureAblation")(game.values)
    return game.spread(ablation.attribute(game.nothing_covered.expand(problem.batch, -1)))


@method(takes_gradient=False, of_inputs=True, reads=NOTHING, passes="hundreds")
def kernel_shap(
    problem: Problem, samples: int = 1000, window: int | None = None, baseline: float = 0.0, seed: int = 0
) -> Map:
    """The Shapley value of each part, spread over its elements, by a regression on the values of random coalitions.

    Parts outside of the coalition have the baseline's value. The error falls with the number of samples, which is best
    several times that of the parts.

    Source: Lundberg, Lee, A Unified Approach to Interpreting Model Predictions, NeurIPS 2017, arXiv:1705.07874,
    section 4.1; by captum's KernelShap.
    """
    refuse_few("samples", samples)
    game, rows = _Game(problem, window, baseline), []
    for example in range(problem.batch):
        shap = _captum("KernelShap")(lambda kept, at=example: game.values(kept)[at : at + 1])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # the same coalitions for each example, whose values are kept
            rows.append(shap.attribute(game.nothing_covered, n_samples=samples))
    return game.spread(torch.cat(rows))


@method(takes_gradient=False, of_inputs=True, reads=NOTHING, passes="hundreds")
def rise(problem: Problem, samples: int = 1000, share: float = 0.5, baseline: float = 0.0, seed: int = 0) -> Map:
    """mean of m * (y(x m) - mean of y) / share over random masks m between 0 and 1, whose mean is `share`.

    It is by how much the target is higher where a pixel is left than on average: the paper's map less one number, which
    the paper's probabilities have no need of. Masks of a picture are 7 by 7 cells of 0 or 1, enlarged with smooth edges
    and shifted; those of a text cover tokens. What is covered has the baseline's value.

    Source: Petsiuk, Das, Saenko, RISE, BMVC 2018, arXiv:1806.07421, eqs. 4 to 6.
    """
    refuse_few("samples", samples)
    if not 0 < share <= 1:
        raise InputError(f"share is which part of the input a mask leaves, more than 0 and up to 1, not {share!r}.")
    covered = _Covered(problem, baseline)

    def masks() -> Iterator[dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        for _ in range(samples):
            yield {name: _mask(shape, share, generator) for name, shape in covered.shapes.items()}

    values = torch.stack([covered.values(mask) for mask in masks()])
    shares = (values - values.mean(0)) / (samples * share)
    maps = {name: values.new_zeros(problem.batch, *shape) for name, shape in covered.shapes.items()}
    for own, given in zip(shares, masks()):
        for name, mask in given.items():
            maps[name] += own.reshape(-1, *[1] * mask.dim()) * mask.to(own)
    return Map(maps=maps)


class _Covered:
    """The target's values where some of the inputs is covered."""

    def __init__(self, problem: Problem, baseline: float) -> None:
        self.ends, self.baseline = Ends(problem, None), baseline
        maps = {name: problem.reduced(name, value) for name, value in self.ends.values.items()}
        self.shapes = {name: tuple(map.shape[1:]) for name, map in maps.items()}

    def values(self, masks: Mapping[str, Tensor]) -> Tensor:
        """The target's value per example, (batch,).

        Args:
            masks: input's name -> how much of each element of its map stays, 1 is all.
        """
        moved = {}
        for name, x in self.ends.values.items():
            mask = self._as_input(name, masks[name]).to(x)
            moved[name] = x * mask + self.baseline * (1 - mask)
        return self.ends.moved(moved).values_of_target().detach()

    def _as_input(self, name: str, mask: Tensor) -> Tensor:
        """A mask of an input's map with an axis of size 1 for examples and channels."""
        kept = self.ends.problem.map_axes(name)
        for axis in range(self.ends.values[name].dim()):
            mask = mask if axis in kept else mask.unsqueeze(axis)
        return mask


class _Game:
    """A game whose players are the parts of the inputs: captum sees which of them stay, and the target's values."""

    def __init__(self, problem: Problem, window: int | None, baseline: float) -> None:
        if window is not None:
            refuse_few("window", window)
        self.problem, self.covered, self.window = problem, _Covered(problem, baseline), window
        self._known: dict[bytes, Tensor] = {}

    @cached_property
    def parts(self) -> dict[str, Tensor]:
        """Input's name -> the number of the part that each element of its map belongs to."""
        found, first = {}, 0
        for name, shape in self.covered.shapes.items():
            index = torch.zeros(shape, dtype=torch.int64)
            for axis, (size, width) in enumerate(zip(shape, self._widths(shape))):
                place = (torch.arange(size) // width).reshape(-1, *[1] * (len(shape) - axis - 1))
                index = index * -(-size // width) + place
            found[name], first = index + first, first + int(index.max()) + 1
        return found

    def _widths(self, shape: tuple[int, ...]) -> list[int]:
        """How many elements a part has along each axis."""
        grid = self.problem.anatomy.grid
        if len(shape) < 2:
            return [self.window or 1] * len(shape)
        if self.window is None and grid is not None and len(grid) == len(shape):
            return [-(-size // count) for size, count in zip(shape, grid)]
        return [self.window or math.ceil(size / ACROSS) for size in shape]

    @cached_property
    def nothing_covered(self) -> Tensor:
        """A row of ones, one for each part."""
        count = 1 + max(int(index.max()) for index in self.parts.values())
        return self.problem.aim.values.new_ones(1, count)

    def values(self, kept: Tensor) -> Tensor:
        """The target's value per example, (batch,), where only some parts are kept.

        Args:
            kept: (rows, parts), the same in each row.
        """
        row = kept[0].cpu()
        key = row.bool().numpy().tobytes()
        if key not in self._known:
            self._known[key] = self.covered.values({name: row[index] for name, index in self.parts.items()})
        return self._known[key]

    def spread(self, scores: Tensor) -> Map:
        """A map with the parts' scores, (batch, parts), each divided by the number of the part's elements."""
        counts = torch.bincount(torch.cat([index.flatten() for index in self.parts.values()]))
        each = (scores / counts.to(scores)).to(self.problem.aim.values)
        maps = {}
        for name, index in self.parts.items():
            maps[name] = each[:, index.flatten()].reshape(-1, *index.shape)
        return Map(maps=maps)


def _mask(shape: tuple[int, ...], share: float, generator: torch.Generator) -> Tensor:
    """A random mask: of cells with smooth edges over two or three axes, of elements over one."""
    if not 1 < len(shape) < 4:
        return (torch.rand(shape, generator=generator) < share).float()
    widths = [-(-size // CELLS) for size in shape]
    coarse = (torch.rand([CELLS + 1] * len(shape), generator=generator) < share).float()
    mode = "bilinear" if len(shape) == 2 else "trilinear"
    fine = F.interpolate(coarse[None, None], [(CELLS + 1) * w for w in widths], mode=mode, align_corners=False)[0, 0]
    starts = [int(torch.randint(width, (), generator=generator)) for width in widths]
    return fine[tuple(slice(start, start + size) for start, size in zip(starts, shape))]


def _captum(name: str) -> Any:
    """A class of captum's."""
    try:
        import captum.attr
    except ImportError as error:
        raise InputError(f'this method is captum\'s ({error}): pip install "fxgrad[captum]"') from error
    return getattr(captum.attr, name)
