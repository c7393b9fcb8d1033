"""Input x Gradient averaged over shifts of the picture, so that it does not show where the grid of patches lies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from fxgrad.errors import InputError
from fxgrad.methods.definition import Map, method
from fxgrad.methods.ends import Ends
from fxgrad.methods.inputs import products
from fxgrad.methods.options import refuse_few
from fxgrad.methods.parts import NOTHING
from fxgrad.methods.problem import Problem


@method(of_inputs=True, reads=NOTHING, passes="own")
def shift_averaged(problem: Problem, shifts: int = 5, flip: bool = False) -> Map:
    """mean of sum_c x_s * dy/dx_s over shifted pictures x_s, each map shifted back to x.

    shifts is how many there are along each axis, evenly over one patch around 0. What a shift brings in is 0; a pixel's
    mean is over the shifts that leave it inside. flip=True takes the mirror image of each shifted picture, too. Other
    inputs stay as they are. It takes a run of the model for each picture: shifts ** 2, or twice that. Each picture's
    products, with what constants contribute, add up to the target's value there; the mean adds up to no value of x,
    so nothing is kept apart.

    Source: the idea is one step of Wróbel et al., DAVE, arXiv:2602.06613, the average over local transformations; its
    low-pass filter is left out. The products are those of input_x_gradient.
    """
    refuse_few("shifts", shifts)
    name, chosen = problem.anatomy.input, Ends(problem, None)
    each = [_offsets(patch, shifts) for patch in _patches(problem)]
    views = [_View(by, mirrored) for by in product(*each) for mirrored in ((False, True) if flip else (False,))]
    total: dict[str, Tensor] = {}
    inside: Tensor | int = 0
    for view in views:
        moved = chosen.moved({**chosen.values, name: view.of(chosen.values[name], problem.map_axes(name))})
        maps = products(moved, moved.run())
        inside = inside + view.back(torch.ones_like(maps[name]))
        maps[name] = view.back(maps[name])
        total = {n: total[n] + map if n in total else map for n, map in maps.items()}
    return Map(maps={n: map / (inside if n == name else len(views)) for n, map in total.items()})


@dataclass(frozen=True)
class _View:
    """A picture that is shifted, then mirrored along its last axis or not.

    Attributes:
        by: by how many elements along each axis.
        mirrored: whether it is mirrored.
    """

    by: tuple[int, ...]
    mirrored: bool

    def of(self, values: Tensor, axes: Sequence[int]) -> Tensor:
        """The view of a picture whose rows and columns are these axes."""
        found = _shifted(values, self.by, axes)
        return found.flip(axes[-1]) if self.mirrored else found

    def back(self, map: Tensor) -> Tensor:
        """A map of the view, (batch, rows, columns), moved to where its pixels are in the picture; 0 elsewhere."""
        found = map.flip(-1) if self.mirrored else map
        return _shifted(found, [-by for by in self.by], range(1, map.dim()))


def _shifted(values: Tensor, by: Sequence[int], axes: Sequence[int]) -> Tensor:
    """Values moved by so many elements along some axes, with 0 where nothing moves to."""
    found = torch.zeros_like(values)
    there, here = [slice(None)] * values.dim(), [slice(None)] * values.dim()
    for axis, step in zip(axes, by):
        size = values.shape[axis]
        there[axis], here[axis] = slice(max(step, 0), size + min(step, 0)), slice(max(-step, 0), size - max(step, 0))
    found[tuple(there)] = values[tuple(here)]
    return found


def _offsets(patch: int, count: int) -> list[int]:
    """So many shifts around 0, evenly over one patch; fewer where the patch has fewer pixels.

    Example:
        >>> _offsets(16, 5), _offsets(2, 5)
        ([-6, -3, 0, 3, 6], [-1, 0, 1])
    """
    return sorted({((2 * i - count + 1) * patch + count) // (2 * count) for i in range(count)})


def _patches(problem: Problem) -> list[int]:
    """The sizes of a patch, in pixels.

    Raises:
        InputError: the input is no picture with a grid of patches.
    """
    size, grid = problem.anatomy.size, problem.anatomy.grid
    if size is None or grid is None or len(size) != len(grid):
        raise InputError(
            "shift_averaged shifts a picture within one of its patches, and "
            f"input {problem.anatomy.input!r} is no picture whose patches are known. Pass grid=(rows, columns), and "
            "channels=, its axis of channels; or use input_x_gradient."
        )
    return [max(1, side // count) for side, count in zip(size, grid)]
