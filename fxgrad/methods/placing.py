"""Sum the elements of a node's value token by token: find the axes of batch and tokens, and sum over the others.

The total stays the same: for each example, the sums of the tokens and the rest, which belongs to no token, add up to
the sum of all elements.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

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
        tokens: the axis of the tokens, or the axes of a map's rows and columns.
        ahead: number of prefix tokens among these tokens.
        map: whether they are a map's.
    """

    shape: tuple[int, ...]
    batch: int | None
    tokens: tuple[int, ...]
    ahead: int
    map: bool = False

    def rows(self, value: Tensor) -> Tensor:
        """A value as (batch, tokens, channels); all axes except batch and tokens are channels."""
        places = self.tokens if self.batch is None else (self.batch, *self.tokens)
        moved = value.reshape(self.shape).movedim(places, tuple(range(len(places))))
        moved = moved[None] if self.batch is None else moved
        return moved.flatten(1, len(self.tokens)).unsqueeze(-1).flatten(2)

    def put(self, scores: Tensor, anatomy: Anatomy) -> Tensor:
        """Move scores of these tokens, (batch, tokens), to the model's tokens: (batch, prefix tokens and patches)."""
        if self.map:
            maps = scores.reshape(-1, *(self.shape[axis] for axis in self.tokens))
            assert anatomy.grid is not None
            return F.pad(resample(maps, anatomy.grid).flatten(1), (anatomy.prefix, 0))
        return F.pad(scores, (anatomy.prefix - self.ahead, 0))[:, : anatomy.prefix + anatomy.count]


def layout(value: Tensor, node: fx.Node, anatomy: Anatomy, batch: int) -> Layout | None:
    """How the tokens lie in a node's value; None without an axis of tokens, or without an axis of examples.

    The axis has all tokens, or the patches alone. A feature map of any resolution covers the whole picture.
    """
    examples = within(node, anatomy)
    if value.dim() != len(sizes_of(node)) or (examples is None and batch > 1):
        return None
    if anatomy.tokens is not None and not is_map(node):
        return _sequence(value, node, anatomy, batch)
    if anatomy.grid is None or value.dim() != len(anatomy.grid) + 2 or (examples != (0, 1, 1) and len(value) != 1):
        return None
    return Layout(tuple(value.shape), 0, spatial_axes(node), 0, map=True)


def _sequence(value: Tensor, node: fx.Node, anatomy: Anatomy, batch: int) -> Layout | None:
    """How one axis of tokens lies in a value, even if it is merged with others."""
    places = anatomy.places.get(node.name, ())
    found = [atom for axis in places for atom in axis if atom.origin == TOKENS]
    if len(found) != 1 or found[0].stride != 1:
        return None
    (tokens,) = found
    count = known(tokens.size, anatomy.free)
    if count not in (anatomy.tokens, anatomy.count):
        return None
    parts = [atom for axis in places for atom in axis or (None,)]
    whole = [i for i, p in enumerate(parts) if p is not None and p.origin == BATCH and same(p.size, anatomy.examples)]
    shape = tuple(
        batch if i in whole else 1 if atom is None else known(atom.size, anatomy.free) for i, atom in enumerate(parts)
    )
    if min(shape) < 0 or math.prod(shape) != value.numel() or (batch > 1 and not whole):
        return None
    return Layout(
        shape, whole[0] if whole else None, (parts.index(tokens),), anatomy.prefix if count == anatomy.tokens else 0
    )


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
