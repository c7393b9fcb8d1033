"""Attention whose weights are held: only the value gets a cotangent, dV = P^T dO.

With P = softmax(scale q k^T + mask) held, attention is linear in v. A fused kernel's own backward would
compute three cotangents by five matrix products and drop two of them; this one needs two products, one to
have P again and one to apply it. P is made in blocks that stay in the cache: whole rows at a time, so that
each block normalizes itself and nothing of the forward but q and k has to be kept.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fxgrad.ops.weighted import weighted

BLOCK = {"cpu": 2**19}
"""How many scores are held at a time, by device: about what stays in a CPU's cache."""
WIDE_BLOCK = 2**27
"""The same for devices that are not listed: enough to fill a GPU, little beside its memory."""
ROWS = 256
"""At least so many rows a block, where there are as many: below, matrix products lose their efficiency."""
PAIR = 2
"""At least so many heads a block, where there are as many: heads are what batched products share out to threads."""


class Settings(NamedTuple):
    """What attention takes beside its tensors, as `torch.nn.functional.scaled_dot_product_attention` does."""

    causal: bool
    scale: float | None
    grouped: bool


class _ValueOnly(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        op: Any, settings: Settings, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, rows: Tensor, columns: Tensor
    ) -> Tensor:
        causal, scale, grouped = settings
        return op(q, k, v.detach(), mask, 0.0, causal, scale=scale, enable_gqa=grouped)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.settings, _, _, v, mask, rows, columns = inputs
        ctx.v_shape, ctx.v_dtype = v.shape, v.dtype
        ctx.save_for_backward(rows, columns, mask)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Any, ...]:
        rows, columns, mask = ctx.saved_tensors
        dv = _value_cotangent(rows, columns, mask, cotangent, ctx.settings)
        return None, None, None, None, dv.sum_to_size(ctx.v_shape).to(ctx.v_dtype), None, None, None


def value_only(
    op: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Call attention; its vjp treats the attention weights as constants, so that only the value gets a cotangent.

    Args:
        op: `torch.ops.aten.scaled_dot_product_attention.default`, or a callable with its signature.
        query: (..., heads, rows, width), any floating dtype; below float32 the weights are computed in float32.
        key: (..., heads, columns, width); with `enable_gqa`, heads that divide the query's.
        value: (..., heads, columns, any width).
        attn_mask: broadcasts to (..., heads, rows, columns); boolean (True takes part) or added to the scores.
        dropout_p: with any, the vjp is the op's own, that the same weights are dropped.
        is_causal: row i sees the columns up to i.
        scale: of the scores; 1/sqrt(width) by default.
        enable_gqa: consecutive query heads share a key and value head.

    Returns:
        What `op` returns, bit for bit. Only `value` gets a gradient.

    Example:
        >>> q, k, v = torch.randn(3, 1, 2, 5, 4, dtype=torch.float64).requires_grad_()
        >>> y = value_only(torch.ops.aten.scaled_dot_product_attention.default, q, k, v)
        >>> (dv,) = torch.autograd.grad((y * y.detach()).sum(), v)
        >>> torch.allclose((v * dv).sum(), (y * y).sum())
        True

    Source: LibraGrad, arXiv:2411.16760, section 3.2 (attention); Vaswani et al., arXiv:1706.03762, eq. 1.
    """
    if dropout_p > 0 or not torch.is_grad_enabled():
        args = (query, key, value, attn_mask, dropout_p, is_causal)
        return weighted(op, (0, 0, 1, 0, 1, 1), *args, scale=scale, enable_gqa=enable_gqa)  # type: ignore[no-any-return]
    # A parameter's flag stays as it is, since kernels are picked by it.
    mask = attn_mask if attn_mask is None or attn_mask.is_leaf else attn_mask.detach()
    q, k = query.detach(), key.detach()
    rows, columns = _laid_out(q, k, value, enable_gqa)
    return _ValueOnly.apply(op, Settings(is_causal, scale, enable_gqa), q, k, value, mask, rows, columns)  # type: ignore[no-any-return]


def _laid_out(q: Tensor, k: Tensor, v: Tensor, grouped: bool) -> tuple[Tensor, Tensor]:
    """q as (..., heads, groups, rows, width) and k as (..., heads, width, columns), both contiguous.

    Copies, since batched products want them so, and since q, k and v are often views of one projection, which could
    not be freed while a view is kept.
    """
    heads = k.shape[-3] if grouped else 0
    if heads and heads != q.shape[-3]:
        shapes = [t.shape[:-3] for t in (q, k, v)]
        q = _split_axis(q, -3, heads)
    else:
        heads, shapes = 0, [t.shape[:-2] for t in (q, k, v)]
        q = q.unsqueeze(-3)
    lead: tuple[int, ...] = torch.broadcast_shapes(*shapes)  # type: ignore[no-untyped-call]
    lead += (heads,) if heads else ()
    rows = q.expand(*lead, *q.shape[-3:]).clone(memory_format=torch.contiguous_format)
    columns = k.transpose(-2, -1).expand(*lead, k.shape[-1], k.shape[-2]).clone(memory_format=torch.contiguous_format)
    return rows, columns


def _split_axis(x: Tensor, axis: int, first: int) -> Tensor:
    """One axis as two, the first of them of the given size."""
    return x.unflatten(axis, (first, x.shape[axis] // first))  # type: ignore[no-any-return, no-untyped-call]


def _value_cotangent(q: Tensor, k: Tensor, mask: Tensor | None, g: Tensor, settings: Settings) -> Tensor:
    """P^T g, shaped (..., heads, columns, width of the value)."""
    *lead, groups, rows, width = q.shape
    heads, columns = math.prod(lead), k.shape[-1]
    q, k = q.reshape(heads, groups, rows, width), k.reshape(heads, width, columns)
    # The cotangent's own head axis holds heads and groups together.
    g = g.reshape(heads, groups, rows, g.shape[-1])
    masks = None if mask is None else _Masks(mask, tuple(lead), groups)
    some_rows, some_heads = _block(heads, groups, rows, columns, q.device.type)
    parts = []
    for i in range(0, heads, some_heads):
        at = slice(i, min(i + some_heads, heads))
        total = g.new_zeros(at.stop - at.start, 0, g.shape[-1])
        for j in range(0, rows, some_rows):
            block = slice(j, min(j + some_rows, rows))
            weights = _weights(q[at, :, block], k[at], masks, at, block, settings).to(g.dtype).flatten(1, 2)
            # Not by indexing, which for a whole axis is an alias, of which no batch of cotangents can be taken.
            some = g.narrow(0, i, at.stop - i).narrow(2, j, block.stop - j)
            total = _added(total, weights.transpose(1, 2), some.reshape(*weights.shape[:2], g.shape[-1]))
        parts.append(torch.nn.functional.pad(total, (0, 0, 0, columns - total.shape[1])))
    dv = torch.cat(parts) if parts else g.new_zeros(heads, columns, g.shape[-1])
    return dv.reshape(*lead, columns, g.shape[-1])


def _weights(q: Tensor, k: Tensor, masks: _Masks | None, heads: slice, rows: slice, settings: Settings) -> Tensor:
    """P of some heads and rows, (heads, groups, rows, columns); if causal, up to the last column that they see."""
    groups, count, width = q.shape[1:]
    if settings.causal:
        k = k[..., : rows.stop]
    if q.dtype in (torch.float16, torch.bfloat16):
        q, k = q.float(), k.float()
    scale = width**-0.5 if settings.scale is None else settings.scale
    scores = torch.bmm((q * scale).flatten(1, 2), k).reshape(q.shape[0], groups, count, k.shape[-1])
    if settings.causal:
        own = scores[..., rows.start :]
        own.masked_fill_(torch.ones(own.shape[-2:], dtype=torch.bool, device=q.device).triu(1), -math.inf)
    if masks is None:
        return torch.softmax(scores, -1)
    scores = masks.onto(scores, heads, rows)
    # A row that sees nothing is 0 in the fused kernels, where softmax has 0/0.
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
    """How many rows, and how many heads, to take at a time."""
    if not all(isinstance(size, int) for size in (heads, groups, rows, columns)):
        return rows, heads  # traced with symbolic sizes: one block, since a loop would fix them
    budget = BLOCK.get(device, WIDE_BLOCK)
    per_row = max(groups * columns, 1)
    some_rows = max(min(rows, max(ROWS // groups, budget // (PAIR * per_row))), 1)
    return some_rows, max(min(heads, max(PAIR, budget // (some_rows * per_row))), 1)


class _Masks:
    """A mask, cut to blocks without ever being expanded.

    Args:
        mask: broadcasts to (*lead, rows, columns), heads and groups being one axis.
        lead: the axes ahead, down to the heads.
        groups: how many query heads share a key head.
    """

    def __init__(self, mask: Tensor, lead: tuple[int, ...], groups: int) -> None:
        shared = groups == 1 or mask.dim() < 3 or mask.shape[-3] == 1
        mask = mask.unsqueeze(-3) if shared else _split_axis(mask, -3, mask.shape[-3] // groups)
        self.flat = mask.reshape(-1, *mask.shape[-3:])
        index = torch.arange(self.flat.shape[0], device=mask.device).reshape(mask.shape[:-3])
        self.index = index.expand(lead).reshape(-1) if self.flat.shape[0] > 1 else None

    def onto(self, scores: Tensor, heads: slice, rows: slice) -> Tensor:
        """The scores of a block, (heads, groups, rows, columns), masked."""
        every = slice(None)
        block = self.flat[:, :, rows if self.flat.shape[-2] > 1 else every]
        if self.index is not None:
            block = block[self.index[heads]]
        if block.shape[-1] > 1:
            block = block[..., : scores.shape[-1]]
        return scores.masked_fill_(~block, -math.inf) if block.dtype is torch.bool else scores.add_(block)
