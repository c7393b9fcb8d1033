"""Attention written out: its masked scores, and the weights that a softmax makes of them.

Spelled in ops that every runtime has, with sizes that may stay free: exported graphs have them as they are.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def scores_of(
    query: Tensor,
    key: Tensor,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """scale q k^T + mask, with -inf for each column that a row does not see.

    Args:
        query: (..., heads, rows, width), any floating dtype, in which the scores are computed.
        key: (..., heads, columns, width); with `enable_gqa`, heads that divide the query's.
        attn_mask, is_causal, scale, enable_gqa: as for `torch.nn.functional.scaled_dot_product_attention`.

    Returns:
        (..., heads, rows, columns).

    Example:
        >>> scores_of(torch.ones(2, 4), torch.ones(2, 4), is_causal=True)
        tensor([[2., -inf],
                [2., 2.]])

    Source: Vaswani et al., Attention Is All You Need, arXiv:1706.03762, eq. 1.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = (query * scale) @ (shared(key, query.shape[-3]) if enable_gqa else key).mT
    if is_causal:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~seen, -math.inf)
    if attn_mask is None:
        return scores
    return scores.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype is torch.bool else scores + attn_mask


def attention_weights(
    query: Tensor,
    key: Tensor,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(scale q k^T + mask); 0 in a row that sees nothing.

    Args:
        query, key, attn_mask, is_causal, scale, enable_gqa: as for `scores_of`.

    Returns:
        (..., heads, rows, columns).

    Example:
        >>> attention_weights(torch.ones(2, 4), torch.ones(2, 4), torch.tensor([[True, True], [False, False]]))
        tensor([[0.5000, 0.5000],
                [0.0000, 0.0000]])

    Source: Vaswani et al., Attention Is All You Need, arXiv:1706.03762, eq. 1.
    """
    scores = scores_of(query, key, attn_mask, is_causal, scale=scale, enable_gqa=enable_gqa)
    if attn_mask is None:
        return scores.softmax(-1)
    # The fused kernels give 0 for a row that sees nothing; softmax would give 0/0.
    blind = scores.amax(-1, keepdim=True) == -math.inf
    return scores.softmax(-1).masked_fill(blind, 0)


def shared(x: Tensor, heads: int) -> Tensor:
    """Key or value heads, each repeated for the query heads that share it.

    Args:
        x: (..., key heads, columns, any width), any dtype.
        heads: the number of query heads, a multiple of the key heads.

    Returns:
        (..., heads, columns, any width).

    Example:
        >>> shared(torch.tensor([1, 2]).reshape(2, 1, 1), 4).flatten()
        tensor([1, 1, 2, 2])
    """
    if x.shape[-3] == heads:
        return x
    groups = heads // x.shape[-3]
    return x.unsqueeze(-3).expand(*x.shape[:-2], groups, *x.shape[-2:]).flatten(-4, -3)
