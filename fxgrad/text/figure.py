"""The heat map of an answer: its words by the words before."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from fxgrad.methods.drawing import Drawing, full_at, named, panel, write
from fxgrad.methods.photo import photo
from fxgrad.text.pieces import shown

PANEL = 1.5
"""Side of a picture under the matrix, in inches."""
MAPS = 24


def heat_map(
    matrix: ArrayLike,
    rows: Sequence[str],
    columns: Sequence[str],
    prompt: int,
    title: str,
    caption: str,
    path: str | Path | None = None,
    size: float = 0.32,
    pictures: Sequence[tuple[Tensor, Tensor]] = (),
) -> Any:
    """Draw a matrix of shares, red for, blue against, and the maps of pictures below it.

    Args:
        matrix: (rows, columns).
        rows, columns: the tokens' texts.
        prompt: how many of the columns are the prompt's, with a line behind them.
        title, caption: above and below.
        path: of the file; None writes none.
        size: of a cell, in inches.
        pictures: pixels, uint8 (height, width, channels), and a map for each row; of the first `MAPS` rows.

    Returns:
        The figure of matplotlib.

    Raises:
        InputError: the file cannot be written.
    """
    values = np.asarray(matrix, np.float32)
    limit = full_at([values], 0.99)
    wide, high = size * len(columns), size * len(rows)
    across = max(wide + 2.4, 5.0)
    of_pictures = [_lines(len(rows), across) * PANEL for _ in pictures]
    figure = Drawing(figsize=(across, high + 2.2 + sum(of_pictures)), dpi=160, layout="constrained")
    parts = figure.subfigures(1 + len(pictures), 1, squeeze=False, height_ratios=[high + 2.2, *of_pictures])
    above, *below = parts[:, 0]
    for part, (pixels, maps) in zip(below, pictures):
        _maps(part, pixels, maps, rows, across)
    axes = above.subplots()
    drawn = axes.imshow(values, cmap=named(None), vmin=-limit, vmax=limit, aspect="equal")
    axes.set_xticks(range(len(columns)), [*map(shown, columns)], rotation=90, fontsize=8, parse_math=False)
    axes.set_yticks(range(len(rows)), [*map(shown, rows)], fontsize=8, parse_math=False)
    axes.tick_params(length=0)
    axes.spines[:].set_color("#cccccc")
    if 0 < prompt < len(columns):
        axes.axvline(prompt - 0.5, color="#444444", lw=0.8, ls=(0, (3, 3)))
    axes.set_title(title, loc="left", fontsize=10, parse_math=False)
    axes.set_xlabel(caption, loc="left", fontsize=8, parse_math=False)
    above.colorbar(drawn, ax=axes, shrink=min(1.0, 1.6 / high), aspect=12).ax.tick_params(labelsize=7)
    if path is not None:
        write(figure, path)
    return figure


def _lines(rows: int, across: float) -> int:
    """How many lines of pictures there are."""
    return -(-min(rows, MAPS) // int(across / PANEL))


def _maps(figure: Any, pixels: Tensor, maps: Tensor, rows: Sequence[str], across: float) -> None:
    """The map of one picture for each row, on one scale."""
    shown_rows = rows[:MAPS]
    axes = np.ravel(figure.subplots(_lines(len(rows), across), int(across / PANEL)))
    picture, limit = photo(pixels.movedim(-1, 0).float() / 255), full_at([maps.numpy()], 0.99)
    for at, one in enumerate(axes):
        if at < len(shown_rows):
            panel(one, maps[at].numpy(), pixels.shape[:2], picture=picture, scale=limit)
            one.set_title(shown(shown_rows[at]), fontsize=8, parse_math=False)
        else:
            one.set_axis_off()
