"""The benchmark page's plots, as small SVG files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from bench.speed.results import BY_HAND, CALLS, FORWARD, FXGRAD, PLAIN, VJP, Results, Row, exponent

STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fxgrad",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
COLOURS = {FORWARD: "0.6", PLAIN: "black", FXGRAD: "C3", VJP: "C3", CALLS: "C1"}
HAND_COLOURS = dict(zip(BY_HAND, ("C0", "C2", "C4")))
GROWTH = (("tokens", "tokens"), ("batch", "batch"), ("depth", "blocks"), ("targets", "targets"))


def plots(results: Results, folder: Path) -> list[Path]:
    """Draw what there is to draw.

    Args:
        results: of a run.
        folder: where benchmarks-models.svg, benchmarks-growth.svg and benchmarks-memory.svg go.

    Returns:
        The files that were written.
    """
    written = []
    with plt.rc_context(STYLE):  # type: ignore[arg-type]
        figures = {"models": _models(results), "growth": _growth(results), "memory": _memory(results)}
        for name, figure in figures.items():
            if figure is not None:
                path = folder / f"benchmarks-{name}.svg"
                figure.savefig(path, metadata={"Date": None})
                plt.close(figure)
                written.append(path)
    return written


def _models(results: Results) -> Figure | None:
    """Time over the plain gradient's, model by model."""
    rows = [r for r in [*results.axis("bars"), *results.axis("models")] if PLAIN in r.times]
    if not rows:
        return None
    figure, ax = plt.subplots(figsize=(8, 0.42 * len(rows) + 1), layout="constrained")
    for place, row in enumerate(reversed(rows)):
        for series in (FXGRAD, *BY_HAND):
            spread = row.ratio(series, PLAIN)
            if spread:
                errors = [[spread.median - spread.low], [spread.high - spread.median]]
                shift = 0 if series == FXGRAD else 0.14 * (1 + BY_HAND.index(series))
                colour, marker = {**COLOURS, **HAND_COLOURS}[series], "D" if series == FXGRAD else "o"
                label = series if place == 0 else None
                ax.errorbar(
                    spread.median, place - shift, xerr=errors, fmt=marker, color=colour, ms=4, lw=1, label=label
                )  # fmt: skip
    ax.axvline(1, color="black", lw=0.8)
    ax.set_yticks(range(len(rows)), [row.name for row in reversed(rows)])
    ax.set_xlabel("forward + backward, over the plain gradient's: median, least and most")
    _legend(ax)
    return figure


def _legend(ax: Any) -> None:
    """Every label once."""
    handles = dict(zip(*reversed(ax.get_legend_handles_labels())))
    ax.legend(
        handles.values(), handles.keys(), frameon=False, fontsize=7, loc="lower left", bbox_to_anchor=(0, 1), ncols=2
    )


def _growth(results: Results) -> Figure | None:
    """Time against size, on logarithmic axes."""
    axes = [(axis, label, results.axis(axis)) for axis, label in GROWTH]
    axes = [(axis, label, rows) for axis, label, rows in axes if len(rows) > 1]
    if not axes:
        return None
    figure, panels = plt.subplots(1, len(axes), figsize=(3.2 * len(axes), 3), layout="constrained", squeeze=False)
    for ax, (axis, label, rows) in zip(panels[0], axes):
        names = (PLAIN, CALLS, VJP) if axis == "targets" else (FORWARD, PLAIN, *BY_HAND, FXGRAD)
        for series in names:
            _line(ax, rows, series, {**COLOURS, **HAND_COLOURS}[series])
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_xlabel(label)
        ax.set_ylabel("seconds")
        _legend(ax)
    return figure


def _line(ax: Any, rows: Sequence[Row], series: str, colour: str) -> None:
    found = [(row["size"], row.time(series)) for row in rows if series in row.times]
    if len(found) < 2:
        return
    sizes, spreads = zip(*found)
    power = exponent(sizes, [s.median for s in spreads])
    ax.plot(sizes, [s.median for s in spreads], "o-", color=colour, ms=3, lw=1, label=f"{series}: {power:.2f}")
    ax.fill_between(sizes, [s.low for s in spreads], [s.high for s in spreads], color=colour, alpha=0.15, lw=0)


def _memory(results: Results) -> Figure | None:
    """Peak and saved bytes over the plain gradient's, along the axes."""
    axes = [(axis, label, results.axis(axis)) for axis, label in GROWTH[:3]]
    axes = [(axis, label, rows) for axis, label, rows in axes if len(rows) > 1]
    if not axes:
        return None
    figure, panels = plt.subplots(1, len(axes), figsize=(3.2 * len(axes), 2.9), layout="constrained", squeeze=False)
    for ax, (_, label, rows) in zip(panels[0], axes):
        for figure_name, style in (("peak", "-"), ("saved", ":")):
            for series in (*BY_HAND, FXGRAD):
                found = [(row["size"], row.quotient(figure_name, series)) for row in rows]
                found = [(size, q) for size, q in found if q is not None]
                if found:
                    name = "saved for backward" if figure_name == "saved" else "peak"
                    colour = {**COLOURS, **HAND_COLOURS}[series]
                    ax.plot(*zip(*found), "o" + style, color=colour, ms=2, lw=1, label=f"{series}, {name}")
        ax.axhline(1, color="black", lw=0.8)
        ax.set_xscale("log")
        ax.set_ylim(bottom=0)
        ax.set_xlabel(label)
        ax.set_ylabel("bytes over plain")
    handles = dict(zip(*reversed(panels[0][-1].get_legend_handles_labels())))
    figure.legend(
        handles.values(), handles.keys(), frameon=False, fontsize=7, loc="outside upper left", ncols=4
    )  # fmt: skip
    return figure
