"""`fxgrad run`."""

from __future__ import annotations

import click

from fxgrad.commands.parsing import command, input_file, output_file
from fxgrad.commands.printing import say
from fxgrad.commands.terminal import stage
from fxgrad.explainer.run import OnnxExplainer, draw
from fxgrad.methods.names import resolve
from fxgrad.reading import read_image


@command("run")
@click.argument("explainer", callback=input_file)
@click.argument("image")
@click.option("--target", help="Class to explain: its number or its name. Default: the largest logit.")
@click.option(
    "-o",
    "--output",
    default="run.png",
    show_default=True,
    callback=output_file(".png", ".pdf", ".svg"),
    help="Picture to write: .png, .pdf, .svg.",
)
def run(explainer: str, image: str, target: str | None, output: str) -> None:
    """Explain IMAGE by EXPLAINER, an .onnx file that `fxgrad export` wrote, in onnxruntime.

    \b
    Example:
      fxgrad run vit.onnx cat.jpg --target "tabby cat" -o cat.png
    """
    picture = read_image(image)
    with stage(f"loading {explainer}"):
        loaded = OnnxExplainer(explainer)
    with stage("running"):
        found = loaded.explain(picture)
        names = loaded.class_names
        index = found.target if target is None else resolve(target, len(found.logits), names)
        if index != found.target:
            found = loaded.explain(picture, index)
    label = names[index] if names else f"class {index}"
    draw(found, output, title=f"{label}: logit {found.logits[index]:.3g}")
    say(f"target {index} ({label}), logit {found.logits[index]:.4g}")
    if found.completeness_error is not None:
        say(f"completeness error: {found.completeness_error:#.2g}")
    say(f"wrote {output}")
