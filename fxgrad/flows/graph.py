"""`fxgrad.flow`: how the value of a target flows through a model, from inputs and constants over cuts to the target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import networkx as nx
from torch import Tensor

from fxgrad.errors import InputError
from fxgrad.flows.balance import refuse_unbalanced
from fxgrad.flows.cuts import Stretches, stretches
from fxgrad.flows.edges import Edges
from fxgrad.flows.late import with_late_halves
from fxgrad.flows.run import Run
from fxgrad.flows.single import of_one_example, tokens_of_all
from fxgrad.flows.strongest import strongest
from fxgrad.flows.tokens import Tokens
from fxgrad.flows.units import Place
from fxgrad.methods.names import Names
from fxgrad.methods.problem import Problem
from fxgrad.methods.targets import Target
from fxgrad.module.converted import ConvertedModule

TARGET = "target"
"""The name of the graph's only sink."""


def flow(
    converted: ConvertedModule,
    args: tuple[Any, ...] | Tensor = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    target: Target,
    cuts: Sequence[Place] | None = None,
    top: int | None = None,
    class_names: Names | None = None,
    token_names: Sequence[str] | None = None,
) -> nx.DiGraph[str]:
    """How a target's value flows through a model: an attribution graph.

    A balanced backward is a linear map at one example, so that the share <h, g> of every token h is what flows into it
    from the tokens of the cut before and from the constants in between, and what flows out of it. It takes about as
    many backward passes of the whole model as there are tokens at a cut.

    Args:
        converted: what `fxgrad.convert` returned, under a policy that balances.
        args, kwargs: one example, as for calling the module.
        target: as for `fxgrad.attribute`.
        cuts: module paths: the model is cut at what leaves these modules; or `fxgrad.Heads`, `fxgrad.Channels`, which
            divide each token. By default at what enters each block. A value that passes by, such as a skip connection
            over several blocks, is a part of the cut.
        top: how many edges to keep between two cuts, the strongest; all others are booked in one node "rest" for each
            stretch. By default all are kept.
        class_names: for targets by name, as for `fxgrad.attribute`.
        token_names: the input's tokens as text.

    Returns:
        The graph, edges from inputs to the target, with attributes that GraphML and JSON have. Nodes are the tokens of
        the inputs and of the values at the cuts, the cells of a map, or a value as a whole where it has neither; the
        constants between two cuts are a node. They have `kind` ("input", "token", "constants", "rest", "target"),
        `cut`, `layer` (0 for inputs, k for the k-th cut), `value` (what they are a part of), `name`, `share`, and where
        they have a position `token`, `row`, `column`, `rows`, `columns`; where tokens are divided `part`, such as
        "head 1", and `whole`, the token's number. Edges have `weight`: how much of the target's value flows there. Into
        and out of every inner node flows its `share`; roots are inputs and constants; the only sink is "target", whose
        share is the target's value. The graph has `target`, `rules`, `value`, and `error`, the largest relative
        difference at a node.

    Raises:
        InputError: several examples, no such module, two cuts at one value, a policy or a target that does not add up.
        NotBalanceableError, NoRuleError: the target reads an output that cannot be balanced.

    Example:
        >>> import fxgrad, timm, torch
        >>> vit = timm.create_model("test_vit", img_size=32, num_classes=5).eval()
        >>> x = torch.randn(1, 3, 32, 32)
        >>> graph = flow(fxgrad.convert(vit, (x,)), (x,), target=3, cuts=["blocks.1", "blocks.3"])
        >>> len(graph), round(graph.in_degree("target", weight="weight") / vit(x)[0, 3].item(), 4)
        (16, 1.0)
        >>> graph.nodes["blocks.3[0]"]["name"], graph.nodes["x[4]"]["name"]
        ('class token', 'patch 1, 1')

    Source: Ameisen et al., Circuit Tracing, transformer-circuits.pub 2025, for the graph; LibraGrad, arXiv:2411.16760,
    for the linear map.
    """
    if top is not None and (isinstance(top, bool) or not isinstance(top, int) or top < 0):
        raise InputError(f"top is how many edges to keep between two cuts, a whole number from 0, not {top!r}.")
    if isinstance(cuts, str):
        raise InputError(f"cuts are several module paths. Pass cuts=[{cuts!r}].")
    problem = of_one_example(converted, args, kwargs, target, class_names, "a flow", "fxgrad.flow")
    cut = with_late_halves(problem, stretches(problem, cuts))
    run = Run(problem, cut)
    named = dict.fromkeys([*run.inputs, *(name for one in cut.cuts for name in one.nodes)])
    last = cut.cuts[-1].node if cut.cuts else None
    tokens = tokens_of_all(problem, {name: run.values[name] for name in named}, last, token_names)
    for one in cut.cuts:
        if one.by is not None:
            tokens[one.node] = one.by.divided(tokens[one.node], run.values[one.node], problem.nodes[one.node])
    graph = _Graph(problem, run, tokens).made()
    refuse_unbalanced(graph, problem)
    return graph if top is None else strongest(graph, top)


class _Graph:
    """The graph while it is made, from the target back to the inputs."""

    def __init__(self, problem: Problem, run: Run, tokens: Mapping[str, Tokens]) -> None:
        self.problem, self.run, self.tokens, self.edges = problem, run, tokens, Edges(run, tokens)
        self.cut: Stretches = run.stretches
        self.named = {node.name: name for name, node in problem.inputs.items()}
        value = float(problem.aim.values[0])
        about = {"target": problem.aim.target.label, "rules": problem.converted.classified.table.name, "value": value}
        self.graph: nx.DiGraph[str] = nx.DiGraph()
        self.graph.graph.update(about)
        layer = len(self.cut.cuts) + 1
        self.graph.add_node(TARGET, kind="target", cut=TARGET, layer=layer, name=problem.aim.target.label, share=value)

    def made(self) -> nx.DiGraph[str]:
        last = len(self.cut.cuts)
        cotangents, ends = self._at_the_outputs(), [TARGET]
        for k in reversed(range(last + 1)):
            shares, before = self.edges.row(k, cotangents)
            weights = shares[:, None] if k == last else self.edges.of_stretch(k, cotangents)
            self._add(k, shares, weights, ends)
            names = self.cut.cuts[k - 1].nodes if k else ()
            cotangents, ends = {name: before[name] for name in names}, [n for m in names for n in self._nodes(m, k)]
        return self.graph

    def _at_the_outputs(self) -> dict[str, Tensor]:
        """The target's cotangents at the ends; an output that is returned twice gets the sum."""
        outputs: Any = self.problem.converted.classified.captured.graph.output_node().args[0]
        found: dict[str, Tensor] = {}
        for node, g in zip(outputs, self.problem.aim.cotangents):
            if g is not None:
                found[node.name] = found[node.name] + g if node.name in found else g
        return found

    def _nodes(self, name: str, layer: int) -> list[str]:
        """The names of a value's nodes at a cut, or at the inputs, where the layer is 0."""
        where = self._where(name, layer)
        return [f"{where}[{key}]" for key in self.tokens[name].keys]

    def _where(self, name: str, layer: int) -> str:
        cut = self.cut.cuts[layer - 1] if layer else None
        if cut is None:
            return self.named[name]
        own = f"{cut.name} (out)" if cut.name in self.problem.inputs else cut.name
        return own if name == cut.node else f"{own}, {self.named.get(name, name)}"

    def _add(self, k: int, shares: Tensor, weights: Tensor, ends: Sequence[str]) -> None:
        """Add the nodes that stretch k starts from, and its edges."""
        decisions = self.problem.converted.classified.decisions
        starts: list[tuple[str, dict[str, Any]]] = []
        for name in self.run.into(k):
            layer = k if name in self.run.starts[2 * k] else 0
            about: dict[str, Any] = {"cut": self.cut.cuts[k - 1].name if layer else self.named[name]}
            if layer and name in decisions and decisions[name].place.module_path:
                about["path"] = decisions[name].place.module_path
            about |= {"kind": "token" if layer else "input", "layer": layer, "value": self._where(name, layer)}
            for node, own in zip(self._nodes(name, layer), self.tokens[name].about):
                value = {"value": f"{about['value']}, {own['part']}"} if "part" in own else {}
                starts.append((node, {**about, **own, **value}))
        to = self.cut.cuts[k].name if k < len(self.cut.cuts) else TARGET
        node = f"constants before {to}"
        starts.append((node, {"kind": "constants", "cut": to, "layer": k, "name": node}))
        for (node, about), share, row in zip(starts, shares.tolist(), weights.tolist()):
            if about["kind"] == "constants" and not any(row):
                continue
            self.graph.add_node(node, **about, share=share)
            self.graph.add_edges_from((node, end, {"weight": w}) for end, w in zip(ends, row) if w != 0)
