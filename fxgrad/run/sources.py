"""What constants contribute: at every node with sources b and cotangent g, the elementwise product g * b.

An offset is computed from the original op, apart from any backward, so that no fault of a backward can hide in it. It
is made of tensor operations only, without a branch on values, so that `make_fx` traces it.

Source: FullGrad (Srinivas & Fleuret, NeurIPS 2019, arXiv:1905.00780), eq. 1, applied to every node.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from fxgrad.classify.decision import Decision
from fxgrad.kinds import Kind
from fxgrad.module.converted import ConvertedModule

Pairs = list[tuple[Any, Any]]
"""Cotangents and what they meet, tensors or lists of them: <g, b> is the sum over all."""


class Offsets:
    """The offsets b of a run's nodes, and the vjps of single nodes.

    Args:
        converted: what `fxgrad.convert` returned.
        values: node name -> its value in one run of the program; those that `reads` names will do.
    """

    def __init__(self, converted: ConvertedModule, values: Mapping[str, Any]) -> None:
        self.values = values
        self.decisions = converted.classified.decisions
        self.rewritten = {n.name: n for n in converted.program.graph.nodes}
        self.originals = {n.name: n for n in converted.classified.captured.graph.nodes}

    def carrying(self, decision: Decision) -> list[str]:
        """The operands that a cotangent may travel on to: live nodes and attributed inputs."""
        names = dict.fromkeys(str(o.value) for o in decision.operands if o.data)
        return [n for n in names if n not in self.decisions or self.decisions[n].live]

    def vjp(self, node: fx.Node, wanted: list[str], g: Any, at: Callable[[Tensor], Tensor] = torch.detach) -> list[Any]:
        """The vjp of one node's call for some of its operands: None where nothing arrives."""
        leaves = {name: at(self.values[name]).requires_grad_() for name in wanted}
        with torch.enable_grad():
            result = self.call(node, leaves)
        pairs = [
            (z, c)
            for z, c in zip(*(v if isinstance(v, (list, tuple)) else [v] for v in (result, g)))
            if c is not None and z.requires_grad
        ]
        if not pairs or not leaves:
            return [None] * len(wanted)
        return list(
            torch.autograd.grad([z for z, _ in pairs], list(leaves.values()), [c for _, c in pairs], allow_unused=True)
        )

    def call(self, node: fx.Node, substitutes: Mapping[str, Any]) -> Any:
        """A node's result, with other operands in the place of some."""
        args, kwargs = fx.node.map_arg(
            (node.args, node.kwargs),
            lambda n: substitutes[n.name] if n.name in substitutes else self.values.get(n.name),
        )
        return node.target(*args, **kwargs)  # type: ignore[operator]

    def of(self, decision: Decision, g: Any) -> Pairs:
        """What the node's constants contribute, without looking at its backward: pairs whose <g, b> add up to it.

        An affine op shows b where its carriers are 0. A piecewise linear one has an offset per piece,
        z - J a, with J from the original op's own derivative.
        """
        if not has_offset(decision):
            return []
        original, carrying = self.originals[decision.node], self.carrying(decision)
        if decision.kind is Kind.PIECEWISE_LINEAR and decision.sources:
            native = self.vjp(original, carrying, g)
            handed = [(-j, self.values[name]) for j, name in zip(native, carrying) if j is not None]
            return [(g, self.values[decision.node]), *handed]
        if decision.vjp == "twin":
            # What is held in it can be had from the twin only, so from b's gradient.
            names = [str(o.value) for o in decision.operands if not o.data and o.part in ("carrier", "source")]
            gradients = self.vjp(self.rewritten[decision.node], names, g)
            return [(b, self.values[name]) for b, name in zip(gradients, names) if b is not None]
        if decision.vjp == "secant" and point(decision):
            return [(g, self._intercept(decision, carrying[0]))]
        zeros = {name: torch.zeros_like(self.values[name]) for name in carrying}
        with torch.no_grad():
            for name in decision.through:
                zeros[name] = self.call(self.originals[name], zeros)
            return [(g, self.call(original, zeros))]

    def _intercept(self, decision: Decision, name: str) -> Tensor:
        """b of a secant through (r, 0): what it is at x = 0."""
        x, y, r = self.values[name], self.values[decision.node], point(decision)
        (limit,) = self.vjp(self.originals[decision.node], [name], torch.ones_like(y))
        return -r * torch.where(x == r, limit, y / (x - r))


def has_offset(decision: Decision) -> bool:
    """Whether a node's constants may contribute something."""
    if not decision.live:
        return False
    secant_gate = decision.row is not None and decision.row.options.get("secant", False)
    through_secant = decision.kind is Kind.SQUASH or bool(secant_gate)
    shifted = decision.vjp == "secant" and point(decision) != 0
    return bool(decision.sources) or decision.vjp == "twin" or shifted or (through_secant and not point(decision))


def point(decision: Decision) -> float:
    """Where on the x axis the node's secant is taken."""
    return float(decision.row.options.get("through", 0)) if decision.row else 0.0


def reads(converted: ConvertedModule) -> set[str]:
    """Names of the nodes whose values the offsets are computed from."""
    nodes = {n.name: n for n in converted.classified.captured.graph.nodes}
    decisions = [d for d in converted.classified.decisions.values() if has_offset(d)]
    own = [nodes[name] for d in decisions for name in (d.node, *d.through)]
    return {n.name for node in own for n in (node, *node.all_input_nodes)}


def products(pairs: Pairs) -> tuple[Tensor, ...]:
    """g * b of every pair; one tensor where all are shaped alike, and the real part where they are complex."""
    flat: list[tuple[Tensor, Tensor]] = []
    for g, b in pairs:
        items = zip(g, b) if isinstance(b, (list, tuple)) else [(g, b)]
        flat += [(gi, bi) for gi, bi in items if gi is not None]
    parts = [(g.conj() * b).real if b.is_complex() else torch.where(g == 0, 0, g * b) for g, b in flat]
    alike = all(part.shape == parts[0].shape for part in parts)
    return (torch.stack(parts).sum(0),) if alike and len(parts) > 1 else tuple(parts)


def detached(leaf: Any) -> Any:
    return leaf.detach() if isinstance(leaf, Tensor) else leaf
