"""PyTorch's fused attention kernels on a GPU: what each takes, and what its forward leaves for a backward.

Their operators are private, so that each is compared with the arguments that this file passes, and left alone if this
PyTorch's takes others.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend


class Settings(NamedTuple):
    """The non-tensor arguments of attention, as in `torch.nn.functional.scaled_dot_product_attention`."""

    causal: bool
    given: float | None
    """The scale as passed to the kernel; None lets the kernel compute 1/sqrt(width)."""
    scale: float
    grouped: bool


class Kept(NamedTuple):
    """What a forward leaves for P^T g.

    Attributes:
        q, k: (batch, heads, rows or columns, width); k may have fewer heads, which divide those of q.
        lse: the log-sum-exp of each row, float32, as the kernel laid it out.
        seed, offset: of the kernel's random numbers, which its backward asks for even without dropout.
    """

    q: Tensor
    k: Tensor
    lse: Tensor
    seed: Tensor
    offset: Tensor

    def rows(self) -> Tensor:
        """The log-sum-exps as (batch, heads, rows): kernels pad the rows, or add an axis."""
        return self.lse.reshape(*self.q.shape[:2], -1)[..., : self.q.shape[2]]


@dataclass(frozen=True)
class Kernel:
    """One of PyTorch's fused kernels.

    Attributes:
        name: of its operators, `_scaled_dot_product_{name}_attention`.
        ahead: the arguments of its forward, and `back` those of its backward, as this file passes them.
        forward: (operator, q, k, v, settings) -> (output, log-sum-exp, seed, offset).
        backward: (operator, kept, g, stand-in for the values, stand-in for the output, settings) -> dV. None for a
            kernel whose backward must see what its forward saw.
        groups: whether query heads can share a key head; attention repeats key heads for the others.
    """

    name: str
    ahead: str
    forward: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]
    back: str = ""
    backward: Callable[..., Tensor] | None = None
    groups: bool = False

    def operator(self, backward: bool = False) -> Any:
        """The forward or backward; None where this PyTorch has none that takes the arguments."""
        name = f"_scaled_dot_product_{self.name}{'_backward' * backward}"
        return _operator(name, self.back if backward else self.ahead)


@functools.cache
def _operator(name: str, arguments: str) -> Any:
    op = getattr(getattr(torch.ops.aten, name, None), "default", None)
    return op if op and " ".join(a.name for a in op._schema.arguments) == arguments else None


def _flash(op: Any, q: Tensor, k: Tensor, v: Tensor, s: Settings) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    y, lse, _, _, _, _, seed, offset, _ = op(q, k, v, 0.0, s.causal, False, scale=s.given)
    return y, lse, seed, offset


def _flash_backward(op: Any, kept: Kept, g: Tensor, v: Tensor, y: Tensor, s: Settings) -> Tensor:
    q, k, lse, seed, offset = kept
    sizes = q.shape[2], k.shape[2]
    _, _, dv = op(g, q, k, v, y, lse, None, None, *sizes, 0.0, s.causal, seed, offset, scale=s.given)
    return dv  # type: ignore[no-any-return]


def _efficient(op: Any, q: Tensor, k: Tensor, v: Tensor, s: Settings) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return op(q, k, v, None, True, 0.0, s.causal, scale=s.given)  # type: ignore[no-any-return]


def _efficient_backward(op: Any, kept: Kept, g: Tensor, v: Tensor, y: Tensor, s: Settings) -> Tensor:
    q, k, *rest = kept
    wanted = [False, False, True, False]
    return op(g, q, k, v, None, y, *rest, 0.0, wanted, s.causal, scale=s.given)[2]  # type: ignore[no-any-return]


def _cudnn(op: Any, q: Tensor, k: Tensor, v: Tensor, s: Settings) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    y, lse, _, _, _, _, seed, offset, _ = op(q, k, v, None, True, 0.0, s.causal, False, scale=s.given)
    return y, lse, seed, offset


EFFICIENT = Kernel(
    "efficient_attention",
    "query key value attn_bias compute_log_sumexp dropout_p is_causal scale",
    _efficient,
    "grad_out_ query key value attn_bias out logsumexp philox_seed philox_offset dropout_p grad_input_mask is_causal "
    "scale",
    _efficient_backward,
)
KERNELS: Mapping[int, Kernel] = {
    SDPBackend.FLASH_ATTENTION.value: Kernel(
        "flash_attention",
        "query key value dropout_p is_causal return_debug_mask scale",
        _flash,
        "grad_out query key value out logsumexp cum_seq_q cum_seq_k max_q max_k dropout_p is_causal philox_seed "
        "philox_offset scale",
        _flash_backward,
        groups=True,
    ),
    SDPBackend.EFFICIENT_ATTENTION.value: EFFICIENT,
    # PyTorch caches cuDNN's backward by the strides of q, k and v alone, so that it must be called as its forward was.
    SDPBackend.CUDNN_ATTENTION.value: Kernel(
        "cudnn_attention",
        "query key value attn_bias compute_log_sumexp dropout_p is_causal return_debug_mask scale",
        _cudnn,
        groups=True,
    ),
}
"""What `torch._fused_sdp_choice` returns -> the kernel that attention runs."""
