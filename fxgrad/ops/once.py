"""A gradient that cannot be differentiated again: the derivative of a balanced gradient would lack what is held."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor

from fxgrad.errors import InputError
from fxgrad.ops.function import Function, transformed


class _Again(Function):
    """Identity in a gradient; its own backward raises an error."""

    @staticmethod
    def forward(gradient: Tensor, x: Tensor) -> Tensor:
        return gradient.detach()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> NoReturn:
        raise InputError(
            "a balanced gradient cannot be differentiated again: what it holds constant, such as gates and scales, "
            'would be missing. For second derivatives, use converted.under("gradient"), the gradient of PyTorch itself.'
        )


class _Once(Function):
    """Identity in an input; a gradient that is recorded itself passes through `_Again`."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.detach()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return cotangent
        found: Tensor = _Again.call(cotangent, *ctx.saved_tensors)
        return found


def once(x: Any) -> Any:
    """An input whose gradient can be taken, and not differentiated again.

    Args:
        x: of any shape and dtype.

    Returns:
        The same values. A second derivative through it is an InputError; compiled code refuses it by itself.

    Example:
        >>> x = torch.ones(2, requires_grad=True)
        >>> (gradient,) = torch.autograd.grad(once(x).exp().sum(), x, create_graph=True)
        >>> gradient.sum().backward()  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        fxgrad.errors.InputError: a balanced gradient cannot be differentiated again: ...
    """
    if torch.compiler.is_compiling() or not isinstance(x, Tensor) or not torch.is_grad_enabled():
        return x
    return _Once.call(x) if x.requires_grad or transformed() else x
