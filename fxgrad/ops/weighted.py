"""Operands whose cotangents are held or scaled: products, quotients, powers, attention.

All of these are homogeneous in their operands, so Euler's theorem balances them: if f has degree
d_i in operand a_i, then <g, f(a)> = sum_i w_i <J_i^T g, a_i> whenever sum_i w_i d_i = 1. A weight of
zero *holds* the operand: no autograd graph is recorded for it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fxgrad.ops.function import Function


class _Scale(Function):
    """Identity whose backward multiplies the cotangent by a number."""

    @staticmethod
    def forward(x: Tensor, weight: float) -> Tensor:
        return x.detach()  # a view would lose the strides of axes of size 1, by which kernels are picked

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        ctx.weight = inputs[1]

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None]:
        return cotangent * ctx.weight, None


class _Relaid(Function):
    """Identity in `result` whose backward gives the cotangent the strides of `x`, where they may be mistaken."""

    @staticmethod
    def forward(result: Tensor, x: Tensor) -> Tensor:
        return result.detach()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        if 1 not in x.shape or cotangent.stride() == x.stride():
            return cotangent, None
        order = sorted(range(x.dim()), key=lambda axis: -x.stride(axis))
        laid = cotangent.permute(order).clone(memory_format=torch.contiguous_format)
        return laid.permute([order.index(axis) for axis in range(x.dim())]), None


def relaid(op: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Call `op`; its vjp is its own, given a cotangent with the strides of `x`.

    With an axis of size 1, a tensor may look both contiguous and channels-last; PyTorch's backward of an evaluating
    batch norm then reads a cotangent of other strides than its input's in the wrong order.

    Args:
        op: returns a tensor in the shape of `x`, or a tuple that starts with one.
        x: its first operand, of any shape and floating-point dtype.
        *args, **kwargs: passed through.

    Returns:
        What `op` returns.

    Example:
        >>> x = torch.ones(1, 2, 3, requires_grad=True)
        >>> y = relaid(torch.neg, x)
        >>> torch.autograd.grad(y, x, torch.ones(1, 3, 2).transpose(1, 2))[0].unique()
        tensor([-1.])
    """
    result = op(x, *args, **kwargs)
    if not recording(x):
        return result
    if isinstance(result, Tensor):
        return _Relaid.call(result, x)
    return (_Relaid.call(result[0], x), *result[1:])


def recording(*operands: Any) -> bool:
    """Whether autograd may follow a call with these operands, so that it pays to keep something for the backward.

    Example:
        >>> with torch.no_grad():
        ...     recording(torch.ones(1, requires_grad=True))
        False
    """
    if not torch.is_grad_enabled():
        return False
    # torch.compile traces no autograd.Function of which nothing is recorded. In eager mode a tensor that vmap wraps
    # does not tell whether what is inside is.
    return not torch.compiler.is_compiling() or any(isinstance(o, Tensor) and o.requires_grad for o in operands)


def _scale(operand: Any, weight: Any) -> Any:
    if isinstance(operand, (list, tuple)):
        if not isinstance(weight, (list, tuple)):
            weight = [weight] * len(operand)
        return [_scale(o, w) for o, w in zip(operand, weight)]
    if not isinstance(operand, Tensor) or weight == 1:
        return operand
    if weight == 0:
        return operand.detach()
    return _Scale.call(operand, weight) if recording(operand) else operand


def _common_share(args: tuple[Any, ...], weights: tuple[Any, ...]) -> float | None:
    """The weight of all tensors that are not held, if it is one: then the cotangent is scaled once, at the result."""
    shares = {w for a, w in zip(args, weights) if isinstance(a, (Tensor, list, tuple)) and w != 0}
    share = shares.pop() if len(shares) == 1 else None
    return share if isinstance(share, float) and share != 1 else None


def _held_or_whole(weight: Any) -> float:
    return 0.0 if weight == 0 else 1.0


def weighted(op: Any, weights: tuple[Any, ...], *args: Any, **kwargs: Any) -> Any:
    """Call `op`, and scale the cotangent of each positional operand by its weight.

    The forward is `op(*args, **kwargs)` itself, hence bit-identical. The vjp is the op's own, times
    the weight: 1 leaves an operand alone, 0 holds it (detached, nothing is recorded), 1/n shares a
    product among n carriers or balances a power of degree n.

    Args:
        op: any callable on tensors, usually a `torch._ops.OpOverload`.
        weights: one number per positional argument; for a list of tensors a tuple of numbers, or
            one number for all of them. Arguments that are not tensors ignore theirs.
        *args: the op's operands, any shape and dtype that it takes.
        **kwargs: passed through.

    Returns:
        What `op` returns.

    Raises:
        Whatever `op` raises.

    Example:
        >>> x = torch.tensor(3.0, requires_grad=True)
        >>> y = weighted(torch.ops.aten.mul.Tensor, (0.5, 0.5), x, x)
        >>> torch.autograd.grad(y, x)[0].item() * x.item() == y.item()
        True

    Source: LibraGrad, arXiv:2411.16760, section 3 (pruning and scaling of backward paths).
    """
    share = _common_share(args, weights)
    if share is not None:
        result = op(*(_scale(a, _held_or_whole(w)) for a, w in zip(args, weights)), **kwargs)
        return _scale(result, share)
    return op(*(_scale(a, w) for a, w in zip(args, weights)), **kwargs)
