"""The floor: the multiply-adds of matrix products that a forward and a backward cannot do without.

Counted from what the pass decided, node by node, for any model. A product costs in the backward what it costs in
the forward, once for every operand that receives a cotangent. Frozen parameters receive none, held operands neither;
of a projection that is partly held, only the live rows count.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import Tensor, fx

import fxgrad
from fxgrad.classify.decision import Decision
from fxgrad.graph.nodes import arguments_of
from fxgrad.ops.rows import OfRows

aten = torch.ops.aten


@dataclass(frozen=True)
class Count:
    """Multiply-adds.

    Attributes:
        forward: of all matrix products of the forward.
        backward: of those that the backward needs for the attributed inputs.
    """

    forward: int
    backward: int

    @property
    def floor(self) -> float:
        """(forward + backward) / forward."""
        return (self.forward + self.backward) / self.forward


Shapes = Mapping[str, tuple[int, ...]]
"""Name of an argument -> its shape; "" for the result."""


def _linear(shapes: Shapes) -> int:
    return math.prod(shapes[""]) * shapes["weight"][1]


def _conv(shapes: Shapes) -> int:
    return math.prod(shapes[""]) * math.prod(shapes["weight"][1:])


def _transposed_conv(shapes: Shapes) -> int:
    return math.prod(shapes["input"]) * math.prod(shapes["weight"][1:])


def _product(first: str) -> Callable[[Shapes], int]:
    return lambda shapes: math.prod(shapes[""]) * shapes[first][-1]


CONTRACTIONS: dict[str, tuple[tuple[str, ...], Callable[[Shapes], int]]] = {
    "aten.linear": (("input", "weight"), _linear),
    **{f"aten.conv{d}d": (("input", "weight"), _conv) for d in (1, 2, 3)},
    **{f"aten.conv_transpose{d}d": (("input", "weight"), _transposed_conv) for d in (1, 2, 3)},
    "aten.matmul": (("self", "other"), _product("self")),
    "aten.mm": (("self", "mat2"), _product("self")),
    "aten.bmm": (("self", "mat2"), _product("self")),
    "aten.mv": (("self", "vec"), _product("self")),
    "aten.addmm": (("mat1", "mat2"), _product("mat1")),
    "aten.baddbmm": (("batch1", "batch2"), _product("batch1")),
}
"""Op -> the operands that it multiplies, and its multiply-adds."""
ATTENTION = "aten.scaled_dot_product_attention"


def count(converted: fxgrad.ConvertedModule, args: Sequence[Tensor]) -> Count:
    """Count what a converted model has to do for one input.

    Args:
        converted: what `fxgrad.convert` returned, under any policy; parameters count as frozen.
        args: its inputs, of the size that is to be counted.

    Returns:
        Multiply-adds of the matrix products, forward and backward.

    Raises:
        NotImplementedError: a layer with a matrix of weights that nobody has said how to count.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.GELU(), torch.nn.Linear(4, 2)).eval()
        >>> count(fxgrad.convert(model, (torch.zeros(1, 3),)), (torch.zeros(5, 3),))
        Count(forward=100, backward=100)
    """
    captured, decisions = converted.classified.captured, converted.classified.decisions
    sizes = _sizes(captured.entry_nodes, args)
    named = {node.name: node for node in captured.graph.nodes}
    forward = backward = 0
    for node in captured.graph.nodes:
        if node.op != "call_function" or node.target is operator.getitem:
            continue
        ahead, back = _of_node(node, decisions.get(node.name), sizes)
        forward += ahead
        backward += back
    for decision in decisions.values():
        if isinstance(decision.backward, OfRows):
            layer = named[decision.backward.moves[0]]
            shape = _shape(layer.meta["val"], sizes)
            wide = _shape(arguments_of(layer)["weight"].meta["val"], sizes)[1]
            backward += math.prod(shape[:-1]) * decision.backward.rows.features * wide
    return Count(forward, backward)


def _of_node(node: fx.Node, decision: Decision | None, sizes: Mapping[Any, int]) -> tuple[int, int]:
    """Forward and backward of one node; a projection's live rows are counted apart."""
    op = str(node.target).rsplit(".", 1)[0]
    if op not in CONTRACTIONS and op != ATTENTION:
        if decision and any(o.part == "coefficient" and _is_matrix(node, o.value) for o in decision.operands):
            raise NotImplementedError(
                f"{node.target} multiplies by a matrix; bench/speed/floor.py does not know how often"
            )
        return 0, 0
    shapes = {name: _shape(a.meta["val"], sizes) for name, a in arguments_of(node).items() if isinstance(a, fx.Node)}
    shapes[""] = _shape(node.meta["val"], sizes)
    receives: set[str] = set()
    if decision and decision.live and not isinstance(decision.backward, OfRows):
        receives = {o.name for o, w in zip(decision.operands, decision.weights) if o.data and w != 0}
    if op == ATTENTION:
        return _attention(shapes, receives, bool(arguments_of(node)["is_causal"]))
    factors, multiply_adds = CONTRACTIONS[op]
    forward = multiply_adds(shapes)
    return forward, forward * sum(name in receives for name in factors)


def _attention(shapes: Shapes, receives: set[str], causal: bool) -> tuple[int, int]:
    """Two products forward; backward the weights once more, then one product for the value, one or more for scores."""
    *batch, rows, width = shapes["query"]
    columns, value_width = shapes["key"][-2], shapes["value"][-1]
    seen = sum(min(row + 1, columns) for row in range(rows)) if causal else rows * columns
    scores, applied = (math.prod(batch) * seen * w for w in (width, value_width))
    backward = scores if receives else 0
    backward += applied if "value" in receives else 0
    if receives & {"query", "key"}:
        backward += applied + scores * len(receives & {"query", "key"})
    return scores + applied, backward


def _is_matrix(node: fx.Node, name: str | float) -> bool:
    return any(n.name == name and n.meta["val"].dim() > 1 for n in node.all_input_nodes)


def _sizes(placeholders: Sequence[fx.Node], args: Sequence[Tensor]) -> dict[Any, int]:
    """What the symbols in the graph's shapes stand for."""
    sizes: dict[Any, int] = {}
    for node, tensor in zip(placeholders, args):
        for symbolic, size in zip(node.meta["val"].shape, tensor.shape):
            if isinstance(symbolic, torch.SymInt) and isinstance(symbolic.node.expr, sympy.Symbol):
                sizes[symbolic.node.expr] = size
    return sizes


def _shape(value: Any, sizes: Mapping[Any, int]) -> tuple[int, ...]:
    return tuple(int(s.node.expr.xreplace(sizes)) if isinstance(s, torch.SymInt) else s for s in value.shape)
