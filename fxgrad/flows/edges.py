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
from fxgrad.flows.run import Run
from fxgrad.flows.tokens import Tokens
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
        for first in range(0, len(reached), size):
            some = torch.tensor(reached[first : first + size], device=g.device)
            found[:, some] = self._rows(k, name, tokens.alone(g, some)).T.to(found)
        return found

    def _rows(self, k: int, name: str, stack: Tensor) -> Tensor:
        """The contributions to several cotangents of one value; one by one where an op's gradient cannot be batched."""
        if len(stack) > 1:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)  # of ops that go singly
                try:
                    rows: Tensor = torch.vmap(lambda g: self.row(k, {name: g})[0])(stack)
                    return rows
                except torch.OutOfMemoryError:
                    raise
                except (RuntimeError, InputError):  # what is wrong with a single one is said below
                    pass
        return torch.stack([self.row(k, {name: g})[0] for g in stack])
