"""Values that are constants for a policy, though they are computed from the input: all of such a value is a source.

So what an MLP writes, in a model that is frozen for its circuits; and the scale of a norm that is written out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, fx

from fxgrad.graph.nodes import differentiable
from fxgrad.graph.replay import Replay
from fxgrad.kinds import Kind, Operand
from fxgrad.ops.backward import Backward, Decided, Pairs, Rewriting
from fxgrad.ops.function import Function, recording
from fxgrad.ops.shares import ACTIVATIONS, Weigh, hold, share
from fxgrad.ops.weights import Weighted, otherwise


class _Constant(Function):
    """Identity in `value`; nothing goes to what it depends on."""

    @staticmethod
    def forward(value: Tensor, *inputs: Tensor) -> Tensor:
        return value.detach()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.count = len(inputs)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[None, ...]:
        nothing: tuple[None, ...] = (None,) * ctx.count
        return nothing


def constant(value: Tensor, *inputs: Tensor) -> Tensor:
    """A value that hands nothing on, but whose own cotangent can be asked for, as that of any value can.

    Args:
        value: of any shape and dtype.
        *inputs: the model's attributed inputs, without which autograd would not record the value.

    Returns:
        `value`.

    Example:
        >>> import torch
        >>> x = torch.ones(2, requires_grad=True)
        >>> y = constant(x.detach() + 1, x)
        >>> torch.autograd.grad((3 * y).sum(), [y, x], allow_unused=True)
        (tensor([3., 3.]), None)
    """
    return _Constant.call(value, *inputs) if recording(*inputs) else value


def stop_activated(operands: Sequence[Operand], degree: float | None) -> list[float]:
    """Like `share`, but nothing where an activation is multiplied with a tensor: by a layer, or by another carrier."""
    multiplied = [o for o in operands if o.part in ("carrier", "factor", "coefficient") and isinstance(o.value, str)]
    activated = any(o.kind in ACTIVATIONS for o in multiplied if o.data)
    multiplies = any(o.part in ("factor", "coefficient") for o in multiplied) and len(multiplied) > 1
    return hold(operands, degree) if activated and multiplies else share(operands, degree)


def hold_scales(operands: Sequence[Operand], degree: float | None) -> list[float]:
    """0 for a gate that has a degree, such as 1/rms of a norm that is written out; 1 for any other, such as sigmoid."""
    return [1.0 if degree is None else 0.0] * len(operands)


@dataclass(frozen=True)
class Stop(Weighted):
    """Nothing is handed on, and the whole value is a source; nodes that `weigh` gives a weight keep their backward.

    So do linear ops that are no layers.
    """

    weigh: Weigh = stop_activated
    stops: ClassVar[bool] = True

    def given(self, decided: Decided) -> Backward:
        weights = self.weigh(decided.operands, decided.degree)
        hands_on = any(o.data and w for o, w in zip(decided.operands, weights))
        return otherwise(decided) if hands_on or (decided.kind is Kind.LINEAR and not decided.layer) else self

    def call(self, node: fx.Node, decided: Decided, done: Rewriting) -> fx.Node:
        value = super().call(node, decided, done)
        inputs = [n for n in node.graph.find_nodes(op="placeholder") if n.name in done.recorded and differentiable(n)]
        with node.graph.inserting_after(value):
            call = node.graph.call_function(constant, (value, *inputs))
        call.meta = dict(node.meta)
        value.name, call.name = f"{decided.node}_value", decided.node
        return call

    def keeps(self, decided: Decided) -> bool:
        return True

    def offset(self, decided: Decided, original: Replay, carrying: list[str], g: Any) -> Pairs:
        return [(g, original.values[decided.node])]


_KINDS = frozenset({Kind.LINEAR, Kind.PRODUCT})
BACKWARDS = (
    Stop("stop_activated", _KINDS),
    Stop("hold_scales", frozenset({Kind.GATE}), hold_scales, balanced=False),
)
