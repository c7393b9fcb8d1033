"""A piece of a joined tensor: its values are cut out of the join, its cotangent goes to what was put in."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx

from fxgrad.ops.function import Function, recording


class _Piece(Function):
    """Identity in `value`; its backward hands the cotangent to `part`."""

    @staticmethod
    def forward(part: Tensor, value: Tensor) -> Tensor:
        return value.detach()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None]:
        return cotangent, None


def piece(part: Tensor, value: Tensor) -> Tensor:
    """What was put into a cat or a stack, as it is cut out again.

    PyTorch picks kernels by strides, so the values are taken from the cut: they are equal, but laid out otherwise.

    Args:
        part: what was put in, in the shape and dtype of `value`.
        value: the same elements, cut out of the joined tensor; it gets no cotangent.

    Returns:
        The values of `value`, with its strides; with no gradient, if the part has none.

    Example:
        >>> import torch
        >>> a, b = torch.ones(2, requires_grad=True), torch.zeros(3, requires_grad=True)
        >>> z = torch.cat([a, b])
        >>> torch.autograd.grad(piece(a, z[:2]).sum(), [a, b], allow_unused=True)
        (tensor([1., 1.]), None)
    """
    return _Piece.call(part, value) if recording(part) else value.detach()


def operands_in(node: fx.Node) -> list[fx.Node]:
    """The nodes that a node's result flows from: its operands; of a piece, the part alone.

    Example:
        >>> graph = fx.Graph()
        >>> x, y = graph.placeholder("x"), graph.placeholder("y")
        >>> operands_in(graph.call_function(piece, (x, y)))
        [x]
    """
    return node.all_input_nodes[:1] if node.target is piece else node.all_input_nodes
