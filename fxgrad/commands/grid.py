"""Explanations side by side in one figure: a row per method, the policies as columns."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fxgrad.commands.explanation import Explanation, map_of, takes_gradient
from fxgrad.errors import InputError
from fxgrad.methods import Attribution, drawing
from fxgrad.methods.words import method_in_words, policy_in_words

LARGEST = 60
"""Rows of a figure: as many as an image of ordinary size holds."""


@dataclass(frozen=True, eq=False)
class _Row:
    """One row of the figure: the explanation, and the maps that are drawn and compared."""

    of: Explanation
    found: tuple[Attribution, ...]
    outline: Tensor | None

    @property
    def height(self) -> float:
        """In inches, for panels that are `_WIDE`; a very tall picture is drawn narrower."""
        return _WIDE * min(max(self.of.picture.height / self.of.picture.width, 0.25), 1.5) + 0.55


_WIDE, _BAR = 2.8, 0.7
_RED_AND_BLUE = "Red speaks for the target, blue against it; full colour from the 99th percentile"


def draw(
    explanations: Explanation | Sequence[Explanation],
    path: str | Path | IO[bytes],
    *,
    title: str = "",
    pool: int = 1,
    outlines: Sequence[Tensor | None] | None = None,
    shared: bool = False,
    cmap: str | None = None,
    about: str = "",
) -> None:
    """Draw the picture of each explanation, and beside it its maps: a row per method, a column per policy.

    With one policy the methods are the columns.

    Args:
        explanations: one or several.
        path: of the file to write; its suffix is the format (.png, .pdf, .svg). An open file gets a PNG.
        title: above the first row.
        pool: attributions of pixels are summed over blocks of pool x pool pixels before they are drawn.
        outlines: per explanation a mask of the target, bool (H, W) of the model's input, to outline, or None.
        shared: one scale for the policies of a row, in place of one for each panel.
        cmap: as for `fxgrad.methods.drawing.panel`.
        about: text for the file's metadata.

    Raises:
        InputError: the file cannot be written, or there are too many rows for one figure.

    Example:
        draw(explain([libra], x, ["tabby"], picture=photo(image, x.shape[2:], window)), "tabby.png", pool=16)
    """
    several = [explanations] if isinstance(explanations, Explanation) else list(explanations)
    rows = _rows(several, outlines or [None] * len(several))
    columns = 1 + max(len(row.found) for row in rows)
    size = (_WIDE * columns + _BAR * (columns - 1) + 0.2, sum(row.height for row in rows) + 0.75)
    figure = drawing.Drawing(figsize=size, dpi=160, layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False, height_ratios=[row.height for row in rows])
    methods = len({one.method for row in rows for one in row.found}) > 1
    for row, (first, *panels) in zip(rows, grid):
        _picture(first, row.of, len({one.name for one in several}) > 1)
        maps = [map_of(one, pool) for one in row.found]
        scale = drawing.full_at(maps, 0.99) if shared and _comparable(row.found) else None
        for axes, found, values in zip(panels, row.found, maps):
            _map(axes, row.of, found, values, methods, cell=(pool, pool), scale=scale, cmap=cmap)
        for axes in panels[len(maps) :]:
            axes.set_axis_off()
        if row.outline is not None:
            for axes in (first, *panels[: len(maps)]):
                _outline(axes, row)
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, weight="bold", parse_math=False)
    caption = textwrap.fill(_caption(rows, pool, shared, cmap, bool(outlines)), int(15 * size[0]))
    figure.supxlabel(caption, x=0.01, ha="left", fontsize=9, color="#555555", parse_math=False)
    drawing.write(figure, path, about)


def _rows(explanations: Sequence[Explanation], outlines: Sequence[Tensor | None]) -> list[_Row]:
    rows = []
    for one, outline in zip(explanations, outlines):
        by_method = one.rows()
        joined = all(len(found) == 1 for found in by_method)
        rows += [_Row(one, found, outline) for found in ([one.found] if joined else by_method)]
    if len(rows) > LARGEST:
        raise InputError(
            f"{len(rows)} rows are too many for one picture, which holds {LARGEST}. Write a folder (-o NAME) or a page "
            "(-o NAME.html)."
        )
    return rows


def _comparable(found: Sequence[Attribution]) -> bool:
    """Whether the numbers of a row have one unit: they are one method's."""
    return len({one.method for one in found}) == 1


def _picture(axes: Any, of: Explanation, named: bool) -> None:
    drawing.photograph(axes, of.picture)
    axes.set_title(_shortened(of.label, 38), loc="left", fontsize=10, parse_math=False)
    name = f"{_shortened(of.name, 28)}, " if named else ""
    axes.set_xlabel(f"{name}logit {of.logit:.3g}", loc="left", fontsize=9, parse_math=False)


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 3].rstrip()}..."


def _map(axes: Any, of: Explanation, found: Attribution, values: Tensor, methods: bool, **style: Any) -> None:
    size = found.anatomy.size or of.picture.pixels.shape[:2]
    if not found.of_pixels:
        style["cell"] = None
    drawing.panel(axes, values, size, picture=of.picture, colorbar=True, **style)
    method, policy = method_in_words(found.method), policy_in_words(found.rules)
    title = method if not takes_gradient(found.method) else f"{method}, {policy}" if methods else policy
    axes.set_title(title[:1].upper() + title[1:], loc="left", fontsize=10, parse_math=False)
    if found.completeness_error is not None:
        axes.set_xlabel(f"completeness error {found.completeness_error:#.2g}", loc="left", fontsize=9)


def _outline(axes: Any, row: _Row) -> None:
    """The target's outline, from the model's pixels to the picture's."""
    assert row.outline is not None
    mask: NDArray[Any] = row.outline.numpy()
    left, top, right, bottom = row.of.picture.window
    x = left + (np.arange(mask.shape[1]) + 0.5) * (right - left) / mask.shape[1] - 0.5
    y = top + (np.arange(mask.shape[0]) + 0.5) * (bottom - top) / mask.shape[0] - 0.5
    axes.contour(x, y, mask, levels=[0.5], colors="#12b886", linewidths=1.4)


def _caption(rows: Sequence[_Row], pool: int, shared: bool, cmap: str | None, outlined: bool) -> str:
    first = rows[0].found[0]
    methods = dict.fromkeys(method_in_words(one.method) for row in rows for one in row.found)
    blocks = f", {pool} x {pool} pixels to a block" if pool > 1 and first.of_pixels else ""
    colours = _RED_AND_BLUE if cmap is None else f"Colours of {cmap}"
    parts = [
        f"{', '.join(methods)}{blocks}. {colours}{' of a row' if shared else ' of a panel'}.",
        "Dashed: what the model sees." if any(not row.of.picture.whole for row in rows) else "",
        "Green: where the target is." if outlined else "",
    ]
    return " ".join(filter(None, parts))
