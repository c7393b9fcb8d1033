"""Questions about a captured node that any stage may ask; nothing here knows a rule."""

from __future__ import annotations

import inspect
import operator
import types
from typing import Any

import torch
from torch import Tensor, fx


def added(graph: fx.Graph, like: fx.Node, op: Any, *args: Any, **kwargs: Any) -> fx.Node:
    """A new node at the graph's point of insertion, with its value, and with another node's other metadata.

    Args:
        graph: changed in place.
        like: stands for the new one, with its module and line.
        op: of torch.ops.
        *args, **kwargs: its arguments; nodes among them have their values.

    Example:
        >>> graph = torch.export.export(torch.nn.ReLU(), (torch.ones(2, 3),)).graph
        >>> x, relu, output = graph.nodes
        >>> with graph.inserting_before(output):
        ...     added(graph, relu, torch.ops.aten.sum.dim_IntList, relu, [1]).meta["val"].shape
        torch.Size([2])
    """
    node = graph.call_function(op, args, kwargs)
    values = fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
    with torch.no_grad():
        node.meta = {**like.meta, "val": op(*values[0], **values[1])}
    return node


def placeholders_of(graph: fx.Graph) -> list[fx.Node]:
    """The graph's placeholders, in order.

    Example:
        >>> placeholders_of(fx.symbolic_trace(torch.nn.ReLU()).graph)
        [input_1]
    """
    return [node for node in graph.nodes if node.op == "placeholder"]


def tensors_of(node: fx.Node) -> list[Tensor]:
    """The (fake) tensors in a node's result, as traced."""
    value = node.meta.get("val")
    return [v for v in (value if isinstance(value, (list, tuple)) else [value]) if isinstance(v, Tensor)]


def differentiable(node: fx.Node) -> bool:
    """Whether a node's result is of a dtype that autograd follows."""
    return any(v.is_floating_point() or v.is_complex() for v in tensors_of(node))


def descendants(node: fx.Node) -> set[fx.Node]:
    """The node, and all nodes that depend on it.

    Example:
        >>> graph = fx.symbolic_trace(torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Tanh())).graph
        >>> sorted(node.name for node in descendants(list(graph.nodes)[1]))
        ['_0', '_1', 'output']
    """
    found, pending = {node}, [node]
    while pending:
        new = [user for user in pending.pop().users if user not in found]
        found.update(new)
        pending += new
    return found


def op_name(node: fx.Node) -> str:
    """The name of a node's op, without namespace and overload; "" if the node calls no op of PyTorch.

    Example:
        >>> [op_name(node) for node in torch.export.export(torch.nn.ReLU(), (torch.ones(2),)).graph.nodes]
        ['', 'relu', '']
    """
    return str(getattr(getattr(node.target, "overloadpacket", None), "__name__", ""))


def arguments_of(node: fx.Node) -> dict[str, Any]:
    """The node's arguments by their names in the op's schema, defaults filled in."""
    if node.target is operator.getitem:
        return dict(zip(("self", "index"), node.args))
    if isinstance(node.target, types.FunctionType):
        return dict(zip(inspect.signature(node.target).parameters, node.args)) | node.kwargs
    if not isinstance(node.target, torch._ops.OpOverload):
        return {f"args[{i}]": a for i, a in enumerate(node.args)} | node.kwargs
    schema: Any = node.target._schema.arguments
    given = dict(zip((a.name for a in schema), node.args)) | node.kwargs
    return {a.name: given.get(a.name, a.default_value) for a in schema}
