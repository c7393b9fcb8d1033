"""Stage 3, rewrite: the only place that changes a graph. One node in, one node out.

A node's backward decides what the node becomes: a call of `fxgrad.ops`, with the original op as its first argument, or
the captured node itself.
"""

from __future__ import annotations

from typing import Any

from torch import fx

from fxgrad.capture.higher_order import Closed
from fxgrad.classify.decision import Classified
from fxgrad.graph.nodes import differentiable
from fxgrad.module.bound import bind
from fxgrad.ops.backward import Rewriting, replace_call
from fxgrad.ops.pieces import piece
from fxgrad.ops.refused import refuse
from fxgrad.ops.weights import weighted


def rewrite(classified: Classified) -> fx.Graph:
    """Replace every node that needs another backward by its forward-identical form.

    Args:
        classified: what `classify` returned; its graph is copied, not changed.

    Returns:
        A graph with the same placeholders, and one node of the same name for every captured node. Behind them come
        calls of `refuse`, for outputs that cannot be balanced.

    Raises:
        NoRuleError: an op whose row asks for a secant has none (not finite at 0, or not 0 at the row's point).

    Example:
        >>> import torch
        >>> from fxgrad.capture import capture
        >>> from fxgrad.classify import classify
        >>> from fxgrad.table import load
        >>> captured = capture(torch.nn.GELU().eval(), (torch.zeros(2, 3),))
        >>> [n.target.__name__ for n in rewrite(classify(captured, load())).nodes if n.op == "call_function"]
        ['secant']

    Source: LibraGrad, arXiv:2411.16760, section 3.
    """
    graph = fx.Graph()
    captured = classified.captured
    done = Rewriting({}, {node.name for node in captured.entry_nodes})
    for node in captured.graph.nodes:
        copy = graph.node_copy(node, lambda n: done.nodes[n.name])
        decision = classified.decisions.get(node.name)
        if decision is not None:
            if decision.live:
                done.recorded.add(node.name)
            copy = decision.backward.call(copy, decision, done)
        elif _records(node, done.recorded):
            # A step function, say: it is constant, so record nothing.
            replace_call(copy, weighted, tuple(0.0 for _ in node.args))
        bind(copy)
        done.nodes[node.name] = copy
    _refuse(graph, classified, done)
    graph.lint()
    return graph


def _refuse(graph: fx.Graph, classified: Classified, done: Rewriting) -> None:
    """Let a gradient of an output that cannot be balanced be an error."""
    if not classified.refusals:
        return
    captured, output = classified.captured, graph.output_node()
    inputs = [done.nodes[n.name] for n, i in zip(captured.entry_nodes, captured.entries) if i.attributed]
    outputs: list[Any] = list(output.args[0])  # type: ignore[arg-type]
    for refusal in classified.refusals:
        value = outputs[refusal.index]
        with graph.inserting_before(output):
            call = graph.call_function(refuse, (refusal.error, refusal.message, value, *inputs))
        call.meta = dict(value.meta)
        outputs[refusal.index] = call
    output.args = (tuple(outputs),)


def _records(node: fx.Node, names: set[str]) -> bool:
    """Whether autograd would record a node, given the names of those that it recorded."""
    recorded = any(operand.name in names for operand in node.all_input_nodes)
    own = node.target is piece or isinstance(node.target, Closed)  # these see to it themselves
    return recorded and node.op == "call_function" and differentiable(node) and not own
