"""The weights of a stretch's edges: one batched backward pass, through that stretch only, for each token at its end.

The backward is a linear map g -> J g, and <h, J g> is what h contributes to <g, f(h)>. With g the target's cotangent at
one token of the later cut, and 0 at all others, it is split exactly over the tokens of the cut before and the constants
in between.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor

from fxgrad.errors import InputError
from fxgrad.flows.late import labels_of
from fxgrad.flows.run import Run
from fxgrad.flows.tokens import Tokens, alone
from fxgrad.run.sources import wide


class Edges:
    """The edges of a recorded run.

    Args:
        run: the run.
        tokens: name of every value at a cut, and of every input -> its tokens.
    """

    def __init__(self, run: Run, tokens: Mapping[str, Tokens]) -> None:
        self.run, self.tokens = run, tokens

    def of_stretch(self, k: int, cotangents: Mapping[str, Tensor]) -> Tensor:
        """The weights of all edges of stretch k, whose ends are at a cut.

        Args:
            k: its index.
            cotangents: name of each value that it ends in -> the target's cotangent.

        Returns:
            (tokens that it starts from, then its constants; tokens that it ends in).
        """
        return torch.cat([self._into(k, name, g) for name, g in cotangents.items()], 1)

    def row(self, k: int, cotangents: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """One backward pass of stretch k: (shares of its tokens, then of its constants; cotangents at its start)."""
        starts, kept = self.run.back(k, cotangents)
        values = self.run.values
        found = {name: torch.zeros_like(values[name]) if g is None else g for name, g in starts.items()}
        shares = [self.tokens[name].sums(g, values[name]) for name, g in found.items()]
        return torch.cat([*shares, kept.reshape(1)]), found

    def _into(self, k: int, name: str, g: Tensor) -> Tensor:
        """The weights of the edges into the tokens of one value; 0 where its cotangent is."""
        tokens = self.tokens[name]
        reached = tokens.reached(g)
        size = self.run.fitting(len(reached)) if reached else 1
        count = 1 + sum(len(self.tokens[n].about) for n in self.run.into(k))
        found = wide(g.new_zeros(count, len(tokens.about)))
        middle, kept = self._through_late(k, name, g)
        for first in range(0, len(reached), size):
            some = torch.tensor(reached[first : first + size], device=g.device)
            stacks = {n: alone(own, labels, some) for n, (own, labels) in middle.items()}
            found[:, some] = self._rows(k, stacks, len(some)).T.to(found)
        found[-1] += kept
        return found

    def _through_late(self, k: int, name: str, g: Tensor) -> tuple[dict[str, tuple[Tensor, Tensor]], Tensor | int]:
        """What stretch k's late half makes of the cotangent of a value at its end, for all tokens at once.

        Returns:
            (name of each value in the middle -> its cotangent, and index of the token of every element; what the
            constants behind contribute to each token). The end itself where there is no late half, or where it is not
            known which of the end's tokens an element belongs to.
        """
        run, tokens = self.run, self.tokens[name]
        whole = {name: (g, tokens.labels)}, 0
        if name in run.stretches.middle.get(k, (name,)) or not torch.equal(self._labels(name), tokens.labels):
            return whole
        middle, found = run.back_late(k, {name: g})
        parts = [(self._labels(n), part) for n, own in found.items() for part in own]
        if any(part.shape != labels.shape for labels, part in parts):
            return whole
        shares = torch.zeros(len(tokens.about), device=g.device, dtype=wide(g).dtype)
        for labels, part in parts:
            shares = shares.index_add(0, labels.flatten(), part.flatten())
        return {n: (own, self._labels(n)) for n, own in middle.items()}, shares

    def _labels(self, name: str) -> Tensor:
        return labels_of(self.run.problem, name, self.run.values[name])

    def _rows(self, k: int, stacks: Mapping[str, Tensor], count: int) -> Tensor:
        """The contributions to several cotangents of some values; one by one where a gradient cannot be batched."""
        if count > 1:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)  # of ops that go singly
                try:
                    rows: Tensor = torch.vmap(lambda given: self.row(k, given)[0])(dict(stacks))
                    return rows
                except torch.OutOfMemoryError:
                    raise
                except (RuntimeError, InputError):  # what is wrong with a single one is said below
                    pass
        each = [{name: stack[i] for name, stack in stacks.items()} for i in range(count)]
        return torch.stack([self.row(k, given)[0] for given in each])
