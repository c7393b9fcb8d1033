"""Pairs as a picture, drawn by matplotlib: two sides, words or the patches of a picture, and lines between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fxgrad.errors import InputError
from fxgrad.flows.shown import colour, seen
from fxgrad.methods.drawing import Drawing, write
from fxgrad.methods.parts import Grid

try:
    from matplotlib.collections import LineCollection
    from matplotlib.patches import Rectangle
except ImportError as missing:
    raise InputError(f'drawing needs matplotlib ({missing}): pip install "fxgrad[cli]"') from missing

PICTURE, WORD, LINE = 300.0, 120.0, 20.0
"""Width of a picture, width and height of a word, in pixels."""
GAP, EDGE, TITLE = 240.0, 12.0, 28.0
"""Between the sides, around them, and above for the title."""
FAINT = 0.4
"""How much of a picture stays under the lines; the rest is white."""
DOTS = 100
"""How many of these pixels are an inch."""


@dataclass(frozen=True, eq=False)
class Side:
    """One side of the pairs.

    Attributes:
        shares: of each part with all parts of the other side, (n,).
        grid: (rows, columns) of a picture's patches; None for words.
        given: the picture, as for `fxgrad.flows.files.write`, or the words; None draws the patches, or their numbers.
    """

    shares: NDArray[Any]
    grid: Grid | None
    given: Any

    @property
    def size(self) -> tuple[float, float]:
        """Width and height."""
        if self.grid is None:
            return WORD, LINE * len(self.shares)
        return PICTURE, PICTURE * self.grid[0] / self.grid[1]

    @property
    def words(self) -> Sequence[str]:
        """Of a side without patches, what is written for each part."""
        words = [f"token {i}" for i in range(len(self.shares))] if self.given is None else self.given
        if isinstance(words, str) or len(words) != len(self.shares):
            given = "a string" if isinstance(words, str) else str(len(words))
            raise InputError(f"the words of a text are a list of {len(self.shares)}, one for each token, not {given}.")
        return [word.strip()[:16] for word in words]


def lines(matrix: NDArray[Any], sides: Sequence[Side], title: str, top: int, path: str | Path | None = None) -> Any:
    """Draw the strongest pairs as lines: red for the score, blue against it, width and strength by their size.

    Args:
        matrix: the share of each part of the left with each of the right, (n, m).
        sides: left and right.
        title: above.
        top: how many pairs to draw, the strongest.
        path: of a .png, .svg or .pdf; None writes none.

    Returns:
        The figure of matplotlib.

    Raises:
        InputError: not as many words as parts, a picture of another form, or the file cannot be written.
    """
    sizes = [side.size for side in sides]
    high = max(height for _, height in sizes) + 2 * EDGE + TITLE
    wide = sum(width for width, _ in sizes) + GAP + 2 * EDGE
    figure = Drawing(figsize=(wide / DOTS, high / DOTS), dpi=160)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    middle = (high + TITLE) / 2
    left = _side(axes, sides[0], EDGE, middle, inner=1)
    right = _side(axes, sides[1], EDGE + sizes[0][0] + GAP, middle, inner=0)
    places = [divmod(int(at), len(right)) for at in np.argsort(-np.abs(matrix), axis=None, kind="stable")[:top]]
    places.reverse()  # the strongest is drawn last, above the others
    relative = [(abs(matrix[place]) / (np.abs(matrix).max() or 1.0)) ** 0.5 for place in places]
    colours = [colour(matrix[place], 0.1 + 0.8 * r) for place, r in zip(places, relative)]
    widths = [0.3 + 2.7 * r for r in relative]
    segments = [(left[i], right[j]) for i, j in places]
    axes.add_collection(LineCollection(segments, colors=colours, linewidths=widths, zorder=3))
    axes.set(xlim=(0, wide), ylim=(high, 0))
    axes.text(EDGE, TITLE / 2 + 4, title, fontsize=7, va="center", parse_math=False)
    if path is not None:
        write(figure, path)
    return figure


def _side(axes: Any, side: Side, x: float, middle: float, inner: int) -> list[tuple[float, float]]:
    """Draw one side.

    Args:
        axes: to draw on.
        side: what to draw.
        x: its left edge.
        middle: the height of its middle.
        inner: 1 if the other side is to its right, else 0.

    Returns:
        Where the line of each part ends: in the middle of a patch, at the inner edge of a word.
    """
    (width, height), (rows, columns) = side.size, side.grid or (len(side.shares), 1)
    y, wide, high = middle - height / 2, width / columns, height / rows
    strengths = side.shares / (np.abs(side.shares).max() or 1.0)
    if side.grid is not None and side.given is not None:
        axes.imshow(seen(side.given), extent=(x, x + width, y + height, y), aspect="auto", zorder=1, alpha=FAINT)
    boxes = [(x + wide * column, y + high * row) for row, column in np.ndindex(rows, columns)]
    for box, strength in zip(boxes, strengths):
        fill = colour(strength, 0.6 * abs(strength))
        axes.add_patch(Rectangle(box, wide, high, fc=fill, ec="#99999988", lw=0.3, zorder=2))
    if side.grid is not None:
        return [(left + wide / 2, above + high / 2) for left, above in boxes]
    for (left, above), word, share in zip(boxes, side.words, side.shares):
        common = {"fontsize": 7, "va": "center", "zorder": 4, "parse_math": False}
        axes.text(left + 5, above + high / 2, word, ha="left", **common)
        axes.text(left + wide - 5, above + high / 2, f"{share:+.3f}", ha="right", **common)
    return [(x + inner * width, above + high / 2) for _, above in boxes]
