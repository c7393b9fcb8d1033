"""Compute once what a traced program computes several times: the forward pass of several policies, attention weights.

Of equal calls of an op on equal operands the first one stays. Ops that write into their operands are left alone, with
everything that is computed from what they write into.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from fxgrad.graph.copies import prune

aten = torch.ops.aten
SAME = (aten.detach.default, aten.alias.default)
"""Ops that give their operand."""


def merge(graph: fx.Graph) -> None:
    """Merge equal calls, in place.

    Args:
        graph: of ATen ops, as make_fx traces it.

    Example:
        >>> from torch.fx.experimental.proxy_tensor import make_fx
        >>> traced = make_fx(lambda x: x.exp() + x.detach().exp())(torch.ones(2))
        >>> merge(traced.graph)
        >>> [node.name for node in traced.graph.nodes if node.op == "call_function"]
        ['exp', 'add']

    Source: Cocke, Global common subexpression elimination, SIGPLAN Notices 1970.
    """
    written = _written(graph)
    first: dict[Any, fx.Node] = {}
    for node in list(graph.nodes):
        if node.op != "call_function" or _root(node) in written or _random(node):
            continue
        if any(_root(operand) in written for operand in node.all_input_nodes):
            continue
        if node.target in SAME:
            node.replace_all_uses_with(node.args[0])
            continue
        leaves, spec = pytree.tree_flatten((node.args, node.kwargs))
        key = (node.target, spec, tuple((type(leaf), leaf) for leaf in leaves))
        earlier = first.setdefault(key, node)
        if earlier is not node:
            node.replace_all_uses_with(earlier)
    prune(graph)


def _written(graph: fx.Graph) -> set[fx.Node]:
    """The nodes that own memory into which some op writes."""
    found = set()
    for node in graph.nodes:
        for argument, value in zip(_arguments(node), node.args):
            if argument.alias_info is not None and argument.alias_info.is_write and isinstance(value, fx.Node):
                found.add(_root(value))
    return found


def _root(node: fx.Node) -> fx.Node:
    """The node that owns the memory of a node's value, which may be a view."""
    while True:
        arguments = _arguments(node)
        if not arguments or arguments[0].alias_info is None or not isinstance(node.args[0], fx.Node):
            return node
        node = node.args[0]


def _arguments(node: fx.Node) -> list[Any]:
    return list(node.target._schema.arguments) if isinstance(node.target, torch._ops.OpOverload) else []


def _random(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in node.target.tags
