"""Input x Gradient of one logit, under the plain gradient and under a policy, side by side.

Source: FullGrad (Srinivas & Fleuret, NeurIPS 2019, arXiv:1905.00780), eq. 1: the error that each panel states.
"""

from __future__ import annotations

import base64
import difflib
import html
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from fxgrad.check import CheckReport, check
from fxgrad.errors import InputError
from fxgrad.module import ConvertedModule


@dataclass(frozen=True, eq=False)
class Attribution:
    """Input x Gradient of one logit, under one policy.

    Attributes:
        rules: the policy's name; "gradient" is the plain one.
        map: x * dy/dx summed over the channels, float32 (H, W). Positive speaks for the target.
        check: of the same logit: what the attribution leaves unexplained, and where.
    """

    rules: str
    map: Tensor
    check: CheckReport


@dataclass(frozen=True, eq=False)
class Explanation:
    """One logit of one picture, attributed twice.

    Attributes:
        target: index of the logit.
        label: its class name, or "class 7".
        logit: its value.
        picture: what the model saw, in [0, 1], float32 (C, H, W).
        plain: under the plain gradient.
        ours: under the policy of the converted module.
    """

    target: int
    label: str
    logit: float
    picture: Tensor
    plain: Attribution
    ours: Attribution


def explain(
    converted: ConvertedModule,
    x: Tensor,
    target: int | str | None = None,
    *,
    picture: Tensor,
    class_names: Sequence[str] | None = None,
) -> Explanation:
    """Attribute one logit to the pixels of one picture, with the plain gradient beside it.

    Args:
        converted: a classifier of pictures, (N, C, H, W) to logits (N, K).
        x: one preprocessed picture, floating point (1, C, H, W).
        target: the logit's index or class name, in any case; by default the largest logit's.
        picture: x as it was before normalization, in [0, 1], (C, H, W), to be drawn.
        class_names: one per logit.

    Returns:
        The explanation; its maps are float32 on the CPU.

    Raises:
        InputError: x is not one picture, the model's output is not one row of logits, or there is no such target.

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
    index = resolve_target(target, logits[0], names)
    onehot = F.one_hot(torch.tensor([index]), logits.shape[1]).to(logits)

    def attribute(module: ConvertedModule) -> Attribution:
        leaf = x.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(module(leaf)[0, index], leaf)
        contribution = (x * gradient)[0].sum(0).float().cpu()
        return Attribution(module.classified.table.name, contribution, check(module, (x,), cotangent=onehot))

    label, logit = names[index] if names else f"class {index}", float(logits[0, index])
    return Explanation(index, label, logit, picture, attribute(converted.under("gradient")), attribute(converted))


def resolve_target(target: int | str | None, logits: Tensor, names: Sequence[str] | None = None) -> int:
    """Index of the logit that a target names.

    Args:
        target: an index (a number, or digits), a class name or one of the synonyms that a name lists between
            commas, in any case; None is the largest logit.
        logits: (K,).
        names: K class names, or None.

    Raises:
        InputError: no such index or name, or a name of several classes; with what to write instead.

    Example:
        >>> resolve_target("Ounce", torch.zeros(2), ["tench, Tinca tinca", "snow leopard, ounce"])
        1
    """
    count = len(logits)
    if target is None:
        return int(logits.argmax())
    if isinstance(target, int) or target.strip().lstrip("-").isdecimal():
        if 0 <= int(target) < count:
            return int(target)
        raise InputError(f"there is no class {target}: the model has {count}, numbered 0 to {count - 1}.")
    if names is None:
        raise InputError(f"{target!r}: the model's classes have no names. Give a number from 0 to {count - 1}.")
    wanted = target.strip().lower()
    known: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        for synonym in {name.lower(), *(part.strip().lower() for part in name.split(","))}:
            known.setdefault(synonym, []).append(index)
    matches = known.get(wanted, [])
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise InputError(f"{target!r} names the classes {', '.join(map(str, matches))}. Give the number of one.")
    close = difflib.get_close_matches(wanted, known, 5) or [name for name in known if wanted in name][:5] or ["none"]
    raise InputError(f"no class {target!r}. Close to it: {'; '.join(close)}. Numbers go from 0 to {count - 1}.")


def read_image(path: str | Path) -> Image.Image:
    """Any picture that Pillow reads, turned the way that its camera says.

    Raises:
        InputError: there is no such file, or it is not a picture.
    """
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"Pillow cannot read the image {path}: {error}") from error


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
        pool: attributions are summed over blocks of pool x pool pixels before they are drawn.
        outlines: per explanation a mask of the target, bool (H, W), whose border is drawn on all panels, or None.

    Raises:
        InputError: the file cannot be written.

    Example:
        draw(explain(libra, x, "tabby"), "tabby.png", pool=16)
    """
    rows = [explanations] if isinstance(explanations, Explanation) else list(explanations)
    height, width = rows[0].picture.shape[1:]
    figure = Figure(figsize=(10, (3.1 * height / width + 0.65) * len(rows) + 0.75), dpi=160, layout="constrained")
    grid = figure.subplots(len(rows), 3, squeeze=False)
    for row, panels, outline in zip(rows, grid, outlines or [None] * len(rows)):
        for attribution, axes in zip((None, row.plain, row.ours), panels):
            _panel(axes, row, attribution, pool)
            if outline is not None:
                axes.contour(outline.numpy(), levels=[0.5], colors="#12b886", linewidths=1.4)
    blocks = f", {pool} x {pool} pixels to a block" if pool > 1 else ""
    where = " Green: where the target is." if outlines else ""
    caption = f"Input x gradient, summed over channels{blocks}. {_LEGEND}{where}"
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, weight="bold", parse_math=False)
    figure.supxlabel(caption, x=0.01, ha="left", fontsize=9, color="#555555")
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise InputError(f"the picture cannot be written to {path}: {error}") from error


def page(title: str, png: bytes, sections: Iterable[tuple[str, str]]) -> str:
    """A self-contained HTML page: a picture, then headings with HTML under them, each to be folded open.

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


_LEGEND = "Red speaks for the target, blue against it, in full from the panel's 99th percentile."
_SIGN = ListedColormap(["#1f5fd6", "#d6201f"])  # against, for; the strength is the opacity

_CSS = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1100px; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem } h4 { margin: 1rem 0 .3rem; color: #555 } img { max-width: 100%; margin-bottom: 1rem }
details { border-top: 1px solid #ddd; padding: .6rem 0 } summary { cursor: pointer; font-weight: 600 }
div { overflow-x: auto } pre { background: #f6f6f6; padding: .7rem; border-radius: 4px; white-space: pre-wrap }
table { border-collapse: collapse; font-size: .82rem } tbody tr:nth-child(even) { background: #f8f8f8 }
th, td { padding: .25rem .6rem; text-align: left; border-bottom: 1px solid #e5e5e5; white-space: nowrap }
"""


def _panel(axes: Axes, explanation: Explanation, attribution: Attribution | None, pool: int) -> None:
    """The picture itself, or an attribution in colour over a faint grey of it."""
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_color("#cccccc")
    picture = explanation.picture
    if attribution is None:
        axes.imshow(picture[: 3 if len(picture) >= 3 else 1].permute(1, 2, 0).expand(-1, -1, 3).numpy())
        label = textwrap.shorten(explanation.label, 34)
        axes.set_title(f"{label}: logit {explanation.logit:.3g}", loc="left", fontsize=10, parse_math=False)
        return
    height, width = picture.shape[1:]
    blocks = pool_sum(attribution.map, pool)
    scale = float(blocks.abs().quantile(0.99)) or 1.0
    strength = (blocks / scale).clamp(-1, 1).numpy()
    extent = (-0.5, blocks.shape[1] * pool - 0.5, blocks.shape[0] * pool - 0.5, -0.5)
    axes.imshow(picture.mean(0).numpy(), cmap="gray", vmin=-4.0, vmax=1.0)
    axes.imshow(strength > 0, cmap=_SIGN, vmin=0, vmax=1, alpha=abs(strength), extent=extent, interpolation="nearest")
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    axes.set_title("plain gradient" if attribution.rules == "gradient" else attribution.rules, loc="left", fontsize=10)
    axes.set_xlabel(f"completeness error {attribution.check.completeness_error:#.2g}", loc="left", fontsize=9)


def pool_sum(attribution: Tensor, pool: int) -> Tensor:
    """Sums over blocks of pool x pool pixels, (H, W) to (ceil(H / pool), ceil(W / pool)); their total stays.

    Example:
        >>> pool_sum(torch.ones(3, 3), 2).tolist()
        [[4.0, 2.0], [2.0, 1.0]]
    """
    return F.avg_pool2d(attribution[None, None], pool, ceil_mode=True, divisor_override=1)[0, 0]
