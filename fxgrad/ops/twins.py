"""Ops with a twin: the forward is the original kernel's, the gradient that of a twin in plain PyTorch.

The backward of a fused loop such as an LSTM cannot be scaled from outside. Its twin spells the loop out, with
`.detach()` on held values. Users may give twins for ops of their own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxgrad.graph.replay import Replay
from fxgrad.kinds import Kind, Operand
from fxgrad.ops.backward import Backward, Decided, Pairs, Rewriting, replace_call
from fxgrad.ops.function import Function, recording
from fxgrad.ops.losses import RESTS


class _Graft(Function):
    """The first operand's value with the second operand's gradient."""

    @staticmethod
    def forward(value: Tensor, path: Tensor) -> Tensor:
        return value.detach()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[None, Tensor]:
        return None, cotangent


class Twin:
    """An op's values with the gradient of its twin.

    Args:
        function: the twin: takes the op's arguments, returns the op's result up to rounding (same shapes and dtypes),
            in differentiable PyTorch; what it detaches is held.

    Example:
        >>> held = Twin(lambda x: x * torch.sigmoid(x).detach())
        >>> x = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> y = held(torch.nn.functional.silu, x)
        >>> torch.equal(y, torch.nn.functional.silu(x))
        True
        >>> torch.allclose(x * torch.autograd.grad(y.sum(), x)[0], y)
        True
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        # The code that fx generates uses these names.
        self.__name__ = f"twin_{getattr(function, '__name__', 'function')}".replace("<lambda>", "lambda")
        self.__module__ = __name__

    def __call__(self, op: Any, *args: Any, **kwargs: Any) -> Any:
        """Call `op(*args, **kwargs)`; its vjp is that of `function(*args, **kwargs)`."""
        with torch.no_grad():
            value = op(*pytree.tree_map(_detached, args), **kwargs)
        if not recording(*pytree.tree_leaves((args, kwargs))):
            return value
        paths, spec = pytree.tree_flatten(self.function(*args, **kwargs))
        values = pytree.tree_leaves(value)
        return pytree.tree_unflatten([_Graft.call(v, p) for v, p in zip(values, paths)], spec)


def _detached(leaf: Any) -> Any:
    # A parameter keeps its requires_grad, since PyTorch picks kernels by it.
    return leaf.detach() if isinstance(leaf, Tensor) and not leaf.is_leaf else leaf


@dataclass(frozen=True)
class OfTwin(Backward):
    """The gradient of the row's twin, which decides what is held."""

    sums_the_batch: ClassVar[bool] = True

    def weights(self, operands: Sequence[Operand], degree: float | None) -> list[float]:
        return [0.0 if o.part == "held" else 1.0 for o in operands]

    def call(self, node: fx.Node, decided: Decided, done: Rewriting) -> fx.Node:
        assert decided.twin is not None
        replace_call(node, Twin(decided.twin))
        return node

    def keeps(self, decided: Decided) -> bool:
        return True

    def offset(self, decided: Decided, original: Replay, carrying: list[str], g: Any) -> Pairs:
        # Only the twin knows what it holds, so take each constant's share from its gradient.
        assert decided.twin is not None
        names = [str(o.value) for o in decided.operands if not o.data and o.part in ("carrier", "source")]
        function = functools.partial(Twin(decided.twin), original.nodes[decided.node].target)
        gradients = original.vjp(decided.node, names, g, function=function)
        pairs = [(cotangent, original.values[name]) for name, cotangent in gradients.items()]
        rest = RESTS.get(decided.twin)
        return [*pairs, (g, original.call(decided.node, {}, rest))] if rest else pairs


BACKWARDS = (OfTwin("twin", frozenset({Kind.COMPOSED})),)
