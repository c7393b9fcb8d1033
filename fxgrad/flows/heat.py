"""The numbers of patching as a picture, drawn by matplotlib: a row for each cut, a column for each token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from fxgrad.methods.drawing import Drawing, bare, full_at, named, write

WORDS = 40
"""The most tokens whose names are written."""


def heat(
    panels: Mapping[str, Mapping[str, Tensor]], names: Sequence[str], title: str, path: str | Path | None = None
) -> Any:
    """Draw tables of numbers, one below another, each on its own scale.

    Args:
        panels: title -> cut -> a number for each token, (tokens,).
        names: of the tokens of the cut that has most.
        title: of the whole.
        path: of a .png, .svg or .pdf; None writes none.

    Returns:
        The figure of matplotlib.

    Raises:
        InputError: the file cannot be written.
    """
    cuts = len(next(iter(panels.values())))
    width = min(14.0, 2.6 + 0.16 * max(len(names), 16))
    figure = Drawing(figsize=(width, (0.9 + 0.22 * cuts) * len(panels)), dpi=160, layout="constrained")
    for axes, (caption, numbers) in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels.items()):
        image = _panel(axes, numbers, len(names))
        axes.set_title(caption, loc="left", fontsize=8, parse_math=False)
        figure.colorbar(image, ax=axes, pad=0.01).ax.tick_params(labelsize=6, length=2)
    if len(names) <= WORDS:
        axes.set_xticks(range(len(names)), [name.strip()[:14] for name in names], rotation=90, fontsize=6)
    figure.suptitle(title, fontsize=8, x=0.01, ha="left", parse_math=False)
    if path is not None:
        write(figure, path)
    return figure


def _panel(axes: Any, numbers: Mapping[str, Tensor], most: int) -> Any:
    """One table of numbers, empty where a cut has fewer tokens than another."""
    table = np.full((len(numbers), most), np.nan)
    for row, values in zip(table, numbers.values()):
        row[: len(values)] = values.double().cpu().numpy()
    bare(axes)
    axes.set_yticks(range(len(numbers)), list(numbers), fontsize=6)
    limit = full_at([table[np.isfinite(table)]], 0.99)
    return axes.imshow(table, cmap=named(None), vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
