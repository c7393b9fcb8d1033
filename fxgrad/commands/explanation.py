"""One target of one picture, attributed under the plain gradient and under a policy, side by side.

Source: FullGrad (Srinivas & Fleuret, NeurIPS 2019, arXiv:1905.00780), eq. 1: the error that each panel states.
"""

from __future__ import annotations

import base64
import html
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils import _pytree as pytree

from fxgrad.errors import InputError
from fxgrad.methods import Attribution, Target, attribute, drawing
from fxgrad.methods.targets import class_of, scored
from fxgrad.module.converted import ConvertedModule
from fxgrad.proof.check import CheckReport, check


@dataclass(frozen=True, eq=False)
class Side:
    """One policy's part of an explanation.

    Attributes:
        attribution: the target's attribution, a batch of one.
        check: the check report for the same target.
    """

    attribution: Attribution
    check: CheckReport

    @property
    def rules(self) -> str:
        """The policy's name; "gradient" is the plain one."""
        return self.attribution.rules

    @property
    def map(self) -> Tensor:
        """The attribution of pixels (H, W) or of patches (rows, columns): float32 on the CPU."""
        values = self.attribution.map if self.attribution.of_pixels else self.attribution.patches
        return values[0].float().cpu()


@dataclass(frozen=True, eq=False)
class Explanation:
    """One target of one picture, attributed twice.

    Attributes:
        target: index of the class; None if the target is no class.
        label: the target, in words: its class name, or "class 7".
        logit: the target's value.
        picture: the model's input before normalization, in [0, 1], float32 (C, H, W).
        plain: the side of the plain gradient.
        ours: the side of the converted module's policy.
    """

    target: int | None
    label: str
    logit: float
    picture: Tensor
    plain: Side
    ours: Side


def explain(
    converted: ConvertedModule,
    x: Tensor,
    target: Target = None,
    *,
    picture: Tensor,
    class_names: Sequence[str] | None = None,
    method: str = "input_x_gradient",
) -> Explanation:
    """Attribute one target to one picture, under the module's policy and under the plain gradient.

    Args:
        converted: a classifier of pictures, (N, C, H, W) to logits (N, K).
        x: one preprocessed picture, floating point (1, C, H, W).
        target: as for `fxgrad.attribute`; by default the largest logit.
        picture: x before normalization, for drawing, in [0, 1], (C, H, W).
        class_names: one per logit.
        method: as for `fxgrad.attribute`.

    Returns:
        The explanation.

    Raises:
        InputError: x is not one picture, the model's output is not one row of logits, there is no such target, or
            the model lacks what the method needs.

    Example:
        >>> import fxgrad
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3)).eval()
        >>> x = torch.randn(1, 1, 4, 4)
        >>> e = explain(fxgrad.convert(model, (x,)), x, 2, picture=torch.zeros(1, 4, 4))
        >>> e.label, e.ours.map.shape, e.ours.check.completeness_error < 1e-5
        ('class 2', torch.Size([4, 4]), True)
    """
    if x.ndim != 4 or x.shape[0] != 1:
        raise InputError(f"explain takes one picture, a tensor of shape (1, C, H, W); this one is {tuple(x.shape)}.")
    with torch.no_grad():
        logits = converted(x)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[0] != 1:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(f"explain needs a model that returns logits (N, K); for one picture this one gave {shape}.")
    names = class_names if class_names and len(class_names) == logits.shape[1] else None
    fitted = scored(target, logits, names)
    (cotangent,) = fitted.cotangents([logits], pytree.tree_structure(logits))

    def side(module: ConvertedModule) -> Side:
        found = attribute(module, (x,), target=target, method=method, class_names=names)
        return Side(found, check(module, (x,), cotangent=cotangent))

    plain, ours = side(converted.under("gradient")), side(converted)
    index = int(class_of(target, logits, names)[0]) if target is None or isinstance(target, (int, str)) else None
    return Explanation(index, fitted.label, float(fitted.score(logits)[0]), picture, plain, ours)


def draw(
    explanations: Explanation | Sequence[Explanation],
    path: str | Path | IO[bytes],
    *,
    title: str = "",
    pool: int = 1,
    outlines: Sequence[Tensor | None] | None = None,
) -> None:
    """Draw one row per explanation: the picture, the plain attribution, the policy's.

    Args:
        explanations: one or several.
        path: of the file to write; its suffix is the format (.png, .pdf, .svg). An open file gets a PNG.
        title: above the first row.
        pool: attributions of pixels are summed over blocks of pool x pool pixels before they are drawn.
        outlines: per explanation a mask of the target, bool (H, W), to outline on all panels, or None.

    Raises:
        InputError: the file cannot be written.

    Example:
        draw(explain(libra, x, "tabby"), "tabby.png", pool=16)
    """
    rows = [explanations] if isinstance(explanations, Explanation) else list(explanations)
    size = tuple(rows[0].picture.shape[1:])
    figure = Figure(figsize=(10, (3.1 * size[0] / size[1] + 0.65) * len(rows) + 0.75), dpi=160, layout="constrained")
    grid = figure.subplots(len(rows), 3, squeeze=False)
    for row, panels, outline in zip(rows, grid, outlines or [None] * len(rows)):
        drawing.photograph(panels[0], row.picture)
        label = textwrap.shorten(row.label, 34)
        panels[0].set_title(f"{label}: logit {row.logit:.3g}", loc="left", fontsize=10, parse_math=False)
        for side, axes in zip((row.plain, row.ours), panels[1:]):
            pixels = side.attribution.of_pixels
            values, cell = (drawing.pool_sum(side.map, pool), (pool, pool)) if pixels else (side.map, None)
            drawing.panel(axes, values, size, picture=row.picture, cell=cell)
            axes.set_title("plain gradient" if side.rules == "gradient" else side.rules, loc="left", fontsize=10)
            axes.set_xlabel(f"completeness error {side.check.completeness_error:#.2g}", loc="left", fontsize=9)
        if outline is not None:
            for axes in panels:
                axes.contour(outline.numpy(), levels=[0.5], colors="#12b886", linewidths=1.4)
    shown = rows[0].ours.attribution
    blocks = f", {pool} x {pool} pixels to a block" if pool > 1 and shown.of_pixels else ""
    where = " Green: where the target is." if outlines else ""
    caption = f"{shown.method.replace('_', ' ').capitalize()}{blocks}. {drawing.LEGEND}{where}"
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, weight="bold", parse_math=False)
    figure.supxlabel(caption, x=0.01, ha="left", fontsize=9, color="#555555")
    drawing.write(figure, path)


def page(title: str, png: bytes, sections: Iterable[tuple[str, str]]) -> str:
    """A self-contained HTML page: a picture, then sections (heading, HTML) that can be unfolded.

    Example:
        >>> "<summary>Check</summary>" in page("tabby", b"", [("Check", "<p>passed</p>")])
        True
    """
    data = base64.b64encode(png).decode()
    body = "".join(
        f"<details{' open' * (i < 2)}><summary>{html.escape(heading)}</summary><div>{content}</div></details>"
        for i, (heading, content) in enumerate(sections)
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{_CSS}</style></head><body><h1>{html.escape(title)}</h1>"
        f'<img alt="" src="data:image/png;base64,{data}">{body}</body></html>\n'
    )


_CSS = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1100px; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem } h4 { margin: 1rem 0 .3rem; color: #555 } img { max-width: 100%; margin-bottom: 1rem }
details { border-top: 1px solid #ddd; padding: .6rem 0 } summary { cursor: pointer; font-weight: 600 }
div { overflow-x: auto } pre { background: #f6f6f6; padding: .7rem; border-radius: 4px; white-space: pre-wrap }
table { border-collapse: collapse; font-size: .82rem } tbody tr:nth-child(even) { background: #f8f8f8 }
th, td { padding: .25rem .6rem; text-align: left; border-bottom: 1px solid #e5e5e5; white-space: nowrap }
"""
