"""P^T g for short sequences: all attention weights at once, in three ops.

Where all scores fit into the cache, calling a kernel costs more than computing in it, so the backward is written out.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fxgrad.ops.function import Function, transformed
from fxgrad.ops.normalization import HALF

SCORES = 2**17
"""The largest number of scores, over all heads and examples, that a CPU's cache holds beside the rest."""


class Short(Function):
    """Attention by any kernel; the backward makes all weights at once."""

    @staticmethod
    def forward(op: Any, causal: bool, given: float | None, scale: float, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return op(q, k, v.detach(), None, 0.0, causal, scale=given)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.causal, _, ctx.scale, q, k, _ = inputs
        # Copies: q, k and v are often views of one projection, which a kept view would keep in memory.
        ctx.save_for_backward(q.contiguous(), k.contiguous())

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Any, ...]:
        q, k = ctx.saved_tensors
        *lead, rows, width = q.shape
        columns, heads, g = k.shape[-2], math.prod(lead), cotangent
        if q.dtype in HALF:
            q, k, g = q.float(), k.float(), g.float()
        q, k, g = q.view(heads, rows, width), k.view(heads, columns, width), g.reshape(heads, rows, g.shape[-1])
        scores = torch.baddbmm(g.new_empty(()), q, k.mT, beta=0, alpha=ctx.scale)
        if ctx.causal:
            later = torch.ones(rows, columns, dtype=torch.bool, device=q.device).triu_(1)
            scores.masked_fill_(later, -math.inf)
        dv = torch.bmm(torch.softmax(scores, -1).mT, g)
        return None, None, None, None, None, None, dv.view(*lead, columns, g.shape[-1]).to(cotangent.dtype)


def short(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether `Short` takes these operands: on a CPU, nothing to broadcast, and few scores.

    Args:
        q: (..., rows, width).
        k: (..., columns, width).
        v: (..., columns, any width).

    Example:
        >>> q = torch.zeros(1, 2, 5, 4)
        >>> short(q, q, q), short(q, q[:, :1], q[:, :1])
        (True, False)
    """
    lead = q.shape[:-2]
    few = math.prod(lead) * q.shape[-2] * k.shape[-2] <= SCORES
    traced = transformed() and not torch.compiler.is_compiling()  # a trace would keep to these sizes
    return few and q.device.type == "cpu" and not traced and k.shape[:-2] == lead and v.shape[:-2] == lead
