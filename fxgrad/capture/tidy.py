"""Mend the captured graph, so that it is valid for other batch sizes, dtypes and kernels than the traced ones.

Tracing records what happened once: a copy that these strides needed, a view that was possible. Decomposition forgets
regions without gradients.
"""

from __future__ import annotations

import builtins

import torch
from torch import Tensor, fx

from fxgrad.capture.complexes import move_parts, moves_complex_numbers
from fxgrad.capture.guards import asserted
from fxgrad.capture.layouts import replace_copy
from fxgrad.graph.copies import prune
from fxgrad.graph.decided import MARK, decided, is_decision
from fxgrad.graph.places import place_of

aten = torch.ops.aten
CHECKS = ("_assert", "sym_constrain_range", "_check")
_REFUSED = "the model itself refuses these inputs: what it asserts of its data does not hold, at {}"


def tidy(graph: fx.Graph) -> None:
    """Mend a functional ATen graph in place.

    Args:
        graph: from `ExportedProgram.run_decompositions`, with its nodes' metadata.

    Example:
        >>> class Heads(torch.nn.Module):
        ...     def forward(self, x):
        ...         return x.transpose(1, 2).reshape(2, 12)
        >>> graph = torch.export.export(Heads(), (torch.ones(2, 3, 4),)).run_decompositions({}).graph
        >>> tidy(graph)
        >>> [str(n.target) for n in graph.nodes if n.op == "call_function"]  # it was transpose, clone, _unsafe_view
        ['aten.transpose.int', 'aten.reshape.default']
    """
    for node in list(graph.nodes):
        if hasattr(builtins, node.name):
            node.name += "_"  # fx would rename `input` each time it copies the graph
        if node.op == "call_function":
            _tidy_node(graph, node)
    prune(graph)


def _tidy_node(graph: fx.Graph, node: fx.Node) -> None:
    if is_decision(node):
        node.target, node.args = decided, (node.args[0], str(node.args[1]).removeprefix(MARK))
    elif condition := asserted(node):
        node.target, node.args = decided, (condition, _REFUSED.format(place_of(condition)))
    elif getattr(node.target, "__name__", "").startswith(CHECKS) and not node.users:
        graph.erase_node(node)
    elif node.target is aten._unsafe_view.default:
        # A traced reshape that had to copy. For other strides it is a view, for which PyTorch picks other kernels.
        node.target = aten.reshape.default
        (source,) = node.all_input_nodes[:1]
        if _makes_contiguous(source):
            node.replace_input_with(source, source.all_input_nodes[0])
    elif node.target is aten.view.default:
        # A view is valid only for the strides of the traced kernels.
        node.target = aten.reshape.default
    elif node.target is aten.copy.default:
        replace_copy(graph, node)
    elif moves_complex_numbers(node):
        move_parts(graph, node)
    elif node.target is aten.as_strided.default and node.all_input_nodes[0].meta["val"].is_contiguous():
        # The strides are the traced tensor's, for which `contiguous()` had nothing to do.
        source = node.all_input_nodes[0]
        with graph.inserting_before(node):
            contiguous = graph.call_function(aten.contiguous.default, (source,))
        contiguous.meta = dict(source.meta)
        node.replace_input_with(source, contiguous)


def _makes_contiguous(node: fx.Node) -> bool:
    """Whether the node is a copy made by `reshape` or `contiguous()`."""
    if node.target is aten.clone.default:
        return node.kwargs.get("memory_format") is torch.contiguous_format
    return node.target is aten.contiguous.default


def detach_without_grad(graph: fx.Graph) -> None:
    """Detach, in place, results computed under the model's own `torch.no_grad()`, which decomposition would forget.

    Args:
        graph: from `torch.export.export`, run with gradients enabled.

    Example:
        >>> class Half(torch.nn.Module):
        ...     def forward(self, x):
        ...         with torch.no_grad():
        ...             y = x.sin()
        ...         return x * y
        >>> graph = torch.export.export(Half(), (torch.ones(2),)).graph
        >>> detach_without_grad(graph)
        >>> [str(n.target) for n in graph.nodes][-3:]
        ['aten.detach.default', 'aten.mul.Tensor', 'output']
    """
    for node in list(graph.nodes):
        if node.target is torch.ops.higher_order.wrap_with_set_grad_enabled and node.args[0] is False:
            for item in list(node.users):
                if isinstance(item.meta.get("val"), Tensor):
                    with graph.inserting_after(item):
                        constant = graph.call_function(aten.detach.default, (item,))
                    constant.meta = dict(item.meta)
                    item.replace_all_uses_with(constant, delete_user_cb=lambda user, kept=constant: user is not kept)
