"""Twins of losses, and what their constants add: the differences that carry, the gates and targets that are held.

A loss of differences is 0 where they are 0. Others are not 0 for an input of 0: the rest is a source.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fxgrad.ops.secants import secant
from fxgrad.ops.series import Taylor, taylor


def mse_loss(self: Tensor, target: Tensor, reduction: int = 1) -> Tensor:
    """Squared differences: a difference times itself, held."""
    return _gated_difference(torch.square, self, target, reduction)


def smooth_l1_loss(self: Tensor, target: Tensor, reduction: int = 1, beta: float = 1.0) -> Tensor:
    """A difference times a gate of it, held."""
    return _gated_difference(
        lambda d: F.smooth_l1_loss(d, torch.zeros_like(d), reduction="none", beta=beta), self, target, reduction
    )


def huber_loss(self: Tensor, target: Tensor, reduction: int = 1, delta: float = 1.0) -> Tensor:
    """A difference times a gate of it, held."""
    return _gated_difference(
        lambda d: F.huber_loss(d, torch.zeros_like(d), reduction="none", delta=delta), self, target, reduction
    )


def binary_cross_entropy_with_logits(
    self: Tensor, target: Tensor, weight: Tensor | None = None, pos_weight: Tensor | None = None, reduction: int = 1
) -> Tensor:
    """(1 - t) x + softplus(-x), the target t held: linear, and a secant through 0."""
    t = target.detach()
    gate = _positive(t, pos_weight)
    table = (1 - t) * self + gate * secant(torch.ops.aten.softplus.default, _softplus(), -self)
    return _reduced(table, weight, reduction)


def logits_at_0(
    self: Tensor, target: Tensor, weight: Tensor | None = None, pos_weight: Tensor | None = None, reduction: int = 1
) -> Tensor:
    """What `binary_cross_entropy_with_logits` is for logits of 0."""
    return _reduced(_positive(target, pos_weight) * torch.full_like(self, math.log(2)), weight, reduction)


def binary_cross_entropy(self: Tensor, target: Tensor, weight: Tensor | None = None, reduction: int = 1) -> Tensor:
    """-t log(p) - (1 - t) log(1 - p), the target t held; each logarithm by its secant through where it is 0."""
    hit, miss = _slopes(self.detach())
    t = target.detach()
    return _reduced(t * hit * (1 - self) + (1 - t) * miss * self, weight, reduction)


def hits_at_0(self: Tensor, target: Tensor, weight: Tensor | None = None, reduction: int = 1) -> Tensor:
    """What of `binary_cross_entropy` is no multiple of p: t log(p) is a slope times p, less that slope."""
    return _reduced(target * _slopes(self)[0], weight, reduction)


def soft_margin_loss(self: Tensor, target: Tensor, reduction: int = 1) -> Tensor:
    """log(1 + exp(-t x)), the target t held: a secant through 0."""
    return _reduced(secant(torch.ops.aten.softplus.default, _softplus(), -target.detach() * self), None, reduction)


def margin_at_0(self: Tensor, target: Tensor, reduction: int = 1) -> Tensor:
    """What `soft_margin_loss` is for an input of 0."""
    return _reduced(torch.full_like(self * target, math.log(2)), None, reduction)


def _gated_difference(loss: Callable[[Tensor], Tensor], self: Tensor, target: Tensor, reduction: int) -> Tensor:
    """d * (loss(d) / d) for the differences d, where loss(0) = 0."""
    difference = self - target
    gate = torch.where(difference == 0, 0, loss(difference) / difference).detach()
    return _reduced(difference * gate, None, reduction)


def _reduced(table: Tensor, weight: Tensor | None, reduction: int) -> Tensor:
    """A table times its weights as it is (0), its mean (1) or its sum (2)."""
    table = table if weight is None else table * weight
    return table.mean() if reduction == 1 else table.sum() if reduction == 2 else table


def _positive(target: Tensor, weight: Tensor | None) -> Tensor:
    return torch.ones_like(target) if weight is None else 1 + (weight - 1) * target


def _slopes(p: Tensor) -> tuple[Tensor, Tensor]:
    """-log(p) / (1 - p) and -log(1 - p) / p, each 1 where the logarithm is 0; PyTorch's logarithms end at -100."""
    hit = torch.where(p == 1, 1.0, p.log().clamp(min=-100) / (p - 1))
    miss = torch.where(p == 0, 1.0, (-p).log1p().clamp(min=-100) / -p)
    return hit, miss


@functools.cache
def _softplus() -> Taylor:
    return taylor(torch.ops.aten.softplus.default)


TWINS: dict[str, Callable[..., Any]] = {
    "aten.mse_loss": mse_loss,
    "aten.smooth_l1_loss": smooth_l1_loss,
    "aten.huber_loss": huber_loss,
    "aten.binary_cross_entropy_with_logits": binary_cross_entropy_with_logits,
    "aten.binary_cross_entropy": binary_cross_entropy,
    "aten.soft_margin_loss": soft_margin_loss,
}
RESTS: dict[Callable[..., Any], Callable[..., Any]] = {
    binary_cross_entropy_with_logits: logits_at_0,
    binary_cross_entropy: hits_at_0,
    soft_margin_loss: margin_at_0,
}
"""Twin -> what it has of no operand: a source, computed from the same arguments."""
