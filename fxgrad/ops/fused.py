"""P^T g from what a fused attention kernel on a GPU leaves behind: q, k and the log-sum-exp of each row of scores.

No way makes the matrix of weights. A kernel's own backward makes three cotangents with five matrix products; dV takes
two of them, one for P and one to apply it. Each *road* does this in another way:

- `full`: the kernel's own backward, whose dQ and dK are dropped. dV depends neither on the values nor on the output,
  so that stand-ins take their places, and neither is kept.
- `swapped`: the forward of the memory-efficient kernel with q and k swapped, and with the log-sum-exp as its bias.
- `triton`: a kernel of our own with these two products only (`fused_triton.py`).

`ROADS` says which kernel takes which, `bench/gpu.py` measures all of them.

Source: Dao, arXiv:2307.08691, algorithm 2 (P = exp(scale q k^T - lse), dV = P^T dO).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

from fxgrad.ops.blocks import split_axis
from fxgrad.ops.blocks import weights_transposed_times as blockwise
from fxgrad.ops.function import Function
from fxgrad.ops.kernels import EFFICIENT, KERNELS, Kept, Kernel, Settings

CHOICE: Any = getattr(torch, "_fused_sdp_choice", None)
"""The function by which attention picks its kernel; None if PyTorch no longer has it."""
OLD_VMAP: Any = getattr(getattr(torch._C, "_functorch", None), "is_legacy_batchedtensor", None)
"""Whether a tensor is one of the vmap before torch.func's; None if PyTorch no longer has it."""
SMALL = 2**28
"""Multiply-adds of one product (rows x columns x width, of all heads) below which a GPU waits for Python."""
ALIGNED = 16
"""The memory-efficient kernel wants the rows of a bias to start at multiples of this many elements."""


def full(kernel: Kernel, kept: Kept, g: Tensor, settings: Settings) -> Tensor:
    """The kernel's own backward; only its dV is used, which reads neither the values nor the output."""
    assert kernel.backward is not None
    v = kept.k if kept.k.shape[-1] == g.shape[-1] else g.new_empty(*kept.k.shape[:-1], g.shape[-1])
    # All kernels want the layout of their output, tokens before heads; as an output the cotangent has it, too.
    g = g.transpose(1, 2).contiguous().transpose(1, 2)
    return kernel.backward(kernel.operator(backward=True), kept, g, v, g, settings)


def swapped(kernel: Kernel, kept: Kept, g: Tensor, settings: Settings) -> Tensor:
    """The forward of the memory-efficient kernel, each key attending to the queries, with a bias b close to -lse.

    A row of it is sum_i exp(s_ij + b_i) g'_i / Z_j. With g'_i = exp(-lse_i - b_i) g_i, times Z_j, that is P^T g for any
    b, so that b may be rounded to half precision. Query heads that share a key head are summed over, as more rows.
    """
    q, k, lse = kept.q, kept.k, kept.rows()
    if settings.causal:  # the rows that see a column are those behind it: causal again in reversed order
        q, k, lse, g = (t.flip(2) for t in (q, k, lse.unsqueeze(-1), g))
        lse = lse.squeeze(-1)
    batch, heads, columns, _ = k.shape
    q, g, lse = (t.reshape(batch, heads, -1, *t.shape[3:]) for t in (q, g, lse))
    padding = -lse.shape[-1] % ALIGNED
    bias = torch.nn.functional.pad(-lse, (0, padding)).to(q.dtype)[..., : lse.shape[-1]]
    g = ((-lse - bias.float()).exp().unsqueeze(-1) * g).to(g.dtype)
    bias = bias.unsqueeze(-2).expand(-1, -1, columns, -1)
    y, log_z, _, _ = EFFICIENT.operator()(k, q, g, bias, True, 0.0, settings.causal, scale=settings.scale)
    dv: Tensor = (y * log_z[..., :columns].exp().unsqueeze(-1)).to(g.dtype)
    return dv.flip(2) if settings.causal else dv


def triton(kernel: Kernel, kept: Kept, g: Tensor, settings: Settings) -> Tensor:
    """A kernel of our own with the two products that dV takes.

    The vmap of `torch.autograd.grad(is_grads_batched=True)` knows neither a function's rule nor its tensors' pointers,
    so that under it P is made block by block.
    """
    if OLD_VMAP is not None and OLD_VMAP(g):
        rows = split_axis(kept.q, 1, kept.k.shape[1])
        return blockwise(g, rows, kept.k.mT, None, settings.causal, settings.scale)
    from fxgrad.ops.fused_triton import weights_transposed_times

    return weights_transposed_times(g, kept.q, kept.k, kept.rows(), settings.causal, settings.scale)


Road = Callable[[Kernel, Kept, Tensor, Settings], Tensor]
"""(the kernel of the forward, what that left, cotangent, settings) -> dV in the shape of the values."""
ALL: Mapping[str, Road] = {"full": full, "swapped": swapped, "triton": triton}
ROADS: dict[str, str] = {"flash_attention": "full", "efficient_attention": "full"}
"""Kernel -> its road; none is PyTorch's own backward, which keeps the values and the output, too."""


def takes(road: str, kernel: Kernel, q: Tensor, k: Tensor, v: Tensor, settings: Settings) -> bool:
    """Whether a road can be taken after this kernel, with this PyTorch.

    Args:
        road: one of `ALL`.
        kernel: that of the forward.
        q, k, v: attention's operands.
        settings: its settings.

    Example:
        >>> q = torch.zeros(1, 2, 3, 8)
        >>> takes("full", EFFICIENT, q, q, q, Settings(False, None, 1.0, False))
        True
    """
    if q.shape[-1] % 8 or v.shape[-1] % 8:
        return False  # attention pads such widths before it calls a kernel
    if not kernel.operator() or k.shape[:-1] != v.shape[:-1] or not (kernel.groups or q.shape[1] == k.shape[1]):
        return False
    if road == "full":
        return kernel.backward is not None and kernel.operator(backward=True) is not None
    if road == "swapped":
        return EFFICIENT.operator() is not None and not (settings.causal and q.shape[1:3] != k.shape[1:3])
    widest = {torch.float32: 128, torch.float16: 256, torch.bfloat16: 256}.get(q.dtype, 0)
    return _there("triton") and max(q.shape[-1], v.shape[-1]) <= widest


@functools.cache
def _there(package: str) -> bool:
    return find_spec(package) is not None


OWN = "own"
"""PyTorch's own backward."""
BLOCKWISE = "blockwise"
"""P made again block by block."""


def serves(q: Tensor) -> bool:
    """Whether attention of these queries is for this file to choose: everywhere but on a CPU.

    Example:
        >>> serves(torch.empty(0)), serves(torch.empty(0, device="meta"))
        (False, True)
    """
    return q.device.type != "cpu"


def chosen(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, settings: Settings) -> tuple[str, Kernel | None]:
    """The road for attention on a GPU, and the kernel that its forward runs.

    Args:
        q, k, v: attention's operands, q and k detached.
        mask: its mask.
        settings: its settings, without dropout.

    Returns:
        A name of `ALL` with the kernel; or `OWN`, where the fused backward is as good or all that there is (masks,
        small inputs); or `BLOCKWISE`, where a backward of PyTorch's would keep the matrix of weights, or give a mask a
        gradient.
    """
    if mask is not None and mask.requires_grad and mask.is_leaf:
        return BLOCKWISE, None
    if CHOICE is None:
        return OWN, None
    try:
        backend = CHOICE(q, k, v, mask, 0.0, settings.causal, scale=settings.given, enable_gqa=settings.grouped)
    except RuntimeError:  # an operand is wrapped by vmap
        return BLOCKWISE, None
    if backend == SDPBackend.MATH.value:
        return BLOCKWISE, None
    kernel = KERNELS.get(backend)
    road = ROADS.get(kernel.name) if kernel else None
    if kernel is None or road is None or mask is not None or _small(q, k):
        return OWN, None
    return (road, kernel) if takes(road, kernel, q, k, v, settings) else (OWN, None)


def _small(q: Tensor, k: Tensor) -> bool:
    sizes = (*q.shape, k.shape[-2])
    return all(isinstance(size, int) for size in sizes) and math.prod(sizes) < SMALL


def attention(kernel: Kernel, road: str, settings: Settings, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention by a fused kernel; its vjp takes a road, and gives the value alone a cotangent.

    Args:
        kernel, road: what `chosen` returned.
        settings: attention's settings.
        q, k, v: its operands, q and k detached.

    Returns:
        What attention returns, bit for bit: the same kernel made it.
    """
    kept = (t if _alone(t) else t.clone(memory_format=torch.contiguous_format) for t in (q, k))
    return _Attention.call(kernel, road, settings, q, k, v, *kept)  # type: ignore[no-any-return]


def _alone(x: Tensor) -> bool:
    """Whether a tensor has its storage for itself: q, k and v are often views of one, which a kept view would keep."""
    try:
        return x.untyped_storage().nbytes() == x.numel() * x.element_size()
    except (RuntimeError, NotImplementedError):  # wrapped by a transformation of torch.func
        return False


ALLOWED = False
"""Whether `allow` was called: dynamo keeps a list of such functions."""


def allow() -> None:
    """Let torch.compile put `traced` into its graphs as one call, for every converted program with attention."""
    global ALLOWED
    if not ALLOWED:
        torch.compiler.allow_in_graph(traced)  # type: ignore[no-untyped-call]
        ALLOWED = True


def traced(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, given: float | None, grouped: bool
) -> Tensor:
    """Attention within torch.compile: no tracer can follow the choice of a kernel, but it can be made while the call's
    own graph is made of fake tensors, which have a device, strides and a dtype. PyTorch's own backward elsewhere.

    Args:
        q, k, v, mask: attention's operands, all but v detached.
        causal, given, grouped: its settings, as in `Settings`.
    """
    settings = Settings(causal, given, q.shape[-1] ** -0.5 if given is None else given, grouped)
    road, kernel = chosen(q, k, v, mask, settings)
    if kernel is not None:
        return attention(kernel, road, settings, q, k, v)
    attend = torch.nn.functional.scaled_dot_product_attention
    return attend(q, k, v, mask, 0.0, causal, scale=given, enable_gqa=grouped)


class _Attention(Function):
    """Attention by a fused kernel; its backward takes a road."""

    keeps = True

    @staticmethod
    def forward(
        kernel: Kernel, road: str, settings: Settings, q: Tensor, k: Tensor, v: Tensor, *kept: Tensor
    ) -> tuple[Tensor, ...]:
        return kernel.forward(kernel.operator(), q, k, v.detach(), settings)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.way = inputs[:3]
        ctx.save_for_backward(*inputs[6:], *output[1:])

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Any, ...]:
        dv = _Gradient.call(*ctx.way, cotangent, *ctx.saved_tensors)
        return None, None, None, None, None, dv, None, None


class _Gradient(Function):
    """P^T g by a road; vmap joins its axis with the batch's."""

    generate_vmap_rule = False

    @staticmethod
    def forward(kernel: Kernel, road: str, settings: Settings, g: Tensor, *kept: Tensor) -> Tensor:
        return ALL[road](kernel, Kept(*kept), g, settings)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Any, ...]:
        raise NotImplementedError("attention with held weights has no second derivative")

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
        def joined(x: Tensor, dim: int | None) -> Tensor:
            x = x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)
            return x.flatten(0, 1)

        tensors = [joined(x, dim) for x, dim in zip(args[3:7], in_dims[3:7])]
        dv = _Gradient.call(*args[:3], *tensors, *args[7:])
        return dv.unflatten(0, (info.batch_size, -1)), 0
