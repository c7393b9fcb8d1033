"""`fxgrad explain`."""

from __future__ import annotations

import io
from typing import Any

import click

from fxgrad.commands import explanation as explaining
from fxgrad.commands.options import heading, loaded_model, model_options
from fxgrad.commands.terminal import stage, write
from fxgrad.errors import InputError
from fxgrad.pipeline import convert
from fxgrad.reading import read_image


@click.command()
@model_options
@click.argument("image")
@click.option("--target", help="Class to explain: its number or its name. Default: the largest logit.")
@click.option("--prompt", metavar="TEXT", help="For CLIP-like models: explain how well the picture fits a text.")
@click.option("--method", default="input_x_gradient", show_default=True, metavar="NAME", help="Of `fxgrad.attribute`.")
@click.option("-o", "--output", default="explain.png", show_default=True, help="Picture to write: .png, .pdf, .svg.")
@click.option("--html", "html_file", metavar="FILE", help="Also write a self-contained HTML report.")
@click.option("--pool", type=click.IntRange(1), help="Sum over blocks of so many pixels. Default: a patch, or 1.")
def explain(
    image: str,
    target: str | None,
    prompt: str | None,
    method: str,
    output: str,
    html_file: str | None,
    pool: int | None,
    rules: tuple[str, ...],
    **which: Any,
) -> None:
    """Draw what in IMAGE speaks for a class.

    An attribution under the plain gradient and under the rules, side by side, each with its completeness error: the
    share of the logit that inputs and sources do not account for.

    \b
    Examples:
      fxgrad explain timm:vit_base_patch16_224 cat.jpg --pretrained --target "tabby cat" -o cat.png
      fxgrad explain timm:vit_base_patch16_224 cat.jpg --pretrained --method fullgrad_plus
      fxgrad explain mypackage.models:my_clip numbers.png --prompt "a red seven"
    """
    picture = read_image(image)
    loaded = loaded_model(**which)
    if prompt is not None:
        if target is not None:
            raise InputError("--target and --prompt are two ways to say what to explain. Give one of them.")
        loaded, target = loaded.prompted(prompt), "0"
    x = loaded.preprocess(picture)
    with stage(f"capturing and rewriting {loaded.name}"):
        converted = convert(loaded.model, (x,), rules=rules)
    with stage("attributing and checking"):
        explanation = explaining.explain(
            converted, x, target, picture=loaded.preprocess.invert(x), class_names=loaded.class_names, method=method
        )
    title, blocks = f"{loaded.name}, {loaded.weights} weights", pool or loaded.patch_size
    explaining.draw(explanation, output, title=title, pool=blocks)
    errors = ", ".join(f"{a.rules} {a.check.completeness_error:#.2g}" for a in (explanation.plain, explanation.ours))
    click.echo(heading(loaded))
    what = f"prompt {prompt!r}" if prompt is not None else f"target {explanation.target} ({explanation.label})"
    click.echo(f"{what}, logit {explanation.logit:.4g}, {method}")
    click.echo(f"completeness error: {errors}\nwrote {output}")
    if html_file:
        png = io.BytesIO()
        explaining.draw(explanation, png, title=title, pool=blocks)
        sections = [
            (f"Check of {explanation.ours.rules}", explanation.ours.check._repr_html_()),
            ("Check of the plain gradient", explanation.plain.check._repr_html_()),
            ("Conversion", converted.report.summary()._repr_html_() + converted.report._repr_html_()),
        ]
        write(html_file, explaining.page(f"{explanation.label}: {title}", png.getvalue(), sections))
        click.echo(f"wrote {html_file}")
