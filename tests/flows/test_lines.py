"""Pairs drawn as lines: which pairs, from where to where, in which colour and width."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fxgrad
from fxgrad.errors import InputError
from fxgrad.flows.lines import EDGE, GAP, PICTURE, WORD
from fxgrad.flows.shown import colour

MATRIX = torch.tensor([[0.1, -0.4], [0.0, 0.2], [0.9, 0.05], [-0.3, 0.02]]).double()
PHOTO = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))


def pairs(matrix: Tensor, left: Any = None, right: Any = None) -> fxgrad.Pairs:
    n, m = matrix.shape[-2:]
    total = matrix.sum((-2, -1)) + 0.5
    return fxgrad.Pairs(matrix, torch.zeros(n), torch.zeros(m), torch.tensor(0.5), total, left, right)


def drawn(figure: Any) -> tuple[list[Any], list[float], list[Any], list[str]]:
    """(lines, their widths, their colours, texts)."""
    (axes,) = figure.axes
    (found,) = axes.collections
    return (
        found.get_segments(),
        list(found.get_linewidths()),
        list(found.get_colors()),
        [t.get_text() for t in axes.texts],
    )


def test_the_strongest_pairs_of_patches_and_words() -> None:
    figure = pairs(MATRIX, (2, 2)).plot(left=PHOTO, right=["a", " nine "], top=3)
    segments, widths, colours, texts = drawn(figure)
    cell = PICTURE / 2
    wanted = [((1, 1), 0), ((0, 0), 1), ((1, 0), 0)]  # -0.3, -0.4, 0.9: the strongest is drawn last
    for segment, ((row, column), _) in zip(segments, wanted):
        corner = segments[2][0] - [cell / 2, 3 * cell / 2]  # the upper left of the picture
        np.testing.assert_allclose(segment[0] - corner, [(column + 0.5) * cell, (row + 0.5) * cell])
        assert segment[1][0] == EDGE + PICTURE + GAP
    assert segments[0][1][1] == segments[2][1][1] < segments[1][1][1]  # the first word is above the second
    assert widths == sorted(widths) and widths[2] == 3.0
    signs = [MATRIX[2 * row + column, word] for (row, column), word in wanted]
    for found, sign in zip(colours, signs):
        np.testing.assert_allclose(found[:3], colour(float(sign), 1.0)[:3])
    assert texts == ["a", "+0.700", "nine", "-0.130", "score 1.07: pairs 0.57, biases 0.5; the 3 strongest of 8 pairs"]
    assert len(figure.axes[0].images) == 1


def test_two_texts_and_two_pictures() -> None:
    segments, _, _, texts = drawn(pairs(MATRIX).plot(left=["a", "b", "c", "d"], top=100))
    assert len(segments) == 8 and texts[:2] == ["a", "-0.300"] and "token 1" in texts
    assert all(one[0] == EDGE + WORD and other[0] == EDGE + WORD + GAP for one, other in segments)
    figure = pairs(MATRIX, (2, 2), (1, 2)).plot(right=PHOTO[:, :4])
    segments, *_, texts = drawn(figure)
    assert len(texts) == 1 and len(figure.axes[0].images) == 1 and len(figure.axes[0].patches) == 4 + 2
    assert {tuple(one) for one, _ in segments} == {tuple(p.get_center()) for p in figure.axes[0].patches[:4]}


def test_parts_have_the_colour_of_their_shares() -> None:
    figure = pairs(MATRIX).plot()
    fills = [patch.get_facecolor() for patch in figure.axes[0].patches]
    shares = [MATRIX.sum(1), MATRIX.sum(0)]
    wanted = [colour(float(v), 0.6 * float(abs(v) / side.abs().max())) for side in shares for v in side]
    np.testing.assert_allclose(fills, wanted)
    nothing = pairs(torch.zeros(2, 2)).plot()
    assert all(patch.get_facecolor()[3] == 0 for patch in nothing.axes[0].patches)


def test_files_and_refusals(tmp_path: Path) -> None:
    pairs(MATRIX, (2, 2)).plot(tmp_path / "a.svg", left=PHOTO, right=["<$a$>", "b"])
    assert "&lt;$a$&gt;" in (tmp_path / "a.svg").read_text("utf-8")
    for call, message in (
        (lambda: pairs(MATRIX).plot(left=["a"]), "a list of 4, one for each token, not 1"),
        (lambda: pairs(MATRIX).plot(right="ab"), "a list of 2, one for each token, not a string"),
        (lambda: pairs(MATRIX, (2, 2)).plot(left=["a", "b", "c", "d"]), "picture is a tensor or an array"),
        (lambda: pairs(torch.zeros(3, 2, 2)).plot(), "these are 3 pairs of inputs, and one is drawn"),
        (lambda: pairs(MATRIX).plot(top=0), "top is a whole number of at least 1, not 0"),
        (lambda: pairs(MATRIX).plot(tmp_path / "no" / "a.png"), "the picture cannot be written"),
    ):
        with pytest.raises(InputError, match=message):
            call()
