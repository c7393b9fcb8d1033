"""Vjps that PyTorch lacks (products with packed weights), or gets wrong (batch norms of ambiguous strides)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from fxgrad.graph.nodes import arguments_of
from fxgrad.ops.backward import Decided, replace_call
from fxgrad.ops.function import Function, recording


class _Relaid(Function):
    """Identity in `result`; its backward gives the cotangent the strides of `x` where these are ambiguous."""

    @staticmethod
    def forward(result: Tensor, x: Tensor) -> Tensor:
        return result.detach()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        if cotangent.stride() == x.stride():
            return cotangent, None
        order = sorted(range(x.dim()), key=lambda axis: -x.stride(axis))
        laid = cotangent.permute(order).clone(memory_format=torch.contiguous_format)
        return laid.permute([order.index(axis) for axis in range(x.dim())]), None


def relaid(op: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Call `op`; its vjp is the op's own, given a cotangent with the strides of `x`.

    With an axis of size 1, a tensor may look both contiguous and channels-last. PyTorch's backward of a batch norm in
    eval mode then reads a cotangent whose strides differ from the input's in the wrong order.

    Args:
        op: returns a tensor in the shape of `x`, or a tuple that starts with one.
        x: its first operand, of any shape and floating-point dtype.
        *args, **kwargs: further arguments of `op`.

    Returns:
        The result of `op`.

    Example:
        >>> x = torch.ones(1, 2, 3, requires_grad=True)
        >>> y = relaid(torch.neg, x)
        >>> torch.autograd.grad(y, x, torch.ones(1, 3, 2).transpose(1, 2))[0].unique()
        tensor([-1.])
    """
    result = op(x, *args, **kwargs)
    if not recording(x) or 1 not in x.shape:
        return result
    if isinstance(result, Tensor):
        return _Relaid.call(result, x)
    return (_Relaid.call(result[0], x), *result[1:])


class _Packed(Function):
    """Identity in `result` = x Wᵀ; its backward multiplies by W, which is what `op` makes of the unit vectors."""

    @staticmethod
    def forward(result: Tensor, x: Tensor, op: Callable[[Tensor], Tensor]) -> Tensor:
        return result.detach()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Any], output: Tensor) -> None:
        ctx.features, ctx.dtype, ctx.op = inputs[1].shape[-1], inputs[1].dtype, inputs[2]

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[None, Tensor, None]:
        units = torch.eye(ctx.features, dtype=ctx.dtype, device=cotangent.device)
        return None, cotangent @ ctx.op(units).to(cotangent.dtype).T, None


def packed(op: Any, sources: tuple[str, ...], x: Tensor, **others: Any) -> Any:
    """Call `op`, a product of the rows of `x` and a packed matrix W that only `op` can read; its vjp multiplies by W.

    Such ops have no derivative in PyTorch. Called on the unit vectors, `op` shows W, in the numbers that it uses.

    Args:
        op: returns x Wᵀ, (..., outputs), plus its bias if it has one.
        sources: the names of biases among the other arguments; without them (None), `op` returns x Wᵀ.
        x: its first operand, (..., features).
        **others: all other arguments of `op`, constants.

    Returns:
        The result of `op`.

    Example:
        >>> W = torch.tensor([[1, 2], [3, 4], [5, 6]], dtype=torch.int8)
        >>> x = torch.ones(1, 2, requires_grad=True)
        >>> y = packed(lambda x, W: x @ W.float().T, (), x, W=W)
        >>> torch.autograd.grad(y, x, torch.tensor([[0.0, 1.0, 0.0]]))[0]
        tensor([[3., 4.]])
    """
    if not recording(x):
        return op(x, **others)
    return _Packed.call(op(x.detach(), **others), x, functools.partial(op, **{**others, **dict.fromkeys(sources)}))


def pack(node: fx.Node, decided: Decided) -> None:
    """Call the op through `packed`, with all arguments but the first by their names."""
    arguments = arguments_of(node)
    node.args = (arguments.pop(next(iter(arguments))),)
    node.kwargs = arguments
    replace_call(node, packed, tuple(o.name for o in decided.operands if o.part == "source"))
