"""An output without a balanced gradient: its value is the original's, its gradient is an error."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fxgrad import errors
from fxgrad.ops.function import Function, recording


class _Refused(Function):
    """Identity in `value`; its backward raises an error, or in compiled code, which cannot, gives NaN."""

    @staticmethod
    def forward(error: str, message: str, compiled: bool, value: Tensor, *inputs: Tensor) -> Tensor:
        return value.detach()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.error, ctx.message, ctx.compiled = inputs[:3]
        ctx.save_for_backward(*inputs[4:])

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Any, ...]:
        if not ctx.compiled:
            raise getattr(errors, ctx.error)(ctx.message)
        spoilt = torch.where((cotangent != 0).any(), math.nan, 0.0)
        return None, None, None, None, *(torch.zeros_like(x) + spoilt.to(x) for x in ctx.saved_tensors)


def refuse(error: str, message: str, value: Tensor, *inputs: Tensor) -> Tensor:
    """An output of a model whose gradient would not be balanced.

    Args:
        error: the name of the error's class, in `fxgrad.errors`.
        message: the error's message.
        value: the output.
        inputs: what a gradient could be asked for.

    Returns:
        The values of `value`. A gradient of it raises the error; under `torch.compile`, it is NaN.

    Example:
        >>> x = torch.ones(2, requires_grad=True)
        >>> refuse("NotBalanceableError", "attribute the logits", x.softmax(0), x).sum().backward()
        Traceback (most recent call last):
        fxgrad.errors.NotBalanceableError: attribute the logits
    """
    if not recording(*inputs):
        return value
    found: Tensor = _Refused.call(error, message, torch.compiler.is_compiling(), value, *inputs)
    return found
