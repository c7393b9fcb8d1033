"""A captured graph's check of its inputs' data: that they decide as the example did, where the model's Python code read
them, and that what the model asserts of them holds."""

from __future__ import annotations

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from fxgrad.errors import InputError

MARK = "decided: "
"""How the message of such a check starts in a program of torch.export, where `aten._assert_async` stands for it."""


def decided(condition: Tensor, message: str) -> None:
    """Raise `InputError` with this message unless the condition holds.

    Args:
        condition: bool, one element, on any device.
        message: what was decided or asserted, and where.

    Raises:
        InputError: the condition is false.

    Example:
        >>> decided(torch.ones(3).sum() == 3, "the sum was 3")
    """
    if torch.compiler.is_compiling() or get_proxy_mode() is not None:  # no value yet: leave the check to the program
        torch._assert_async(condition, MARK + message)
    elif not bool(condition):
        raise InputError(message)


def is_decision(node: fx.Node) -> bool:
    """Whether a node is such a check, as `decided` or as the op that stands for it.

    Example:
        >>> graph = fx.Graph()
        >>> is_decision(graph.call_function(decided, (graph.placeholder("x"), "x was true")))
        True
    """
    if node.target is decided:
        return True
    return node.target is torch.ops.aten._assert_async.msg and str(node.args[1]).startswith(MARK)
