"""The decision about one node, and the node's operands as the analysis sees them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import fx

from fxgrad.capture.captured import Captured
from fxgrad.graph.nodes import arguments_of
from fxgrad.graph.places import Place
from fxgrad.kinds import LINEAR, Kind, Operand, Role
from fxgrad.ops.backward import Backward
from fxgrad.ops.weights import HELD, NATIVE
from fxgrad.table.loading import RuleTable
from fxgrad.table.row import Row


@dataclass(frozen=True)
class Decision:
    """What one node is, and what its backward will be.

    Attributes:
        node: its name in the graph.
        op: as torch prints it, `aten.gelu.default`.
        kind: what the op is; a linear op with a computed coefficient is a product.
        role: the role of its result.
        operands: its tensor and number operands.
        degree: its degree of homogeneity, where the kind has one.
        sources: names of the constants that enter additively.
        row: the rule table's row; None for items of tuples and for opaque ops.
        place: where it comes from in the user's code.
        pointwise: whether it computes element by element.
        layer: whether it multiplies one carrier with constant weights, and sums.
        idiom: what the node means together with others, in words; "" where no idiom matches.
        weights: the factor of each operand's cotangent; 0 holds the operand.
        backward: the backward that the policy gives it; `HELD` where no cotangent arrives.
    """

    node: str
    op: str
    kind: Kind
    role: Role
    operands: tuple[Operand, ...]
    degree: float | None
    sources: tuple[str, ...]
    row: Row | None
    place: Place
    pointwise: bool = False
    layer: bool = False
    idiom: str = ""
    weights: tuple[float, ...] = ()
    backward: Backward = HELD

    @property
    def live(self) -> bool:
        """Whether a cotangent reaches this node."""
        return self.backward is not HELD

    @property
    def keeps(self) -> bool:
        """Whether its constants may contribute to the output."""
        return self.live and self.backward.keeps(self)

    @property
    def parts(self) -> Mapping[str, tuple[str, ...]]:
        """Part -> names of the operands with this part, by its row."""
        return self.row.parts if self.row else {}

    @property
    def options(self) -> Mapping[str, Any]:
        """The options of its row."""
        return self.row.options if self.row else {}

    @property
    def twin(self) -> Callable[..., Any] | None:
        """For composed ops, the function whose gradient is the balanced one."""
        return self.row.twin if self.row else None

    @property
    def origin(self) -> str:
        """File and section of its row, for messages."""
        return self.row.origin if self.row else ""

    @property
    def data(self) -> list[Operand]:
        """The operands that depend on the attributed inputs."""
        return [o for o in self.operands if o.data]

    def receives(self, operand: str) -> bool:
        """Whether it hands a cotangent on to an operand."""
        return any(o.value == operand and weight != 0 for o, weight in zip(self.operands, self.weights))

    def under(self, backwards: Mapping[Kind, Backward]) -> Decision:
        """A copy with the backward and weights that a policy gives the node."""
        backward = backwards.get(self.kind, NATIVE).given(self)
        return replace(self, backward=backward, weights=tuple(backward.weights(self.operands, self.degree)))

    def held(self) -> Decision:
        """A copy that is held: no cotangent arrives at the node."""
        weights = tuple(0.0 if o.data else 1.0 for o in self.operands)
        return replace(self, backward=HELD, sources=(), weights=weights)

    @property
    def reason(self) -> str:
        """Why the node has this backward, in words."""
        data = [(o, w) for o, w in zip(self.operands, self.weights) if o.data]
        what = ", ".join(f"{o.name} is a {o.role.label}{_fate(w)}" for o, w in data)
        what = what if self.live else f"{what}; the result is only ever held"
        return f"{what}; {self.idiom}" if self.idiom else what


def _fate(weight: float) -> str:
    return "" if weight == 1 else " (held)" if weight == 0 else f" (gets {weight:.3g} of its vjp)"


def operands_of(
    node: fx.Node, part_of: Mapping[str, str], roles: Mapping[fx.Node, Role], kinds: Mapping[str, Kind | None]
) -> Iterator[Operand]:
    """The operands that the row names, then every other tensor operand as part `unnamed`.

    Operands whose values do not matter (`like`) are left out.
    """
    for position, (name, value) in enumerate(arguments_of(node).items()):
        part = part_of.get(name, "unnamed")
        if part == "like":
            continue
        items = enumerate(value) if isinstance(value, (list, tuple)) else [(None, value)]
        for item, leaf in items:
            if isinstance(leaf, fx.Node) or (part != "unnamed" and isinstance(leaf, (int, float))):
                label = name if item is None else f"{name}[{item}]"
                if isinstance(leaf, fx.Node):
                    yield Operand(
                        label, _part(part, leaf), position, item, leaf.name, roles[leaf], kinds.get(leaf.name)
                    )
                else:
                    yield Operand(label, part, position, item, leaf, Role.CONSTANT)


def _part(part: str, node: fx.Node) -> str:
    """An operand's part; among a recurrence's parameters, matrices multiply and vectors are added."""
    if part != "parameters":
        return part
    return "source" if node.meta["val"].dim() == 1 else "coefficient"


@dataclass(frozen=True)
class Refusal:
    """An output whose gradient cannot be balanced: why, as the error that asking for it raises.

    Attributes:
        index: the output's index among the flattened outputs.
        output: its name, such as `output['probabilities']`.
        error: the name of the error's class.
        message: the error's message.
    """

    index: int
    output: str
    error: str
    message: str


@dataclass(frozen=True)
class Classified:
    """The captured model with a decision for every node that depends on the attributed inputs.

    Attributes:
        captured, table: what they were made from.
        decisions: node name -> decision.
        refusals: the outputs that cannot be balanced; nodes that only these need are held.
    """

    captured: Captured
    table: RuleTable
    decisions: Mapping[str, Decision]
    refusals: tuple[Refusal, ...] = ()

    @property
    def balances(self) -> bool:
        """Whether the gradient is balanced, not the derivative: some op has a backward that is not its own."""
        live = [d for d in self.decisions.values() if d.live]
        return any(d.backward.divides_layers or (d.backward.balanced and d.kind not in LINEAR) for d in live)

    def __deepcopy__(self, memo: dict[int, Any]) -> Classified:
        return self  # immutable
