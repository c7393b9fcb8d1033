"""Metrics against hand-computed cases, scikit-learn, torchmetrics and SciPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
from sklearn.metrics import average_precision_score, jaccard_score
from torch import Tensor, nn
from torchmetrics.functional.classification import binary_average_precision

from fxgrad import metrics
from fxgrad.errors import InputError
from fxgrad.metrics import Replacing


class Sum(nn.Module):
    """Two logits: the sum of the pixels, and 0."""

    def forward(self, x: Tensor) -> Tensor:
        total = x.flatten(1).sum(1)
        return torch.stack([total, torch.zeros_like(total)], 1)


X = torch.tensor([[[[4.0, -1.0], [2.0, 0.0]]]])
SCORES = torch.tensor([[4.0, -1.0, 2.0, 0.0]])
FIRST = torch.tensor([0])


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


@pytest.mark.parametrize("multilabel", [False, True])
def test_removal_curves_by_hand(multilabel: bool) -> None:
    removal = Replacing(Sum(), (2, 2))
    options = {"fractions": (0.25, 0.5, 0.75), "multilabel": multilabel}
    most = metrics.removal_curve(removal, X, SCORES, FIRST, **options)  # type: ignore[arg-type]
    least = metrics.removal_curve(removal, X, SCORES, FIRST, most_first=False, **options)  # type: ignore[arg-type]
    # The softmax of (s, 0) is the sigmoid of s. Left are -1 2 0, -1 0, -1; and 4 2 0, 4 2, 4.
    assert most.probability[0].tolist() == pytest.approx([sigmoid(v) for v in (1, -1, -1)])
    assert least.probability[0].tolist() == pytest.approx([sigmoid(v) for v in (6, 6, 4)])
    assert least.log_probability[0].tolist() == pytest.approx([math.log(sigmoid(v)) for v in (6, 6, 4)])
    assert (most.hit.tolist(), least.hit.tolist()) == ([[1, 0, 0]], [[1, 1, 1]])
    found = metrics.faithfulness(
        metrics.answer(Sum()(X), FIRST, multilabel=multilabel),
        most,
        least,
        options["fractions"],  # type: ignore[arg-type]
    )
    kept = [(sigmoid(1) + 3 * sigmoid(-1)) / 4, (3 * sigmoid(6) + sigmoid(4)) / 4]  # ends count half
    assert {k: v.item() for k, v in found.items() if "aopc" in k or "accuracy" in k} == pytest.approx(
        {
            "mif_accuracy": 0.25,
            "lif_accuracy": 1.0,
            "srg_accuracy": 0.75,
            "mif_aopc": sigmoid(5) - kept[0],
            "lif_aopc": sigmoid(5) - kept[1],
            "srg_aopc": kept[1] - kept[0],
        }
    )
    logs = [math.log(sigmoid(v)) for v in (1, -1, -1, 6, 6, 4)]
    assert found["srg_lodds"].item() == pytest.approx(
        (logs[3] + 2 * logs[4] + logs[5] - logs[0] - 2 * logs[1] - logs[2]) / 4
    )


def test_deletion_and_insertion_by_hand() -> None:
    found = metrics.deletion_insertion(Replacing(Sum(), (2, 2)), X, SCORES, FIRST, steps=4)
    deleted, inserted = [5, 1, -1, -1, 0], [0, 4, 6, 6, 5]
    for name, left in (("deletion", deleted), ("insertion", inserted)):
        p = [sigmoid(v) for v in left]
        assert found[name].item() == pytest.approx((p[0] + 2 * sum(p[1:4]) + p[4]) / 8)


def test_many_attributions_at_once_are_each_alone() -> None:
    x, target = torch.randn(5, 1, 4, 4), torch.tensor([0, 1, 1, 0, 1])
    scores = torch.randn(3, 5, 16)
    removal = Replacing(Sum(), (4, 4), "blur")
    together = metrics.removal_curve(removal, x, scores, target, batch=4)
    assert together.probability.shape == (3, 5, 9)
    for i in range(3):
        alone = metrics.removal_curve(removal, x, scores[i], target)
        torch.testing.assert_close(together.probability[i], alone.probability)
    pixels = metrics.deletion_insertion(removal, x, scores, target, steps=3)
    torch.testing.assert_close(
        pixels["deletion"][2], metrics.deletion_insertion(removal, x, scores[2], target, steps=3)["deletion"]
    )


def test_attributions_that_agree_share_a_forward_pass() -> None:
    """Four maps, of which two have the same order and a third the same upper half: rows run for those that differ."""
    rows: list[int] = []

    def model(x: Tensor) -> Tensor:
        rows.append(len(x))
        return x.flatten(1)

    x = torch.rand(2, 1, 2, 2)
    orders = torch.tensor([[4.0, 3, 2, 1], [8, 6, 4, 2], [3, 4, 2, 1], [1, 2, 3, 4]])
    scores = orders[:, None].expand(4, 2, 4)
    target = torch.tensor([0, 3])
    together = metrics.removal_curve(Replacing(model, (2, 2)), x, scores, target, fractions=(0.25, 0.5, 1))
    assert rows == [6, 4, 2]
    for i, own in enumerate(scores):
        alone = metrics.removal_curve(Replacing(model, (2, 2)), x, own, target, fractions=(0.25, 0.5, 1))
        assert torch.equal(together.probability[i], alone.probability) and torch.equal(together.hit[i], alone.hit)


def test_equal_scores_are_removed_in_the_order_of_their_numbers() -> None:
    curve = metrics.removal_curve(Replacing(nn.Flatten(), (2, 2)), X, torch.zeros(1, 4), FIRST, fractions=(0.25,))
    assert curve.probability.item() == pytest.approx(X.flatten().index_fill(0, FIRST, 0).softmax(0)[0].item())


def test_scores_that_do_not_fit_are_refused() -> None:
    removal = Replacing(Sum(), (2, 2))
    message = r"scores of shape \(1, 3\) do not fit 1 pictures of 2 x 2 parts: their last two axes must be \(1, 4\)"
    with pytest.raises(InputError, match=message):
        metrics.removal_curve(removal, X, SCORES[:, :3], FIRST)
    with pytest.raises(InputError, match="some scores are NaN or infinite"):
        metrics.removal_curve(removal, X, SCORES / 0, FIRST)


def test_average_precision_is_scikit_learns_and_torchmetrics() -> None:
    maps, masks = torch.randn(2, 6, 7, 8), torch.rand(6, 7, 8) > 0.7
    maps[1] = maps[1].round()  # ties
    found = metrics.average_precision(maps, masks)
    for (i, j), value in np.ndenumerate(found.numpy()):
        truth, scores = masks[j].flatten(), maps[i, j].flatten()
        assert value == pytest.approx(average_precision_score(truth.numpy(), scores.numpy()), abs=1e-12)
        # They rank the sigmoid of scores outside of [0, 1]; the order is the same.
        assert value == pytest.approx(binary_average_precision(scores, truth.long()).item(), abs=1e-6)
    assert metrics.average_precision(maps, torch.zeros(6, 7, 8, dtype=torch.bool)).isnan().all()


def test_iou_is_scikit_learns() -> None:
    maps, masks = torch.randn(6, 7, 8), torch.rand(6, 7, 8) > 0.7
    for value, scores, truth in zip(metrics.iou(maps, masks), maps, masks):
        above = (scores > scores.mean()).flatten().numpy()
        assert value.item() == pytest.approx(jaccard_score(truth.flatten().numpy(), above))


def test_pointing_game_by_hand() -> None:
    masks = torch.tensor([[True, False, False]])
    maps = torch.tensor([[[3.0, 2.0, 1.0]], [[2.0, 3.0, 1.0]], [[3.0, 3.0, 1.0]]])
    assert metrics.pointing_game(maps, masks).tolist() == [1, 0, 0.5]
    assert metrics.pointing_game(maps[0], ~masks & masks).isnan()


@pytest.mark.parametrize("metric", [metrics.average_precision, metrics.pointing_game, metrics.iou])
def test_masks_that_do_not_fit_are_refused(metric: object) -> None:
    message = r"maps must be \(..., H, W\) and masks bool of the same H and W; these are \(2, 3\) and \(2, 3\) of torch.float32"
    with pytest.raises(InputError, match=message):
        metric(torch.zeros(2, 3), torch.zeros(2, 3))  # type: ignore[operator]


def test_intervals_are_scipys() -> None:
    rng = np.random.default_rng(0)
    values = rng.exponential(size=(60, 2))
    found = metrics.bootstrap(torch.from_numpy(values), resamples=20_000)
    for column, interval in zip(values.T, found):
        wanted = scipy.stats.bootstrap(
            (column,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)
        ).confidence_interval
        assert interval.mean == pytest.approx(column.mean())
        width = wanted.high - wanted.low
        assert interval.low == pytest.approx(wanted.low, abs=0.03 * width)
        assert interval.high == pytest.approx(wanted.high, abs=0.03 * width)


def test_pictures_without_a_value_are_left_out() -> None:
    values = torch.tensor([[1.0, 1.0], [2.0, torch.nan], [3.0, 3.0]])
    both = metrics.bootstrap(values)
    assert (both[1].mean, both[1].count, both[0].count) == (2.0, 2, 3)
    assert math.isnan(metrics.bootstrap(torch.full((3, 1), torch.nan))[0].low)


def test_a_paired_difference_sees_what_two_intervals_do_not() -> None:
    pictures = 10 * torch.randn(50, 1)
    one, other = pictures, pictures + 0.1 + 0.05 * torch.randn(50, 1)
    (a,), (b,) = metrics.bootstrap(one), metrics.bootstrap(other)
    assert a.low < b.mean < a.high
    assert [metrics.paired(other, one)[0].sign, metrics.paired(one, other)[0].sign] == [1, -1]
    assert metrics.paired(one, one)[0].sign == 0


def test_blocks_of_resamples_change_nothing_but_memory() -> None:
    few = metrics.bootstrap(torch.arange(40_000.0)[:, None], resamples=300)[0]  # two blocks
    assert (few.high - few.low) == pytest.approx(2 * 1.96 * 40_000 / math.sqrt(12) / 200, rel=0.15)


def test_nonsense_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"bootstrap takes \(pictures, columns\) with at least one picture, not \(0, 2\)"
    ):
        metrics.bootstrap(torch.zeros(0, 2))
    with pytest.raises(InputError, match="the confidence lies between 0 and 1"):
        metrics.bootstrap(torch.zeros(2, 2), confidence=95)


def test_relevance_mass_by_hand() -> None:
    masks = torch.tensor([[True, True, False, False]])
    maps = torch.tensor([[[3.0, -5.0, 1.0, 0.0]], [[-1.0, -2.0, -3.0, 0.0]], [[0.0, 0.0, 2.0, 2.0]]])
    found = metrics.relevance_mass(maps, masks)
    assert found[0] == 0.75 and found[1].isnan() and found[2] == 0
    assert metrics.relevance_mass(maps[0], masks & ~masks).isnan()


def test_relevance_mass_on_a_mosaic_is_focus() -> None:
    """Positive relevance on the two tiles of the target's class over that on all four."""
    maps = torch.randn(3, 8, 8)
    tiles = maps.clamp(min=0).reshape(3, 2, 4, 2, 4).sum((2, 4))
    own = torch.zeros(8, 8, dtype=torch.bool)
    own[:4, :4] = own[4:, 4:] = True
    wanted = (tiles[:, 0, 0] + tiles[:, 1, 1]) / tiles.sum((1, 2))
    torch.testing.assert_close(metrics.relevance_mass(maps, own), wanted.double(), check_dtype=False, atol=1e-6, rtol=0)


def test_own_over_other_by_hand() -> None:
    own = torch.tensor([[True, True, True, False, False]])
    other = torch.tensor([[False, False, False, True, False]])
    # A larger object does not win by its size: the means count, whatever lies elsewhere.
    maps = torch.tensor([[[1.0, 1.0, 1.0, 2.0, 9.0]], [[3.0, 3.0, 3.0, 2.0, 9.0]], [[2.0, 0.0, 4.0, 2.0, 0.0]]])
    assert metrics.own_over_other(maps, own, other).tolist() == [0, 1, 0.5]
    assert metrics.own_over_other(maps, own, own & other).isnan().all()
    assert metrics.own_over_other(maps, own & other, other).isnan().all()


def test_completeness_of_shares_has_no_pole() -> None:
    found = metrics.completeness(torch.tensor([1.0, 1e-6]), torch.tensor([4.0, 0.0]), torch.tensor([6.0, 2.0]))
    assert found["completeness_of_shares"].tolist() == pytest.approx([0.5, 5e-7])
    assert found["completeness_relative"][1].isinf()
    assert set(metrics.completeness(torch.tensor(1.0), torch.tensor(1.0))) == {"completeness", "completeness_relative"}
