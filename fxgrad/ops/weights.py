"""Operands whose cotangents are held or scaled: products, quotients, powers.

All of these are homogeneous in their operands, so Euler's theorem balances them: if f has degree
d_i in operand a_i, then <g, f(a)> = sum_i w_i <J_i^T g, a_i> whenever sum_i w_i d_i = 1. A weight of
zero *holds* the operand: no autograd graph is recorded for it.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fxgrad.graph.nodes import arguments_of
from fxgrad.kinds import Kind, Operand
from fxgrad.ops.backward import Backward, Decided, Rewriting, replace_call
from fxgrad.ops.function import Function, recording
from fxgrad.ops.repairs import pack, relaid
from fxgrad.ops.shares import Weigh, hand_on, hold, hold_activated, hold_denominator, homogeneous, share


class _Scale(Function):
    """Identity whose backward multiplies the cotangent by a number."""

    @staticmethod
    def forward(x: Tensor, weight: float) -> Tensor:
        return x.detach()  # a view would lose the strides of axes of size 1, and PyTorch picks kernels by these

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        ctx.weight = inputs[1]

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None]:
        return cotangent * ctx.weight, None


def _scale(operand: Any, weight: Any) -> Any:
    if isinstance(operand, (list, tuple)):
        if not isinstance(weight, (list, tuple)):
            weight = [weight] * len(operand)
        return [_scale(o, w) for o, w in zip(operand, weight)]
    if not isinstance(operand, Tensor) or weight == 1:
        return operand
    if weight == 0:
        return operand.detach()
    return _Scale.call(operand, weight) if recording(operand) else operand


class _NotAtZero(Function):
    """Identity whose backward passes nothing on where the value is 0."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.detach()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return torch.where(x == 0, 0, cotangent)


def _common_share(args: tuple[Any, ...], weights: tuple[Any, ...]) -> float | None:
    """The common weight of all tensors that are not held, or None: it scales the cotangent once, at the result."""
    shares = {w for a, w in zip(args, weights) if isinstance(a, (Tensor, list, tuple)) and w != 0}
    share = shares.pop() if len(shares) == 1 else None
    return share if isinstance(share, float) and share != 1 else None


def _held_or_whole(weight: Any) -> float:
    return 0.0 if weight == 0 else 1.0


def weighted(op: Any, weights: tuple[Any, ...], *args: Any, **kwargs: Any) -> Any:
    """Call `op`, and scale the cotangent of each positional operand by its weight.

    The forward is `op(*args, **kwargs)`. The vjp is the op's own, times the weight: 1 leaves an operand alone, 0 holds
    it (detached, nothing is recorded), 1/n shares a product among n carriers or balances a power of degree n.

    Args:
        op: any callable on tensors, usually a `torch._ops.OpOverload`.
        weights: one number per positional argument; for a list of tensors a tuple of numbers, or
            one number for all of them. Arguments that are not tensors ignore theirs.
        *args: the op's operands, any shape and dtype that it takes.
        **kwargs: further arguments of `op`.

    Returns:
        The result of `op`, bit for bit.

    Example:
        >>> x = torch.tensor(3.0, requires_grad=True)
        >>> y = weighted(torch.ops.aten.mul.Tensor, (0.5, 0.5), x, x)
        >>> torch.autograd.grad(y, x)[0].item() * x.item() == y.item()
        True

    Source: LibraGrad, arXiv:2411.16760, section 3 (pruning and scaling of backward paths).
    """
    share = _common_share(args, weights)
    if share is not None:
        result = op(*(_scale(a, _held_or_whole(w)) for a, w in zip(args, weights)), **kwargs)
        return _scale(result, share)
    return op(*(_scale(a, w) for a, w in zip(args, weights)), **kwargs)


def root(op: Any, weights: tuple[Any, ...], x: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Call `op`, a root of `x`, as `weighted` does; where `x` is 0, its cotangent is 0.

    There the slope of a root is infinite, but what it has to pass on is 0, as its value is. 0 is the cotangent that is
    finite, and keeps NaN out of a backward that cuts these elements off elsewhere.

    Args:
        op: returns x^p, element by element, 0 < p < 1.
        weights: as for `weighted`.
        x: its first operand, of any shape and floating-point dtype.
        *args, **kwargs: further arguments of `op`.

    Returns:
        The result of `op`, bit for bit.

    Example:
        >>> x = torch.tensor([0.0, 4.0], requires_grad=True)
        >>> torch.autograd.grad(root(torch.sqrt, (2.0,), x).sum(), x)[0]
        tensor([0.0000, 0.5000])
    """
    return weighted(op, weights, _NotAtZero.call(x) if recording(x) else x, *args, **kwargs)


@dataclass(frozen=True)
class Weighted(Backward):
    """The op's own vjp, times a weight per operand.

    Attributes:
        weigh: (operands, degree) -> weights.
    """

    weigh: Weigh = hand_on

    def weights(self, operands: Sequence[Operand], degree: float | None) -> list[float]:
        return self.weigh(operands, degree)

    def call(self, node: fx.Node, decided: Decided, done: Rewriting) -> fx.Node:
        if any(o.data and w != 1 for o, w in zip(decided.operands, decided.weights)):
            _weigh(node, decided)
        elif decided.options.get("relaid"):
            replace_call(node, relaid)
        elif decided.options.get("packed"):
            pack(node, decided)
        return node


@dataclass(frozen=True)
class Homogeneous(Weighted):
    """The op's own vjp over its degree; nothing where a root is 0."""

    weigh: Weigh = homogeneous

    def call(self, node: fx.Node, decided: Decided, done: Rewriting) -> fx.Node:
        super().call(node, decided, done)
        if node.target is weighted and decided.weights[0] > 1:  # a degree between 0 and 1
            node.target = root
        return node


@dataclass(frozen=True)
class Held(Weighted):
    """The backward of a node that gets no cotangent: it detaches recorded operands, so that nothing is recorded."""

    weigh: Weigh = hold

    def call(self, node: fx.Node, decided: Decided, done: Rewriting) -> fx.Node:
        if any(o.data and o.value in done.recorded for o in decided.operands):
            if node.target is operator.getitem:
                done.recorded.add(node.name)  # taking an item records nothing; the item's users detach it
            elif not isinstance(node.target, torch._ops.OpOverload):
                # A piece: the code of a graph can call a function, but not hand it on. Its value, cut out, comes last.
                node.target, node.args = torch.ops.aten.detach.default, node.args[-1:]
            else:
                _weigh(node, decided)
        return node


def otherwise(decided: Decided) -> Backward:
    """The backward of a node for which a policy's has no use: a product's shares, any other op's own vjp."""
    return SHARE if decided.kind is Kind.PRODUCT else NATIVE


def positional(node: fx.Node, last: int) -> None:
    """Give a node its arguments up to the position `last` by position, in the order of the op's schema."""
    arguments = arguments_of(node)
    names = list(arguments)[: max(last + 1, len(node.args))]
    node.args = tuple(arguments[name] for name in names)
    node.kwargs = {name: value for name, value in node.kwargs.items() if name not in names}


def _weigh(node: fx.Node, decided: Decided) -> None:
    """Call the op through `weighted`, one weight per positional argument."""
    positional(node, max(o.position for o in decided.operands))
    by_place = {(o.position, o.item): w for o, w in zip(decided.operands, decided.weights)}

    def weight(position: int, argument: Any) -> Any:
        if isinstance(argument, (list, tuple)):
            items = tuple(by_place.get((position, item), 1.0) for item in range(len(argument)))
            return items if any(w != 1 for w in items) else 1.0
        return by_place.get((position, None), 1.0)

    replace_call(node, weighted, tuple(weight(p, a) for p, a in enumerate(node.args)))


NATIVE = Weighted("native", frozenset(Kind) - {Kind.CONSTANT}, balanced=False)

SHARE = Weighted("share", frozenset({Kind.PRODUCT}), share)

HELD = Held("held")
"""The backward of held nodes. `classify` chooses it, no policy does."""

BACKWARDS = (
    NATIVE,
    SHARE,
    Weighted("hold_activated", frozenset({Kind.PRODUCT}), hold_activated),
    Weighted("hold_denominator", frozenset({Kind.QUOTIENT}), hold_denominator),
    Homogeneous("homogeneous", frozenset({Kind.POWER})),
    Weighted("hold", frozenset({Kind.SOFTMAX}), hold),
)
