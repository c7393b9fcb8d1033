"""Keep the layout in memory that writing in place keeps, which the op that does not write may choose anew.

The kernels behind it depend on it, and with the kernels the last bits.
"""

from __future__ import annotations

import torch
from torch import fx

from fxgrad.graph.nodes import added, arguments_of

aten = torch.ops.aten
LOSING = frozenset(
    f"{name}_"
    for name in (
        *("addbmm", "addmm", "baddbmm", "cumprod", "cumsum", "index_add", "index_copy", "index_reduce"),
        *("masked_fill", "masked_scatter", "mvlgamma", "renorm", "scatter", "scatter_add", "scatter_reduce"),
        *("tril", "triu"),
    )
)
"""Ops that write in place, and whose form that does not write lays its result out anew."""
_SCATTERS = (aten.select_scatter.default, aten.slice_scatter.default, aten.diagonal_scatter.default)


def write_by_copies(graph: fx.Graph) -> None:
    """Let ops of `LOSING` compute a new tensor, which is copied to where they wrote; in place.

    Args:
        graph: fresh from `torch.export.export`, with its nodes' metadata.

    Example:
        >>> class Masked(torch.nn.Module):
        ...     def forward(self, x):
        ...         return x.clone().masked_fill_(x > 0, 0)
        >>> graph = torch.export.export(Masked(), (torch.ones(2, 3),)).graph
        >>> write_by_copies(graph)
        >>> [str(n.target) for n in graph.nodes if n.op == "call_function"][-2:]
        ['aten.masked_fill.Scalar', 'aten.copy_.default']
    """
    for node in graph.nodes:
        if node.op != "call_function" or (name := getattr(node.target, "_opname", "")) not in LOSING:
            continue
        with graph.inserting_before(node):
            op = getattr(getattr(aten, name[:-1]), node.target._overloadname)
            made = graph.call_function(op, node.args, node.kwargs)
        made.meta = {**node.meta, "val": torch.empty_like(node.meta["val"])}
        node.target, node.args, node.kwargs = aten.copy_.default, (node.args[0], made), {}


def replace_copy(graph: fx.Graph, node: fx.Node) -> None:
    """Replace an `aten.copy` node, which has no derivative, by its source in the target's shape, dtype and layout.

    Example:
        >>> class Copied(torch.nn.Module):
        ...     def forward(self, x):
        ...         return torch.zeros_like(x).copy_(x)
        >>> graph = torch.export.export(Copied(), (torch.ones(2, 3),)).run_decompositions({}).graph
        >>> replace_copy(graph, next(node for node in graph.nodes if node.target is aten.copy.default))
        >>> [str(n.target) for n in graph.nodes if n.op == "call_function"][-2:]
        ['aten.detach.default', 'aten.slice_scatter.default']
    """
    target, source = node.all_input_nodes[0], node.all_input_nodes[-1]
    value = target.meta["val"]
    with graph.inserting_before(node):
        if source.meta["val"].dtype is not value.dtype:
            source = added(graph, node, aten._to_copy.default, source, dtype=value.dtype)
        if source.meta["val"].shape != value.shape:
            source = added(graph, node, aten.expand_as.default, source, target)
        if not value.dim():
            source = added(graph, node, aten.clone.default, source)
        elif not all(user.target in _SCATTERS and arguments_of(user)["src"] is node for user in node.users):
            # A whole tensor is put over the target, whose own values reach no result.
            held = added(graph, node, aten.detach.default, target)
            source = added(graph, node, aten.slice_scatter.default, held, source)
    node.replace_all_uses_with(source)
    graph.erase_node(node)
