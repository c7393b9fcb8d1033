"""The options of all commands that choose a model, and the first line of their output.

`model_options` are MODEL, its weights, rules, device, dtype and seed; `method_option` is for commands that attribute.
`loaded_model` gives the model in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click
import torch

from fxgrad.commands.terminal import stage
from fxgrad.data.hf_texts import TokenIds
from fxgrad.data.models import LoadedModel, load_model
from fxgrad.errors import InputError
from fxgrad.table.loading import load

Decorated = TypeVar("Decorated", bound=Callable[..., Any])
DTYPES = ("float32", "float64", "bfloat16", "float16")
_RULES_HELP = (
    "A policy's name, with its parameters as in 'gamma (gamma = 0.5)', or a TOML file of rows or of a policy. "
    "Repeatable. Default: libragrad."
)
_PROMPT_HELP = "For CLIP and SigLIP: a text, which is a class then. Repeatable."
_OPTION_HELP = "Of the method, such as n_steps=20; or layer=blocks.9, ... Repeatable."


def refuse_absent(device: str) -> None:
    """Raise `InputError` if a device is not there; the message says what is."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ImportError) as error:
        there = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        there += ["mps"] if torch.backends.mps.is_available() else []
        raise InputError(f"--device {device} is not here; there is {', '.join(there)}.") from error


def _present(context: click.Context, option: click.Parameter, value: str) -> str:
    refuse_absent(value)
    return value


def _checked_rules(context: click.Context, option: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    """The rules as they were given, but read once: a wrong name or file ends the command before it loads a model."""
    load(value)
    return value


def each_loads(context: click.Context, option: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    """The callback of an option for several policies: reads each once, so that a wrong one ends the command at once."""
    for name in value:
        load(name)
    return value


def weight_options(function: Decorated) -> Decorated:
    """Add the options for a model's weights and input size."""
    return _all(
        function,
        click.option("--pretrained", is_flag=True, help="The package's weights; random otherwise."),
        click.option("--checkpoint", metavar="FILE", help="Weights that fit exactly: .safetensors, .ckpt, .pth, .pt."),
        click.option("--strip-prefix", default="", metavar="TEXT", help="Cut off the checkpoint's keys: backbone."),
        click.option("--num-classes", type=click.IntRange(1), help="Size of the head, for a checkpoint."),
        click.option("--input-size", nargs=3, type=click.IntRange(1), metavar="C H W", help="Size of one input."),
    )


def place_options(function: Decorated) -> Decorated:
    """Add the options --device, --dtype and --seed."""
    return _all(
        function,
        click.option("--device", default="cpu", show_default=True, callback=_present, help="cpu, cuda, cuda:1, mps."),
        click.option("--dtype", type=click.Choice(DTYPES), default="float32", show_default=True, help="Of the model."),
        click.option("--seed", type=int, default=0, show_default=True, help="Of all that is random, weights included."),
    )


def model_options(function: Decorated) -> Decorated:
    """Add the argument MODEL and the options for its weights, input size, rules, device, dtype and seed."""
    return _all(
        function,
        click.argument("model"),
        weight_options,
        click.option(
            "--rules",
            multiple=True,
            default=["libragrad"],
            metavar="NAME|FILE",
            callback=_checked_rules,
            help=_RULES_HELP,
        ),
        place_options,
    )


method_option = click.option("--option", "options", multiple=True, metavar="NAME=VALUE", help=_OPTION_HELP)
"""Adds `options`, a tuple of texts; `fxgrad.evaluate.methods.method_options` reads them."""


prompt_option = click.option("--prompt", "prompts", multiple=True, metavar="TEXT", help=_PROMPT_HELP)
"""Adds `prompts`, a tuple of texts, for `prompted`."""


def _all(function: Decorated, *options: Callable[[Decorated], Decorated]) -> Decorated:
    """Add options to a command, in the order in which its help shows them."""
    for option in reversed(options):
        function = option(function)
    return function


def loaded_model(model: str, *, dtype: str = "float32", **options: Any) -> LoadedModel:
    """Load the model that `model_options` describe, in its place: its dtype and device."""
    with stage(f"loading {model}"):
        return load_model(model, dtype=getattr(torch, dtype), **options)


def prompted(loaded: LoadedModel, prompts: Sequence[str]) -> LoadedModel:
    """The model as a classifier by prompts; without any, the model itself.

    Raises:
        CaptureError: it knows no prompts, or it needs some.
    """
    if not prompts:
        loaded.refuse_without_prompts()
        return loaded
    with stage("reading the prompts"):
        return loaded.prompted(*prompts)


def heading(loaded: LoadedModel, more: str = "") -> str:
    """The first line of a command's output."""
    size = " x ".join(map(str, loaded.preprocess.size))
    size += " token ids" if isinstance(loaded.preprocess, TokenIds) else ""
    return f"{loaded.name}: {loaded.described_weights}, input {size}{', ' if more else ''}{more}"
