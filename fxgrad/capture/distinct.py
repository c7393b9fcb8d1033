"""`torch.unique` and `torch.unique_consecutive` of ops whose sizes are known once the number of values is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

SORTED = {torch.unique, Tensor.unique}
UNIQUE = {torch.unique_consecutive, Tensor.unique_consecutive, *SORTED}


def distinct(
    func: Any, nonzero: Callable[[Tensor], Tensor], values: Tensor, *, inverse: bool = False, counts: bool = False
) -> Any:
    """The distinct values of a tensor, as one of `UNIQUE` finds them.

    Args:
        func: of `UNIQUE`.
        nonzero: the indices of a mask's elements that are true, (n, 1).
        values: any shape and dtype.
        inverse: return also, for each value, which of the distinct ones it is.
        counts: return also how many there are of each.

    Returns:
        A tensor, or a tuple of them.

    Example:
        >>> x = torch.tensor([3, 3, 1, 3])
        >>> distinct(torch.unique_consecutive, torch.nonzero, x).tolist()
        [3, 1, 3]
        >>> [found.tolist() for found in distinct(torch.unique, torch.nonzero, x, inverse=True, counts=True)]
        [[1, 3], [1, 1, 0, 1], [1, 3]]
    """
    flat, order = values.flatten(), None
    if func in SORTED:
        flat, order = flat.sort(stable=True)
    new = torch.cat([torch.ones_like(flat[:1], dtype=torch.bool), flat[1:] != flat[:-1]])
    at = nonzero(new)[:, 0]
    which = new.cumsum(0) - 1
    which = which if order is None else which[order.argsort()]
    behind = torch.cat([at[1:], torch.full_like(at[:1], flat.shape[0])])
    found = [flat[at], *([which.view(values.shape)] if inverse else []), *([behind - at] if counts else [])]
    return found[0] if len(found) == 1 else tuple(found)
