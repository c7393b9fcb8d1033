"""What one backward is: which operands it gives a cotangent, what the rewritten graph calls, what constants keep.

A backward is one object, in the file of its family, with all that is known of it. The other stages ask it; none of them
compares its name. It serves some kinds of ops, and a policy file chooses one for every kind, by its name.

Balance, by Euler's theorem: the weights times the degrees of homogeneity add up to one.
Source: LibraGrad, arXiv:2411.16760, section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import torch
from torch import fx

from fxgrad.graph.places import Place
from fxgrad.graph.replay import Replay
from fxgrad.kinds import Kind, Operand

Pairs = list[tuple[Any, Any]]
"""Cotangents and what they meet, tensors or lists of them: <g, b> is the sum over all."""


class Decided(Protocol):
    """What a backward may know of the node that it is given; `fxgrad.classify.decision.Decision` has it.

    Attributes:
        node: its name in the graph.
        op: as torch prints it.
        kind: what the op is.
        operands: its tensor and number operands.
        weights: by how much the cotangent of each is scaled.
        sources: names of the constants that enter additively.
        parts, options, twin, origin: of the rule table's row; nothing in them where there is none.
        place: where the model's author wrote it.
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
    def place(self) -> Place: ...


@dataclass(frozen=True)
class Rewriting:
    """The graph that is being made, as far as it is.

    Attributes:
        nodes: name of each captured node -> the node that stands for it.
        recorded: names of the nodes whose results autograd follows.
    """

    nodes: dict[str, fx.Node]
    recorded: set[str]


@dataclass(frozen=True)
class Backward:
    """One backward of the policies' vocabulary. As it stands, it is the op's own.

    Attributes:
        name: by which a policy file chooses it.
        kinds: that it can serve.
        sums_the_batch: whether what a constant keeps is had from its gradient, and so summed over the examples.
        parameters: names of the fields that a policy file may set.
    """

    name: str
    kinds: frozenset[Kind] = frozenset()
    sums_the_batch: ClassVar[bool] = False
    parameters: ClassVar[tuple[str, ...]] = ()

    def with_parameters(self, given: Mapping[str, Any]) -> Backward:
        """The same with the parameters that a policy file gives it.

        Raises:
            ValueError: it has no such parameter, or the value is not a number; the message says which.
        """
        for name, value in given.items():
            if name not in self.parameters:
                known = f"takes {', '.join(self.parameters)}" if self.parameters else "takes none"
                raise ValueError(f"{self.name} has no parameter {name!r}; it {known}")
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise ValueError(f"{name} = {value!r} is not a number")
        return replace(self, **{name: float(value) for name, value in given.items()})  # type: ignore[arg-type]

    def given_row(self, options: Mapping[str, Any]) -> Backward:
        """What becomes of it for an op whose row has these options."""
        return self

    def weights(self, operands: Sequence[Operand], degree: float | None) -> list[float]:
        """By how much the cotangent of every operand is scaled: 1 leaves the op's own vjp, 0 holds the operand."""
        return [1.0] * len(operands)

    def call(self, node: fx.Node, decided: Decided, done: Rewriting) -> fx.Node:
        """Turn a copy of the captured node into what the rewritten graph calls; returns the node that stands for it."""
        return node

    def point(self, decided: Decided) -> float:
        """Where on its operand's axis the function is split into a constant and what is carried."""
        return float(decided.options.get("through", 0))

    def keeps(self, decided: Decided) -> bool:
        """Whether the node's constants may contribute something."""
        bent = decided.kind is Kind.SQUASH or decided.options.get("secant", False)
        return bool(decided.sources) or (bent and not self.point(decided))

    def reads(self, decided: Decided) -> tuple[str, ...]:
        """Names of the captured nodes that `offset` calls again."""
        return (decided.node,)

    def offset(self, decided: Decided, original: Replay, carrying: list[str], g: Any) -> Pairs:
        """What the node's constants contribute: pairs whose <g, b> add up to it.

        It is made of the captured op and its values alone, never of the rewritten node, so that no fault of a backward
        can hide in it. An affine op shows b where its carriers are 0. A piecewise linear one has an offset per piece,
        z - J a, with J from the op's own derivative.

        Args:
            decided: about the node.
            original: the captured graph at one run's values.
            carrying: names of the operands that a cotangent may travel on to.
            g: the cotangent of the node's result.
        """
        if decided.kind is Kind.PIECEWISE_LINEAR and decided.sources:
            native = original.vjp(decided.node, carrying, g)
            handed = [(-j, original.values[name]) for j, name in zip(native, carrying) if j is not None]
            return [(g, original.values[decided.node]), *handed]
        zeros = {name: torch.zeros_like(original.values[name]) for name in carrying}
        with torch.no_grad():
            return [(g, original.call(decided.node, zeros))]

    def limit_error(self, decided: Decided, ours: Replay, original: Replay) -> float:
        """What completeness cannot see of a fault: how far a limit is from what it should be, relative to that."""
        return 0.0

    def __str__(self) -> str:
        given = [f"{name} = {getattr(self, name):g}" for name in self.parameters if getattr(self, name)]
        return f"{self.name} ({', '.join(given)})" if given else self.name


def replace_call(node: fx.Node, function: Callable[..., Any], *details: Any) -> None:
    """Let a node call `function(op, *details, *args, **kwargs)` in the place of its op."""
    op: Any = node.target
    node.args = (op, *details, *node.args)
    node.target = function
