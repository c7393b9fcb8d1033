"""The picture of docs/patching.md: two canvases, and what it does to put the patches of the one into the other."""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib.figure import Figure

import fxgrad
from fxgrad.demo.canvases import canvas
from fxgrad.demo.model import CLASS_NAMES, preprocess
from fxgrad.demo.models import vit
from fxgrad.methods import drawing

CLEAN, CORRUPT = 7, 12
"""Numbers of the held-out canvases."""


def draw(folder: Path) -> None:
    """Write patching.png."""
    clean, corrupt = canvas(CLEAN), canvas(CORRUPT)
    x, other = (preprocess(one.image) for one in (clean, corrupt))
    label = next(label for label in clean.labels if label not in corrupt.labels)
    found = fxgrad.patching(fxgrad.convert(vit(), (x,)), x, other, target=label, effects=True)
    figure: Figure = drawing.Drawing(figsize=(9.5, 4.0), dpi=160, layout="constrained")
    panels = figure.subplots(2, 1 + len(found.nodes))
    for axes, shown, name in zip(panels[:, 0], (clean, corrupt), ("clean", "corrupt")):
        drawing.photograph(axes, torch.from_numpy(shown.image))
        axes.set_title(f"{name}: {CLASS_NAMES[label]} {getattr(found, name):.1f}", fontsize=8, loc="left")
    for row, name in zip(panels[:, 1:], ("estimate", "effect")):
        numbers = getattr(found, name)
        scale = drawing.full_at([values[1:] for values in numbers.values()], 0.99)
        for axes, (cut, values) in zip(row, numbers.items()):
            drawing.panel(axes, values[1:].reshape(8, 8), (48, 48), picture=torch.from_numpy(clean.image), scale=scale)
            axes.set_title(f"{name}, {cut}\nclass token {float(values[0]):.1f}", fontsize=8, loc="left")
    drawing.write(figure, folder / "patching.png")
