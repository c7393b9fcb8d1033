"""The evidence's truths: what is known in closed form, and a planted shortcut."""

import warnings

import numpy as np
import pytest
import torch

import fxgrad
from bench.evidence import analytic, shortcut
from fxgrad.metrics import Replacing, coalitions


def test_shares_of_a_block_and_shapley_values_of_a_sum_are_exact_under_libragrad() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = analytic.errors(examples=5)
    assert max(found["libragrad"].values()) < 1e-12
    assert min(found["gradient"].values()) > 0.1
    # Without the attention's rule the block's shares are others, the sum has none.
    assert found["attnlrp"]["block"] > 1e-3 and found["attnlrp"]["sum"] < 1e-12


def test_the_sums_shapley_values_are_its_summands() -> None:
    """By every coalition, with a token that is left out at 0; no rule is used."""
    torch.manual_seed(0)
    model = analytic.Summed().double().eval()
    x = torch.randn(2, 1, analytic.TOKENS, analytic.WIDTH, dtype=torch.float64)
    removal = Replacing(lambda pictures: model(pictures[:, 0]), (analytic.TOKENS, 1))
    found = coalitions(removal, x, torch.tensor([0, 2]))
    each = model.each(x[:, 0]).detach()
    torch.testing.assert_close(found.shapley(), torch.stack([each[0, :, 0], each[1, :, 2]]), rtol=0, atol=1e-12)
    torch.testing.assert_close(found.banzhaf(), found.shapley(), rtol=0, atol=1e-12)


def test_a_policy_that_keeps_softmax_is_not_told_to_report_it() -> None:
    torch.manual_seed(0)
    block, x = analytic.Block().double().eval(), torch.randn(2, 9, 8, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = fxgrad.attribute(
            fxgrad.convert(block, (x,), rules="attnlrp"), (x,), target=1, method="input_x_gradient"
        )
    assert "under attnlrp, these ops keep their own gradient" in found.note
    assert "scaled_dot_product_attention" in found.note


def test_the_shortcut_is_in_a_corner_and_says_nothing_of_the_digits() -> None:
    found = [shortcut.marked(i) for i in range(300)]
    patches = {tuple(image[0][mask]) for image, _, mask in found}
    assert len(patches) == 10 and {int((np.array(p) > 0.5).sum()) for p in patches} == {16}
    corners = {tuple(np.argwhere(mask)[0]) for *_, mask in found}
    assert corners == {(0, 0), (0, 42), (42, 0), (42, 42)}
    sample = shortcut.Marked()[7]
    image, label, mask = shortcut.marked(7)
    assert sample.label == label and (np.asarray(sample.mask) > 127).sum() == mask.sum()
    assert np.abs(np.asarray(sample.image) / 255 - image[0]).max() < 0.5 / 255 + 1e-6


def test_interventions_tell_a_reader_of_the_patch_from_a_reader_of_its_surroundings() -> None:
    patterns = torch.stack([torch.from_numpy(shortcut.pattern(i)) for i in range(10)]) * 2 - 1

    class Reader(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            corners = [x[:, 0, y : y + 6, z : z + 6] for y in (0, 42) for z in (0, 42)]
            off = [(corner[:, None] - patterns).abs().mean((2, 3)) for corner in corners]
            return 0.1 - torch.stack(off).amin(0)

    class Blind(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, 0, 20:30, 20].cumsum(1)

    assert shortcut.intervene(Reader(), 60) == {"right": 1, "follows": 1, "kept": 1, "unmarked": 0}
    blind = shortcut.intervene(Blind(), 60)
    assert max(blind["right"], blind["follows"], blind["kept"]) < 0.5


@pytest.mark.parametrize("name", ["mixer"])
def test_a_training_lowers_the_loss(name: str) -> None:
    model = shortcut.train(name, steps=3)
    assert not model.training
    assert all(p.isfinite().all() for p in model.parameters())
