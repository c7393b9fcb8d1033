"""The pictures of docs/linear.md: a class's row and the singular vectors of a map, and pairs of words and patches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

import fxgrad
from fxgrad.demo.canvases import canvas
from fxgrad.demo.model import CLASS_NAMES, preprocess
from fxgrad.demo.models import clip, vit
from fxgrad.methods import drawing

CANVAS, COLOURED = 7, 4
"""Numbers of the held-out canvases that are shown."""


class Tower(nn.Module):
    """One side of the demo's CLIP: "image" or "text"."""

    def __init__(self, side: str) -> None:
        super().__init__()
        self.clip, self.side = clip(), side

    def forward(self, x: Tensor) -> Tensor:
        """Pictures or ids to unit vectors."""
        found: Tensor = getattr(self.clip, f"encode_{self.side}")(x)
        return found


def draw(folder: Path) -> None:
    """Write linear-map.png, linear-pairs.png and linear-lines.png."""
    drawing.write(_map(), folder / "linear-map.png")
    drawing.write(_pairs(folder / "linear-lines.png"), folder / "linear-pairs.png")


def _map() -> Figure:
    shown = canvas(CANVAS)
    x = preprocess(shown.image)
    W = fxgrad.linear_map(fxgrad.convert(vit(), (x,)), (x,))
    photo, *panels = _row(1 + 2 + 3)
    drawing.photograph(photo, torch.from_numpy(shown.image))
    label = shown.labels[0]
    row = W.row(label)
    _panel(panels[0], row.reshape(48, 48), f"row of {CLASS_NAMES[label]}")
    _panel(
        panels[1],
        (row * W.x).reshape(8, 6, 8, 6).sum((1, 3)),
        f"times x: {float(row @ W.x):.1f} of {float(W.value[label]):.1f}",
    )
    _, S, Vh = W.svd(3)
    for axes, size, vector, number in zip(panels[2:], S, Vh, ("first", "second", "third")):
        _panel(axes, vector.reshape(48, 48), f"{number} singular vector, {float(size):.1f}")
    return photo.figure  # type: ignore[return-value]


def _pairs(lines: Path) -> Figure:
    """A map for each word; the same pairs as lines are written to a file."""
    shown = canvas(COLOURED, colours=True)
    x = preprocess(shown.image)
    words = " and ".join(f"a {colour} {CLASS_NAMES[label]}" for colour, label in zip(shown.colours, shown.labels))
    left, right = Tower("image").eval(), Tower("text").eval()
    ids = right.clip.tokenize(words)
    found = fxgrad.pairs(fxgrad.convert(left, (x,)), x, fxgrad.convert(right, (ids,)), ids)
    found.plot(lines, left=torch.from_numpy(shown.image), right=["start", *words.split()])
    maps = found.matrix.reshape(8, 8, -1)
    named = [(i, word) for i, word in enumerate(words.split(), 1) if word not in ("a", "an", "and")]
    photo, *panels = _row(1 + len(named))
    drawing.photograph(photo, torch.from_numpy(shown.image))
    scale = drawing.full_at([maps[..., i] for i, _ in named], 0.99)
    for axes, (i, word) in zip(panels, named):
        _panel(axes, maps[..., i], f"{word}: {float(maps[..., i].sum()):+.3f}", scale)
    return photo.figure  # type: ignore[return-value]


def _row(count: int) -> Sequence[Axes]:
    figure = Figure(figsize=(1.85 * count, 2.15), dpi=110, layout="constrained")
    found: Sequence[Axes] = figure.subplots(1, count)
    return found


def _panel(axes: Axes, values: Tensor, title: str, scale: float | None = None) -> None:
    drawing.panel(axes, values.detach(), (48, 48), scale=scale)
    axes.set_title(title, fontsize=8)
