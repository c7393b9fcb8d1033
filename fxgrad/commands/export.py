"""`fxgrad export`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fxgrad.commands.options import (
    heading,
    loaded_model,
    method_option,
    model_options,
    prompt_option,
    prompted,
)
from fxgrad.commands.parsing import command, output_file
from fxgrad.commands.printing import say
from fxgrad.commands.terminal import stage
from fxgrad.data.hf_texts import TokenIds
from fxgrad.errors import ExportError
from fxgrad.evaluate.methods import method_options
from fxgrad.explainer import METHODS, export_explainer
from fxgrad.explainer.compact import WEIGHTS
from fxgrad.explainer.formats import FORMATS
from fxgrad.pipeline import convert
from fxgrad.table.loading import load

CHOSEN = ("layer", "input", "channels", "blocks", "grid", "prefix", "class_token")
"""The options of a method that can be chosen for a file."""


@command()
@model_options
@prompt_option
@click.option(
    "-o",
    "--output",
    required=True,
    metavar="FILE",
    callback=output_file(*FORMATS),
    help="Ends in .onnx, .pt2 or .aoti.",
)
@click.option(
    "--method",
    type=click.Choice(list(METHODS)),
    metavar="NAME",
    default="input_x_gradient",
    show_default=True,
    help=f"{', '.join(METHODS)}.",
)
@click.option("--targets", type=click.IntRange(1), help="So many targets an item, from one forward. Default: one.")
@click.option("--pool", type=click.IntRange(1), default=1, show_default=True, help="Sum over blocks of so many pixels.")
@click.option("--each-channel", is_flag=True, help="Do not sum over channels.")
@click.option("--no-completeness", is_flag=True, help="Leave out the completeness error.")
@method_option
@click.option("--policies", metavar="A,B", help="Several policies in one file, from one forward: libragrad,gradient.")
@click.option(
    "--weights",
    "kept",
    type=click.Choice(WEIGHTS),
    default="float32",
    show_default=True,
    help="How .onnx keeps the weights; it computes in float32.",
)
def export(
    output: str,
    method: str,
    targets: int | None,
    pool: int,
    each_channel: bool,
    no_completeness: bool,
    prompts: tuple[str, ...],
    options: tuple[str, ...],
    policies: str | None,
    kept: str,
    rules: tuple[str, ...],
    **which: Any,
) -> None:
    """Write MODEL and its attribution as one program, for onnxruntime, plain PyTorch or C++.

    \b
    Example:
      fxgrad export timm:vit_base_patch16_224 --pretrained -o vit.onnx
      fxgrad export timm:vit_base_patch16_224 -o vit.onnx \\
          --method fullgrad_plus --weights int8
      fxgrad run vit.onnx cat.jpg -o cat.png
    """
    chosen = {"channels": None if each_channel else "auto", **method_options([method], options)[method]}
    if unknown := [name for name in chosen if name not in CHOSEN]:
        raise ExportError(
            f"--option {unknown[0]}=... cannot be chosen for a file, which has {method}'s own. Leave it out."
        )
    under = [name.strip() for name in policies.split(",")] if policies else None
    for name in under or ():
        load(name)  # a wrong name ends the command before it loads a model
    loaded = prompted(loaded_model(**which), prompts)
    with stage(f"capturing and rewriting {loaded.name}"):
        converted = convert(loaded.model, (loaded.example(),), rules=rules)
    described: dict[str, Any] = {"model": loaded.name, "weights": loaded.weights}
    if not isinstance(loaded.preprocess, TokenIds):  # token ids are a tokenizer's, and need none
        described["preprocessing"] = loaded.preprocess.constants()
    if loaded.class_names:
        described["class_names"] = loaded.class_names
    with stage(f"tracing {method} and writing {output}"):
        found = export_explainer(
            converted,
            (loaded.example(),),
            output,
            method=method,
            targets=targets,
            pool=pool,
            completeness=not no_completeness,
            policies=under,
            weights=kept,
            metadata=described,
            **chosen,
        )
    say(heading(loaded))
    say(f"inputs {', '.join(found['inputs'])}; outputs {', '.join(found['outputs'])}")
    say(f"wrote {output}, {Path(output).stat().st_size / 1e6:.1f} MB")
