"""Stage 3, rewrite: the only place that changes a graph. One node in, one node out.

A node whose backward is not its own becomes a call of `fxgrad.ops`, with the original op as its
first argument; every other node stays as it was captured.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from torch import fx

from fxgrad import ops
from fxgrad.classify.decision import Classified, Decision
from fxgrad.errors import NoRuleError
from fxgrad.graph.nodes import arguments_of, differentiable, placeholders_of
from fxgrad.ops import Layout
from fxgrad.ops.attention import SDPA


def rewrite(classified: Classified) -> fx.Graph:
    """Replace every node that needs another backward by its forward-identical twin.

    Args:
        classified: what `classify` returned; its graph is copied, not changed.

    Returns:
        A graph with the same placeholders and a node for each that it had, of the same name.

    Raises:
        NoRuleError: an op listed with a secant has none (it is not finite at 0, or not 0 where its row says).

    Example:
        >>> import torch
        >>> from fxgrad.capture.export import capture
        >>> from fxgrad.classify.walk import classify
        >>> from fxgrad.table.load import load
        >>> captured = capture(torch.nn.GELU().eval(), (torch.zeros(2, 3),))
        >>> [n.target.__name__ for n in rewrite(classify(captured, load())).nodes if n.op == "call_function"]
        ['secant']

    Source: LibraGrad, arXiv:2411.16760, section 3.
    """
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    captured = classified.captured
    recorded = {node.name for node in placeholders_of(captured.graph)[len(captured.state) :]}
    named = {node.name: node for node in captured.graph.nodes}
    for node in captured.graph.nodes:
        copies[node] = graph.node_copy(node, copies.__getitem__)
        if node.name in classified.decisions:
            decision = classified.decisions[node.name]
            if decision.rows:
                # The values come from the piece as it was cut, the vjp from the layer.
                piece, layer = copies[node], named[decision.through[0]]
                copies[node] = graph.call_function(
                    ops.rows_of, (decision.rows, piece, *(copies[n] for n in layer.all_input_nodes))
                )
                copies[node].meta = dict(node.meta)
                piece.name, copies[node].name = f"{node.name}_value", node.name
            _rewrite_node(copies[node], decision, recorded)
        elif node.op == "call_function" and differentiable(node) and recorded & {n.name for n in node.all_input_nodes}:
            # A step function, say: constant, so that nothing is recorded.
            _replace(copies[node], ops.weighted, tuple(0.0 for _ in node.args))
    graph.lint()
    return graph


def _rewrite_node(node: fx.Node, decision: Decision, recorded: set[str]) -> None:
    """Rewrite one node; `recorded` gathers the nodes whose results autograd follows."""
    if decision.live:
        recorded.add(node.name)
    if decision.vjp == "secant":
        _replace(node, *_secant(node, decision))
    elif decision.vjp == "twin":
        assert decision.row is not None and decision.row.twin is not None
        op: Any = node.target
        node.args = (op, *node.args)
        node.target = ops.Twin(decision.row.twin)
    elif decision.vjp == "hold_scale":
        node.args, node.kwargs = tuple(arguments_of(node).values()), {}
        _replace(node, ops.hold_scale, _layout(node, decision))
    elif node.target is SDPA and decision.backward == "hold_weights" and decision.live:
        node.args, node.target = (SDPA, *node.args), ops.value_only
    elif decision.live and decision.row and decision.row.options.get("relaid"):
        op = node.target
        node.args, node.target = (op, *node.args), ops.relaid
    elif decision.live:
        if any(o.data and w != 1 for o, w in zip(decision.operands, decision.weights)):
            _weight(node, decision)
    elif any(o.data and o.value in recorded for o in decision.operands):
        # Here the data flow leaves what is differentiated: cut, so that nothing further is recorded.
        if node.target is operator.getitem:
            recorded.add(node.name)  # taking an item records nothing; whoever uses it cuts
        else:
            _weight(node, decision)


def _replace(node: fx.Node, function: Callable[..., Any], detail: Any) -> None:
    op: Any = node.target
    node.args = (op, detail, *node.args)
    node.target = function


def _weight(node: fx.Node, decision: Decision) -> None:
    """Call the op through `ops.weighted`, one weight per positional argument."""
    last = max(o.position for o in decision.operands)
    arguments = arguments_of(node)
    names = list(arguments)[: max(last + 1, len(node.args))]
    node.args = tuple(arguments[name] for name in names)
    node.kwargs = {name: value for name, value in node.kwargs.items() if name not in names}
    by_place = {(o.position, o.item): w for o, w in zip(decision.operands, decision.weights)}

    def weight(position: int, argument: Any) -> Any:
        if isinstance(argument, (list, tuple)):
            items = tuple(by_place.get((position, item), 1.0) for item in range(len(argument)))
            return items if any(w != 1 for w in items) else 1.0
        return by_place.get((position, None), 1.0)

    _replace(node, ops.weighted, tuple(weight(p, a) for p, a in enumerate(node.args)))


def _secant(node: fx.Node, decision: Decision) -> tuple[Callable[..., Any], Any]:
    """The function that carries the node by its secant, and what that must know of the node's own function."""
    assert decision.row is not None
    point = decision.row.options.get("through", 0)
    try:
        if point:
            return ops.through, ops.root_of(node.target, point, *node.args[1:], **node.kwargs)
        return ops.secant, ops.taylor(node.target, *node.args[1:], **node.kwargs)
    except (TypeError, ValueError, RuntimeError) as error:
        raise NoRuleError(
            f"{decision.op} at {decision.place}: {decision.row.origin} lists it, but it has no secant through "
            f"{point:g}: {error}"
        ) from error


def _layout(node: fx.Node, decision: Decision) -> Layout:
    assert decision.row is not None
    row, arguments = decision.row, arguments_of(node)
    places = {name: position for position, name in enumerate(arguments)}

    def place(part: str) -> int | None:
        names = [n for n in row.parts.get(part, ()) if arguments[n] is not None]
        return places[names[0]] if names else None

    carrier = node.args[places[row.parts["carrier"][0]]]
    over, groups, eps = (row.options.get(key) for key in ("over", "groups", "eps"))
    # Asked for only where it is needed: a number made of a free size would fix it.
    channels = int(carrier.meta["val"].shape[1]) if isinstance(carrier, fx.Node) and not (over or groups) else 0
    return Layout(
        carrier=places[row.parts["carrier"][0]],
        weight=place("coefficient"),
        bias=place("source"),
        trailing=len(arguments[over]) if over else 0,
        groups=arguments[groups] if groups else channels,
        centered=row.options.get("centered", True),
        eps=arguments[eps] if eps else 0.0,
    )
