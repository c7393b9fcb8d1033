"""What a method of the inputs varies: the inputs themselves, or the tokens that enter the first block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fxgrad.errors import InputError
from fxgrad.methods.definition import Map
from fxgrad.methods.placing import per_token, span
from fxgrad.methods.problem import Problem

PLACES = ("input", "tokens")
"""Where a method of the inputs may be taken."""


@dataclass(frozen=True, eq=False)
class Ends:
    """The values that a method of the inputs varies, by name.

    Attributes:
        problem: where they were read.
        node: name of the node that holds the tokens; None: the inputs are varied.
    """

    problem: Problem
    node: str | None

    @cached_property
    def values(self) -> dict[str, Tensor]:
        """Name of an input, or of the node -> its value. The node's takes a forward pass, so it is read once."""
        problem = self.problem
        if self.node is None:
            entries = zip(problem.inputs, problem.entries)
            return {name: value for name, value in entries if name in problem.attributed}
        return problem.values([self.node])

    def moved(self, values: Mapping[str, Tensor]) -> Problem:
        """The problem at other values of the ends."""
        return self.problem.at(values) if self.node is None else self.problem.at({}, values)

    def spans(self) -> dict[str, Tensor]:
        """Largest less smallest element of each example's values, in the values' shapes."""
        nodes = self.problem.inputs if self.node is None else self.problem.nodes
        problem = self.problem
        return {name: span(x, nodes[name], problem.anatomy, problem.batch) for name, x in self.values.items()}

    def gradients(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The target's gradient at other values of the ends, shaped as they are."""
        if self.node is None:
            return self.moved(values).run().gradients
        g = self.moved(values).run([self.node]).cotangents[self.node]
        return {self.node: torch.zeros_like(values[self.node]) if g is None else g}

    def map(self, parts: Mapping[str, Tensor], apart: Tensor | None = None) -> Map:
        """Numbers for each element of the ends, summed over channels, as a map of the inputs or of the tokens.

        Args:
            parts: name -> a tensor shaped as the value.
            apart: as in `Map`.
        """
        problem = self.problem
        if self.node is None:
            return Map(apart=apart, maps={name: problem.reduced(name, part) for name, part in parts.items()})
        node = problem.nodes[self.node]
        tokens, lost = per_token(parts[self.node], node, problem.anatomy, problem.batch, problem.example)
        return Map(tokens=tokens, apart=None if apart is None else apart + lost)


def ends(problem: Problem, method: str, at: str) -> Ends:
    """The values that a method of the inputs varies.

    Args:
        problem: the model and its inputs.
        method: the method's name.
        at: "input", or "tokens": the input of the first block that all of the flow passes through.

    Raises:
        InputError: `at` is neither; or the model has no blocks of tokens.
    """
    if at not in PLACES:
        raise InputError(f"at is {' or '.join(map(repr, PLACES))}, not {at!r}: where {method} is taken.")
    if at == "input":
        return Ends(problem, None)
    problem.refuse_several(method)
    return Ends(problem, problem.blocks(f"{method} at the tokens", complete=True)[0].entry)
