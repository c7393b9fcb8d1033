"""Which values are feature maps, and which of their axes are rows and columns."""

from __future__ import annotations

from torch import fx

from fxgrad.graph.nodes import op_name
from fxgrad.graph.sizes import sizes_of

CONVOLUTIONS = (
    *("conv", "batch_norm", "native_batch_norm", "_native_batch_norm", "group_norm"),
    *("max_pool", "avg_pool", "adaptive_avg_pool"),
)
"""Starts of names of ops whose operand has its channels before rows and columns."""
_CHANNELS_LAST = ("linear", "layer_norm")
_NEAR = 12
"""The largest number of nodes of one shape to search for an op that tells which axis has the channels."""


def is_map(node: fx.Node) -> bool:
    """Whether a value with four axes is a feature map (batch, channels, rows, columns)."""
    shape = sizes_of(node)
    if len(shape) != 4:
        return False
    seen, pending = {node}, [node]
    while pending and len(seen) < _NEAR:
        current = pending.pop(0)
        names = [op_name(current), *(op_name(user) for user in current.users)]
        if any(name.startswith(CONVOLUTIONS) for name in names):
            return True
        if any(name in _CHANNELS_LAST for name in names):
            return False
        near = [n for n in (*current.users, *current.all_input_nodes) if n not in seen and sizes_of(n) == shape]
        seen.update(near)
        pending += near
    return False


def spatial_axes(node: fx.Node) -> tuple[int, int]:
    """The axes of rows and columns in a value with four axes."""
    return (2, 3) if is_map(node) else (1, 2)
