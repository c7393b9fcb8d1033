"""Stage 2, classify: an abstract interpretation gives every node a role, a kind and a backward.

Pure: the same graph and table give the same decisions. One walk forward assigns roles; then the
data flow, as a directed graph of the operands that receive a cotangent, says which nodes are live
(a cotangent reaches them) and which are only ever held.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import networkx as nx
import torch
from torch import Tensor, fx

from fxgrad.backwards import BACKWARDS
from fxgrad.capture import Captured
from fxgrad.errors import CaptureError, NoRuleError, NotBalanceableError
from fxgrad.places import Place, place_of
from fxgrad.roles import Kind, Operand, Role, transfer
from fxgrad.table import Row, RuleTable


@dataclass(frozen=True)
class Decision:
    """What one node is, and what its backward will be.

    Attributes:
        node: its name in the graph.
        op: as torch prints it, `aten.gelu.default`.
        kind: what the op is; a linear op with a computed coefficient is a product.
        role: of its result.
        operands: its tensor and number operands.
        weights: for every operand, by how much its cotangent is scaled; 0 is held.
        backward: the policy's name for what happens, or "held" where no cotangent arrives.
        vjp: the function of `fxgrad.ops` that replaces the op's own vjp, or None.
        degree: of homogeneity, where the kind has one.
        sources: the constants that enter additively, by name.
        row: the rule table's row; None for the plumbing of tuples.
        place: where the model's author wrote it.
    """

    node: str
    op: str
    kind: Kind
    role: Role
    operands: tuple[Operand, ...]
    weights: tuple[float, ...]
    backward: str
    vjp: str | None
    degree: float | None
    sources: tuple[str, ...]
    row: Row | None
    place: Place

    @property
    def live(self) -> bool:
        """Whether a cotangent reaches this node."""
        return self.backward != "held"

    @property
    def reason(self) -> str:
        """Why this backward, in words."""
        data = [(o, w) for o, w in zip(self.operands, self.weights) if o.data]
        what = ", ".join(f"{o.name} is a {o.role.label}{_fate(w)}" for o, w in data)
        return what if self.live else f"{what}; the result is only ever held"


def _fate(weight: float) -> str:
    return "" if weight == 1 else " (held)" if weight == 0 else f" (gets {weight:.3g} of its vjp)"


@dataclass(frozen=True)
class Classified:
    """The captured model with a decision for every node that depends on the attributed inputs."""

    captured: Captured
    table: RuleTable
    decisions: Mapping[str, Decision]

    def __deepcopy__(self, memo: dict[int, Any]) -> Classified:
        return self  # nothing in it ever changes


@dataclass(frozen=True)
class _Unruled:
    """A node that no rule covers, and why."""

    node: fx.Node
    problem: str


def classify(captured: Captured, table: RuleTable) -> Classified:
    """Give every node a role, a kind and a backward.

    Args:
        captured: what `capture` returned.
        table: what `fxgrad.table.load` returned.

    Returns:
        One decision per node that depends on an attributed input.

    Raises:
        NoRuleError: some ops have no row; all of them are listed.
        NotBalanceableError: a pure gate reaches the output other than as a multiplier.

    Example:
        >>> from fxgrad.capture import capture
        >>> from fxgrad.table import load
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.GELU()).eval()
        >>> classified = classify(capture(model, (torch.zeros(2, 3),)), load())
        >>> [d.kind.value for d in classified.decisions.values()]
        ['linear', 'gated_activation']

    Source: LibraGrad, arXiv:2411.16760, section 3.
    """
    roles: dict[fx.Node, Role] = {}
    decisions: dict[str, Decision] = {}
    unruled: list[_Unruled] = []
    placeholders = [n for n in captured.graph.nodes if n.op == "placeholder"]
    inputs = dict(zip(placeholders[len(captured.state) :], captured.inputs))
    paths = dict(zip(placeholders, captured.state))
    for node in captured.graph.nodes:
        roles[node] = Role.CONSTANT
        if node in inputs:
            roles[node] = Role.CARRIER if inputs[node].attributed else Role.CONSTANT
        elif node.op == "call_function" and any(roles[n] for n in node.all_input_nodes):
            decision = _decide(node, roles, decisions, paths, table)
            if isinstance(decision, _Unruled):
                unruled.append(decision)
                roles[node] = Role.CARRIER
            elif decision is not None:
                decisions[node.name] = decision
                roles[node] = decision.role
    if unruled:
        raise NoRuleError(_no_rule_message(unruled))
    return Classified(captured, table, _liveness(captured.graph, decisions, roles, table))


def flow_graph(decisions: Mapping[str, Decision]) -> nx.DiGraph[str]:
    """The data flow along which cotangents travel: an edge operand -> node for every weight but 0.

    Example:
        >>> from fxgrad.capture import capture
        >>> from fxgrad.table import load
        >>> captured = capture(torch.nn.Softplus().eval(), (torch.zeros(2, 3),))
        >>> list(flow_graph(classify(captured, load()).decisions).edges)
        [('input', 'softplus')]
    """
    flow: nx.DiGraph[str] = nx.DiGraph()
    flow.add_nodes_from(decisions)
    for decision in decisions.values():
        for operand, weight in zip(decision.operands, decision.weights):
            if operand.data and weight != 0:
                flow.add_edge(str(operand.value), decision.node)
    return flow


def operands_of(node: fx.Node, part_of: Mapping[str, str], roles: Mapping[fx.Node, Role]) -> Iterator[Operand]:
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
                role = roles[leaf] if isinstance(leaf, fx.Node) else Role.CONSTANT
                value = leaf.name if isinstance(leaf, fx.Node) else leaf
                yield Operand(label, part, position, item, value, role)


def arguments_of(node: fx.Node) -> dict[str, Any]:
    """The node's arguments by their names in the op's schema, defaults filled in."""
    if node.target is operator.getitem:
        return dict(zip(("self", "index"), node.args))
    schema: Any = node.target._schema.arguments  # type: ignore[union-attr]
    given = dict(zip((a.name for a in schema), node.args)) | node.kwargs
    return {a.name: given.get(a.name, a.default_value) for a in schema}


def _decide(
    node: fx.Node,
    roles: Mapping[fx.Node, Role],
    decisions: Mapping[str, Decision],
    paths: Mapping[fx.Node, str],
    table: RuleTable,
) -> Decision | _Unruled | None:
    """The decision for one node; None for a result that is constant whatever its operands are."""
    if not _differentiable(node.meta.get("val")):
        return None
    row: Row | None = None
    if node.target is operator.getitem:
        kind, part_of = Kind.LINEAR, {"self": "carrier"}
    else:
        overload = isinstance(node.target, torch._ops.OpOverload)
        row = table.row(node.target) if overload else None
        if row is None:
            return _Unruled(node, "has no row" if overload else "is not an ATen op")
        kind, part_of = row.kind, row.part_of
    operands = tuple(operands_of(node, part_of, roles))
    options = {} if row is None else row.options

    stray = [o.name for o in operands if o.data and not _may_be_computed(kind, o.part)]
    if stray:
        return _Unruled(node, f"has {', '.join(stray)} computed from the input, which its row does not provide for")
    if kind is Kind.LINEAR and any(o.data for o in operands if o.part == "coefficient"):
        kind = Kind.PRODUCT
    degree = options.get("degree")
    if isinstance(degree, str):
        degree = arguments_of(node)[degree]
        if not isinstance(degree, (int, float)):
            return _Unruled(node, "has an exponent that is not a number")
    role = transfer(kind, operands, degree=degree, carries=degree is not None or options.get("secant", False))
    if role is Role.CONSTANT:
        return None
    if _lifts_an_odd_squash(node, kind, operands, decisions):
        role = Role.GATE

    backward = table.policy[kind]
    if backward == "multiplier" and options.get("secant"):
        backward = "secant"
    rule = BACKWARDS[backward]
    return Decision(
        node=node.name,
        op=str(node.target) if row else "getitem",
        kind=kind,
        role=role,
        operands=operands,
        weights=tuple(rule.weights(operands, degree)),
        backward=backward,
        vjp=rule.vjp,
        degree=degree,
        sources=tuple(_sources(node, operands, paths)),
        row=row,
        place=place_of(node),
    )


def _differentiable(value: Any) -> bool:
    values = value if isinstance(value, (list, tuple)) else [value]
    return any(isinstance(v, Tensor) and (v.is_floating_point() or v.is_complex()) for v in values)


def _may_be_computed(kind: Kind, part: str) -> bool:
    """Whether an operand that plays this part may depend on the attributed inputs."""
    if kind is Kind.CONSTANT or part in ("carrier", "factor", "numerator", "denominator"):
        return True
    return part != "unnamed" if kind in (Kind.LINEAR, Kind.PRODUCT, Kind.ATTENTION) else False


def _lifts_an_odd_squash(
    node: fx.Node, kind: Kind, operands: tuple[Operand, ...], decisions: Mapping[str, Decision]
) -> bool:
    """Whether the node is number + c * f(x) with f odd and bounded, as in 1 + tanh(x): a gate.

    A number, not a parameter: tanh(x) + bias is a layer's output.
    """
    additive = [o for o in operands if o.part == "carrier"]
    numbers = [o for o in additive if not isinstance(o.value, str) and o.value != 0]
    carriers = [o for o in additive if o.role is Role.CARRIER]
    if kind is not Kind.LINEAR or len(additive) != 2 or len(numbers) != 1 or len(carriers) != 1:
        return False
    decision = decisions.get(str(carriers[0].value))
    while decision is not None and decision.kind in (Kind.PRODUCT, Kind.QUOTIENT, Kind.LINEAR):
        upstream = [o for o in decision.operands if o.data]
        if len(upstream) != 1 or decision.sources or any(o.part == "coefficient" for o in decision.operands):
            return False
        decision = decisions.get(str(upstream[0].value))
    return decision is not None and decision.row is not None and bool(decision.row.options.get("odd"))


def _sources(node: fx.Node, operands: tuple[Operand, ...], paths: Mapping[fx.Node, str]) -> Iterator[str]:
    """Names of the constants that enter additively: sources, and carriers that are constant."""
    nodes = {n.name: n for n in node.all_input_nodes}
    for o in operands:
        if o.part in ("carrier", "source") and not o.data:
            yield _constant_name(nodes[o.value], paths) if isinstance(o.value, str) else f"{o.name} = {o.value:g}"


def _constant_name(node: fx.Node, paths: Mapping[fx.Node, str]) -> str:
    """The parameters and buffers that a constant is computed from; its node's name if from anything else."""
    seen, pending = {node}, [node]
    found: list[str | None] = []
    while pending:
        current = pending.pop()
        if current.op == "placeholder":
            found.append(paths.get(current))
        new = [n for n in current.all_input_nodes if n not in seen]
        seen.update(new)
        pending += new
    names = [path for path in found if path is not None]
    return " and ".join(sorted(names)) if names and len(names) == len(found) else node.name


def _liveness(
    graph: fx.Graph, decisions: dict[str, Decision], roles: Mapping[fx.Node, Role], table: RuleTable
) -> dict[str, Decision]:
    """Mark as held whatever no cotangent reaches; refuse what a cotangent reaches but cannot pass."""
    flow = flow_graph(decisions)
    outputs = [n.name for n in graph.output_node().all_input_nodes if roles[n] and _differentiable(n.meta.get("val"))]
    if not outputs:
        raise CaptureError("no output depends on a floating-point input, so there is nothing to attribute.")
    live = set(outputs).union(*(nx.ancestors(flow, name) for name in outputs))
    stuck = [
        decision
        for name, decision in decisions.items()
        if name in live and not any(w for o, w in zip(decision.operands, decision.weights) if o.data)
    ]
    if stuck:
        raise NotBalanceableError(_not_balanceable_message(stuck, flow, outputs, table))
    held = {"backward": "held", "vjp": None, "sources": ()}
    return {
        name: d if name in live else Decision(**{**vars(d), **held, "weights": (0.0,) * len(d.operands)})
        for name, d in decisions.items()
    }


def _not_balanceable_message(stuck: list[Decision], flow: nx.DiGraph[str], outputs: list[str], table: RuleTable) -> str:
    lines = []
    for decision in stuck:
        target = next(o for o in outputs if nx.has_path(flow, decision.node, o))
        path = " -> ".join(nx.shortest_path(flow, decision.node, target))
        lines += [f"  {decision.op} at {decision.place}", f"    reaches the output by {path}"]
    return (
        f"under {table.name}, {len(stuck)} op(s) can only multiply (their backward passes nothing on), but reach the "
        "output as an addend:\n" + "\n".join(lines) + "\nAttribute what comes before: the logits instead of the "
        "probabilities, for example by converting the model without its last softmax."
    )


def _no_rule_message(unruled: list[_Unruled]) -> str:
    groups: dict[tuple[str, str], list[fx.Node]] = defaultdict(list)
    for u in unruled:
        groups[str(u.node.target), u.problem].append(u.node)
    lines = []
    for (op, problem), nodes in groups.items():
        lines.append(f"  {op} {problem} ({len(nodes)} x)")
        lines += [f"    at {place_of(n)}" for n in nodes[:3]]
        lines += [f"    and {len(nodes) - 3} more"] if len(nodes) > 3 else []
        if problem == "has no row":
            tensors = [a.name for a in nodes[0].target._schema.arguments if "Tensor" in str(a.type)]  # type: ignore[union-attr]
            first = tensors[0] if tensors else "self"
            lines.append(f'    add to the section of its kind: "{op.rpartition(".")[0]}" = {{ carrier = "{first}" }}')
    return (
        f"{len(groups)} op(s) have no rule:\n" + "\n".join(lines) + "\nPut the rows into a TOML file of your own, "
        "under [linear], [piecewise_linear], [gated_activation], [squash], [gate] or another kind, and pass "
        'rules=["libragrad", "my_rules.toml"]; rules/README.md explains the kinds.'
    )
