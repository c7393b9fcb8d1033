"""Give slice assignments of complex numbers the derivative that PyTorch's ops for them lack.

`out[:, :4] = z` becomes `slice_scatter`, which has no derivative for complex numbers. It moves numbers and computes
nothing, so it moves their real and imaginary parts just as well: same bits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from fxgrad.graph.nodes import arguments_of

aten = torch.ops.aten
WITHOUT_DERIVATIVE = (aten.slice_scatter.default, aten.select_scatter.default)


def moves_complex_numbers(node: fx.Node) -> bool:
    """Whether a node is a slice assignment of complex numbers."""
    return node.target in WITHOUT_DERIVATIVE and all(n.meta["val"].is_complex() for n in node.all_input_nodes[:2])


def move_parts(graph: fx.Graph, node: fx.Node) -> None:
    """Replace a slice assignment of complex numbers, in place, by that of their real and imaginary parts.

    Example:
        >>> class Low(torch.nn.Module):
        ...     def forward(self, z):
        ...         out = torch.zeros_like(z)
        ...         out[:, :2] = z[:, :2]
        ...         return out
        >>> z = torch.ones(2, 3, dtype=torch.complex64)
        >>> graph = torch.export.export(Low(), (z,)).run_decompositions({}).graph
        >>> for node in list(graph.nodes):
        ...     if moves_complex_numbers(node):
        ...         move_parts(graph, node)
        >>> [str(n.target) for n in graph.nodes if n.op == "call_function"][-3:]
        ['aten.view_as_real.default', 'aten.slice_scatter.default', 'aten.view_as_complex.default']
    """
    arguments = arguments_of(node)
    whole, part = arguments.pop("self"), arguments.pop("src")
    arguments["dim"] %= node.meta["val"].dim()  # counted from the front, since the parts lie on one more axis

    def call(op: Any, *args: Any, **named: Any) -> fx.Node:
        new = graph.call_function(op, args, named)
        new.meta = dict(node.meta)
        new.meta["val"] = op(*fx.node.map_arg(args, _value), **fx.node.map_arg(named, _value))
        return new

    with graph.inserting_before(node):
        parts = [call(aten.view_as_real.default, call(aten.resolve_conj.default, n)) for n in (whole, part)]
        moved = call(aten.view_as_complex.default, call(node.target, *parts, **arguments))
    node.replace_all_uses_with(moved)
    graph.erase_node(node)


def _value(node: fx.Node) -> Tensor | Any:
    return node.meta["val"]
