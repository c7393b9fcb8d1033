"""Idioms: what several nodes mean together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import fx

from fxgrad.classify.decision import Decision
from fxgrad.kinds import Kind

SUMS = ("aten.add.", "aten.sub.", "aten.rsub.")
SOFTMAXES = ("aten.softmax.", "aten._softmax.", "aten._safe_softmax.")


def scores_of(graph: fx.Graph, facts: Mapping[str, Decision]) -> dict[str, Decision]:
    """Contractions that feed nothing but a softmax: the scores q k^T of an attention that is written out."""
    towards: set[str] = set()
    scores: dict[str, Decision] = {}
    for node in reversed(graph.nodes):
        decision = facts.get(node.name)
        # A constant that is computed from it, such as a detached maximum, is no user.
        users = [facts.get(user.name) for user in node.users if user.op == "output" or user.name in facts]
        if decision and all(user and (user.kind is Kind.SOFTMAX or user.node in towards) for user in users):
            data = [o for o in decision.operands if o.data]
            if decision.kind is Kind.PRODUCT and len(data) > 1:
                scores |= {node.name: replace(decision, kind=Kind.ATTENTION)} if mixes(decision) else {}
            elif decision.kind in TOWARDS and not mixes(decision):
                towards.add(node.name)
    return scores


def mixes(decision: Decision) -> bool:
    """Whether it is a contraction: a matrix product, or a layer with weights."""
    if any(o.part == "coefficient" for o in decision.operands):
        return True
    return decision.kind in (Kind.PRODUCT, Kind.ATTENTION) and decision.op.split(".")[1] not in ("mul", "addcmul")


TOWARDS = frozenset({Kind.LINEAR, Kind.PRODUCT, Kind.QUOTIENT, Kind.PIECEWISE_LINEAR, Kind.SQUASH})
"""What may happen to scores on their way to the softmax: scalings, masks, soft caps."""


ELEMENTWISE = TOWARDS | {Kind.GATE, Kind.POWER, Kind.GATED_ACTIVATION}
"""What may lie between x and the gate of x * gate(x)."""
