"""Idioms: what several nodes mean together, as an ordered list.

Each has a formula, a match on facts (roles, kinds, parts, whether an op is pointwise; never an op's name), and a reason
that the report prints. An idiom changes a node's kind or bounds its role when the walk meets the node. Two idioms
depend on later facts: scores are recognized by the softmax that they feed, and averages of constants are sources once
the policy holds their weights.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

from torch import fx

from fxgrad.classify.decision import Decision
from fxgrad.kinds import Kind, Operand, Role

Known = Mapping[str, Decision]
"""Node name -> decision, for the nodes met so far."""


@dataclass(frozen=True)
class Idiom:
    """One idiom, recognized at its last node from that node's operands.

    Attributes:
        formula: the idiom in one line.
        reason: what the report says; "" for nothing.
        matches: (the node's decision so far, earlier decisions) -> whether the idiom matches.
        kind: the node's new kind, or None to keep its own.
        ceiling: the strongest role that its result can have.
    """

    formula: str
    reason: str
    matches: Callable[[Decision, Known], bool]
    kind: Kind | None = None
    ceiling: Role = Role.CARRIER


def _computed_coefficient(decision: Decision, known: Known) -> bool:
    return decision.kind is Kind.LINEAR and any(o.part in ("coefficient", "held") for o in decision.data)


def _softmax_weights_times_values(decision: Decision, known: Known) -> bool:
    roles = {o.role for o in decision.data}
    return decision.kind is Kind.PRODUCT and min(roles) is Role.PURE_GATE and len(roles) > 1


def _number_plus_odd_squash(decision: Decision, known: Known) -> bool:
    found = known.get(_lifted(decision) or "")
    while found is not None and found.kind in (Kind.PRODUCT, Kind.QUOTIENT, Kind.LINEAR):
        if len(found.data) != 1 or found.sources or any(o.part == "coefficient" for o in found.operands):
            return False
        found = known.get(str(found.data[0].value))
    return found is not None and bool(found.options.get("odd"))


def _bounded_lifted(decision: Decision, known: Known) -> bool:
    bounds = [o for o in decision.operands if o.part == "source"]
    if not decision.options.get("bounded") or len(bounds) == 1:
        return False
    inner = known.get(str(decision.operands[0].value))
    return inner is not None and _lifted(inner) is not None


IDIOMS = (
    Idiom("x W(x)", "", _computed_coefficient, kind=Kind.PRODUCT),
    Idiom("softmax(.) v", "", _softmax_weights_times_values, kind=Kind.ATTENTION),
    Idiom("number + f(x), f odd and bounded", "as in 1 + tanh(x): a gate", _number_plus_odd_squash, ceiling=Role.GATE),
    Idiom("f(number + x), f with two bounds", "as in relu6(x + 3): a gate", _bounded_lifted, ceiling=Role.GATE),
)
"""All idioms in the order of matching; each sees the changes of earlier ones."""


def is_sum(decision: Decision) -> bool:
    """Whether the node adds operands element by element."""
    parts = [o.part for o in decision.operands]
    return decision.kind is Kind.LINEAR and decision.pointwise and len(parts) > 1 and set(parts) == {"carrier"}


def mixes(decision: Decision) -> bool:
    """Whether the node is a contraction: a matrix product, or a layer with weights."""
    if any(o.part == "coefficient" for o in decision.operands):
        return True
    return decision.kind in (Kind.PRODUCT, Kind.ATTENTION) and not decision.pointwise


def _lifted(decision: Decision) -> str | None:
    """The carrier of a sum number + carrier, else None. With a parameter, as tanh(x) + bias, it is a layer's output."""
    numbers = [o for o in decision.operands if not isinstance(o.value, str) and o.value != 0]
    carriers = [o for o in decision.operands if o.role is Role.CARRIER]
    return str(carriers[0].value) if is_sum(decision) and len(numbers) == len(carriers) == 1 else None


def kind_of_value(decision: Decision, seed_of: Callable[[Operand], str]) -> Kind | None:
    """The kind of the node's value: a move or a scaling keeps its operand's; x * gate(x) is a gated activation.

    None for a move of an input, which is the input still.

    Args:
        decision: the node's decision.
        seed_of: operand -> the node of which it is an elementwise function.
    """
    data = decision.data
    if decision.kind in (Kind.LINEAR, Kind.PRODUCT, Kind.QUOTIENT) and len(data) == 1 and not decision.sources:
        if "moves" in decision.options:
            return data[0].kind
        return decision.kind if mixes(decision) else data[0].kind or decision.kind
    gate_times_carrier = sorted(o.role for o in data) == [Role.GATE, Role.CARRIER]
    if decision.kind in (Kind.PRODUCT, Kind.QUOTIENT) and gate_times_carrier and not mixes(decision):
        return Kind.GATED_ACTIVATION if len({seed_of(o) for o in data}) == 1 else decision.kind
    return decision.kind


TOWARDS = frozenset({Kind.LINEAR, Kind.PRODUCT, Kind.QUOTIENT, Kind.PIECEWISE_LINEAR, Kind.SQUASH})
"""Kinds of ops allowed between scores and the softmax: scalings, masks, soft caps."""
ELEMENTWISE = TOWARDS | {Kind.GATE, Kind.POWER, Kind.GATED_ACTIVATION}
"""Kinds of ops allowed between x and the gate of x * gate(x)."""


def with_scores(graph: fx.Graph, decisions: Known, ends: Collection[str]) -> dict[str, Decision]:
    """q k^T: a contraction that only feeds a softmax is attention, like a product with softmax weights.

    Args:
        graph: the captured graph.
        decisions: of the nodes that count.
        ends: names of the nodes of outputs that count.
    """
    towards: set[str] = set()
    scores: dict[str, Decision] = {}
    for node in reversed(graph.nodes):
        decision = decisions.get(node.name)
        # A constant computed from the scores, such as a detached maximum, does not count as a user.
        users = [decisions.get(user.name) for user in node.users if user.name in decisions]
        users += [None] if node.name in ends else []
        if decision and all(user and (user.kind is Kind.SOFTMAX or user.node in towards) for user in users):
            if decision.kind is Kind.PRODUCT and len(decision.data) > 1:
                scores |= {node.name: replace(decision, kind=Kind.ATTENTION)} if mixes(decision) else {}
            elif decision.kind in TOWARDS and not mixes(decision):
                towards.add(node.name)
    return {**decisions, **scores}


def with_averages(decisions: Known) -> dict[str, Decision]:
    """x + softmax(.) c: the average of constants, such as a learned memory, is a source once its weights are held.

    It is then a constant, like a class token's value: where it is added to a carrier, and where it lies beside one in
    one tensor. An average that meets no carrier stays as it is: nothing would be left to attribute.
    """
    weights: set[str] = set()  # names of held softmaxes, and of linear functions of them
    weighed: set[str] = set()  # names of constants times such weights, element by element, before they are summed
    averages: set[str] = set()
    found: dict[str, Decision] = {}
    for name, decision in decisions.items():
        passing = {str(o.value) for o, w in zip(decision.operands, decision.weights) if o.data and w != 0}
        if not passing:
            if decision.kind is Kind.SOFTMAX and not decision.options.get("log"):
                weights.add(name)
            elif decision.kind is Kind.ATTENTION and _averages_constants(decision):
                averages.add(name)
        elif passing <= averages:
            averages.add(name)
        elif passing <= weights | weighed:
            if _averages_constants(decision) or (passing & weighed and _sums_axes(decision)):
                averages.add(name)
            elif decision.kind in (Kind.LINEAR, Kind.PRODUCT, Kind.QUOTIENT):
                (weighed if passing & weighed or _times_constants(decision) else weights).add(name)
        elif any(held := [str(o.value) in averages and _added(o, decision) for o in decision.operands]):
            shares = tuple(0.0 if h else w for h, w in zip(held, decision.weights))
            names = tuple(f"{o.value}, its weights held" for o, h in zip(decision.operands, held) if h)
            found[name] = replace(decision, weights=shares, sources=decision.sources + names)
    return {**decisions, **found}


def _averages_constants(decision: Decision) -> bool:
    """Whether the node is a contraction of softmax weights with constants."""
    parts = {"coefficient", "factor", "value"}
    if decision.kind is not Kind.LINEAR:
        parts.add("carrier")  # the weights are the coefficient, as in a bag of embeddings
    return mixes(decision) and any(_constant(o) for o in decision.operands if o.part in parts)


def _times_constants(decision: Decision) -> bool:
    """Whether the node multiplies with constant tensors element by element."""
    return decision.kind is Kind.PRODUCT and any(_constant(o) for o in decision.operands if o.part == "factor")


def _constant(operand: Operand) -> bool:
    return not operand.data and isinstance(operand.value, str)


def _sums_axes(decision: Decision) -> bool:
    """Whether the node adds up elements of its operand, as a sum or a mean over axes."""
    return decision.kind is Kind.LINEAR and not decision.pointwise and "moves" not in decision.options


def _added(operand: Operand, decision: Decision) -> bool:
    """Whether the operand enters additively."""
    whole = decision.kind in (Kind.LINEAR, Kind.PIECEWISE_LINEAR) and operand.part == "carrier"
    return whole or operand.part == "source"
