"""Pictures of attributions of the demo's models: `make gallery` writes bench/measured/gallery.md and its pictures.

One canvas under every method, prompts of CLIP, and where the balanced gradient explains worse than the plain one.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

import fxgrad
from fxgrad import metrics
from fxgrad.demo.canvases import Canvas, canvas
from fxgrad.demo.model import CLASS_NAMES, preprocess
from fxgrad.demo.models import clip, vit
from fxgrad.evaluate.methods import POLICY_FREE
from fxgrad.methods import METHODS, Attribution, drawing
from fxgrad.methods.words import method_in_words, policy_in_words

CANVAS, COLOURED = 7, 4
"""Numbers of the held-out canvases that are shown."""
SEARCHED = 200
"""How many canvases the worst one is taken from."""
POLICIES = ("gradient", "libragrad")
_OPTIONS = {"integrated_gradients": {"n_steps": 20}, "smoothgrad": {"samples": 10}, "rise": {"samples": 500}}

_PAGE = """# Gallery

Attributions of [the demo's models](models.md), written by `make gallery`. {legend}

## Both digits of one canvas, under every method

![All methods, each for both digits of one canvas, under the plain and the balanced gradient](gallery-methods.png)

`fxgrad.demo.models:vit`, held-out canvas {number}: {digits}. Of each method the plain gradient's pair of maps, and
libragrad's; the last six take no gradient. Green: where the target is.

## What a text says

![Maps of four prompts over a coloured canvas, under the plain and the balanced gradient](gallery-prompts.png)

`fxgrad.demo.models:clip`, held-out canvas {coloured} in colour: {things}. Input x Gradient of the similarity with a
text, which is given above, by patches. Its unit-vector normalisation is held, and so is the text. The last text names
what is not there: one digit, in the other's colour.

## Where the balanced gradient is worse

![The canvas where libragrad's average precision falls furthest behind the plain gradient's](gallery-worse.png)

Input x Gradient of `vit`, by patches: of {searched} held-out canvases, the one where the average precision of
libragrad's map is furthest below that of the plain gradient's: {worst:.2f} and {plain_there:.2f}, for the {target} of
canvas {worst_number}. Over all of them the mean is {ours_mean:.2f} against {plain_mean:.2f}, and libragrad's is below
on {below:.0%}. The logit there is {logit:.2f}, of which the biases, which have no place on the map, hold {held:.0%}
(median of all canvases: {held_median:.0%}).
"""


def main(folder: Path) -> None:
    facts = {**methods(folder), **prompts(folder), **worse(folder)}
    text = _PAGE.format(legend=drawing.LEGEND.replace("panel", "map"), number=CANVAS, coloured=COLOURED, **facts)
    (folder / "gallery.md").write_text(text, "utf-8")


def methods(folder: Path) -> dict[str, str]:
    """Every method, for both digits."""
    shown = canvas(CANVAS)
    x = preprocess(shown.image)
    libra = fxgrad.convert(vit(), (x,))
    modules = {policy: libra.under(policy) for policy in POLICIES}
    columns = 2
    rows = -(-len(METHODS) // columns)
    figure = Figure(figsize=(4 * columns * 1.15, rows * 1.36), dpi=110, layout="constrained")
    grid = figure.subplots(rows, 4 * columns)
    for axes in grid.flat:
        axes.set_axis_off()
    for i, method in enumerate(METHODS):
        row = grid[i % rows, i // rows * 4 : i // rows * 4 + 4]
        for policy, pair in zip(POLICIES, (row[:2], row[2:])):
            if method in POLICY_FREE and policy != POLICIES[0]:
                continue
            maps = fxgrad.attribute(
                modules[policy], (x,), target=list(shown.labels), method=method, **_OPTIONS.get(method, {})
            )
            for axes, found, mask in zip(pair, maps, shown.masks):
                _map(axes, found, shown, mask)
            words = method_in_words(method)
            title = words if method in POLICY_FREE else f"{words}, {'plain' if policy == 'gradient' else 'Libra'}"
            pair[0].set_title(title, loc="left", fontsize=7.5)
    drawing.write(figure, folder / "gallery-methods.png")
    return {"digits": " and ".join(CLASS_NAMES[label] for label in shown.labels)}


def prompts(folder: Path) -> dict[str, str]:
    """A coloured canvas, asked for what it shows and for what it does not."""
    shown = canvas(COLOURED, colours=True)
    x = preprocess(shown.image)
    things = [f"{colour} {CLASS_NAMES[label]}" for colour, label in zip(shown.colours, shown.labels)]
    swapped = f"{shown.colours[1]} {CLASS_NAMES[shown.labels[0]]}"
    texts = [*(f"a {thing}" for thing in things), f"a {things[0]} and a {things[1]}", f"a {swapped}"]
    libra = fxgrad.convert(clip().prompted(*texts), (x,))
    figure = Figure(figsize=(11, 4.6), dpi=110, layout="constrained")
    grid = figure.subplots(len(POLICIES), 1 + len(texts))
    for axes, policy in zip(grid, POLICIES):
        drawing.photograph(axes[0], torch.from_numpy(shown.image))
        axes[0].set_ylabel(policy_in_words(policy))
        found = fxgrad.attribute(libra.under(policy), (x,), target=list(range(len(texts))))
        first, second = shown.masks
        for panel, one, text, mask in zip(axes[1:], found, texts, (first, second, first | second, first)):
            _map(panel, one, shown, mask)
            panel.set_title(f"{text}: {float(one.output):.1f}", fontsize=8)
    drawing.write(figure, folder / "gallery-prompts.png")
    return {"things": " and ".join(f"a {thing}" for thing in things)}


def worse(folder: Path) -> dict[str, object]:
    """The canvas where libragrad's map agrees least with the mask, compared with the plain one's."""
    canvases = [canvas(i) for i in range(SEARCHED)]
    which = [i % 2 for i in range(SEARCHED)]
    x = preprocess(np.stack([c.image for c in canvases]))
    labels = torch.tensor([c.labels[k] for c, k in zip(canvases, which)])
    masks = torch.from_numpy(np.stack([c.masks[k] for c, k in zip(canvases, which)]))
    libra = fxgrad.convert(vit(), (x[:2],))
    found = {policy: fxgrad.attribute(libra.under(policy), (x,), target=labels) for policy in POLICIES}
    precision = {policy: metrics.average_precision(_upsampled(a.patches), masks) for policy, a in found.items()}
    behind = precision["libragrad"] - precision["gradient"]
    at = int(behind.argmin())
    figure = Figure(figsize=(7, 2.8), dpi=110, layout="constrained")
    photo, *panels = figure.subplots(1, 3)
    drawing.photograph(photo, torch.from_numpy(canvases[at].image))
    for axes, (policy, one) in zip(panels, found.items()):
        _map(axes, one, canvases[at], canvases[at].masks[which[at]], at)
        axes.set_title(f"{policy_in_words(policy)}: {float(precision[policy][at]):.2f}", fontsize=9)
    drawing.write(figure, folder / "gallery-worse.png")
    ours = found["libragrad"]
    assert ours.apart is not None
    held = ours.apart / ours.output
    return {
        "searched": SEARCHED,
        "worst": float(precision["libragrad"][at]),
        "plain_there": float(precision["gradient"][at]),
        "target": CLASS_NAMES[int(labels[at])],
        "worst_number": at,
        "ours_mean": float(precision["libragrad"].mean()),
        "plain_mean": float(precision["gradient"].mean()),
        "below": float((behind < 0).double().mean()),
        "logit": float(ours.output[at]),
        "held": float(held[at]),
        "held_median": float(held.median()),
    }


def _upsampled(patches: Tensor) -> Tensor:
    """Each patch's value for all of its pixels: (N, 8, 8) to (N, 48, 48)."""
    return patches.repeat_interleave(6, 1).repeat_interleave(6, 2)


def _map(axes: Axes, found: Attribution, shown: Canvas, mask: np.ndarray, example: int = 0) -> None:
    """One map by patches, the target's outline in green."""
    axes.set_axis_on()
    size: Sequence[int] = shown.image.shape[1:]
    drawing.panel(axes, found.patches[example], tuple(size), picture=torch.from_numpy(shown.image))
    axes.contour(mask, levels=[0.5], colors="#2ca02c", linewidths=0.8)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "measured")
