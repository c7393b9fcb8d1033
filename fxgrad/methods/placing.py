"""From the elements of a node's value to tokens: which axis is the batch's, which the tokens', and sums over the rest.

Every placement keeps the total: what a token gets, and what has no place among the tokens, add up to the sum of all
elements, example by example.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from fxgrad.methods.anatomy import Anatomy, Grid, is_map, shape_of, sizes, spatial_axes


@dataclass(frozen=True)
class Layout:
    """How the tokens lie in a node's value.

    Attributes:
        batch: the axis of the examples; None where it is merged into another one, and there is but one example.
        tokens: the axis of the tokens, or the two of rows and columns.
        ahead: how many of these tokens lie ahead of the patches.
    """

    batch: int | None
    tokens: tuple[int, ...]
    ahead: int

    def rows(self, value: Tensor) -> Tensor:
        """A value as (batch, tokens, channels); whatever is neither batch nor token is a channel."""
        places = self.tokens if self.batch is None else (self.batch, *self.tokens)
        moved = value.movedim(places, tuple(range(len(places))))
        moved = moved[None] if self.batch is None else moved
        return moved.flatten(1, len(self.tokens)).unsqueeze(-1).flatten(2)

    def put(self, scores: Tensor, value: Tensor, anatomy: Anatomy) -> Tensor:
        """Scores of these tokens, (batch, tokens), where they lie among the model's: (batch, ahead and patches)."""
        if len(self.tokens) == 2:
            maps = scores.reshape(-1, *(value.shape[axis] for axis in self.tokens))
            assert anatomy.grid is not None
            return F.pad(resample(maps, anatomy.grid).flatten(1), (anatomy.prefix, 0))
        return F.pad(scores, (anatomy.prefix - self.ahead, 0))[:, : anatomy.prefix + anatomy.count]


def layout(value: Tensor, node: fx.Node, anatomy: Anatomy, batch: int) -> Layout | None:
    """How the tokens lie in a node's value; None where it has no axis of tokens, or several examples share one.

    An axis is known by its size: that of all tokens, or of the patches alone. The last axis is the channels' wherever
    another will do; of two others the later one is taken, since heads come ahead of tokens. A map of features, of any
    resolution, lies on the patches as on the picture.
    """
    examples = batch_axis(node, anatomy)
    if value.dim() != len(sizes(node)) or (examples is None and batch > 1):
        return None
    map = is_map(node)
    if anatomy.tokens is not None and not map:
        for count, ahead in ((anatomy.tokens, anatomy.prefix), (anatomy.count, 0)):
            axes = [axis for axis, size in enumerate(value.shape) if size == count and axis != examples]
            inner = [axis for axis in axes if axis != value.dim() - 1]
            if axes:
                return Layout(examples, ((inner or axes)[-1],), ahead)
    if anatomy.grid is not None and value.dim() == 4 and examples == 0 and (map or anatomy.tokens is None):
        return Layout(0, spatial_axes(node), 0)
    return None


def per_token(part: Tensor, node: fx.Node, anatomy: Anatomy, batch: int) -> tuple[Tensor, Tensor]:
    """Sums of a value's elements, token by token.

    Args:
        part: shaped as the node's value, or otherwise: then it has no place among the tokens.
        node: of the captured graph.
        anatomy: of the model.
        batch: how many examples there are.

    Returns:
        The tokens', (batch, tokens ahead and patches), and what has no place among them, (batch,).

    Example:
        >>> import fxgrad
        >>> from fxgrad.methods.anatomy import anatomy
        >>> model = torch.nn.Sequential(torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)).eval()
        >>> libra = fxgrad.convert(model, (torch.zeros(2, 5, 8),))
        >>> last = list(libra.classified.captured.graph.nodes)[-2]
        >>> tokens, apart = per_token(torch.ones(2, 5, 8), last, anatomy(libra.classified), 2)
        >>> tokens.tolist()[0], apart.tolist()
        ([8.0, 8.0, 8.0, 8.0, 8.0], [0.0, 0.0])
    """
    where = layout(part, node, anatomy, batch)
    if where is None:
        return part.new_zeros(batch, anatomy.prefix + anatomy.count), per_example(part, node, anatomy, batch)
    scores = where.rows(part).sum(2)
    tokens = where.put(scores, part, anatomy)
    # What lies behind the patches has no place.
    return tokens, scores[:, where.ahead + anatomy.count :].sum(1) if len(where.tokens) == 1 else part.new_zeros(batch)


def per_example(part: Tensor, node: fx.Node, anatomy: Anatomy, batch: int) -> Tensor:
    """Sums of a tensor's elements, (batch,).

    Raises:
        ValueError: several examples share an axis of it (see `Problem.mixed`).
    """
    if batch == 1:
        return part.sum()[None]
    axis = batch_axis(node, anatomy)
    if axis is None or part.dim() != len(sizes(node)) or part.shape[axis] != batch:
        raise ValueError(f"{node.name}: no axis of {tuple(part.shape)} is that of {batch} examples")
    return part.movedim(axis, 0).flatten(1).sum(1) if part.dim() > 1 else part


def batch_axis(node: fx.Node, anatomy: Anatomy) -> int | None:
    """The axis of a node's value that is the batch's: of the size, as captured, of the input's; None if merged."""
    return next((axis for axis, size in enumerate(shape_of(node)) if str(size) == anatomy.batch), None)


def resample(maps: Tensor, grid: Grid) -> Tensor:
    """Maps on another grid: a cell gets of each old one the share that it overlaps, so that the total stays.

    Args:
        maps: (batch, rows, columns), any floating dtype.
        grid: the new rows and columns.

    Example:
        >>> resample(torch.ones(1, 3, 2), (2, 1)).tolist()
        [[[3.0], [3.0]]]
    """
    if tuple(maps.shape[1:]) == tuple(grid):
        return maps
    rows, columns = (_overlap(new, old).to(maps) for new, old in zip(grid, maps.shape[1:]))
    return rows @ maps @ columns.mT


def _overlap(new: int, old: int) -> Tensor:
    """(new, old): which share of an old cell lies in a new one, when both grids span the same length."""
    unit = math.gcd(new, old)
    first = torch.arange(new, dtype=torch.float64)[:, None] * (old // unit)
    second = torch.arange(old, dtype=torch.float64) * (new // unit)
    ends = torch.minimum(first + old // unit, second + new // unit)
    return (ends - torch.maximum(first, second)).clamp(min=0) / (new // unit)
