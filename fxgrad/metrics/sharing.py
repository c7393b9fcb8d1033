"""Rows of a batch that ask a model the same, so that one forward pass serves them."""

from __future__ import annotations

import torch
from torch import Tensor


def distinct(example: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """The rows that differ, among many of the same examples.

    Args:
        example: the example of each row, int64 (rows,).
        kept: which of its parts are kept, bool (rows, parts).

    Returns:
        (one row of each example with the same parts kept, the place among these of every row).

    Example:
        >>> distinct(torch.tensor([0, 1, 0]), torch.tensor([[True, False]] * 3))
        (tensor([0, 1]), tensor([0, 1, 0]))
    """
    seen: dict[tuple[int, bytes], int] = {}
    place = [seen.setdefault((i, r.tobytes()), len(seen)) for i, r in zip(example.tolist(), kept.cpu().numpy())]
    first = dict(zip(reversed(place), reversed(range(len(place)))))
    rows = torch.tensor([first[n] for n in range(len(seen))], device=kept.device)
    return rows, torch.tensor(place, device=kept.device)
