"""One recorded run of a model in halves of stretches: autograd's graph ends behind each, and begins anew.

So the backward pass of a stretch is a call of its own, from the values at its end to those at its start, and a value
that another one of the same cut is computed from gets only what passes by that one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxgrad.flows.cuts import Stretches
from fxgrad.graph.replay import Interpreter
from fxgrad.methods.problem import Problem
from fxgrad.run.passes import arriving, at_once, measuring
from fxgrad.run.sources import Offsets, detached, products, reads, wide


class Recorded(Interpreter):
    """Runs a program and records each half of a stretch for itself.

    Args:
        program: the rewritten program.
        stretches: of it.
        keep: names of further nodes whose values to keep.

    Attributes:
        values: node name -> its value, recorded, for the kept nodes and all of the cuts and ends.
        starts: for each half, name of a node before it -> the value that the half starts from.
    """

    def __init__(self, program: fx.GraphModule, stretches: Stretches, keep: set[str]) -> None:
        super().__init__(program)
        self.half, self.starting = stretches.half, stretches.starting
        self.keep = keep.union(stretches.ends, *self.starting.values())
        self.values: dict[str, Any] = {}
        self.starts: list[dict[str, Tensor]] = [{} for _ in range(2 * len(stretches.cuts) + 2)]

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.name in self.keep:
            self.values[n.name] = result
        for half, names in self.starting.items():
            if n.name in names:
                self.starts[half][n.name] = result.detach().requires_grad_()
        return result

    def map_nodes_to_values(self, args: Any, n: fx.Node) -> Any:
        return fx.node.map_arg(args, lambda operand: self._read(operand, self.half.get(n.name)))

    def _read(self, operand: fx.Node, half: int | None) -> Any:
        """An operand as a node of some half sees it: of an earlier half, what starts here, or a constant."""
        own, value = self.half.get(operand.name), self.env[operand]
        if own is None or own == half:
            return value
        here = self.starts[half] if half is not None else {}
        return here.get(operand.name, pytree.tree_map(detached, value))


class Run:
    """A recorded run, and the backward passes of its stretches.

    Args:
        problem: the model, one example, and the target.
        stretches: of the model.

    Attributes:
        values: name of every node at a cut, and of every input -> its value, detached.
    """

    def __init__(self, problem: Problem, stretches: Stretches) -> None:
        converted, captured = problem.converted, problem.converted.classified.captured
        self.problem, self.stretches = problem, stretches
        self.sources = {n: d for n, d in converted.classified.decisions.items() if d.keeps and n in stretches.stretch}
        entries = [
            v.detach().requires_grad_() if d.attributed else v for d, v in zip(captured.entries, problem.entries)
        ]
        self.inputs = {n.name: v for n, v, d in zip(captured.entry_nodes, entries, captured.entries) if d.attributed}
        recorder = Recorded(converted.program, stretches, {*self.sources, *reads(converted)})
        with torch.enable_grad(), measuring(converted) as widest:
            self.outputs = list(converted.called(recorder.run, entries))
        self.device = next(v.device for v in self.outputs if isinstance(v, Tensor))
        self.widest, self.recorded, self.starts = widest[0], recorder.values, recorder.starts
        self.values = {n: pytree.tree_map(detached, v) for n, v in {**self.inputs, **self.recorded}.items()}
        self.offsets = Offsets(converted, self.values)
        self._offsets: dict[str, Tensor] = {}
        self.constant = set(stretches.ends) - self.inputs.keys() - converted.classified.decisions.keys()

    def into(self, k: int) -> dict[str, Tensor]:
        """Name of each value that stretch k starts from, inputs included -> the value, recorded."""
        return self._into(2 * k)

    def _into(self, half: int) -> dict[str, Tensor]:
        own = {n: v for n, v in self.inputs.items() if self.stretches.half.get(n) == half}
        return {**self.starts[half], **own}

    def back(self, k: int, cotangents: Mapping[str, Tensor]) -> tuple[dict[str, Tensor | None], Tensor]:
        """The backward pass of stretch k alone.

        Args:
            k: its index.
            cotangents: name of a value that it ends in, or that its late half starts from -> its cotangent, of some or
                all; the late half is left out if it starts from all of these.

        Returns:
            (name of each value that it starts from -> the cotangent that arrives; what the constants in between keep).
        """
        middle, kept = self.stretches.middle.get(k), torch.zeros((), device=self.device)
        early = middle is None or cotangents.keys() <= set(middle)
        found: dict[str, Any] = {}
        for half in [2 * k] if early else [2 * k + 1, 2 * k]:
            found = self._back(half, cotangents)
            shares = [self._kept(name, found[name]) for name in self._sources(half) if found[name] is not None]
            constant = [(g, self.recorded[name]) for name, g in cotangents.items() if name in self.constant]
            kept = sum([*shares, *(part.sum() for pair in constant for part in products([pair]))], kept)
            cotangents = {name: found[name] for name in self._into(half) if found[name] is not None}
        return {name: found[name] for name in self.into(k)}, kept

    def back_late(
        self, k: int, cotangents: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, tuple[Tensor, ...]]]:
        """The backward pass of the late half of stretch k alone.

        Args:
            k: its index.
            cotangents: as for `back`.

        Returns:
            (name of each value that it starts from -> the cotangent, where one arrives; name of a node -> what the
            elements of its constants contribute).
        """
        found = self._back(2 * k + 1, cotangents)
        reached = [name for name in self._sources(2 * k + 1) if found[name] is not None]
        parts = {name: products(self.offsets.of(self.sources[name], found[name])) for name in reached}
        return {name: found[name] for name in self._into(2 * k + 1) if found[name] is not None}, parts

    def _back(self, half: int, cotangents: Mapping[str, Tensor]) -> dict[str, Any]:
        """Name of each node with constants in a half, and of each value that it starts from -> its cotangent."""
        starts = self._into(half)
        ends, own = {**self.recorded, **starts}, {name: self.recorded[name] for name in self._sources(half)}
        return arriving([ends[n] for n in cotangents], list(cotangents.values()), {**own, **starts}, keep=True)

    def _sources(self, half: int) -> list[str]:
        return [name for name in self.sources if self.stretches.half[name] == half]

    def _kept(self, name: str, g: Any) -> Tensor:
        """What a node's constants contribute. An offset that is computed from values alone is computed once."""
        if name in self._offsets:
            return wide(g).flatten() @ self._offsets[name]
        pairs = self.offsets.of(self.sources[name], g)
        if len(pairs) == 1 and pairs[0][0] is g and isinstance(g, Tensor) and not g.is_complex():
            offset = wide(pairs[0][1].detach()).flatten()
            if bool(offset.isfinite().all()):
                self._offsets[name] = offset
        return sum((part.sum() for pair in pairs for part in products([pair])), torch.zeros((), device=self.device))

    def fitting(self, count: int) -> int:
        """How many backward passes go at once."""
        return at_once(count, self.widest, self.outputs)
