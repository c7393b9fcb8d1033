"""The model's answer on every subset of a picture's parts, and what follows from it: exact Shapley and Banzhaf values.

Sixteen players have 65,536 coalitions, few enough to run them all. So these values are computed, not estimated: a truth
about the model that no attribution method had a hand in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fxgrad.errors import InputError
from fxgrad.metrics.removal import Removal

__all__ = ["Game", "coalitions"]

PLAYERS = 16
"""The largest number of players: each more doubles the cost."""


@dataclass(frozen=True, eq=False)
class Game:
    """The value of every coalition of players, for several pictures.

    Attributes:
        values: float64 (batch, 2 ** players). Bit i of the second index says whether player i takes part, so that 0 is
            the empty coalition and -1 that of all.

    Example:
        >>> game = Game(torch.tensor([[0.0, 1.0, 2.0, 4.0]]))
        >>> game.shapley().tolist(), game.banzhaf().tolist()
        ([[1.5, 2.5]], [[1.5, 2.5]])
    """

    values: Tensor

    @property
    def players(self) -> int:
        return self.values.shape[1].bit_length() - 1

    def shapley(self) -> Tensor:
        """Shapley values, float64 (batch, players); they add up to the value of all less that of none.

        Source: Shapley, A value for n-person games, 1953: the mean, over all orders of the players, of what a player
        adds to those before it.
        """
        n = self.players
        others = [1 / (n * math.comb(n - 1, size)) for size in range(n)]
        return self._mean_gain(torch.tensor(others, dtype=torch.float64))

    def banzhaf(self) -> Tensor:
        """Banzhaf values, float64 (batch, players): the mean, over all coalitions of the others, of what a player adds.

        Source: Banzhaf, Weighted voting doesn't work, Rutgers Law Review 19, 1965.
        """
        return self._mean_gain(torch.full((self.players,), 2.0 ** (1 - self.players), dtype=torch.float64))

    def _mean_gain(self, weights: Tensor) -> Tensor:
        """For each player, the sum of what it adds to coalitions of k others, each times `weights[k]`."""
        n, found = self.players, []
        sizes = torch.arange(2**n).unsqueeze(1).bitwise_and(2 ** torch.arange(n)).ne(0).sum(1)
        for player in range(n):
            with_it = torch.arange(2**n).bitwise_and(2**player).ne(0)
            gains = self.values[:, with_it] - self.values[:, ~with_it]
            found.append(gains.double() @ weights[sizes[~with_it]])
        return torch.stack(found, 1)


@torch.no_grad()
def coalitions(
    removal: Removal,
    x: Tensor,
    target: Tensor,
    *,
    players: Tensor | None = None,
    empty: float | None = None,
    batch: int = 256,
) -> Game:
    """Run the model on every coalition: the target's logit with only the coalition's parts kept.

    Args:
        removal: how the others are removed, such as `Dropping(libra, grid)`.
        x: the model's input, (batch, C, H, W).
        target: class indices, int64 (batch,).
        players: the player that each of the removal's parts belongs to, int64 (parts,), from 0 on; by default each
            part is a player.
        empty: the value of the empty coalition, for models that have no answer without any token, such as those that
            average tokens; by default the model is run. It shifts the values of all players of a picture alike, so that
            no ranking or correlation depends on it.
        batch: coalitions per forward pass.

    Returns:
        The values of 2 ** players coalitions for each picture.

    Raises:
        InputError: more than 16 players, or numbers of players that leave one out; a value is not finite.

    Example:
        >>> from fxgrad.metrics import Replacing
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 1, bias=False))
        >>> _ = torch.nn.init.ones_(model[1].weight)
        >>> x = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
        >>> coalitions(Replacing(model, (2, 2)), x, torch.tensor([0])).shapley().tolist()
        [[1.0, 2.0, 3.0, 4.0]]

    Source: SHAP (Lundberg & Lee, NIPS 2017, arXiv:1705.07874), eq. 4, with the parts that are left out removed.
    """
    parts = math.prod(removal.grid)
    owner = torch.arange(parts) if players is None else players.cpu()
    n = _count(owner, parts)
    kept = torch.arange(2**n).unsqueeze(1).bitwise_and(2 ** torch.arange(n)).ne(0)[:, owner]
    values = torch.empty(len(x), 2**n, dtype=torch.float64)
    if empty is not None:
        values[:, 0] = empty
    # Coalitions of as many parts are of one shape, and run together.
    counts = kept.sum(1)
    for picture, (one, label) in enumerate(zip(torch.split(x, 1), target.tolist())):
        prepared = removal.prepare(one)
        for count in sorted(set(counts.tolist()) - ({0} if empty is not None else set())):
            for some in torch.split(torch.nonzero(counts == count).flatten(), batch):
                keep = kept[some].nonzero()[:, 1].view(len(some), count).to(x.device)
                repeated = tuple(t.expand(len(some), *t.shape[1:]) for t in prepared)
                values[picture, some] = removal(repeated, keep)[:, label].double().cpu()
    _refuse_if_not_finite(values)
    return Game(values)


def _count(owner: Tensor, parts: int) -> int:
    """The number of players."""
    found = sorted(set(owner.tolist()))
    if owner.shape != (parts,) or found != list(range(len(found))):
        raise InputError(
            f"players names the player of each of the {parts} parts, numbered from 0 without gaps; got a tensor "
            f"{tuple(owner.shape)} with {len(found)} numbers up to {max(found, default=0)}."
        )
    if len(found) > PLAYERS:
        raise InputError(
            f"{len(found)} players have 2 ** {len(found)} coalitions, too many to run. Join parts into at most "
            f"{PLAYERS} players: players=, the player of each part."
        )
    return len(found)


def _refuse_if_not_finite(values: Tensor) -> None:
    wrong = ~values.isfinite().all(0)
    if wrong[0]:
        raise InputError(
            "the model has no finite answer without any part, as where tokens are averaged. Give the value of the "
            "empty coalition: empty=0.0, which shifts the values of all players alike."
        )
    if wrong.any():
        raise InputError(f"the model's answer is not finite for {int(wrong.sum())} coalitions.")
