"""Stage 2, classify: an abstract interpretation gives every node a role, a kind and a backward.

Pure: the same graph and table give the same decisions. One walk forward finds the facts: roles and kinds. Then the
policy gives every node its backward. Last, the graph of the operands that receive a cotangent says which outputs can be
balanced (`outputs.py`), which nodes are live for these (a cotangent reaches them) and which are held, also for single
pieces of a fused projection (`slices.py`).
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, fx

from fxgrad.capture.captured import Captured
from fxgrad.capture.higher_order import Closed
from fxgrad.classify.decision import Classified, Decision, operands_of
from fxgrad.classify.idioms import ELEMENTWISE, IDIOMS, kind_of_value, mixes
from fxgrad.classify.outputs import Facts, settled
from fxgrad.classify.refusals import NO_ROW, Unruled, refused_program
from fxgrad.classify.slices import narrow
from fxgrad.errors import CaptureError
from fxgrad.graph.nodes import arguments_of, differentiable, placeholders_of, tensors_of
from fxgrad.graph.places import place_of
from fxgrad.kinds import Kind, Operand, Role, transfer
from fxgrad.ops.pieces import operands_in, piece
from fxgrad.table.loading import RuleTable
from fxgrad.table.row import Row


def classify(captured: Captured, table: RuleTable) -> Classified:
    """Give every node a role, a kind and a backward.

    Args:
        captured: what `capture` returned.
        table: what `fxgrad.table.load` returned.

    Returns:
        One decision per node that depends on an attributed input, and the outputs that cannot be balanced.

    Raises:
        NoRuleError: no output can be balanced, for some ops have no row; all of them are listed.
        NotBalanceableError: no output can be balanced, for pure gates reach them other than as a multiplier.

    Example:
        >>> from fxgrad.capture.export import capture
        >>> from fxgrad.table.loading import load
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.GELU()).eval()
        >>> classified = classify(capture(model, (torch.zeros(2, 3),)), load())
        >>> [d.kind.value for d in classified.decisions.values()]
        ['linear', 'gated_activation']

    Source: LibraGrad, arXiv:2411.16760, section 3.
    """
    decisions, refusals = settled(captured, table, _facts)
    return Classified(captured, table, narrow(captured.graph, decisions), refusals)


def _facts(captured: Captured, table: RuleTable) -> Facts:
    walk = _Walk(captured, table)
    for node in captured.graph.nodes:
        walk.visit(node)
    (outputs,) = captured.graph.output_node().args
    assert isinstance(outputs, (list, tuple))
    nodes = [(i, n) for i, n in enumerate(outputs) if isinstance(n, fx.Node)]
    ends = {i: n.name for i, n in nodes if walk.roles[n] and differentiable(n)}
    if not ends:
        raise CaptureError(
            "no output depends on a floating-point input, so there is nothing to attribute. "
            "What the model rounds (round, floor, sign) counts as a constant. So does what it computes under its own "
            "torch.no_grad(): through_no_grad=True would attribute through that."
        )
    return Facts(walk.decisions, walk.unruled, ends)


class _Walk:
    """One walk forward over the graph: roles of all nodes, decisions for those that depend on the inputs."""

    def __init__(self, captured: Captured, table: RuleTable) -> None:
        placeholders = placeholders_of(captured.graph)
        self.table = table
        self.inputs = dict(zip(captured.entry_nodes, captured.entries))
        self.paths = dict(zip(placeholders, [*captured.state, *(entry.name for entry in captured.entries)]))
        self.roles: dict[fx.Node, Role] = {}
        self.decisions: dict[str, Decision] = {}
        self.kinds: dict[str, Kind | None] = {}
        self.seeds: dict[str, str] = {}
        self.unruled: list[Unruled] = []

    def visit(self, node: fx.Node) -> None:
        self.roles[node] = Role.CONSTANT
        if node in self.inputs:
            self.roles[node] = Role.CARRIER if self.inputs[node].attributed else Role.CONSTANT
        elif isinstance(node.target, (Closed, torch._ops.HigherOrderOperator)) and (
            any(self.roles[n] or n.op == "get_attr" for n in node.all_input_nodes)
        ):
            self.unruled.append(Unruled(node, refused_program(node), []))
            self.roles[node] = Role.CARRIER
        elif node.op == "call_function" and any(self.roles[n] for n in operands_in(node)):
            if not differentiable(node):
                return  # a comparison, an index, a size: constant, whatever its operands
            try:
                decision = self.decide(node)
            except _UnruledError as error:
                if self.table.on_unknown == "error":
                    self.unruled.append(Unruled(node, str(error), self.data(node)))
                    self.roles[node] = Role.CARRIER
                    return
                decision = self.opaque(node)
            self.roles[node] = decision.role
            if decision.role is not Role.CONSTANT:
                self.decisions[node.name] = decision
                self.kinds[node.name] = kind_of_value(decision, lambda o: self.seeds.get(str(o.value), str(o.value)))
                self.seeds[node.name] = self.seed(node, decision)

    def decide(self, node: fx.Node) -> Decision:
        """The decision for one node that depends on the inputs.

        Raises:
            _UnruledError: no rule covers it.
        """
        row = self.row(node)
        kind = row.kind if row else Kind.LINEAR
        operands = tuple(operands_of(node, row.part_of if row else _PARTS, self.roles, self.kinds))
        stray = [o.name for o in operands if o.data and not _may_be_computed(kind, o.part)]
        if stray:
            raise _UnruledError(f"has {', '.join(stray)} computed from the input, which its row does not provide for")
        pointwise = torch.Tag.pointwise in getattr(node.target, "tags", ())
        named = tuple(self.sources(node, operands))
        if row and row.options.get("saturates"):
            named += (f"bound of {node.target}",)
        op, degree = str(node.target) if row else node.target.__name__, self.degree(node, row)  # type: ignore[union-attr]
        decision = Decision(
            node.name, op, kind, Role.CARRIER, operands, degree, named, row, place_of(node), pointwise=pointwise
        )
        decision = replace(decision, layer=_is_layer(node, decision))
        ceiling = Role.CARRIER
        for idiom in IDIOMS:
            if idiom.matches(decision, self.decisions):
                ceiling = min(ceiling, idiom.ceiling)
                decision = replace(decision, kind=idiom.kind or decision.kind, idiom=idiom.reason or decision.idiom)
        carries = degree is not None or decision.options.get("secant", False)
        role = transfer(decision.kind, operands, degree=degree, carries=carries)
        return replace(decision, role=min(role, ceiling))

    def degree(self, node: fx.Node, row: Row | None) -> float | None:
        """The node's degree of homogeneity, if its row gives one: as a number, or as the name of an operand.

        Raises:
            _UnruledError: the operand is not a number.
        """
        degree = row.options.get("degree") if row else None
        if not isinstance(degree, str):
            return degree
        number = arguments_of(node)[degree]
        if not isinstance(number, (int, float)):
            raise _UnruledError("has an exponent that is not a number")
        return number

    def seed(self, node: fx.Node, decision: Decision) -> str:
        """The single node of which this one is an elementwise function; the node itself if there is none."""
        data = [n for n in operands_in(node) if self.roles[n]]
        seeds = {self.seeds.get(n.name, n.name) for n in data}
        shapes = {str(getattr(n.meta["val"], "shape", None)) for n in [node, *data]}
        elementwise = decision.kind in ELEMENTWISE and not mixes(decision) and len(shapes) == 1
        return seeds.pop() if elementwise and len(seeds) == 1 else node.name

    def data(self, node: fx.Node) -> list[str]:
        """The names of the operands that depend on the inputs."""
        return list(dict.fromkeys(o.name for o in operands_of(node, {}, self.roles, self.kinds) if o.data))

    def opaque(self, node: fx.Node) -> Decision:
        """The decision for a node without a rule, which keeps its own gradient."""
        operands = tuple(operands_of(node, {}, self.roles, self.kinds))
        return Decision(
            node.name, str(node.target), Kind.OPAQUE, Role.CARRIER, operands, None, (), None, place_of(node)
        )

    def row(self, node: fx.Node) -> Row | None:
        """The table's row; None for an item of a tuple and a piece of a join, which need none."""
        if node.target in (operator.getitem, piece):
            return None
        if not isinstance(node.target, torch._ops.OpOverload):
            raise _UnruledError("is not an op of torch.ops")
        arguments = arguments_of(node)
        row = self.table.row(node.target, arguments)
        if row is None:
            raise _UnruledError(NO_ROW)
        if (name := row.refused(arguments)) is not None:
            raise _UnruledError(f"has {name} = {arguments[name]!r}, which its row does not provide for")
        return row

    def sources(self, node: fx.Node, operands: tuple[Operand, ...]) -> Iterator[str]:
        """Names of the constants that enter additively: in the part source, or carrier but constant."""
        nodes = {n.name: n for n in node.all_input_nodes}
        for o in operands:
            if o.part in ("carrier", "source") and not o.data:
                yield self.constant_name(nodes[o.value]) if isinstance(o.value, str) else f"{o.name} = {o.value:g}"

    def constant_name(self, node: fx.Node) -> str:
        """Names of the parameters, buffers and masks that a constant is computed from; else its node's name."""
        seen, pending = {node}, [node]
        found: list[str] = []
        while pending:
            current = pending.pop()
            if current.op == "placeholder":
                found.append(node.name if self.roles[current] else self.paths[current])
            # Sizes depend on the inputs, but have no tensor values.
            new = [n for n in operands_in(current) if n not in seen and tensors_of(n)]
            seen.update(new)
            pending += new
        return " and ".join(sorted(found)) if found and node.name not in found else node.name


def _is_layer(node: fx.Node, decision: Decision) -> bool:
    """Whether a node multiplies its only carrier with constant weights, and sums; a scale of channels sums nothing."""
    carriers = [o for o in decision.data if o.part in ("carrier", "factor")]
    constants = [o for o in decision.operands if not o.data and o.part in ("coefficient", "factor")]
    found = [n.meta["val"] for n in node.all_input_nodes if n.name in [o.value for o in constants]]
    weights = [value for value in found if isinstance(value, Tensor)]
    matrices = decision.options.get("packed") or any(weight.dim() > 1 for weight in weights)
    multiplies = decision.kind is Kind.PRODUCT or (decision.kind is Kind.LINEAR and matrices)
    return len(carriers) == 1 and bool(weights) and bool(multiplies) and not decision.pointwise


_PARTS = {"self": "carrier", "part": "carrier", "value": "like"}
"""The operands of nodes that need no row: items of tuples, and pieces."""


class _UnruledError(Exception):
    """No rule covers a node; the message is the reason."""


def _may_be_computed(kind: Kind, part: str) -> bool:
    """Whether an operand with this part may depend on the attributed inputs."""
    if kind is Kind.CONSTANT or part in ("carrier", "factor", "numerator", "denominator", "held"):
        return True
    if part == "source":  # a clamp's bound, an addmm's addend: linear in all of them together
        return kind in (Kind.LINEAR, Kind.PRODUCT, Kind.ATTENTION, Kind.PIECEWISE_LINEAR)
    return part != "unnamed" if kind in (Kind.LINEAR, Kind.PRODUCT, Kind.ATTENTION) else False
