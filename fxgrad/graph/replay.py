"""Call single nodes of a graph again, at the values of one run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from fxgrad.errors import one_line
from fxgrad.graph.places import place_of


class Interpreter(fx.Interpreter):
    """Runs a program node by node. Errors stay as they are: fx would append its own view of the graph to them."""

    def __init__(self, program: fx.GraphModule, garbage_collect_values: bool = True) -> None:
        super().__init__(program, garbage_collect_values)
        self.extra_traceback = False


class Replay:
    """The nodes of one graph, and the values that they had in one run.

    Args:
        graph: any.
        values: node name -> its value; needed for the operands of the nodes that are called.

    Example:
        >>> graph = fx.symbolic_trace(torch.nn.Tanh()).graph
        >>> x, tanh, _ = graph.nodes
        >>> tanh.op, tanh.target = "call_function", torch.tanh
        >>> again = Replay(graph, {x.name: torch.zeros(2)})
        >>> again.vjp(tanh.name, [x.name], torch.ones(2))
        {'input_1': tensor([1., 1.])}
    """

    def __init__(self, graph: fx.Graph, values: Mapping[str, Any]) -> None:
        self.nodes = {node.name: node for node in graph.nodes}
        self.values = values

    def call(self, name: str, substitutes: Mapping[str, Any], function: Callable[..., Any] | None = None) -> Any:
        """A node's result, with `substitutes` for some operands, or by another function of the same arguments."""
        node = self.nodes[name]
        args, kwargs = fx.node.map_arg(
            (node.args, node.kwargs),
            lambda n: substitutes[n.name] if n.name in substitutes else self.values.get(n.name),
        )
        return (function or node.target)(*args, **kwargs)

    def vjp(
        self,
        name: str,
        wanted: Iterable[str],
        g: Any,
        at: Callable[[Tensor], Tensor] = torch.detach,
        function: Callable[..., Any] | None = None,
    ) -> dict[str, Any]:
        """The vjp of one node's call: wanted operand -> its cotangent, without those at which none arrives.

        Args:
            name: the node's name.
            wanted: names of the operands; one that the node takes twice gets the sum.
            g: the cotangent of the node's result, a tensor or a list of them.
            at: maps an operand's value to the point to differentiate at.
            function: as for `call`.
        """
        leaves = {operand: at(self.values[operand]).requires_grad_() for operand in wanted}
        with torch.enable_grad():
            result = self.call(name, leaves, function)
        pairs = [
            (z, c)
            for z, c in zip(*(v if isinstance(v, (list, tuple)) else [v] for v in (result, g)))
            if c is not None and z.requires_grad
        ]
        if not pairs or not leaves:
            return {}
        ends, starts = [z for z, _ in pairs], [c for _, c in pairs]
        found = torch.autograd.grad(ends, list(leaves.values()), starts, allow_unused=True)
        return {operand: cotangent for operand, cotangent in zip(leaves, found) if cotangent is not None}


def failure(program: fx.GraphModule, inputs: Sequence[Any], error: Exception) -> str:
    """What went wrong in a run of a program: the op that fails, its place, and its error.

    Args:
        program: run once more, without gradients, up to the op that fails.
        inputs: of its placeholders.
        error: what the run raised.

    Example:
        >>> program = fx.symbolic_trace(torch.nn.Linear(2, 3))
        >>> print(failure(program, [torch.ones(1, 4)], ValueError("no")).split(":")[0])
        <built-in function linear> at the model itself, source line unknown fails on these inputs
    """
    watched = _Watched(program)
    try:
        with torch.no_grad():
            watched.run(*inputs)
    except Exception as again:
        error = again
    where = f"{watched.last.target} at {place_of(watched.last)}" if watched.last else "the program"
    return (
        f"{where} fails on these inputs: {one_line(error)}. The model itself takes inputs like its example: compare "
        "shapes, and ids with the size of their table."
    )


class _Watched(Interpreter):
    """Runs a program, and knows the node that ran last."""

    last: fx.Node | None = None

    def run_node(self, n: fx.Node) -> Any:
        self.last = n
        return super().run_node(n)
