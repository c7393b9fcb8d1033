"""What constants contribute: at every node with sources b and cotangent g, the elementwise product g * b.

An offset is computed from the original op, apart from any backward, so that no fault of a backward can hide in it. It
is made of tensor operations only, without a branch on values, so that `make_fx` traces it.

Source: FullGrad (Srinivas & Fleuret, NeurIPS 2019, arXiv:1905.00780), eq. 1, applied to every node.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxgrad.decision import Decision
from fxgrad.lookup import placeholders_of
from fxgrad.module import ConvertedModule
from fxgrad.roles import Kind

Pairs = list[tuple[Any, Any]]
"""Cotangents and what they meet, tensors or lists of them: <g, b> is the sum over all."""


class Recorder(fx.Interpreter):
    """Runs a program and keeps the values of its nodes.

    Args:
        program: what to run.
        keep: names of the nodes to keep; all of them by default.
    """

    def __init__(self, program: fx.GraphModule, keep: Collection[str] | None = None) -> None:
        super().__init__(program, garbage_collect_values=keep is not None)
        self.keep = keep
        self.values: dict[str, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if self.keep is None or n.name in self.keep:
            self.values[n.name] = result
        return result


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


@dataclass(frozen=True)
class Contributions:
    """One run forwards and one backwards, taken apart.

    Attributes:
        outputs: the program's, flattened, detached.
        inputs: name of each attributed input (for token ids, of their embedding) -> its value, detached.
        gradients: the same names -> the gradient, shaped as the input; 0 where nothing arrives.
        sources: node name -> g * b, whose elements add up to what the node's constants contribute. Mostly one tensor,
            shaped as the node's output; more where they have no shape in common, as of a layer with several biases.
        values: name of each node that was asked for -> its value, detached.
        cotangents: the same names -> the gradient of the value; None where nothing arrives.
    """

    outputs: list[Any]
    inputs: dict[str, Tensor]
    gradients: dict[str, Tensor]
    sources: dict[str, tuple[Tensor, ...]]
    values: dict[str, Any]
    cotangents: dict[str, Any]


Cotangents = Sequence["Tensor | None"]


class Recording:
    """One run forwards of a converted program, recorded, from which to go backwards as often as wanted.

    Args:
        converted: what `fxgrad.convert` returned.
        entries: what `converted.entries` returned: the inputs, then the embedded tokens.
        also: names of further nodes whose values and cotangents are wanted.
        sources: whether the sources are wanted.

    Attributes:
        outputs: the program's, flattened, detached.

    Example:
        >>> import fxgrad
        >>> x = torch.randn(2, 3)
        >>> run = Recording(fxgrad.convert(torch.nn.GELU().eval(), (x,)), [x])
        >>> run.back([torch.ones(2, 3)]).gradients["input"].shape
        torch.Size([2, 3])
    """

    def __init__(
        self, converted: ConvertedModule, entries: Sequence[Any], also: Collection[str] = (), sources: bool = True
    ) -> None:
        captured = converted.classified.captured
        entries = [v.detach().requires_grad_() if d.attributed else v for v, d in zip(entries, captured.entries)]
        placeholders = placeholders_of(captured.graph)[len(captured.state) :]
        self.converted, self.also, self.sources = converted, also, sources
        self.names = {n.name: d.name for n, d in zip(placeholders, captured.entries) if d.attributed}
        self.inputs = {n.name: v for n, v in zip(placeholders, entries) if n.name in self.names}
        self.decisions = {n: d for n, d in converted.classified.decisions.items() if sources and has_offset(d)}
        recorder = Recorder(converted.program, {*also, *self.decisions, *(reads(converted) if sources else ())})
        with torch.enable_grad():
            self._outputs = list(recorder.run(*converted.state, *entries))
        self._recorded = recorder.values
        self.outputs = [_detached(v) for v in self._outputs]

    def back(self, cotangents: Cotangents, *, last: bool = True) -> Contributions:
        """What everything contributes to <v, f(x)>; see `contributions`.

        Args:
            cotangents: v, one per flattened output, shaped alike; None for an output that takes no part.
            last: whether what was recorded may be freed.
        """
        wanted = dict.fromkeys([*self.inputs, *self.also, *self.decisions])
        ends = {name: self.inputs.get(name, self._recorded.get(name)) for name in wanted}
        g = _backward(self._outputs, cotangents, ends, keep=not last)
        values = pytree.tree_map(_detached, self._recorded)
        offsets = Offsets(self.converted, values)
        parts = {name: offsets.of(d, g[name]) for name, d in self.decisions.items() if g[name] is not None}
        if self.sources:
            parts |= _unreached(self.converted, self._outputs, cotangents)
        return Contributions(
            self.outputs,
            {self.names[name]: v.detach() for name, v in self.inputs.items()},
            {self.names[n]: torch.zeros_like(v) if g[n] is None else g[n] for n, v in self.inputs.items()},
            {name: products(pairs) for name, pairs in parts.items() if pairs},
            {name: values[name] for name in self.also},
            {name: g[name] for name in self.also},
        )


def contributions(
    converted: ConvertedModule,
    entries: Sequence[Any],
    cotangents: Cotangents | Callable[[list[Any]], Cotangents],
    *,
    also: Collection[str] = (),
    sources: bool = True,
) -> Contributions:
    """What every input and every constant contributes to <v, f(x)>, from one run forwards and one backwards.

    The gradients with respect to the attributed inputs and to the nodes' values come from a single call of
    `torch.autograd.grad`. Nothing branches on a value, so that `torch.fx.experimental.proxy_tensor.make_fx` traces it.

    Args:
        converted: what `fxgrad.convert` returned.
        entries: what `converted.entries` returned: the inputs, then the embedded tokens.
        cotangents: v, one per flattened output, shaped alike; None for an output that takes no part. Or a function that
            makes them of the outputs.
        also: names of further nodes whose values and cotangents are wanted.
        sources: whether the sources are wanted.

    Returns:
        The contributions. Inputs times gradients and sources add up to <v, f(x)> if the policy balances.

    Raises:
        RuntimeError: an op that has no gradient; `fxgrad.check` says which and where.

    Example:
        >>> import fxgrad
        >>> x = torch.randn(2, 3, dtype=torch.float64)
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)).double().eval()
        >>> found = contributions(fxgrad.convert(model, (x,)), [x], [torch.ones(2, 1).double()])
        >>> {name: tuple(part.shape for part in parts) for name, parts in found.sources.items()}
        {'linear': (torch.Size([2, 4]),), 'tanh': (torch.Size([2, 4]),), 'linear_1': (torch.Size([2, 1]),)}
        >>> kept = sum(part.sum() for parts in found.sources.values() for part in parts)
        >>> torch.allclose((x * found.gradients["input"]).sum() + kept, model(x).sum())
        True

    Source: FullGrad, arXiv:1905.00780, eq. 1; LibraGrad, arXiv:2411.16760, section 3.
    """
    run = Recording(converted, entries, also, sources)
    return run.back(cotangents(run.outputs) if callable(cotangents) else cotangents)


def _unreached(converted: ConvertedModule, outputs: list[Any], cotangents: Cotangents) -> dict[str, Pairs]:
    """Outputs that no attributed input reaches: they explain themselves."""
    nodes = pytree.tree_leaves(converted.program.graph.output_node().args[0])
    captured = converted.classified.captured
    placeholders = placeholders_of(captured.graph)[len(captured.state) :]
    reached = {n.name for n, d in zip(placeholders, captured.entries) if d.attributed}
    reached |= set(converted.classified.decisions)
    found: dict[str, Pairs] = {}
    for node, value, g in zip(nodes, outputs, cotangents):
        if g is not None and node.name not in reached:
            found.setdefault(node.name, []).append((g, _detached(value)))
    return found


def _backward(
    outputs: list[Any], cotangents: Sequence[Any], values: Mapping[str, Any], *, keep: bool
) -> dict[str, Any]:
    """The cotangents of values, tensors or lists of them, from one call of autograd."""
    ends = [v for v, g in zip(outputs, cotangents) if g is not None and v.requires_grad]
    starts = [g for v, g in zip(outputs, cotangents) if g is not None and v.requires_grad]
    leaves, spec = pytree.tree_flatten(dict(values))
    reached = [isinstance(v, Tensor) and v.requires_grad for v in leaves]
    wanted = [v for v, r in zip(leaves, reached) if r]
    if not ends or not wanted:
        return dict.fromkeys(values)
    found = iter(torch.autograd.grad(ends, wanted, starts, retain_graph=keep, allow_unused=True))
    tree = pytree.tree_unflatten([next(found) if r else None for r in reached], spec)
    nothing = {name for name, g in tree.items() if all(leaf is None for leaf in pytree.tree_leaves(g))}
    return {name: None if name in nothing else g for name, g in tree.items()}


def products(pairs: Pairs) -> tuple[Tensor, ...]:
    """g * b of every pair; one tensor where all are shaped alike, and the real part where they are complex."""
    flat: list[tuple[Tensor, Tensor]] = []
    for g, b in pairs:
        items = zip(g, b) if isinstance(b, (list, tuple)) else [(g, b)]
        flat += [(gi, bi) for gi, bi in items if gi is not None]
    parts = [(g.conj() * b).real if b.is_complex() else torch.where(g == 0, 0, g * b) for g, b in flat]
    alike = all(part.shape == parts[0].shape for part in parts)
    return (torch.stack(parts).sum(0),) if alike and len(parts) > 1 else tuple(parts)


def _detached(leaf: Any) -> Any:
    return leaf.detach() if isinstance(leaf, Tensor) else leaf
