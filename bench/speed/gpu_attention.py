"""Every road to the value's gradient of attention, timed and held against float64, beside PyTorch's own backward.

A *road* (`fxgrad.ops.fused`) starts from what a kernel's forward leaves behind. Besides: `own`, PyTorch's backward as
it stands, which a plain gradient pays; `blockwise`, the weights made again block by block; and FlexAttention as one
more candidate, which fxgrad does not have, since it needs torch.compile in eager mode, too.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor

from bench.speed.workers import Case
from fxgrad.ops import fused
from fxgrad.ops.attention import value_only
from fxgrad.ops.blocks import split_axis, weights_transposed_times
from fxgrad.ops.fused import ALL
from fxgrad.ops.kernels import KERNELS, Kept, Kernel, Settings
from fxgrad.ops.swapped import SDPA

OWN, BLOCKWISE, FLEX = "own", "blockwise", "flex"


class Shape(NamedTuple):
    """Of one attention."""

    batch: int
    heads: int
    of_keys: int
    tokens: int
    width: int
    causal: bool
    dtype: torch.dtype

    def __str__(self) -> str:
        heads = f"{self.heads}" if self.heads == self.of_keys else f"{self.heads}/{self.of_keys}"
        causal = ", causal" if self.causal else ""
        return f"{name_of(self.dtype)} {self.batch} x {heads} x {self.tokens:,} x {self.width}{causal}"


HALF, WHOLE = torch.bfloat16, torch.float32
SHAPES = (
    Shape(64, 12, 12, 197, 64, False, HALF),
    Shape(1, 12, 12, 4096, 64, False, HALF),
    Shape(64, 12, 12, 197, 64, False, WHOLE),
    Shape(1, 12, 12, 4096, 64, False, WHOLE),
    Shape(8, 12, 12, 1024, 64, False, HALF),
    Shape(1, 32, 8, 2048, 64, True, HALF),
    Shape(1, 12, 12, 16384, 64, False, HALF),
    Shape(8, 12, 12, 1024, 64, False, WHOLE),
    Shape(8, 16, 16, 257, 80, False, HALF),
    Shape(1, 32, 8, 4096, 128, True, HALF),
    Shape(64, 12, 12, 197, 64, False, torch.float16),
    Shape(1, 12, 12, 197, 64, False, HALF),
)
SMALL = (Shape(2, 4, 4, 24, 8, False, WHOLE), Shape(1, 4, 2, 24, 8, True, HALF))
TILES = {
    Shape(1, 12, 12, 4096, 64, False, HALF): ((128, 64, 4, 3), (128, 64, 8, 2), (64, 64, 4, 3), (128, 128, 8, 3)),
    Shape(64, 12, 12, 197, 64, False, HALF): ((128, 64, 4, 3), (64, 64, 4, 3), (64, 32, 4, 3)),
    Shape(1, 32, 8, 4096, 128, True, HALF): ((128, 64, 8, 3), (64, 64, 4, 2), (64, 64, 8, 3)),
    Shape(1, 12, 12, 4096, 64, False, WHOLE): ((64, 32, 8, 2), (128, 32, 8, 2), (64, 64, 8, 2)),
}
"""Other cuts of the Triton kernel: keys, rows, warps, stages."""

_NONE = torch.empty(0)
OF_CPU = Kernel(
    "flash_attention_for_cpu",
    "query key value dropout_p is_causal attn_mask scale",
    lambda op, q, k, v, s: (*op(q, k, v, 0.0, s.causal, scale=s.given), _NONE, _NONE),
    "grad_out query key value out logsumexp dropout_p is_causal attn_mask scale",
    lambda op, kept, g, v, y, s: op(g, *kept[:2], v, y, kept.lse, 0.0, s.causal, scale=s.given)[2],
)
"""For a smoke run."""


def name_of(dtype: torch.dtype) -> str:
    """The dtype's name without torch's.

    Example:
        >>> name_of(torch.float16)
        'float16'
    """
    return str(dtype).removeprefix("torch.")


def operands(shape: Shape, device: str) -> tuple[Tensor, ...]:
    """(q, k, v, cotangent), cut from one projection with tokens before heads, as in a transformer."""
    torch.manual_seed(0)
    batch, heads, of_keys, tokens, width, _, dtype = shape
    fused_width = (heads + 2 * of_keys) * width
    projection = torch.randn(batch, tokens, fused_width, device=device).to(dtype)
    parts = projection.split([heads * width, of_keys * width, of_keys * width], -1)
    q, k, v = (part.unflatten(-1, (-1, width)).transpose(1, 2) for part in parts)
    g = torch.randn(batch, tokens, heads, width, device=device).to(dtype).transpose(1, 2)
    return q, k, v, g


def seconds_of(run: Callable[[], Any], device: str, budget: float = 0.15) -> float:
    """The median time of a call on the device, after two to warm up.

    Args:
        run: the call.
        device: "cpu" or "cuda".
        budget: seconds for all calls together, about.
    """
    for _ in range(2):
        run()
    start = time.perf_counter()
    run()
    _wait(device)
    rounds = min(max(int(budget / max(time.perf_counter() - start, 1e-6)), 3), 50)
    if device == "cpu":
        return statistics.median(_clocked(run) for _ in range(rounds))
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(rounds)]
    for begins, ends in events:
        begins.record()  # type: ignore[no-untyped-call]
        run()
        ends.record()  # type: ignore[no-untyped-call]
    _wait(device)
    return statistics.median(begins.elapsed_time(ends) for begins, ends in events) / 1e3


def _clocked(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def roads(device: str, small: bool) -> Iterator[Case]:
    """One case per shape and road; each row has seconds, and the relative error of the first heads' gradient."""
    for shape in SMALL if small else SHAPES:
        yield f"{shape}, {OWN}", partial(_own, shape, device)
        for road in (*ALL, BLOCKWISE):
            yield f"{shape}, {road}", partial(_road, shape, road, device)


def flexible(device: str, small: bool) -> Iterator[Case]:
    """One case per shape for FlexAttention, which compiles for each."""
    for shape in SHAPES[:4]:
        yield f"{SMALL[0] if small else shape}, {FLEX}", partial(_road, SMALL[0] if small else shape, FLEX, device)
        if small:
            return


def tiles(device: str, small: bool) -> Iterator[Case]:
    """One case per shape and cut of the Triton kernel."""
    for shape, cuts in TILES.items():
        for cut in cuts:
            yield f"{shape}, {' '.join(map(str, cut))}", partial(_cut, SMALL[0] if small else shape, cut, device)


def launches(device: str, small: bool) -> Iterator[Case]:
    """One case per batch: attention as a node of a converted program, where a GPU waits for Python (`fused.SMALL`)."""
    for batch in (1, 8, 16, 32):
        shape = SMALL[0] if small else SHAPES[0]._replace(batch=batch)
        yield f"{shape._replace(batch=batch)}", partial(_launched, shape, device)


def _launched(shape: Shape, device: str) -> dict[str, Any]:
    """Seconds of forward and backward: plain, and with held weights by PyTorch's own backward and by a road."""
    q, k, v, g = operands(shape, device)
    leaves = [t.detach().requires_grad_() for t in (q, k, v)]

    def plain() -> Any:
        return torch.autograd.grad(torch.nn.functional.scaled_dot_product_attention(*leaves), leaves, g)

    def held() -> Any:
        return torch.autograd.grad(value_only(SDPA, q, k, leaves[2]), leaves[2], g)

    row = {"plain": seconds_of(plain, device)}
    for name, below in ((OWN, 2**62), ("road", 0)):
        with mock.patch.object(fused, "SMALL", below):
            row[name] = seconds_of(held, device)
    return row


def _settings(shape: Shape) -> Settings:
    return Settings(shape.causal, None, shape.width**-0.5, shape.heads != shape.of_keys)


def _own(shape: Shape, device: str) -> dict[str, Any]:
    """PyTorch's backward for all operands and for the value alone; its forward; copies of q and k, as roads keep."""
    q, k, v, g = operands(shape, device)
    s = _settings(shape)
    attend = partial(torch.nn.functional.scaled_dot_product_attention, is_causal=s.causal, enable_gqa=s.grouped)
    leaves = [t.detach().requires_grad_() for t in (q, k, v)]
    y, held = attend(*leaves), attend(q, k, leaves[2])
    (dv,) = torch.autograd.grad(held, leaves[2], g, retain_graph=True)
    return {
        "kernel": kernel_of(shape, device),
        "seconds": seconds_of(partial(torch.autograd.grad, y, leaves, g, retain_graph=True), device),
        "value only": seconds_of(partial(torch.autograd.grad, held, leaves[2], g, retain_graph=True), device),
        "forward": seconds_of(partial(attend, q, k, v), device),
        "copies": seconds_of(lambda: [t.clone(memory_format=torch.contiguous_format) for t in (q, k)], device),
        "off": wrong_by(dv, q, k, g, s),
    }


def kernel_of(shape: Shape, device: str) -> str:
    """The kernel that PyTorch picks: its name in `KERNELS`, or the number of its backend."""
    q, k, v, _ = operands(shape, device)
    s = _settings(shape)
    v = v.detach().requires_grad_()
    backend = fused.CHOICE(q, k, v, None, 0.0, s.causal, scale=None, enable_gqa=s.grouped)
    return KERNELS[backend].name if backend in KERNELS and device != "cpu" else str(backend)


def _kernel(shape: Shape, road: str, device: str) -> Kernel:
    """PyTorch's choice; for the own backward of a kernel that lets nothing be left out, the next that does."""
    if device == "cpu":
        return OF_CPU
    picked = kernel_of(shape, device)
    known = {kernel.name: kernel for kernel in KERNELS.values()}
    if picked in known and not (road == "full" and known[picked].backward is None):
        return known[picked]
    return known["efficient_attention" if shape.dtype == WHOLE else "flash_attention"]


def _road(shape: Shape, road: str, device: str) -> dict[str, Any]:
    q, k, v, g = operands(shape, device)
    s = _settings(shape)
    if road == BLOCKWISE:
        rows = split_axis(q, -3, shape.of_keys).contiguous()
        columns = k.transpose(-2, -1).contiguous()
        run = partial(weights_transposed_times, g, rows, columns, None, s.causal, s.scale)
        return {"seconds": seconds_of(run, device), "off": wrong_by(run(), q, k, g, s)}
    kernel = _kernel(shape, road, device)
    if road != FLEX and not fused.takes(road, kernel, q, k, v, s):
        return {"skipped": f"{road} does not take this after {kernel.name}"}
    _, *rest = kernel.forward(kernel.operator(), q, k, v, s)
    kept = Kept(q.contiguous(), k.contiguous(), *rest)
    run = partial(flex if road == FLEX else ALL[road], kernel, kept, g, s)
    return {"kernel": kernel.name, "seconds": seconds_of(run, device), "off": wrong_by(run(), q, k, g, s)}


def _cut(shape: Shape, cut: tuple[int, ...], device: str) -> dict[str, Any]:
    from fxgrad.ops import fused_triton

    q, k, v, g = operands(shape, device)
    s = _settings(shape)
    kernel = _kernel(shape, "triton", device)
    _, *rest = kernel.forward(kernel.operator(), q, k, v, s)
    kept = Kept(q.contiguous(), k.contiguous(), *rest)
    lse, made = kept.rows(), fused_triton.Tiles(*cut)
    run = partial(fused_triton.weights_transposed_times, g, kept.q, kept.k, lse, s.causal, s.scale, made)
    return {"seconds": seconds_of(run, device), "off": wrong_by(run(), q, k, g, s)}


def flex(kernel: Kernel, kept: Kept, g: Tensor, settings: Settings) -> Tensor:
    """P^T g by FlexAttention: each key attends to the queries, and each score has the log-sum-exp taken off."""
    from torch.nn.attention.flex_attention import flex_attention

    batch, heads = kept.k.shape[:2]
    q, g, lse = (t.reshape(batch, heads, -1, *t.shape[3:]) for t in (kept.q, g, kept.rows()))

    def normalized(score: Tensor, b: Tensor, h: Tensor, column: Tensor, row: Tensor) -> Tensor:
        return score - lse[b, h, row]

    attend = torch.compile(flex_attention, dynamic=False)
    y, log_z = attend(kept.k, q, g, score_mod=normalized, scale=settings.scale, return_lse=True)
    return (y * log_z.exp().unsqueeze(-1)).to(g.dtype)  # type: ignore[no-any-return]


def wrong_by(dv: Tensor, q: Tensor, k: Tensor, g: Tensor, s: Settings) -> float:
    """|dV - P^T g| / |P^T g| of the first key head of the first example, P^T g in float64."""
    groups = q.shape[1] // k.shape[1]
    wanted = torch.zeros_like(dv[0, 0], dtype=torch.float64)
    for head in range(groups):
        scores = s.scale * q[0, head].double() @ k[0, 0].double().T
        if s.causal:
            scores.masked_fill_(torch.ones_like(scores, dtype=torch.bool).triu_(1), -torch.inf)
        wanted += torch.softmax(scores, -1).T @ g[0, head].double()
    return float((dv[0, 0] - wanted).norm() / wanted.norm())
