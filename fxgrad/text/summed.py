"""Rows of shares, and their sums over spans of an answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fxgrad.text.pieces import Span


class Rows(NamedTuple):
    """What some spans of an answer are made of.

    Attributes:
        matrix: (spans, columns).
        biases: what constants give, (spans,); None if the numbers are no shares.
        values: the logits, added up over each span, (spans,).
        pictures: the shares of each picture's pixels, (spans, rows, columns); their sums are in the matrix.
    """

    matrix: Tensor
    biases: Tensor | None
    values: Tensor
    pictures: tuple[Tensor, ...] = ()


Solve = Callable[[Sequence[Span]], Rows]
"""From spans of answer tokens to their rows, one backward pass for each that is not known yet."""


def summed(rows: Rows, have: Sequence[Span], asked: Sequence[Span]) -> Rows:
    """The rows of spans that are made of whole known ones.

    Example:
        >>> rows = Rows(torch.eye(3), None, torch.ones(3))
        >>> summed(rows, [(0, 1), (1, 2), (2, 3)], [(0, 2)]).matrix
        tensor([[1., 1., 0.]])
    """
    picked = [[i for i, (a, b) in enumerate(have) if start <= a and b <= end] for start, end in asked]

    def of(part: Tensor) -> Tensor:
        return torch.stack([part[i].sum(0) for i in picked])

    biases = None if rows.biases is None else of(rows.biases)
    return Rows(of(rows.matrix), biases, of(rows.values), tuple(map(of, rows.pictures)))
