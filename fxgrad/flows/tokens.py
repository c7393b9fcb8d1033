"""The nodes of the graph in one value: its tokens, or the cells of its map. A map's cells count as tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from fxgrad.methods.parts import Anatomy
from fxgrad.methods.placing import layout, within
from fxgrad.run.sources import products


@dataclass(frozen=True, eq=False)
class Tokens:
    """The tokens of one value: each of its elements belongs to one.

    Attributes:
        labels: index of the token of every element, int64, shaped as the value.
        about: for each token, what is known of it: `name`, and `token`, its number among the model's tokens, or `row`
            and `column`, of `rows` and `columns`, on the map; `part`, of a token that is divided, such as "head 1",
            and `whole`, that token's number.
    """

    labels: Tensor
    about: tuple[Mapping[str, Any], ...]

    @property
    def keys(self) -> list[str]:
        """What tells each token from the others: its number among the model's tokens, where it has one."""
        numbers = (str(about.get("token", about.get("whole", i))) for i, about in enumerate(self.about))
        parts = (f", {about['part']}" if "part" in about else "" for about in self.about)
        return [number + part for number, part in zip(numbers, parts)]

    def divided(self, labels: Tensor, names: Sequence[str]) -> Tokens:
        """These tokens, each divided into the same parts: token by token, its parts in order.

        Args:
            labels: index of the part of every element, int64, shaped as the value.
            names: of the parts.
        """
        about = [
            {**one, "whole": one.get("token", i), "part": name, "name": f"{one['name']}, {name}"}
            for i, one in enumerate(self.about)
            for name in names
        ]
        return Tokens(self.labels * len(names) + labels, tuple(about))

    def sums(self, g: Tensor, value: Tensor) -> Tensor:
        """<g, value> token by token, (tokens,); g may be batched by vmap."""
        (found,) = products([(g, value)])
        return self.added(found)

    def added(self, elements: Tensor) -> Tensor:
        """The sums of the elements of each token, (tokens,)."""
        return elements.new_zeros(len(self.about)).index_add(0, self.labels.flatten(), elements.flatten())

    def reached(self, g: Tensor) -> list[int]:
        """Indices of the tokens where g is not 0."""
        return sorted(set(self.labels[g != 0].tolist()))


def alone(g: Tensor, labels: Tensor, chosen: Tensor) -> Tensor:
    """g at each of some tokens alone, 0 elsewhere: (len(chosen), *its shape).

    Args:
        g: a cotangent.
        labels: index of the token of every element, shaped as g.
        chosen: indices of tokens.

    Example:
        >>> alone(torch.tensor([2.0, 3.0]), torch.tensor([0, 1]), torch.tensor([1])).tolist()
        [[0.0, 3.0]]
    """
    return torch.where(labels == chosen.view(-1, *[1] * g.dim()), g, torch.zeros_like(g))


def tokens_of(value: Tensor, node: fx.Node, anatomy: Anatomy, names: Sequence[str] | None = None) -> Tokens:
    """The tokens of a value of one example; cells of the model's grid, where a map is finer; else the value as one.

    Args:
        value: the node's value.
        node: of the captured graph.
        anatomy: the model's anatomy.
        names: the tokens as text.

    Example:
        >>> import fxgrad
        >>> from fxgrad.methods import anatomy
        >>> model = torch.nn.Sequential(torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)).eval()
        >>> libra = fxgrad.convert(model, (torch.zeros(2, 3, 8),))
        >>> last = list(libra.classified.captured.graph.nodes)[-2]
        >>> found = tokens_of(torch.ones(1, 3, 8), last, anatomy(libra.classified))
        >>> [one["name"] for one in found.about], found.sums(torch.ones(1, 3, 8), torch.ones(1, 3, 8)).tolist()
        (['token 0', 'token 1', 'token 2'], [8.0, 8.0, 8.0])
    """
    place = layout(value, node, anatomy, 1)
    if place is None:
        axis = _sequence(value, node, anatomy)
        if axis is None:
            return Tokens(torch.zeros(value.shape, dtype=torch.int64, device=value.device), ({"name": "all"},))
        steps = torch.arange(value.shape[axis], device=value.device)
        labels = steps.view([-1 if i == axis else 1 for i in range(value.dim())]).expand(value.shape)
        return Tokens(labels, tuple({"name": f"token {i}", "token": i} for i in range(value.shape[axis])))
    rows = place.rows(torch.arange(value.numel(), device=value.device).view(value.shape))[0]
    if place.map:
        cells, about = _cells(place.map, anatomy)
    else:
        first = anatomy.prefix - place.ahead
        cells, about = list(range(len(rows))), [_token(first + i, anatomy, names) for i in range(len(rows))]
    labels = torch.empty(value.numel(), dtype=torch.int64, device=value.device)
    labels[rows] = torch.tensor(cells, device=value.device)[:, None].expand(rows.shape)
    return Tokens(labels.view(value.shape), tuple(about))


def _sequence(value: Tensor, node: fx.Node, anatomy: Anatomy) -> int | None:
    """The axis of the tokens of another sequence than the anatomy's, such as a decoder's."""
    examples = within(node, anatomy)
    return None if value.dim() != 3 else int(examples is None or examples.axis == 0)


def _cells(sizes: Sequence[int], anatomy: Anatomy) -> tuple[list[int], list[dict[str, Any]]]:
    """(for each position of a map, its cell; the cells): those of the model's grid, or of the map if it is coarser."""
    grid = tuple(map(min, sizes, anatomy.grid or sizes))
    index = {cell: i for i, cell in enumerate(product(*map(range, grid)))}
    steps = ([(2 * i + 1) * n // (2 * size) for i in range(size)] for size, n in zip(sizes, grid))
    about = [_cell(cell, grid) for cell in index]
    if grid == anatomy.grid:
        about = [{**one, "token": anatomy.prefix + i} for i, one in enumerate(about)]
    return [index[cell] for cell in product(*steps)], about


def _token(number: int, anatomy: Anatomy, names: Sequence[str] | None) -> dict[str, Any]:
    if names is not None and number < len(names):
        return {"name": names[number], "token": number}
    if anatomy.grid is not None and 0 <= number - anatomy.prefix < anatomy.count:
        cell = tuple(map(int, np.unravel_index(number - anatomy.prefix, anatomy.grid)))
        return {**_cell(cell, anatomy.grid), "token": number}
    ahead = anatomy.grid is not None and number < anatomy.prefix
    kind = "class token" if number == anatomy.class_token else f"prefix token {number}"
    return {"name": kind if ahead else f"token {number}", "token": number}


def _cell(cell: tuple[int, ...], grid: Sequence[int]) -> dict[str, Any]:
    """A cell's name, and its position if the grid has rows and columns."""
    about: dict[str, Any] = {"name": f"patch {', '.join(map(str, cell))}"}
    if len(grid) == 2:
        about |= {"row": cell[0], "column": cell[1], "rows": grid[0], "columns": grid[1]}
    return about
