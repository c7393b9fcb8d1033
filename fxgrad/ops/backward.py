"""What one backward is: the weights of its operands, the call in the rewritten graph, the offset of its node.

A backward is one object, in the file of its family. Other stages ask the object; none of them compares its name. It
serves some kinds of ops, and a policy chooses one for every kind, by name.

Balance, by Euler's theorem: the weights times the degrees of homogeneity add up to one.
Source: LibraGrad, arXiv:2411.16760, section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol

import torch
from torch import fx
from torch.utils import _pytree as pytree

from fxgrad.graph.nodes import arguments_of
from fxgrad.graph.places import Place
from fxgrad.graph.replay import Replay
from fxgrad.kinds import LINEAR, Kind, Operand
from fxgrad.ops.zero import at_zero

Pairs = list[tuple[Any, Any]]
"""Pairs (g, b) of a cotangent and an offset, tensors or lists of them; <g, b> is the sum over all pairs."""


class Decided(Protocol):
    """What a backward may know of its node; `fxgrad.classify.decision.Decision` implements it.

    Attributes:
        node: the node's name in the graph.
        op: the op as torch prints it.
        kind: the node's kind.
        operands: the tensor and number operands.
        weights: the factor of each operand's cotangent.
        sources: names of the constants that enter additively.
        parts, options, twin, origin: from the row; empty where there is none.
        degree: the node's degree of homogeneity, where the kind has one.
        layer: whether it multiplies one carrier with constant weights, and sums.
        place: where the node comes from in the user's code.
    """

    @property
    def node(self) -> str: ...
    @property
    def op(self) -> str: ...
    @property
    def kind(self) -> Kind: ...
    @property
    def operands(self) -> tuple[Operand, ...]: ...
    @property
    def weights(self) -> tuple[float, ...]: ...
    @property
    def sources(self) -> tuple[str, ...]: ...
    @property
    def parts(self) -> Mapping[str, tuple[str, ...]]: ...
    @property
    def options(self) -> Mapping[str, Any]: ...
    @property
    def twin(self) -> Callable[..., Any] | None: ...
    @property
    def origin(self) -> str: ...
    @property
    def degree(self) -> float | None: ...
    @property
    def layer(self) -> bool: ...
    @property
    def place(self) -> Place: ...


@dataclass(frozen=True)
class Rewriting:
    """The rewritten graph while it is being built.

    Attributes:
        nodes: name of each captured node -> its node in the rewritten graph.
        recorded: names of the nodes whose results autograd follows.
    """

    nodes: dict[str, fx.Node]
    recorded: set[str]


@dataclass(frozen=True)
class Backward:
    """One backward of the policies' vocabulary. This base class is the op's own vjp.

    Attributes:
        name: its name in a policy.
        kinds: the kinds that it can serve.
        balanced: whether its shares add up; one that is not balanced may still be where the op is linear.
        sums_the_batch: whether a constant's contribution comes from its gradient, and so is summed over the examples.
        stops: whether a node that hands nothing on is a source; otherwise no output that it reaches can be balanced.
        divides_layers: whether it replaces the vjp of linear ops, too, by one that divides relevance otherwise.
        parameters: names of the fields that a policy may set.
    """

    name: str
    kinds: frozenset[Kind] = frozenset()
    balanced: bool = field(default=True, kw_only=True)
    sums_the_batch: ClassVar[bool] = False
    stops: ClassVar[bool] = False
    divides_layers: ClassVar[bool] = False
    parameters: ClassVar[tuple[str, ...]] = ()

    def balances(self, decided: Decided) -> bool:
        """Whether its shares add up at a node; those of a linear op's own vjp do."""
        return self.balanced or decided.kind in LINEAR

    def with_parameters(self, given: Mapping[str, Any]) -> Backward:
        """A copy with the parameters that a policy gives.

        Raises:
            ValueError: there is no such parameter, or the value is not a number.
        """
        for name, value in given.items():
            if name not in self.parameters:
                known = f"takes {', '.join(self.parameters)}" if self.parameters else "takes none"
                raise ValueError(f"{self.name} has no parameter {name!r}; it {known}")
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise ValueError(f"{name} = {value!r} is not a number")
        return replace(self, **{name: float(value) for name, value in given.items()})  # type: ignore[arg-type]

    def given(self, decided: Decided) -> Backward:
        """The backward for a node, given what it is; its weights and backward are not decided yet."""
        return self

    def weights(self, operands: Sequence[Operand], degree: float | None) -> list[float]:
        """The factor of every operand's cotangent: 1 leaves the op's own vjp, 0 holds the operand."""
        return [1.0] * len(operands)

    def call(self, node: fx.Node, decided: Decided, done: Rewriting) -> fx.Node:
        """Turn a copy of the captured node into its call in the rewritten graph; returns the node with the result."""
        return node

    def point(self, decided: Decided) -> float:
        """The value of the operand at which the function's value is the constant part (0, unless a secant says so)."""
        return float(decided.options.get("through", 0))

    def keeps(self, decided: Decided) -> bool:
        """Whether the node's constants may contribute something."""
        bent = decided.kind is Kind.SQUASH or decided.options.get("secant", False)
        return bool(decided.sources) or (bent and not self.point(decided))

    def reads(self, decided: Decided) -> tuple[str, ...]:
        """Names of the captured nodes that `offset` calls again."""
        return (decided.node,)

    def offset(self, decided: Decided, original: Replay, carrying: list[str], g: Any) -> Pairs:
        """The node's cotangents and offsets as pairs (g, b); the sum of <g, b> is what its constants contribute.

        b is computed from the captured op and its values alone, never from the rewritten node, so that no fault of a
        backward can hide in it. For an affine op, b is its value with carriers of 0. For a piecewise linear one,
        b = z - J a, with J from the op's own derivative.

        Args:
            decided: the decision for the node.
            original: the captured graph at one run's values.
            carrying: names of the operands that may get a cotangent.
            g: the cotangent of the node's result.
        """
        if decided.kind is Kind.PIECEWISE_LINEAR and decided.sources:
            native = original.vjp(decided.node, carrying, g)
            handed = [(-cotangent, original.values[name]) for name, cotangent in native.items()]
            return [(g, original.values[decided.node]), *handed]
        with torch.no_grad():
            if decided.kind is Kind.NORMALIZATION and _without_eps(decided, original.nodes[decided.node]):
                # At 0 it is 0/0. Its scale is the same at x and at -x, so the mean of both is what the shift adds.
                x = arguments_of(original.nodes[decided.node])[decided.parts["carrier"][0]].name
                minus = {x: -original.values[x]}
                both = original.call(decided.node, {}), original.call(decided.node, minus)
                return [(g, pytree.tree_map(lambda one, other: (one + other) / 2, *both))]
            return [(g, at_zero(original, decided.node, carrying))]

    def limit_error(self, decided: Decided, ours: Replay, original: Replay) -> float:
        """The relative error of a limit that completeness cannot test (0 times anything is 0); 0 if there is none."""
        return 0.0

    def __str__(self) -> str:
        given = [f"{name} = {getattr(self, name):g}" for name in self.parameters if getattr(self, name)]
        return f"{self.name} ({', '.join(given)})" if given else self.name


def _without_eps(decided: Decided, node: fx.Node) -> bool:
    """Whether nothing is added to a normalization's variance."""
    eps = decided.options.get("eps")
    return eps is not None and arguments_of(node)[eps] == 0


def replace_call(node: fx.Node, function: Callable[..., Any], *details: Any) -> None:
    """Make a node call `function(op, *details, *args, **kwargs)` instead of its op."""
    op: Any = node.target
    node.args = (op, *details, *node.args)
    node.target = function
