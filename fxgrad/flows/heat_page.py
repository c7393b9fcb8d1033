"""The numbers of patching as a page: a row for each cut, a column for each token, and a token's numbers on hover."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from fxgrad.methods.html import page as framed
from fxgrad.methods.text import AGAINST, FOR

LABEL, CELL = 200, 14
"""Width of a cut's name, and side of a token's cell, in pixels."""


def page(title: str, panels: Mapping[str, Mapping[str, Tensor]], names: Mapping[str, Sequence[str]]) -> str:
    """A whole page, without other files: one table below another, each in full at its own 99th percentile.

    Args:
        title: of the whole.
        panels: title -> cut -> a number for each token, (tokens,). On hover, titles end before their colons.
        names: cut -> what is said of each token.

    Example:
        >>> text = page("class 1", {"estimate": {"blocks.1": Tensor([0.5, -1.0])}}, {"blocks.1": ["the", "sky"]})
        >>> "<title>sky\\nestimate: -1</title>" in text
        True
    """
    short = {panel.partition(":")[0]: numbers for panel, numbers in panels.items()}
    said = {
        cut: [
            "\n".join([name, *(f"{panel}: {float(numbers[cut][i]):.4g}" for panel, numbers in short.items())])
            for i, name in enumerate(own)
        ]
        for cut, own in names.items()
    }
    tables = (f"<h4>{html.escape(panel)}</h4>\n{_table(numbers, said)}" for panel, numbers in panels.items())
    head = '<div style="font:14px/1.5 system-ui,sans-serif;overflow:auto">'
    about = "Red raises the target, blue lowers it. Point at a cell for its numbers."
    return framed(
        title, f"{head}<p>{html.escape(title)}</p>\n{''.join(tables)}<p><small>{about}</small></p></div>", "90rem"
    )


def _table(numbers: Mapping[str, Tensor], said: Mapping[str, Sequence[str]]) -> str:
    """One table, as SVG."""
    values = {cut: own.double().cpu().numpy() for cut, own in numbers.items()}
    full = float(np.quantile(np.abs(np.concatenate([*values.values()])), 0.99)) or 1.0
    parts = []
    for row, (cut, own) in enumerate(values.items()):
        parts.append(f'<text x="0" y="{(row + 0.8) * CELL:g}" font-size="11">{html.escape(cut)}</text>')
        for column, (value, text) in enumerate(zip(own.tolist(), said[cut])):
            fill = f"rgba({', '.join(map(str, FOR if value > 0 else AGAINST))}, {min(1.0, abs(value) / full):.3f})"
            place = f'x="{LABEL + column * CELL}" y="{row * CELL}" width="{CELL}" height="{CELL}"'
            cell = f'<rect {place} fill="{fill}" stroke="#ccc" stroke-width=".5"'
            parts.append(f"{cell}><title>{html.escape(text)}</title></rect>")
    width, height = LABEL + CELL * max(map(len, values.values())), CELL * len(values)
    return f'<svg width="{width}" height="{height}">{"".join(parts)}</svg>\n'
