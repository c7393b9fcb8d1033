"""Exact Shapley and Banzhaf values: against captum, against all orders, and on games whose values are known."""

import itertools

import pytest
import timm
import torch
from captum.attr import ShapleyValues
from torch import nn

import fxgrad
from fxgrad.metrics import Dropping, Game, Replacing, coalitions


def by_orders(values: torch.Tensor, n: int) -> torch.Tensor:
    """The definition: what a player adds to those before it, over all orders."""
    found = torch.zeros(n, dtype=torch.float64)
    orders = list(itertools.permutations(range(n)))
    for order in orders:
        before = 0
        for player in order:
            found[player] += values[before | 1 << player] - values[before]
            before |= 1 << player
    return found / len(orders)


def test_shapley_is_the_mean_over_all_orders_and_banzhaf_over_all_coalitions() -> None:
    generator = torch.Generator().manual_seed(0)
    game = Game(torch.randn(2, 32, generator=generator, dtype=torch.float64))
    for values, found in zip(game.values, game.shapley()):
        torch.testing.assert_close(found, by_orders(values, 5), rtol=0, atol=1e-12)
    assert game.shapley().sum(1).allclose(game.values[:, -1] - game.values[:, 0])
    for player in range(5):
        without = [s for s in range(32) if not s >> player & 1]
        gains = torch.stack([game.values[:, s | 1 << player] - game.values[:, s] for s in without])
        torch.testing.assert_close(game.banzhaf()[:, player], gains.mean(0), rtol=0, atol=1e-12)


def test_captum_gives_the_same_where_pixels_are_replaced() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.GELU(), nn.Flatten(), nn.Linear(16, 3)).double().eval()
    x, target = torch.randn(2, 1, 4, 4, dtype=torch.float64), torch.tensor([2, 0])
    mask = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]])[None, None]
    found = coalitions(Replacing(model, (2, 2)), x, target).shapley()
    exact = ShapleyValues(model).attribute(x, target=target, feature_mask=mask)
    # Captum returns float32.
    torch.testing.assert_close(found.float(), exact[:, 0, ::2, ::2].flatten(1), rtol=1e-5, atol=1e-6)


def test_dropped_tokens_and_players_of_several_parts() -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_vit", img_size=64, patch_size=16, num_classes=5).eval().double()
    x, target = torch.randn(2, 3, 64, 64, dtype=torch.float64), torch.tensor([1, 4])
    libra = fxgrad.convert(model, (x,))
    removal = Dropping(libra, (4, 4))
    quarters = torch.tensor([0, 0, 1, 1] * 2 + [2, 2, 3, 3] * 2)
    game = coalitions(removal, x, target, players=quarters, batch=3)
    assert game.players == 4
    with torch.no_grad():
        torch.testing.assert_close(game.values[:, -1], model(x).gather(1, target[:, None])[:, 0])
    third = (quarters == 2).nonzero()[:, 0].expand(2, -1)
    alone = removal(removal.prepare(x), third).gather(1, target[:, None])[:, 0]
    torch.testing.assert_close(game.values[:, 4], alone)


def test_what_has_no_answer_is_said() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 1)).eval()
    x, target = torch.zeros(1, 1, 4, 4), torch.tensor([0])
    with pytest.raises(fxgrad.InputError, match=r"17 players have 2 \*\* 17 coalitions.*at most 16 players"):
        coalitions(Replacing(model, (1, 17)), x, target)
    with pytest.raises(fxgrad.InputError, match=r"each of the 4 parts, numbered from 0 without gaps; got .*\(4,\)"):
        coalitions(Replacing(model, (2, 2)), x, target, players=torch.tensor([0, 0, 2, 2]))

    class Averaging(Replacing):
        def __call__(self, prepared: tuple[torch.Tensor, ...], keep: torch.Tensor) -> torch.Tensor:
            return prepared[0].flatten(1).gather(1, keep).mean(1, keepdim=True)

    averaging = Averaging(model, (2, 2))
    ones = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    with pytest.raises(fxgrad.InputError, match=r"no finite answer without any part.*empty=0.0"):
        coalitions(averaging, ones, target)
    zero, one = (coalitions(averaging, ones, target, empty=value).shapley() for value in (0.0, 1.0))
    torch.testing.assert_close(zero - one, torch.full((1, 4), 0.25, dtype=torch.float64))
