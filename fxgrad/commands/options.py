"""The options of all commands that choose a model, and the first line of their output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from fxgrad.commands.terminal import stage
from fxgrad.data.models import LoadedModel, load_model

Command = TypeVar("Command", bound=Callable[..., Any])
_RULES_HELP = "A policy's name, or a TOML file of rows or of a policy. Repeatable. Default: libragrad."


def weight_options(command: Command) -> Command:
    """Add the options for a model's weights and input size."""
    return _all(
        command,
        click.option("--pretrained", is_flag=True, help="timm's weights, from the hub or its cache; random otherwise."),
        click.option("--checkpoint", metavar="FILE", help="Weights that fit exactly: .safetensors, .ckpt, .pth, .pt."),
        click.option("--strip-prefix", default="", metavar="TEXT", help="Cut it off the checkpoint's keys: backbone."),
        click.option("--num-classes", type=click.IntRange(1), help="Size of a timm model's head, for a checkpoint."),
        click.option("--input-size", nargs=3, type=click.IntRange(1), metavar="C H W", help="Size of one input."),
    )


def model_options(command: Command) -> Command:
    """Add the argument MODEL and the options for its weights, input size and rules."""
    return _all(
        command,
        click.argument("model"),
        weight_options,
        click.option("--rules", multiple=True, default=["libragrad"], metavar="NAME|FILE", help=_RULES_HELP),
    )


def _all(command: Command, *options: Callable[[Command], Command]) -> Command:
    """Add options to a command, in the order in which its help shows them."""
    for option in reversed(options):
        command = option(command)
    return command


def loaded_model(model: str, **options: Any) -> LoadedModel:
    """Load the model that `model_options` describe."""
    with stage(f"loading {model}"):
        return load_model(model, **options)


def heading(loaded: LoadedModel, more: str = "") -> str:
    """The first line of a command's output."""
    size = " x ".join(map(str, loaded.preprocess.size))
    return f"{loaded.name}: {loaded.weights} weights, input {size}{', ' if more else ''}{more}"
