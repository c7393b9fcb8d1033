"""P^T g without the whole of P in memory: blocks of whole rows of attention weights that fit into the cache.

A block of whole rows normalizes itself, so only q and k are needed from the forward.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

BLOCK = {"cpu": 2**19}
"""Device -> scores per block: about as many as a CPU's cache can store."""
WIDE_BLOCK = 2**27
"""The same for other devices: enough to keep a GPU busy, but a small part of its memory."""
ROWS = 256
"""The smallest number of rows per block, if there are as many: matrix products are slow with fewer."""
PAIR = 2
"""The smallest number of heads per block, if there are as many: batched products give each thread some heads."""


def weights_transposed_times(
    g: Tensor, q: Tensor, k: Tensor, mask: Tensor | None, causal: bool, scale: float
) -> Tensor:
    """P^T g for P = softmax(scale q k^T + mask), computed block by block.

    Args:
        g: (..., heads * groups, rows, any width), any floating dtype.
        q: (..., heads, groups, rows, width); below float32 the weights are computed in float32.
        k: (..., heads, width, columns).
        mask: broadcasts to (..., heads * groups, rows, columns); boolean (True takes part) or added to the scores.
        causal: row i sees the columns up to i.
        scale: factor of the scores.

    Returns:
        (..., heads, columns, width of g), in g's dtype.

    Example:
        >>> q, k, g = torch.randn(3, 2, 5, 4)
        >>> wanted = torch.softmax(q @ k.mT, -1).mT @ g
        >>> torch.allclose(weights_transposed_times(g, q[:, None], k.mT, None, False, 1.0), wanted, atol=1e-6)
        True
    """
    *lead, groups, rows, width = q.shape
    heads, columns = math.prod(lead), k.shape[-1]
    q, k = q.reshape(heads, groups, rows, width), k.reshape(heads, width, columns)
    # The cotangent has heads and groups in one axis.
    g = g.reshape(heads, groups, rows, g.shape[-1])
    masks = None if mask is None else _Masks(mask, tuple(lead), groups)
    some_rows, some_heads = _block(heads, groups, rows, columns, q.device.type)
    parts = []
    for i in range(0, heads, some_heads):
        at = slice(i, min(i + some_heads, heads))
        total = g.new_zeros(at.stop - at.start, 0, g.shape[-1])
        for j in range(0, rows, some_rows):
            block = slice(j, min(j + some_rows, rows))
            weights = _weights(q[at, :, block], k[at], masks, at, block, causal, scale).to(g.dtype).flatten(1, 2)
            # No indexing: for a whole axis it gives an alias, which vmap does not support here.
            some = g.narrow(0, i, at.stop - i).narrow(2, j, block.stop - j)
            total = _added(total, weights.transpose(1, 2), some.reshape(*weights.shape[:2], g.shape[-1]))
        parts.append(torch.nn.functional.pad(total, (0, 0, 0, columns - total.shape[1])))
    dv = torch.cat(parts) if parts else g.new_zeros(heads, columns, g.shape[-1])
    return dv.reshape(*lead, columns, g.shape[-1])


def split_axis(x: Tensor, axis: int, first: int) -> Tensor:
    """Split one axis in two; the first has the given size.

    Example:
        >>> split_axis(torch.zeros(6, 4), 0, 2).shape
        torch.Size([2, 3, 4])
    """
    return x.unflatten(axis, (first, x.shape[axis] // first))  # type: ignore[no-any-return, no-untyped-call]


def _weights(
    q: Tensor, k: Tensor, masks: _Masks | None, heads: slice, rows: slice, causal: bool, scale: float
) -> Tensor:
    """P for some heads and rows, (heads, groups, rows, columns); if causal, up to the last column that they see."""
    groups, count = q.shape[1:3]
    if causal:
        k = k[..., : rows.stop]
    if q.dtype in (torch.float16, torch.bfloat16):
        q, k = q.float(), k.float()
    scores = torch.bmm((q * scale).flatten(1, 2), k).reshape(q.shape[0], groups, count, k.shape[-1])
    if causal:
        own = scores[..., rows.start :]
        own.masked_fill_(torch.ones(own.shape[-2:], dtype=torch.bool, device=q.device).triu(1), -math.inf)
    if masks is None:
        return torch.softmax(scores, -1)
    scores = masks.onto(scores, heads, rows)
    # The fused kernels give 0 for a row that sees nothing; softmax would give 0/0.
    blind = scores.amax(-1, keepdim=True) == -math.inf
    return torch.softmax(scores, -1).masked_fill_(blind, 0)


def _added(total: Tensor, weights: Tensor, g: Tensor) -> Tensor:
    """total + weights @ g, where total may be shorter: later rows of a causal block see more columns."""
    known = total.shape[1]
    if known == 0:
        return torch.bmm(weights, g)
    old = torch.baddbmm(total, weights[:, :known], g)
    return old if known == weights.shape[1] else torch.cat([old, torch.bmm(weights[:, known:], g)], 1)


def _block(heads: int, groups: int, rows: int, columns: int, device: str) -> tuple[int, int]:
    """(rows, heads): how many to take at a time."""
    if not all(isinstance(size, int) for size in (heads, groups, rows, columns)):
        return rows, heads  # traced with symbolic sizes: one block, since a loop would specialize them
    budget = BLOCK.get(device, WIDE_BLOCK) * (
        16 if torch.compiler.is_compiling() else 1
    )  # torch.compile compiles every block separately
    per_row = max(groups * columns, 1)
    some_rows = max(min(rows, max(ROWS // groups, budget // (PAIR * per_row))), 1)
    return some_rows, max(min(heads, max(PAIR, budget // (some_rows * per_row))), 1)


def laid_out(q: Tensor, k: Tensor, v: Tensor, grouped: bool) -> tuple[Tensor, Tensor]:
    """q as (..., heads, groups, rows, width) and k as (..., heads, width, columns), both contiguous.

    Copies, since batched products want contiguous operands, and since q, k and v are often views of one projection,
    which a kept view would keep in memory.
    """
    heads = k.shape[-3] if grouped else 0
    if heads and heads != q.shape[-3]:
        shapes = [t.shape[:-3] for t in (q, k, v)]
        q = split_axis(q, -3, heads)
    else:
        heads, shapes = 0, [t.shape[:-2] for t in (q, k, v)]
        q = q.unsqueeze(-3)
    lead: tuple[int, ...] = torch.broadcast_shapes(*shapes)  # type: ignore[no-untyped-call]
    lead += (heads,) if heads else ()
    rows = q.expand(*lead, *q.shape[-3:]).clone(memory_format=torch.contiguous_format)
    columns = k.transpose(-2, -1).expand(*lead, k.shape[-1], k.shape[-2]).clone(memory_format=torch.contiguous_format)
    return rows, columns


class _Masks:
    """A mask, cut into blocks without being expanded.

    Args:
        mask: broadcasts to (*lead, rows, columns), with heads and groups in one axis.
        lead: sizes of the leading axes, heads included.
        groups: how many query heads share a key head.
    """

    def __init__(self, mask: Tensor, lead: tuple[int, ...], groups: int) -> None:
        shared = groups == 1 or mask.dim() < 3 or mask.shape[-3] == 1
        mask = mask.unsqueeze(-3) if shared else split_axis(mask, -3, mask.shape[-3] // groups)
        self.flat = mask.reshape(-1, *mask.shape[-3:])
        index = torch.arange(self.flat.shape[0], device=mask.device).reshape(mask.shape[:-3])
        self.index = index.expand(lead).reshape(-1) if self.flat.shape[0] > 1 else None

    def onto(self, scores: Tensor, heads: slice, rows: slice) -> Tensor:
        """The masked scores of a block, (heads, groups, rows, columns)."""
        every = slice(None)
        block = self.flat[:, :, rows if self.flat.shape[-2] > 1 else every]
        if self.index is not None:
            block = block[self.index[heads]]
        if block.shape[-1] > 1:
            block = block[..., : scores.shape[-1]]
        return scores.masked_fill_(~block, -math.inf) if block.dtype is torch.bool else scores.add_(block)
