"""Copies of graphs: their nodes keep their names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from fxgrad.graph.decided import is_decision
from fxgrad.graph.nodes import arguments_of


def copied(graph: fx.Graph) -> fx.Graph:
    """A copy of a graph whose nodes keep their names; fx would rename `input`.

    Example:
        >>> graph = torch.export.export(torch.nn.ReLU(), (torch.ones(2),)).graph
        >>> [node.name for node in copied(graph).nodes]
        ['input', 'relu', 'output']
    """
    copy = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    outputs = copy.graph_copy(graph, copies)
    output = graph.output_node()
    copies[output] = copy.output(outputs)
    copies[output].meta = dict(output.meta)
    for node, own in copies.items():
        own.name = node.name
    return copy


def moved(graph: fx.Graph, devices: Mapping[torch.device, torch.device]) -> fx.Graph:
    """A copy of a graph that creates its tensors on other devices.

    Args:
        graph: any.
        devices: device in the graph -> device in the copy.

    Example:
        >>> class Ramp(torch.nn.Module):
        ...     def forward(self, x):
        ...         return x + torch.arange(3, device=x.device)
        >>> graph = torch.export.export(Ramp(), (torch.ones(3),)).run_decompositions({}).graph
        >>> there = moved(graph, {torch.device("cpu"): torch.device("meta")})
        >>> [n.kwargs["device"] for n in there.nodes if "device" in n.kwargs]
        [device(type='meta')]
    """

    def move(leaf: Any) -> Any:
        return devices.get(leaf, leaf) if isinstance(leaf, torch.device) else leaf

    copy = copied(graph)
    for node in copy.nodes:
        node.args = fx.node.map_aggregate(node.args, move)
        node.kwargs = fx.node.map_aggregate(node.kwargs, move)
    return copy


def prune(graph: fx.Graph) -> None:
    """Drop unused nodes in place, also those that torch calls impure for random numbers that they never draw.

    Args:
        graph: of functional ATen ops.

    Example:
        >>> class Unused(torch.nn.Module):
        ...     def forward(self, x):
        ...         return torch.nn.functional.scaled_dot_product_attention(x, x, x), x + 1
        >>> graph = torch.export.export(Unused(), (torch.ones(1, 2, 3),)).run_decompositions({}).graph
        >>> attention, more, output = list(graph.nodes)[1:]
        >>> output.args = ((more,),)
        >>> prune(graph)
        >>> [node.name for node in graph.nodes]
        ['x', 'add', 'output']
    """
    graph.eliminate_dead_code(is_impure_node=_is_kept)


def _is_kept(node: fx.Node) -> bool:
    return is_decision(node) or (node.is_impure() and not (_may_draw(node) and not draws(node)))


def draws(node: fx.Node) -> bool:
    """Whether an op draws random numbers: not attention without dropout, nor any op in eval mode.

    Example:
        >>> graph = torch.export.export(torch.nn.Dropout().eval(), (torch.ones(2),)).graph
        >>> [draws(node) for node in graph.nodes if node.op == "call_function"]
        [False]
    """
    arguments = arguments_of(node) if _may_draw(node) else {"train": False}
    return not (arguments.get("dropout_p") == 0 or False in (arguments.get("train"), arguments.get("training")))


def _may_draw(node: fx.Node) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
