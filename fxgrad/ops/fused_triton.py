"""P^T g by a Triton kernel: one product makes a tile of P from q, k and the log-sum-exp, one applies it.

A program owns some keys and walks along the rows that see them, as the loop over queries of FlashAttention-2's backward
does, without the three products for dQ and dK. Query heads that share a key head are walked one after another, so that
their sum needs no atomics.

Source: Dao, arXiv:2307.08691, algorithm 2; Triton's language.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fxgrad.ops.function import transformed

try:
    import triton
    import triton.language as tl
except ImportError:  # it comes with PyTorch for CUDA, but not with every PyTorch
    triton = None


class Tiles(NamedTuple):
    """How a launch is cut: keys of a program, rows at a time, warps, and loads in flight."""

    keys: int
    rows: int
    warps: int
    stages: int


def tiles(dtype: torch.dtype, width: int) -> Tiles:
    """The cut for operands of this dtype and width: what fits into an H100's registers and 100 KB of memory.

    Example:
        >>> tiles(torch.bfloat16, 64)
        Tiles(keys=128, rows=64, warps=8, stages=3)
    """
    if dtype == torch.float32:
        return Tiles(64, 32, 4, 2) if width <= 64 else Tiles(64, 16, 4, 2)
    return Tiles(128, 64, 8, 3) if width <= 64 else Tiles(128, 64, 8, 2) if width <= 128 else Tiles(64, 32, 8, 2)


def _body(  # type: ignore[no-untyped-def]
    g, q, k, lse, dv,
    g_b, g_h, g_r, g_w, q_b, q_h, q_r, q_w, k_b, k_h, k_c, k_w, lse_b, lse_h, lse_r, dv_b, dv_h, dv_c, dv_w,
    heads, groups, rows, columns, width, value_width, scale,
    KEYS: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, VALUES: tl.constexpr,
    CAUSAL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0) * KEYS
    at = tl.program_id(1).to(tl.int64)
    batch, head = at // heads, at % heads
    j, w, u = first + tl.arange(0, KEYS), tl.arange(0, WIDTH), tl.arange(0, VALUES)
    keys = tl.load(
        k + batch * k_b + head * k_h + j[:, None] * k_c + w[None, :] * k_w,
        mask=(j[:, None] < columns) & (w[None, :] < width), other=0.0,
    )  # fmt: skip
    total = tl.full((KEYS, VALUES), 0.0, tl.float32)
    for group in range(groups):
        of_q = head * groups + group
        q_at = q + batch * q_b + of_q * q_h
        g_at = g + batch * g_b + of_q * g_h
        lse_at = lse + batch * lse_b + of_q * lse_h
        for start in range(first // ROWS * ROWS if CAUSAL else 0, rows, ROWS):
            i = start + tl.arange(0, ROWS)
            there = i < rows
            queries = tl.load(
                q_at + i[None, :] * q_r + w[:, None] * q_w, mask=there[None, :] & (w[:, None] < width), other=0.0
            )
            norm = tl.load(lse_at + i * lse_r, mask=there, other=float("inf"))
            scores = tl.dot(keys, queries, input_precision=PRECISION)
            # Base 2, which is what the hardware has. A row that is not there has the weight exp(-inf) = 0.
            weights = tl.exp2(scores * (scale * 1.4426950408889634) - (norm * 1.4426950408889634)[None, :])
            if CAUSAL:
                weights = tl.where(j[:, None] <= i[None, :], weights, 0.0)
            cotangents = tl.load(
                g_at + i[:, None] * g_r + u[None, :] * g_w, mask=there[:, None] & (u[None, :] < value_width), other=0.0
            )
            total += tl.dot(weights.to(cotangents.dtype), cotangents, input_precision=PRECISION)
    tl.store(
        dv + batch * dv_b + head * dv_h + j[:, None] * dv_c + u[None, :] * dv_w,
        total.to(dv.dtype.element_ty),
        mask=(j[:, None] < columns) & (u[None, :] < value_width),
    )


KERNEL: Any = triton and triton.jit(_body)
"""The kernel; None without Triton."""


def weights_transposed_times(
    g: Tensor, q: Tensor, k: Tensor, lse: Tensor, causal: bool, scale: float, cut: Tiles | None = None
) -> Tensor:
    """P^T g for P = exp(scale q k^T - lse).

    Args:
        g: (batch, heads * groups, rows, value width), float16, bfloat16 or float32, of any strides.
        q: (batch, heads * groups, rows, width), of the same dtype.
        k: (batch, heads, columns, width).
        lse: (batch, heads * groups, rows), float32: the log-sum-exp of each row of scores, natural.
        causal: row i sees the columns up to i.
        scale: factor of the scores.
        cut: how to cut the launch; by dtype and width if None.

    Returns:
        (batch, heads, columns, value width), in g's dtype. float32 multiplies with three products of TF32, about as
        exact as float32 itself.

    Source: Dao, arXiv:2307.08691, algorithm 2.
    """
    batch, heads, columns, width = k.shape
    rows, value_width = g.shape[-2:]
    dv = torch.empty(batch, columns, heads, value_width, dtype=g.dtype, device=g.device).transpose(1, 2)
    if not dv.numel():
        return dv
    widest = max(16, 1 << (max(width, value_width) - 1).bit_length())
    cut = cut or tiles(g.dtype, widest)
    fits: dict[str, Any] = {"num_warps": cut.warps, "num_stages": cut.stages}
    kernel = torch.library.wrap_triton(KERNEL) if transformed() else KERNEL
    kernel[(-(-columns // cut.keys), batch * heads)](
        g, q, k, lse, dv, *g.stride(), *q.stride(), *k.stride(), *lse.stride(), *dv.stride(),
        heads, q.shape[1] // heads, rows, columns, width, value_width, scale,
        KEYS=cut.keys, ROWS=cut.rows,
        WIDTH=max(16, 1 << (width - 1).bit_length()), VALUES=max(16, 1 << (value_width - 1).bit_length()),
        CAUSAL=causal, PRECISION="tf32x3" if g.dtype == torch.float32 else "ieee", **fits,
    )  # fmt: skip
    return dv
