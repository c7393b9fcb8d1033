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

    A file with several policies gives a map of each.

    \b
    Example:
      fxgrad run vit.onnx cat.jpg --target "tabby cat" -o cat.png
    """
    picture = read_image(image)
    with stage(f"loading {explainer}"):
        loaded = OnnxExplainer(explainer)
    with stage("running"):
        names = loaded.class_names
        first = loaded.explain(picture)
        index = first.target if target is None else resolve(target, len(first.logits), names)
        maps = [loaded.explain(picture, index, policy) for policy in loaded.policies]
    label = names[index] if names else f"class {index}"
    draw(maps, output, title=f"{label}: logit {first.logits[index]:.3g}", picture=picture)
    say(f"target {index} ({label}), logit {first.logits[index]:.4g}")
    for one in maps:
        of = f" ({one.policy})" if len(maps) > 1 else ""
        if one.completeness_error is not None:
            say(f"completeness error{of}: {one.completeness_error:#.2g}")
    say(f"wrote {output}")
