"""Input x Gradient averaged over shifts: a plain loop over pictures that are shifted by hand is the witness."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxgrad
from fxgrad.methods import Probability
from tests.helpers import balanced_vit
from tests.helpers.language_models import model

CLASSES = torch.tensor([3, 1])


@pytest.fixture(scope="module")
def vit() -> tuple[fxgrad.ConvertedModule, Tensor]:
    net, x = balanced_vit.vit()
    return fxgrad.convert(net, (x,)), x


def looped(libra: fxgrad.ConvertedModule, x: Tensor, by: list[int], flip: bool = False, **options: Any) -> Tensor:
    """The mean over shifts, by padding and cropping, of maps by `input_x_gradient`: x is (batch, channels, n, n)."""
    n, edge = x.shape[-1], 8
    total, count = torch.zeros(len(x), n, n).to(x), torch.zeros(n, n).to(x)
    for down in by:
        for right in by:
            for mirrored in (False, True) if flip else (False,):
                padded = nn.functional.pad(x, (edge,) * 4)
                rows, columns = slice(edge - down, edge - down + n), slice(edge - right, edge - right + n)
                view = padded[:, :, rows, columns]
                view = torch.flip(view, [3]) if mirrored else view
                map = fxgrad.attribute(libra, (view,), method="input_x_gradient", **options).map
                map = torch.flip(map, [2]) if mirrored else map
                wide = torch.zeros(len(x), n + 2 * edge, n + 2 * edge).to(x)
                wide[:, rows, columns] = map
                total += wide[:, edge : edge + n, edge : edge + n]
                seen = torch.zeros(n + 2 * edge, n + 2 * edge).to(x)
                seen[rows, columns] = 1
                count += seen[edge : edge + n, edge : edge + n]
    return total / count


@pytest.mark.parametrize("policy", ["libragrad", "gradient"])
@pytest.mark.parametrize("flip", [False, True])
def test_it_is_the_loop(policy: str, flip: bool, vit: tuple[fxgrad.ConvertedModule, Tensor]) -> None:
    libra, x = vit[0].under(policy), vit[1]  # patches of 3
    for shifts, by in ((1, [0]), (2, [-1, 1]), (3, [-1, 0, 1]), (9, [-1, 0, 1])):
        found = fxgrad.attribute(libra, (x,), target=CLASSES, method="shift_averaged", shifts=shifts, flip=flip)
        wanted = looped(libra, x, by, flip, target=CLASSES)
        torch.testing.assert_close(found.map, wanted, rtol=1e-10, atol=1e-13)
        assert found.total is None and found.completeness_error is None and found.map.abs().max() > 0


def test_one_shift_is_input_x_gradient(vit: tuple[fxgrad.ConvertedModule, Tensor]) -> None:
    libra, x = vit
    for target in (CLASSES, None, Probability(2)):
        found = fxgrad.attribute(libra, (x,), target=target, method="shift_averaged", shifts=1)
        wanted = fxgrad.attribute(libra, (x,), target=target)
        assert torch.equal(found.map, wanted.map)


def test_a_target_is_asked_of_each_picture(vit: tuple[fxgrad.ConvertedModule, Tensor]) -> None:
    """The probability's gradient is another one at each picture."""
    libra, x = vit
    found = fxgrad.attribute(libra, (x,), target=Probability(2), method="shift_averaged", shifts=3)
    torch.testing.assert_close(found.map, looped(libra, x, [-1, 0, 1], target=Probability(2)), rtol=1e-10, atol=1e-13)


class Joined(nn.Module):
    """A picture with its channels last, and a row of numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.rest = nn.Conv2d(3, 8, 4, 4), nn.Linear(5, 8)
        self.head = nn.Sequential(nn.GELU(), nn.Linear(8, 3))

    def forward(self, picture: Tensor, numbers: Tensor) -> Tensor:
        seen = nn.functional.gelu(self.patches(picture.permute(0, 3, 1, 2))).mean((2, 3))
        return self.head(seen + self.rest(numbers))


def test_other_inputs_stay_and_channels_may_be_last() -> None:
    torch.manual_seed(0)
    net, picture, numbers = Joined().double().eval(), torch.randn(2, 8, 8, 3).double(), torch.randn(2, 5).double()
    libra = fxgrad.convert(net, (picture, numbers))
    found = fxgrad.attribute(libra, (picture, numbers), target=1, method="shift_averaged", shifts=2, grid=(2, 2))
    total, count, others = torch.zeros(2, 8, 8).double(), torch.zeros(8, 8), torch.zeros(2, 5).double()
    for down in (-1, 1):
        for right in (-1, 1):
            view = torch.zeros_like(picture)
            for row in range(8):
                for column in range(8):
                    if 0 <= row + down < 8 and 0 <= column + right < 8:
                        view[:, row + down, column + right] = picture[:, row, column]
            leaves = [t.clone().requires_grad_() for t in (view, numbers)]
            libra(*leaves)[:, 1].sum().backward()
            map = (view * leaves[0].grad).sum(3)
            others += numbers * leaves[1].grad / 4
            for row in range(8):
                for column in range(8):
                    if 0 <= row + down < 8 and 0 <= column + right < 8:
                        total[:, row, column] += map[:, row + down, column + right]
                        count[row, column] += 1
    torch.testing.assert_close(found.maps["picture"], total / count, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(found.maps["numbers"], others, rtol=1e-10, atol=1e-13)


def test_what_a_shift_by_patches_changes() -> None:
    """A model that pools patches sees each pixel at every place in a patch: the averaged map has no grid in it."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 1, 4, 4, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double().eval()
    x = torch.ones(1, 1, 16, 16).double()
    libra = fxgrad.convert(net, (x,))
    plain = fxgrad.attribute(libra, (x,), target=0, grid=(4, 4)).map[0]
    smooth = fxgrad.attribute(libra, (x,), target=0, method="shift_averaged", shifts=4, grid=(4, 4)).map[0]
    assert plain.std() > 0.1 * plain.abs().mean()
    torch.testing.assert_close(
        smooth[2:-2, 2:-2], torch.full((12, 12), float(net[0].weight.detach().mean()) / 16).double()
    )


def test_what_it_refuses(vit: tuple[fxgrad.ConvertedModule, Tensor]) -> None:
    libra, x = vit
    ids = torch.tensor([[5, 6, 7]])
    text = fxgrad.convert(model("gpt2"), (ids,))
    for call, message in (
        (
            lambda: fxgrad.attribute(libra, (x,), target=0, method="shift_averaged", shifts=0),
            "shifts is a whole number",
        ),
        (
            lambda: fxgrad.attribute(libra, (x,), target=0, method="shift_averaged", at="tokens"),
            "no option 'at'; it takes",
        ),
        (
            lambda: fxgrad.attribute(libra, (x,), target=0, method="shift_averaged", channels=None),
            "is no picture whose",
        ),
        (
            lambda: fxgrad.attribute(text, (ids,), target=fxgrad.methods.Token(), method="shift_averaged"),
            r"'transformer\.wte' is no picture whose patches are known\. Pass grid=",
        ),
    ):
        with pytest.raises(fxgrad.InputError, match=message):
            call()
