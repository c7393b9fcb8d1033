"""Questions about a captured node that any stage may ask; nothing here knows a rule."""

from __future__ import annotations

import inspect
import operator
import types
from typing import Any

import torch
from torch import Tensor, fx


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
