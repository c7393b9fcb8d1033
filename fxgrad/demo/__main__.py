"""All of fxgrad on one page: `python -m fxgrad.demo` converts, checks and explains the demo's model."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor

from fxgrad.capture.export import capture
from fxgrad.classify.walk import classify
from fxgrad.commands.explanation import Explanation, explain, map_of, proof
from fxgrad.commands.grid import draw
from fxgrad.commands.page import page
from fxgrad.commands.terminal import stage
from fxgrad.data.models import load_model
from fxgrad.demo.canvases import Canvas, canvas
from fxgrad.demo.model import preprocess
from fxgrad.errors import CaptureError, FxgradError
from fxgrad.module.converted import ConvertedModule
from fxgrad.pipeline import convert
from fxgrad.proof.check import check
from fxgrad.table.loading import load

MODEL = "fxgrad.demo.model:digits_vit"
LARGE = "timm:vit_base_patch16_224"
MEASURED = 50
POLICIES = ("plain", "libragrad")


@click.command()
@click.option("--out", default="demo-out", show_default=True, type=click.Path(path_type=Path, file_okay=False))
@click.option("--canvas", "number", default=7, show_default=True, type=click.IntRange(0), help="Which one to explain.")
def main(out: Path, number: int) -> None:
    """Convert, check and explain a small vision transformer, then convert a large one.

    Writes digits.png and report.html.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        digits(out, number)
        click.echo()
        large()
    except (FxgradError, OSError) as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)


def digits(out: Path, number: int) -> None:
    """Explain both digits of one canvas, and measure where the attribution of many canvases lies.

    Writes `digits.png` and `report.html` to `out`, and prints the numbers.

    Raises:
        FxgradError: the demo's model cannot be loaded, converted or explained.
        OSError: a file cannot be written.
    """
    loaded = load_model(MODEL)
    shown = canvas(number)
    x = preprocess(shown.image)
    with stage("converting and checking the digits model"):
        libra = convert(loaded.model, (x,))
        plain = libra.under("gradient")
        checked = check(libra, (preprocess(np.stack([canvas(i).image for i in range(8)])),), original=loaded.model)
    with stage("explaining"):
        pair = explain(
            [plain, libra],
            x,
            shown.labels,
            picture=torch.from_numpy(shown.image),
            class_names=loaded.class_names,
            name=f"canvas {number}",
        )
        proofs = [(e.label, name, proof(m, x, e.target)) for name, m in zip(POLICIES, (plain, libra)) for e in pair]
        many = [canvas(i) for i in range(MEASURED)]
        lines = [f"canvas {number}, target {e.label}: {_share(e, mask)}" for e, mask in zip(pair, shown.masks)]
        lines += _averages(many, libra, plain)
    png = io.BytesIO()
    outlines = [torch.from_numpy(mask) for mask in shown.masks]
    draw(pair, png, title="Which pixels speak for which digit? One canvas, two targets", outlines=outlines)
    (out / "digits.png").write_bytes(png.getvalue())
    summary = str(checked).partition("\n\n")[0]
    sections = [
        ("Positive attribution that falls on the target digit", "<pre>" + "\n".join(lines) + "</pre>"),
        ("Check of the converted model, on eight canvases and a random cotangent", checked._repr_html_()),
        *((f"Check of the logit {label!r}, {policy}", found._repr_html_()) for label, policy, found in proofs),
        ("Conversion", libra.report._repr_html_()),
    ]
    report = page("fxgrad: a digits vision transformer, explained", pair, sections)
    (out / "report.html").write_text(report, "utf-8")
    click.echo(f"{MODEL}, check on eight held-out canvases\n{summary}\n")
    for e in pair:
        errors = ", ".join(f"{policy} {found.completeness_error:#.2g}" for policy, found in zip(POLICIES, e.found))
        click.echo(f"canvas {number}, target {e.label}: logit {e.logit:.3f}, completeness error {errors}")
    click.echo("\npositive attribution inside the target digit")
    click.echo("\n".join(lines))
    click.echo(f"\nwrote {out / 'digits.png'} and {out / 'report.html'}")


def large() -> None:
    """Convert timm's ViT-B/16 and say how long that takes."""
    with stage(f"loading {LARGE}"):
        try:
            loaded = load_model(LARGE, pretrained=True)
        except CaptureError:  # the hub is unreachable; with random weights the graph is the same
            loaded = load_model(LARGE)
    with stage(f"converting {LARGE}"):
        start = time.perf_counter()
        captured = capture(loaded.model, (loaded.example(1),))
        exported = time.perf_counter()
        converted = ConvertedModule(classify(captured, load("libragrad")))
        done = time.perf_counter()
    click.echo(f"{LARGE}, {loaded.weights} weights\n{converted.report.summary()}")
    click.echo(f"converted in {done - start:.2f} s: export {exported - start:.2f} s, fxgrad {done - exported:.2f} s")


def shares(converted: ConvertedModule, canvases: Sequence[Canvas]) -> Tensor:
    """The share of each digit logit's positive attribution that lies on each digit.

    Args:
        converted: the converted demo model.
        canvases: N canvases.

    Returns:
        float32 (N, 2, 2): for each canvas and target digit, the shares on the first and on the second digit. The rest
        to 1 lies elsewhere.
    """
    x = preprocess(np.stack([c.image for c in canvases])).requires_grad_()
    labels = torch.tensor([c.labels for c in canvases])
    masks = torch.from_numpy(np.stack([c.masks for c in canvases]))
    logits = converted(x)
    found = []
    for target in labels.T:
        (gradient,) = torch.autograd.grad(logits.gather(1, target[:, None]).sum(), x, retain_graph=True)
        found.append(positive_shares((x * gradient).detach().sum(1), masks))
    return torch.stack(found, 1)


def positive_shares(attribution: Tensor, masks: Tensor) -> Tensor:
    """Share of the positive attribution inside each mask: (N, H, W) and bool (N, M, H, W) to (N, M).

    Example:
        >>> a, inside = torch.tensor([[[3.0, 1.0], [-5.0, 0.0]]]), torch.tensor([[[[True, False], [True, False]]]])
        >>> positive_shares(a, inside).tolist()
        [[0.75]]
    """
    positive = attribution.clamp(min=0)
    return (positive[:, None] * masks).sum((2, 3)) / positive.sum((1, 2)).clamp(min=1e-12)[:, None]


def _share(explanation: Explanation, mask: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> str:
    inside = torch.from_numpy(mask)[None, None]
    plain, libra = (float(positive_shares(map_of(found)[None], inside)) for found in explanation.found)
    return f"plain {plain:.1%}, libragrad {libra:.1%} (the digit is {mask.mean():.1%} of the canvas)"


def _averages(canvases: Sequence[Canvas], libra: ConvertedModule, plain: ConvertedModule) -> list[str]:
    """Lines of text with the mean shares of many canvases."""
    ours, theirs = shares(libra, canvases), shares(plain, canvases)
    own, other = torch.eye(2, dtype=torch.bool), ~torch.eye(2, dtype=torch.bool)
    area = float(np.mean([c.masks.mean() for c in canvases]))
    better = float((ours[:, own] > theirs[:, own]).float().mean())
    n = len(canvases)
    return [
        f"mean of {n} held-out canvases, on the target digit: plain {theirs[:, own].mean():.1%}, "
        f"libragrad {ours[:, own].mean():.1%} (a digit is {area:.1%} of a canvas)",
        f"mean of {n} held-out canvases, on the other digit: plain {theirs[:, other].mean():.1%}, "
        f"libragrad {ours[:, other].mean():.1%}",
        f"libragrad puts more on the target digit than plain for {better:.0%} of the {2 * n} targets",
    ]


if __name__ == "__main__":
    main()
