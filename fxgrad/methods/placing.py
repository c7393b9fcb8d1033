"""Sum the elements of a node's value token by token: find the axes of batch and tokens, and sum over the others.

The total stays the same: for each example, the sums of the tokens and the rest, which belongs to no token, add up to
the sum of all elements.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from fxgrad.errors import InputError
from fxgrad.graph.axes import Within, where
from fxgrad.graph.sizes import known, same, sizes_of
from fxgrad.methods.maps import is_map, spatial_axes
from fxgrad.methods.parts import TOKENS, Anatomy, Grid
from fxgrad.run.examples import BATCH


@dataclass(frozen=True)
class Layout:
    """How the tokens lie in a node's value.

    Attributes:
        shape: the value's shape, with merged axes split.
        batch: the axis of the examples; None if it is not found and there is only one example.
        tokens: the axes of the tokens, outermost first: one, those of a map's rows and columns, or those of windows.
        ahead: number of prefix tokens among these tokens.
        map: the sizes of the map that these tokens are, row by row, of any resolution; () if they are the model's own.
    """

    shape: tuple[int, ...]
    batch: int | None
    tokens: tuple[int, ...]
    ahead: int
    map: tuple[int, ...] = ()

    def rows(self, value: Tensor) -> Tensor:
        """A value as (batch, tokens, channels); all axes except batch and tokens are channels."""
        places = self.tokens if self.batch is None else (self.batch, *self.tokens)
        moved = value.reshape(self.shape).movedim(places, tuple(range(len(places))))
        moved = moved[None] if self.batch is None else moved
        return moved.flatten(1, len(self.tokens)).unsqueeze(-1).flatten(2)

    def put(self, scores: Tensor, anatomy: Anatomy) -> Tensor:
        """Move scores of these tokens, (batch, tokens), to the model's tokens: (batch, prefix tokens and patches)."""
        if self.map:
            maps = scores.reshape(-1, *self.map)
            assert anatomy.grid is not None
            return F.pad(resample(maps, anatomy.grid).flatten(1), (anatomy.prefix, 0))
        return F.pad(scores, (anatomy.prefix - self.ahead, 0))[:, : anatomy.prefix + anatomy.count]


def layout(value: Tensor, node: fx.Node, anatomy: Anatomy, batch: int) -> Layout | None:
    """How the tokens lie in a node's value; None without axes of tokens, or without an axis of examples.

    The axes have all tokens, the patches alone, or a map of another resolution, which covers the whole picture.
    """
    examples = within(node, anatomy)
    if value.dim() != len(sizes_of(node)) or (examples is None and batch > 1):
        return None
    if not is_map(node):
        found = _of_atoms(value, node, anatomy, batch)
        if found is not None or anatomy.tokens is not None:
            return found
    if anatomy.grid is None or value.dim() != len(anatomy.grid) + 2 or (examples != (0, 1, 1) and value.shape[0] != 1):
        return None
    axes = spatial_axes(node)
    return Layout(tuple(value.shape), 0, axes, 0, tuple(value.shape[axis] for axis in axes))


def _of_atoms(value: Tensor, node: fx.Node, anatomy: Anatomy, batch: int) -> Layout | None:
    """How the tokens lie in a value by its axes' atoms, even if they are merged with others, or in windows."""
    places = anatomy.places.get(node.name, ())
    parts = [atom for axis in places for atom in axis or (None,)]
    sizes = [1 if atom is None else known(atom.size, anatomy.free) for atom in parts]
    whole = [i for i, p in enumerate(parts) if p is not None and p.origin == BATCH and same(p.size, anatomy.examples)]
    shape = tuple(batch if i in whole else size for i, size in enumerate(sizes))
    if min(shape, default=-1) < 0 or math.prod(shape) != value.numel() or (batch > 1 and not whole):
        return None
    own = [(known(p.stride, anatomy.free), i) for i, p in enumerate(parts) if p is not None and p.origin == TOKENS]
    tokens = tuple(i for _, i in sorted(own, reverse=True))
    chain = [(stride, shape[i]) for stride, i in sorted(own, reverse=True)]
    count = math.prod(size for _, size in chain)
    examples = whole[0] if whole else None
    counts = [anatomy.tokens, *([] if anatomy.tokens is None and anatomy.grid is None else [anatomy.count])]
    if _contiguous(chain) and chain[-1][0] == 1 and count in counts:
        return Layout(shape, examples, tokens, anatomy.prefix if count == anatomy.tokens else 0)
    map = _covered(chain, anatomy.grid) if anatomy.grid is not None else ()
    return Layout(shape, examples, tokens, 0, map) if map else None


def _contiguous(chain: Sequence[tuple[int, int]]) -> bool:
    """Whether axes with these (strides, sizes), outermost first, count without gaps, and there is one."""
    return bool(chain) and all(a[0] == b[0] * b[1] for a, b in pairwise(chain))


def _covered(chain: Sequence[tuple[int, int]], grid: Grid) -> tuple[int, ...]:
    """The sizes of a coarser map that covers a grid, if axes with these (strides, sizes) are one; else ().

    Example:
        >>> _covered([(32, 2), (8, 2), (2, 2)], (6, 4)), _covered([(4, 6), (1, 4)], (6, 4))
        ((), (6, 4))
    """
    found = []
    for axis, size in enumerate(grid):
        inner = math.prod(grid[axis + 1 :])
        own = [(stride, n) for stride, n in chain if inner <= stride < inner * size]
        if not _contiguous(own) or own[0][0] * own[0][1] != inner * size:
            return ()
        found.append(math.prod(n for _, n in own))
    return tuple(found)


def per_token(
    part: Tensor, node: fx.Node, anatomy: Anatomy, batch: int, only: int | None = None
) -> tuple[Tensor, Tensor]:
    """Sums of a value's elements, token by token.

    Args:
        part: a tensor shaped as the node's value; one of another shape belongs to no token.
        node: a node of the captured graph.
        anatomy: the model's anatomy.
        batch: number of examples.
        only: the example whose contributions they are, if it is one.

    Returns:
        (sums of the tokens, (batch, prefix tokens and patches); the rest, which belongs to no token, (batch,)).

    Example:
        >>> import fxgrad
        >>> from fxgrad.methods import anatomy
        >>> model = torch.nn.Sequential(torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)).eval()
        >>> libra = fxgrad.convert(model, (torch.zeros(2, 5, 8),))
        >>> last = list(libra.classified.captured.graph.nodes)[-2]
        >>> tokens, apart = per_token(torch.ones(2, 5, 8), last, anatomy(libra.classified), 2)
        >>> tokens.tolist()[0], apart.tolist()
        ([8.0, 8.0, 8.0, 8.0, 8.0], [0.0, 0.0])
    """
    place = layout(part, node, anatomy, batch)
    if place is None:
        return part.new_zeros(batch, anatomy.prefix + anatomy.count), per_example(part, node, anatomy, batch, only)
    scores = place.rows(part).sum(2)
    tokens = place.put(scores, anatomy)
    # Tokens after the patches are not on the map.
    return tokens, part.new_zeros(batch) if place.map else scores[:, place.ahead + anatomy.count :].sum(1)


def per_example(part: Tensor, node: fx.Node, anatomy: Anatomy, batch: int, only: int | None = None) -> Tensor:
    """Sums of a tensor's elements per example, (batch,); see `per_token`.

    Raises:
        InputError: its examples cannot be told apart (see `Problem.mixed`).
    """
    if batch == 1:
        return part.sum()[None]
    place = within(node, anatomy)
    if (
        place is None
        or part.dim() != len(sizes_of(node))
        or part.shape[place.axis] != place.ahead * batch * place.behind
    ):
        if only is not None:
            return torch.stack([part.sum() if i == only else part.new_zeros(()) for i in range(batch)])
        raise InputError(
            f"no axis of the value {node.name!r} of shape {tuple(part.shape)} is known to be that of the {batch} "
            "examples. Attribute one example at a time, or pick another layer."
        )
    return place.sums(part, batch)


def within(node: fx.Node, anatomy: Anatomy) -> Within | None:
    """Where the examples are in a node's value; None if they cannot be told apart."""
    found = where(anatomy.places.get(node.name, ()), BATCH, anatomy.examples)
    if found is None:
        return None
    ahead, behind = (known(size, anatomy.free) for size in found[1:])
    return None if ahead < 0 and behind < 0 else Within(found.axis, ahead, behind)


def span(value: Tensor, node: fx.Node, anatomy: Anatomy, batch: int) -> Tensor:
    """Largest less smallest element of each example, in the value's shape; of the whole value if examples share it."""
    place = within(node, anatomy)
    if batch == 1 or place is None:
        return (value.max() - value.min()).expand(value.shape)
    rows = value.movedim(place.axis, 0)
    examples = rows.reshape(place.ahead, batch, place.behind, -1)
    spans = examples.amax((0, 2, 3), keepdim=True) - examples.amin((0, 2, 3), keepdim=True)
    return spans.expand_as(examples).reshape(rows.shape).movedim(0, place.axis)


def resample(maps: Tensor, grid: Grid) -> Tensor:
    """Maps on another grid: a new cell gets from each old cell the share that it overlaps; the total stays the same.

    Args:
        maps: (batch, rows, columns), any floating dtype; or with another number of axes behind the batch's.
        grid: the new (rows, columns).

    Example:
        >>> resample(torch.ones(1, 3, 2), (2, 1)).tolist()
        [[[3.0], [3.0]]]
    """
    if tuple(maps.shape[1:]) == tuple(grid):
        return maps
    found = maps
    for axis, new in enumerate(grid, start=1):
        share = _overlap(new, maps.shape[axis]).to(maps)
        found = torch.tensordot(found, share, ([axis], [1])).movedim(-1, axis)
    return found


def _overlap(new: int, old: int) -> Tensor:
    """(new, old): the share of each old cell that lies in each new one; both grids span the same length."""
    unit = math.gcd(new, old)
    first = torch.arange(new, dtype=torch.float64)[:, None] * (old // unit)
    second = torch.arange(old, dtype=torch.float64) * (new // unit)
    ends = torch.minimum(first + old // unit, second + new // unit)
    return (ends - torch.maximum(first, second)).clamp(min=0) / (new // unit)
