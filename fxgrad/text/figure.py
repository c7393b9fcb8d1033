"""The heat map of an answer: its words by the words before."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fxgrad.methods.drawing import Drawing, full_at, named, write
from fxgrad.text.pieces import shown


def heat_map(
    matrix: ArrayLike,
    rows: Sequence[str],
    columns: Sequence[str],
    prompt: int,
    title: str,
    caption: str,
    path: str | Path | None = None,
    size: float = 0.32,
) -> Any:
    """Draw a matrix of shares, red for, blue against.

    Args:
        matrix: (rows, columns).
        rows, columns: the tokens' texts.
        prompt: how many of the columns are the prompt's, with a line behind them.
        title, caption: above and below.
        path: of the file; None writes none.
        size: of a cell, in inches.

    Returns:
        The figure of matplotlib.

    Raises:
        InputError: the file cannot be written.
    """
    values = np.asarray(matrix, np.float32)
    limit = full_at([values], 0.99)
    wide, high = size * len(columns), size * len(rows)
    figure = Drawing(figsize=(max(wide + 2.4, 5.0), high + 2.2), dpi=160, layout="constrained")
    axes = figure.subplots()
    drawn = axes.imshow(values, cmap=named(None), vmin=-limit, vmax=limit, aspect="equal")
    axes.set_xticks(range(len(columns)), [*map(shown, columns)], rotation=90, fontsize=8, parse_math=False)
    axes.set_yticks(range(len(rows)), [*map(shown, rows)], fontsize=8, parse_math=False)
    axes.tick_params(length=0)
    axes.spines[:].set_color("#cccccc")
    if 0 < prompt < len(columns):
        axes.axvline(prompt - 0.5, color="#444444", lw=0.8, ls=(0, (3, 3)))
    axes.set_title(title, loc="left", fontsize=10, parse_math=False)
    axes.set_xlabel(caption, loc="left", fontsize=8, parse_math=False)
    figure.colorbar(drawn, ax=axes, shrink=min(1.0, 1.6 / high), aspect=12).ax.tick_params(labelsize=7)
    if path is not None:
        write(figure, path)
    return figure
