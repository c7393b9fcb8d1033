"""The rules of layer-wise relevance propagation (LRP) for layers with weights, as gradients.

A layer's output is a sum of contributions, z = sum of x w, and b. Its relevance is R = z g, and a rule says which share
of R each contribution gets. Let P be the sum of the positive contributions and N that of the negative ones. Then every
rule has two scales, and an operand's cotangent is that of `u P + d N`, with u and d held:

    epsilon      u = d = z / (z + epsilon sign(z))
    gamma        u = (1 + gamma) z / (z + gamma P), d = z / (z + gamma P), where z > 0; mirrored where z < 0
    alpha-beta   u = alpha z / P, d = -beta z / N

So x times its cotangent is the relevance of x, and the bias b is one more contribution, which keeps its share. The box
rule is for layers that read pixels, and counts contributions from the lowest or highest value that a pixel can have.

A layer is an op that multiplies one carrier with constant weights and sums the products.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, fx

from fxgrad.errors import NoRuleError
from fxgrad.graph.replay import Replay
from fxgrad.kinds import Kind, Operand
from fxgrad.ops.backward import Backward, Decided, Pairs, Rewriting, replace_call
from fxgrad.ops.shares import Weigh, share
from fxgrad.ops.twins import Twin
from fxgrad.ops.weights import Weighted, otherwise, positional
from fxgrad.ops.zero import at_zero

Call = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(carrier, weight, bias or None) -> the layer's output."""


class Layer(NamedTuple):
    """The operands of a layer: carrier, weight, and the bias if there is one."""

    carrier: Operand
    weight: Operand
    bias: Operand | None

    @property
    def operands(self) -> list[Operand]:
        """Those that there are."""
        return [o for o in self if o is not None]

    def called(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """`op` as a function of these operands, with all its other arguments."""

        def call(*values: Tensor | None) -> Tensor:
            changed = list(args)
            for operand, value in zip(self.operands, values):
                changed[operand.position] = _put(changed[operand.position], operand.item, value)
            return op(*changed, **kwargs)  # type: ignore[no-any-return]

        return call

    def values(self, args: tuple[Any, ...]) -> tuple[Tensor, Tensor, Tensor | None]:
        """The operands' values among an op's positional arguments."""
        x, weight, *bias = (args[o.position] if o.item is None else args[o.position][o.item] for o in self.operands)
        return x, weight, bias[0] if bias else None


def _put(argument: Any, item: int | None, value: Any) -> Any:
    return value if item is None else [value if i == item else old for i, old in enumerate(argument)]


def split(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """The sums of the positive and of the negative contributions to a layer's output.

    Args:
        call: the layer.
        x: its carrier, of any shape and floating-point dtype that it takes.
        weight, bias: likewise.

    Returns:
        P and N, shaped as the layer's output; P + N is the output up to rounding.

    Example:
        >>> x, weight = torch.tensor([[1.0, -2.0]]), torch.tensor([[3.0, 4.0]])
        >>> split(torch.nn.functional.linear, x, weight, torch.tensor([-1.0]))
        (tensor([[3.]]), tensor([[-9.]]))

    Source: Bach et al., PLOS ONE 2015, doi.org/10.1371/journal.pone.0130140, eq. 60.
    """
    none = None if bias is None else torch.zeros_like(bias)
    b_up, b_down = (None, None) if bias is None else (bias.clamp(min=0), bias.clamp(max=0))
    (up, w_up), (down, w_down) = ((t.clamp(min=0) for t in (x, weight)), (t.clamp(max=0) for t in (x, weight)))
    return call(up, w_up, b_up) + call(down, w_down, none), call(up, w_down, b_down) + call(down, w_up, none)


def over(z: Tensor, total: Tensor) -> Tensor:
    """z / total, held; 0 where the total is 0, for then there is nothing to divide R among."""
    return torch.where(total == 0, 0, z / torch.where(total == 0, 1, total)).detach()


def layer_of(decided: Decided) -> Layer:
    """The operands of a layer.

    Raises:
        NoRuleError: its weights cannot be read, or are several tensors.
    """
    data = [o for o in decided.operands if o.data and o.part in ("carrier", "factor")]
    constants = [o for o in decided.operands if not o.data and isinstance(o.value, str)]
    weights = [o for o in constants if o.part in ("coefficient", "factor")]
    packed = decided.options.get("packed")
    if packed or len(weights) > 1:
        why = "are packed" if packed else f"are several tensors ({', '.join(o.name for o in weights)})"
        raise NoRuleError(
            f"{decided.op} at {decided.place}: its weights {why}, and rules such as epsilon and gamma need one tensor "
            "that they can split. Convert under a policy without them, such as libragrad."
        )
    biases = [o for o in decided.operands if o.part == "source" and isinstance(o.value, str)]
    return Layer(data[0], weights[0], biases[0] if biases else None)


@dataclass(frozen=True)
class Propagation(Weighted):
    """A rule for layers; other linear ops keep their own vjp, other products share."""

    weigh: Weigh = share
    divides_layers: ClassVar[bool] = True
    splits: ClassVar[bool] = True

    def given(self, decided: Decided) -> Backward:
        return self if decided.layer else otherwise(decided)

    def balances(self, decided: Decided) -> bool:
        return self.balanced

    @abstractmethod
    def scales(self, up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
        """u and d, held, from P and N."""

    def path(self, layer: Layer, op: Any, *args: Any, **kwargs: Any) -> Tensor:
        """A function with the rule's gradient: u P + d N."""
        up, down = self.sums(layer.called(op, args, kwargs), *layer.values(args))
        u, d = self.scales(up, down)
        return u * up + d * down

    def sums(self, call: Call, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """P and N; for a rule that treats both alike, z and 0."""
        if self.splits:
            return split(call, x, weight, bias)
        z = call(x, weight, bias)
        return z, torch.zeros_like(z)

    def call(self, node: fx.Node, decided: Decided, done: Rewriting) -> fx.Node:
        layer = layer_of(decided)
        positional(node, max(o.position for o in layer.operands))
        replace_call(node, Twin(partial(self.path, layer, node.target)))
        return node

    def offset(self, decided: Decided, original: Replay, carrying: list[str], g: Any) -> Pairs:
        names = [str(o.value) for o in layer_of(decided).operands]

        def call(*values: Tensor | None) -> Tensor:
            return original.call(decided.node, dict(zip(names, values)))  # type: ignore[no-any-return]

        with torch.no_grad():
            x, weight, *bias = (original.values[name] for name in names)
            u, d = self.scales(*self.sums(call, x, weight, bias[0] if bias else None))
            constant = at_zero(original, decided.node, carrying)
            return [(g, u * constant.clamp(min=0) + d * constant.clamp(max=0))]


@dataclass(frozen=True)
class Epsilon(Propagation):
    """In proportion to the contributions; an output near 0 loses what epsilon takes.

    Source: Bach et al., PLOS ONE 2015, doi.org/10.1371/journal.pone.0130140, eq. 58.
    """

    epsilon: float = 1e-6
    parameters: ClassVar[tuple[str, ...]] = ("epsilon",)
    splits: ClassVar[bool] = False

    def scales(self, up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
        scale = over(up, up + torch.where(up < 0, -self.epsilon, self.epsilon))
        return scale, scale


@dataclass(frozen=True)
class Gamma(Propagation):
    """In proportion, but contributions with the sign of the output count 1 + gamma times.

    Source: Montavon et al., Layer-Wise Relevance Propagation: An Overview, 2019, doi.org/10.1007/978-3-030-28954-6_10;
    for outputs and carriers of any sign as in Andeol et al., arXiv:2106.04923.
    """

    gamma: float = 0.25
    parameters: ClassVar[tuple[str, ...]] = ("gamma",)

    def scales(self, up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
        z = up + down
        more_up, more_down = 1 + self.gamma * (z > 0), 1 + self.gamma * (z < 0)
        common = over(z, more_up * up + more_down * down)
        return more_up * common, more_down * common


@dataclass(frozen=True)
class AlphaBeta(Propagation):
    """Positive contributions get alpha R, negative ones -beta R, each in proportion.

    Source: Bach et al., PLOS ONE 2015, doi.org/10.1371/journal.pone.0130140, eq. 60.
    """

    alpha: float = 2.0
    beta: float = 1.0
    parameters: ClassVar[tuple[str, ...]] = ("alpha", "beta")

    def __post_init__(self) -> None:
        if self.beta < 0 or abs(self.alpha - self.beta - 1) > 1e-9:
            raise ValueError(f"alpha - beta must be 1 and beta at least 0, not {self.alpha:g} and {self.beta:g}")

    def scales(self, up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
        z = up + down
        return self.alpha * over(z, up), -self.beta * over(z, down)


@dataclass(frozen=True)
class ZPlus(AlphaBeta):
    """Positive contributions alone: the alpha-beta rule with alpha 1 and beta 0.

    Source: Montavon et al., Explaining nonlinear classification decisions with deep Taylor decomposition,
    arXiv:1512.02479, section III.
    """

    alpha: float = 1.0
    beta: float = 0.0
    parameters: ClassVar[tuple[str, ...]] = ()


@dataclass(frozen=True)
class Box(ZPlus):
    """For a layer that reads an input with values from low to high, x w counts from low w or high w: whichever is less.

    The bias gets nothing. A pixel that is exactly 0 loses its share, since 0 times any cotangent is 0. All other layers
    have the rule of `z_plus`.

    Source: Montavon et al., Explaining nonlinear classification decisions with deep Taylor decomposition,
    arXiv:1512.02479, section IV.
    """

    low: float = -1.0
    high: float = 1.0
    parameters: ClassVar[tuple[str, ...]] = ("low", "high")

    def __post_init__(self) -> None:
        if self.low > 0 or self.high < 0 or self.low == self.high:
            raise ValueError(f"low must be at most 0, high at least 0, and not both 0, not {self.low:g}, {self.high:g}")

    def path(self, layer: Layer, op: Any, *args: Any, **kwargs: Any) -> Tensor:
        if layer.carrier.kind is not None:
            return super().path(layer, op, *args, **kwargs)
        call, (x, weight, bias) = layer.called(op, args, kwargs), layer.values(args)
        none = None if bias is None else torch.zeros_like(bias)
        z, total = call(x, weight, bias), call(x, weight, none)
        inner = total
        for bound, part in ((self.low, weight.clamp(min=0)), (self.high, weight.clamp(max=0))):
            total = total - call(torch.full_like(x, bound), part, none)
            # x times this cotangent is bound times that of the bound: the rule's share of the pixel.
            inner = inner - call(x * over(torch.full_like(x, bound), x), part, none)
        return over(z, total) * inner

    def offset(self, decided: Decided, original: Replay, carrying: list[str], g: Any) -> Pairs:
        boxed = layer_of(decided).carrier.kind is None
        return [] if boxed else super().offset(decided, original, carrying, g)


_KINDS = frozenset({Kind.LINEAR, Kind.PRODUCT})
BACKWARDS: tuple[Backward, ...] = (
    Epsilon("epsilon", _KINDS, balanced=False),
    Gamma("gamma", _KINDS),
    AlphaBeta("alpha_beta", _KINDS, balanced=False),
    ZPlus("z_plus", _KINDS, balanced=False),
    Box("z_box", _KINDS, balanced=False),
)
