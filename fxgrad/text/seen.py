"""The pictures that a prompt shows: their columns among its tokens, their shares pixel by pixel, how they look."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxgrad.methods.placing import resample
from fxgrad.text.pieces import Span

PIXELS, GRID = "pixel_values", "image_grid_thw"
"""The inputs of models of transformers that have pictures, and how many patches each has."""
CELLS = 32
"""Rows and columns of a map that pages, pictures and files show, at most."""
LABEL = "[picture]"
"""A picture among the words of a prompt."""


@dataclass(frozen=True, eq=False)
class Seen:
    """The pictures of one prompt, or their tiles, where a model looks at tiles.

    Attributes:
        values: the model's input of pixels: (..., channels, rows, columns), or, with a grid, (patches, numbers).
        runs: the places that pictures take among the prompt's tokens; () where the text has none.
        grid: of each picture, frames, rows and columns of patches; () where pixels lie as in pictures.
        merge: patches lie in squares of so many rows and columns, one behind the other.
        patch: pixels of a patch's side.

    Example:
        >>> seen = Seen(torch.zeros(1, 3, 4, 6), runs=((1, 3),))
        >>> seen.spans(5), seen.labelled(("a", "<image>", "<image>", " b", " c"))
        (((0, 1), (1, 3), (3, 4), (4, 5)), ('a', '[picture]', ' b', ' c'))
    """

    values: Tensor
    runs: tuple[Span, ...] = ()
    grid: tuple[tuple[int, int, int], ...] = ()
    merge: int = 1
    patch: int = 1

    @property
    def count(self) -> int:
        """How many pictures, or tiles of them, there are."""
        return len(self.grid) or math.prod(self.values.shape[:-3])

    def spans(self, tokens: int) -> tuple[Span, ...]:
        """The tokens of each column: of so many, one by one but for what pictures take; no tokens of others."""
        ahead = [] if self.runs else [(0, 0)] * self.count
        starts = dict(self.runs)
        inside = {i for start, end in self.runs for i in range(start + 1, end)}
        return (*ahead, *((i, starts.get(i, i + 1)) for i in range(tokens) if i not in inside))

    def tokens(self, columns: int) -> int:
        """How many tokens so many columns have."""
        return columns + (sum(b - a - 1 for a, b in self.runs) if self.runs else -self.count)

    def labelled(self, tokens: Sequence[str]) -> tuple[str, ...]:
        """The text of each column."""
        own = {*self.runs, (0, 0)}
        return tuple(LABEL if (a, b) in own else tokens[a] for a, b in self.spans(len(tokens)))

    @property
    def columns(self) -> tuple[int, ...]:
        """The column of each picture; tiles share their picture's."""
        if not self.runs:
            return tuple(range(self.count))
        places = [i for i, span in enumerate(self.spans(self.runs[-1][1])) if span in self.runs]
        each, rest = divmod(self.count, len(places))
        return tuple(places[0 if rest else i // each] for i in range(self.count))

    def maps(self, map: Tensor) -> tuple[Tensor, ...]:
        """The map of the input of pixels as one for each picture, (rows, columns) of pixels or patches."""
        if not self.grid:
            return tuple(map.reshape(self.count, -1, *self.values.shape[-2:]).sum(1))
        found = map.reshape(len(self.values), -1).sum(1)
        return tuple(self._laid(part[:, None], sizes)[..., 0].sum(0) for part, sizes in self._each(found))

    def photos(self) -> tuple[Tensor, ...]:
        """How each picture looks to the model: uint8 (rows, columns, channels), from its least to its largest number.

        Of frames, the first.
        """
        if not self.grid:
            shown = list(self.values.reshape(self.count, *self.values.shape[-3:]).movedim(1, -1))
        else:
            shown = [self._patched(*pair) for pair in self._each(self.values)]
        return tuple(_levels(one.detach().cpu().float()) for one in shown)

    def _each(self, values: Tensor) -> Iterator[tuple[Tensor, tuple[int, int, int]]]:
        """The patches of each picture, and its grid."""
        ends = [*itertools.accumulate(math.prod(sizes) for sizes in self.grid)]
        for start, end, sizes in zip([0, *ends], ends, self.grid):
            yield values[start:end], sizes

    def _laid(self, patches: Tensor, sizes: Sequence[int]) -> Tensor:
        """(patches, numbers) in squares -> (frames, rows, columns, numbers)."""
        frames, rows, columns = sizes
        side = self.merge
        squares = patches.reshape(frames, rows // side, columns // side, side, side, -1)
        return squares.transpose(2, 3).reshape(frames, rows, columns, -1)

    def _patched(self, patches: Tensor, sizes: Sequence[int]) -> Tensor:
        """(patches, channels x frames x side x side) -> (rows, columns, channels) of pixels, of the first frame."""
        first = self._laid(patches, sizes)[0]
        first = first.reshape(*first.shape[:2], 3, -1, self.patch, self.patch)[:, :, :, 0]
        return first.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)


def _levels(values: Tensor) -> Tensor:
    low, high = values.min(), values.max()
    return ((values - low) / (high - low).clamp(min=1e-12) * 255).round().to(torch.uint8)


def seen_in(given: Mapping[str, Tensor], ids: Sequence[int], config: Any) -> Seen:
    """The pictures among a model's inputs.

    Args:
        given: the inputs beside the tokens; `PIXELS` is one of them.
        ids: the prompt's tokens.
        config: the model's, which says what stands for pictures in a text.
    """
    places = [getattr(config, name, None) for name in ("image_token_id", "image_token_index")]
    here = [token in places for token in ids]
    starts = [i for i, is_place in enumerate(here) if is_place and not (i and here[i - 1])]
    runs = tuple((i, next((j for j in range(i, len(ids)) if not here[j]), len(ids))) for i in starts)
    grid = given[GRID].tolist() if GRID in given else []
    sides = [getattr(getattr(config, "vision_config", None), f"{of}_size", 1) for of in ("spatial_merge", "patch")]
    return Seen(given[PIXELS], runs, tuple((t, h, w) for t, h, w in grid), *(sides if grid else ()))


def cells(maps: Tensor) -> Tensor:
    """Maps (rows, height, width) as sums over blocks, of at most `CELLS` a side.

    Example:
        >>> cells(torch.ones(1, 64, 8)).shape, float(cells(torch.ones(1, 64, 8)).sum())
        (torch.Size([1, 32, 8]), 512.0)
    """
    height, width = maps.shape[1:]
    return resample(maps, (min(height, CELLS), min(width, CELLS)))


def handed_on(
    pictures: Sequence[Tensor], columns: Sequence[int], rows: Sequence[int], handed: Tensor
) -> tuple[Tensor, ...]:
    """What rows hand on to each picture's pixels: to those that speak for the row, in proportion.

    Args:
        pictures: the shares of each picture's pixels, (all rows, height, width).
        columns: the column of each.
        rows: those that hand on.
        handed: what they hand on to each column, (rows, columns).

    Returns:
        For each picture, (rows, height, width); of one column's pictures, they add up to the column.

    Example:
        >>> share = torch.tensor([[[3.0, -1.0], [1.0, 0.0]]])
        >>> handed_on([share], [0], [0], torch.tensor([[0.5]]))[0].tolist()
        [[[0.375, 0.0], [0.125, 0.0]]]
    """
    found = [picture[list(rows)] for picture in pictures]
    for column in dict.fromkeys(columns):
        members = [k for k, at in enumerate(columns) if at == column]
        any_for = torch.stack([(found[k] > 0).flatten(1).any(1) for k in members]).any(0)[:, None, None]
        spoke = [torch.where(any_for, found[k].clamp(min=0), found[k].abs()) for k in members]
        whole = torch.stack([part.sum((1, 2)) for part in spoke]).sum(0).clamp(min=torch.finfo(handed.dtype).tiny)
        for k, part in zip(members, spoke):
            found[k] = part * (handed[:, column] / whole)[:, None, None]
    return tuple(found)
