"""Ops as PyTorch binds them to Python: the same kernels, called in half the time.

A call of `torch.ops.aten.add.Tensor` looks its arguments up in a schema; one of `torch.add` has a parser of its own. In
small models that is a tenth of the time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

_TORCH = (
    "add.Tensor", "bmm", "cat", "conv1d", "conv2d", "conv3d", "div.Tensor", "embedding", "exp", "flatten.using_ints",
    "matmul", "mean.dim", "mul.Tensor", "permute", "pow.Tensor_Scalar", "relu", "reshape", "rsqrt", "select.int",
    "sigmoid", "softmax.int", "stack", "sub.Tensor", "tanh", "transpose.int", "unbind.int", "unsqueeze",
)  # fmt: skip
_NN = ("linear", "avg_pool2d")


def _table(names: tuple[str, ...], home: Any) -> dict[Any, Callable[..., Any]]:
    found = {}
    for name in names:
        packet, _, overload = name.partition(".")
        op = getattr(getattr(torch.ops.aten, packet), overload or "default")
        found[op] = getattr(home, packet)
    return found


BOUND: Mapping[Any, Callable[..., Any]] = {
    **_table(_TORCH, torch),
    **_table(_NN, F),
    # What asks for a tensor's size, as vmap knows it.
    torch.ops.aten.sym_size.int: torch.Tensor.size,
    torch.ops.aten.sym_stride.int: torch.Tensor.stride,
    torch.ops.aten.sym_numel.default: torch.Tensor.numel,
}
"""Op -> a function that calls it, given the same positional arguments."""


def bind(node: fx.Node) -> None:
    """Let a node call its op as PyTorch binds it to Python, if it has no arguments by name.

    Example:
        >>> graph = fx.Graph()
        >>> node = graph.call_function(torch.ops.aten.add.Tensor, (graph.placeholder("x"), 1))
        >>> bind(node)
        >>> node.target is torch.add
        True
    """
    if not node.kwargs:
        node.target = BOUND.get(node.target, node.target)
