"""The command line: convert, check, explain, evaluate a model; look up rules; check a zoo of models.

Results go to stdout, progress and errors to stderr. Exit codes: 0; 1 if a check fails; 2 for every error.

Each command is a file, imported only when the command is called or its own help is shown, so `fxgrad --help` is fast.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any, NoReturn

from fxgrad.errors import FxgradError
from fxgrad.installed import version


def _missing(error: ImportError) -> NoReturn:
    sys.stderr.write(f'error: the command line needs more packages ({error}): pip install "fxgrad[cli]"\n')
    raise SystemExit(2) from error


try:
    import click
except ImportError as error:
    _missing(error)

COMMANDS = {
    "check": "Convert MODEL and prove the result.",
    "convert": "Convert MODEL, report what got which rule.",
    "evaluate": "Measure attributions of MODELS: methods x policies x metrics over a data set.",
    "explain": "Draw what in PICTURES, or in a text, speaks for a class, or for an answer.",
    "export": "Write MODEL and its attribution as one program, for onnxruntime, plain PyTorch or C++.",
    "flow": "Draw how the value of a class flows through MODEL, from PICTURE, or a text, token by token.",
    "patch": "Put what CORRUPT makes MODEL compute into its run on CLEAN, value by value: what does a class need?",
    "rules": "Look up ops, kinds and policies.",
    "run": "Explain IMAGE by EXPLAINER, an .onnx file that `fxgrad export` wrote, in onnxruntime.",
    "zoo": "Put MODELS, or every model of a suite, through the pass, and keep a row of each.",
}
"""Command -> the first sentence of its help. A command is a function in a file, both of its name."""


class _Commands(click.Group):
    """Imports a command on first use, and turns its `FxgradError`s into one line and exit code 2."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        try:
            with importlib.import_module("fxgrad.commands.terminal").stage("starting"):
                found: click.Command = getattr(importlib.import_module(f"fxgrad.commands.{name}"), name)
        except ImportError as error:
            _missing(error)
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except FxgradError as error:
            click.echo(f"error: {error}", err=True)
            ctx.exit(2)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version(), prog_name="fxgrad")
def main() -> None:
    """Rewrite PyTorch models so that their gradient attributions add up to the output (LibraGrad).

    MODEL is one of

    \b
      timm:NAME            torchvision:NAME[@TAG]   open_clip:NAME[@TAG]
      hf:OWNER/NAME        hf:FOLDER                hf:TYPE, such as hf:vit
      module.path:factory  a function or class of yours that returns an
                           nn.Module, in this folder or on sys.path

    with arguments, if any, behind it: "timm:NAME?img_size=384&num_classes=37". Weights are random, by --seed, unless
    you ask for others. Lines fit the terminal, else 80 characters; COLUMNS=200 gives tables all their columns.

    \b
    Examples:
      fxgrad convert timm:vit_tiny_patch16_224
      fxgrad check torchvision:resnet18 --dtype float64 --randomize
      fxgrad explain timm:vit_base_patch16_224 cat.jpg --pretrained --target tabby
      fxgrad explain open_clip:ViT-B-16@openai cat.jpg --prompt "a cat"
      fxgrad flow timm:vit_tiny_patch16_224 cat.jpg --pretrained -o cat.html
      fxgrad patch timm:vit_tiny_patch16_224 cat.jpg dog.jpg --pretrained
      fxgrad export timm:vit_base_patch16_224 --pretrained -o vit.onnx
      fxgrad run vit.onnx cat.jpg
      fxgrad rules gelu
    """
