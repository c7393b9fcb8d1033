"""Copies of graphs: their nodes keep their names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx


def copied(graph: fx.Graph) -> fx.Graph:
    """A copy of a graph, its nodes of the same names; fx would rename `input`.

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
    for node, twin in copies.items():
        twin.name = node.name
    return copy


def moved(graph: fx.Graph, devices: Mapping[torch.device, torch.device]) -> fx.Graph:
    """A copy of a graph, in which what is made on one device is made on another.

    Args:
        graph: any.
        devices: device -> the one that takes its place.

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
