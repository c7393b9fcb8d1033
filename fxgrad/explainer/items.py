"""Where the items of a batch are in a node's value."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, fx
from torch.fx.experimental.symbolic_shapes import is_concrete_int, statically_known_true

Items = tuple[int, int]
"""The axis that holds the batch, and the size of what is merged into that axis ahead of it."""


def batch_axis(node: fx.Node, batch: Any) -> Items | None:
    """Where the batch is in a captured node's value; None where it is not.

    The batch may be merged with other axes, as (batch * windows, ...) or (tokens * batch, ...). How, is seen where it
    last had an axis of its own.

    Args:
        node: of a captured graph.
        batch: its size there, a symbol where it is free.

    Example:
        >>> import torch
        >>> from fxgrad.capture.export import capture
        >>> class Merged(torch.nn.Module):
        ...     def forward(self, x):
        ...         return x.transpose(0, 1).reshape(-1, 2)
        >>> graph = capture(Merged().eval(), (torch.zeros(3, 5, 2),)).graph
        >>> x, *_, merged, _ = graph.nodes
        >>> [batch_axis(node, x.meta["val"].shape[0]) for node in (x, merged)]
        [(0, 1), (0, 5)]
    """
    shape = _shape(node)
    axis = next((i for i, size in enumerate(shape) if _holds(size, batch)), None)
    above: fx.Node | None = node
    while axis is not None and above is not None:
        sizes = _shape(above)
        own = next((i for i, size in enumerate(sizes) if statically_known_true(size == batch)), None)
        if own is not None:
            return axis, int(math.prod(sizes[:own]) // math.prod(shape[:axis]))
        above = next((n for n in above.all_input_nodes if any(_holds(s, batch) for s in _shape(n))), None)
    return None


def _shape(node: fx.Node) -> tuple[Any, ...]:
    value = node.meta.get("val")
    value = value[0] if isinstance(value, (list, tuple)) and value else value
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def _holds(size: Any, batch: Any) -> bool:
    """Whether a size is the batch's, or, where that is free, a multiple of it."""
    if is_concrete_int(batch):
        return bool(size == batch)
    return not is_concrete_int(size) and statically_known_true(size % batch == 0)
