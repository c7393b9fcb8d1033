"""What the analysis decides about one node, and the node's operands as it sees them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import fx

from fxgrad.capture.captured import Captured
from fxgrad.graph.nodes import arguments_of
from fxgrad.graph.places import Place
from fxgrad.kinds import Kind, Operand, Role
from fxgrad.ops import Rows
from fxgrad.ops.backwards import BACKWARDS
from fxgrad.table.row import Row, RuleTable


@dataclass(frozen=True)
class Decision:
    """What one node is, and what its backward will be.

    Attributes:
        node: its name in the graph.
        op: as torch prints it, `aten.gelu.default`.
        kind: what the op is; a linear op with a computed coefficient is a product.
        role: of its result.
        operands: its tensor and number operands.
        degree: of homogeneity, where the kind has one.
        sources: the constants that enter additively, by name.
        row: the rule table's row; None for the plumbing of tuples and for opaque ops.
        place: where the model's author wrote it.
        weights: for every operand, by how much its cotangent is scaled; 0 is held.
        backward: the policy's name for what happens, or "held" where no cotangent arrives.
        vjp: the function of `fxgrad.ops` that replaces the op's own vjp, or None.
        rows: where the node is a piece of a linear layer's output and takes the layer's cotangent for it: which piece.
        through: then, the nodes from the layer up to this one, which are held.
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
    weights: tuple[float, ...] = ()
    backward: str = "held"
    vjp: str | None = None
    rows: Rows | None = None
    through: tuple[str, ...] = ()

    @property
    def live(self) -> bool:
        """Whether a cotangent reaches this node."""
        return self.backward != "held"

    def receives(self, operand: str) -> bool:
        """Whether it hands a cotangent on to an operand."""
        return any(o.value == operand and weight != 0 for o, weight in zip(self.operands, self.weights))

    def under(self, policy: Mapping[Kind, str]) -> Decision:
        """The same node, with the backward that a policy gives it."""
        backward = "native" if self.kind in (Kind.CONSTANT, Kind.OPAQUE) else policy[self.kind]
        if backward == "multiplier" and self.row and self.row.options.get("secant"):
            backward = "secant"
        rule = BACKWARDS[backward]
        return replace(self, backward=backward, vjp=rule.vjp, weights=tuple(rule.weights(self.operands, self.degree)))

    def held(self) -> Decision:
        """The same node, where no cotangent arrives."""
        weights = tuple(0.0 if o.data else 1.0 for o in self.operands)
        return replace(self, backward="held", vjp=None, sources=(), weights=weights)

    @property
    def reason(self) -> str:
        """Why this backward, in words."""
        data = [(o, w) for o, w in zip(self.operands, self.weights) if o.data]
        what = ", ".join(f"{o.name} is a {o.role.label}{_fate(w)}" for o, w in data)
        return what if self.live else f"{what}; the result is only ever held"


def _fate(weight: float) -> str:
    return "" if weight == 1 else " (held)" if weight == 0 else f" (gets {weight:.3g} of its vjp)"


def operands_of(
    node: fx.Node, part_of: Mapping[str, str], roles: Mapping[fx.Node, Role], kinds: Mapping[str, Kind]
) -> Iterator[Operand]:
    """The node's operands that the row names, and every other tensor operand as part `unnamed`.

    Left out are those whose values do not matter (`like`).
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
    """Among a recurrence's parameters, matrices multiply and vectors are added."""
    if part != "parameters":
        return part
    return "source" if node.meta["val"].dim() == 1 else "coefficient"


@dataclass(frozen=True)
class Classified:
    """The captured model with a decision for every node that depends on the attributed inputs."""

    captured: Captured
    table: RuleTable
    decisions: Mapping[str, Decision]

    def __deepcopy__(self, memo: dict[int, Any]) -> Classified:
        return self  # nothing in it ever changes
