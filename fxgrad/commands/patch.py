"""`fxgrad patch`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from fxgrad.commands.next_token import language_model, next_token, read
from fxgrad.commands.options import heading, loaded_model, model_options, prompt_option, prompted
from fxgrad.commands.parsing import command
from fxgrad.commands.printing import say
from fxgrad.commands.terminal import check_output, stage
from fxgrad.errors import InputError
from fxgrad.flows.patch import RUNS, patching
from fxgrad.flows.patched import Patch, Patching
from fxgrad.flows.units import Heads, Place
from fxgrad.methods.targets import Contrast
from fxgrad.module.converted import ConvertedModule
from fxgrad.pipeline import convert
from fxgrad.reading import read_image, readable
from fxgrad.text.pieces import pieces
from fxgrad.writing import write_text

ENDINGS = (".png", ".pdf", ".svg", ".json", ".html")
PLAIN = "gradient"
"""The policy whose estimates a page has beside the others."""
MOST = 5
"""How many values are printed."""


@command()
@model_options
@click.argument("clean")
@click.argument("corrupt")
@click.option("--text", is_flag=True, help="CLEAN and CORRUPT are texts, for a causal language model hf:NAME.")
@click.option(
    "--target", metavar="CLASS", help="A class's number or name; of a --text, a token. Default: the likeliest."
)
@click.option("--against", metavar="CLASS", help="Another: what changes the one and not the other.")
@prompt_option
@click.option("--run", type=click.Choice(RUNS), default="clean", show_default=True, help="Put the other's values here.")
@click.option(
    "--cut", "cuts", multiple=True, metavar="MODULE", help="Patch what leaves it. Repeatable. Default: blocks."
)
@click.option("--heads", multiple=True, metavar="MODULE", help="Patch each head of this attention. Repeatable.")
@click.option("--effects", is_flag=True, help="Run the model again for each value, beside the estimates.")
@click.option("-o", "--output", default="patching.png", show_default=True, help=f"{', '.join(ENDINGS)}.")
def patch(
    clean: str,
    corrupt: str,
    text: bool,
    target: str | None,
    against: str | None,
    prompts: tuple[str, ...],
    run: str,
    cuts: tuple[str, ...],
    heads: tuple[str, ...],
    effects: bool,
    output: str,
    rules: tuple[str, ...],
    **which: Any,
) -> None:
    """Put what CORRUPT makes MODEL compute into its run on CLEAN, value by value: what does a class need?

    CLEAN and CORRUPT are pictures, or texts of as many tokens. Each number says how much the class's value changes
    once one token, at one cut, is the other's: an estimate by the gradient under --rules, and with --effects the truth,
    for which the model runs again from there. A page, .html, has the plain gradient's estimates beside them.

    \b
    Examples:
      fxgrad patch timm:vit_tiny_patch16_224 cat.jpg dog.jpg --pretrained \\
          --target tabby --effects -o cat.png
      fxgrad patch hf:gpt2 --pretrained --text "The sky is" "The blood is" \\
          --target " blue" --against " red" --heads transformer.h.9.attn
    """
    check_output(output, *ENDINGS)
    places: list[Place] = [*cuts, *map(Heads, heads)]
    options: dict[str, Any] = {"cuts": places or None, "run": run, "effects": effects}
    options["beside"] = output.endswith(".html")
    if text:
        first, found, plain = _of_texts((clean, corrupt), target, against, rules, which, options)
    else:
        if any(Path(output).resolve() == Path(one).resolve() for one in (clean, corrupt)):
            raise InputError(f"{output} is one of the pictures itself. Choose another --output.")
        goal = target if against is None else Contrast(target, against)
        first, found, plain = _of_pictures((clean, corrupt), goal, prompts, rules, which, options)
    if output.endswith(".json"):
        write_text(output, found.to_json() + "\n")
    elif output.endswith(".html"):
        found.html(output, plain)
    else:
        found.plot(output)
    agree = [f"correlation of estimates and effects: {found.correlation['all'].pearson:.3f}"] if effects else []
    say("\n".join([first, found.caption, *map(_said, found.strongest(MOST)), *agree, f"wrote {output}"]))


def _said(patch: Patch) -> str:
    effect = "" if patch.effect is None else f", effect {patch.effect:.4g}"
    return f"{patch.node}, {patch.name}: estimate {patch.estimate:.4g}{effect}"


def _patched(
    converted: ConvertedModule, *inputs: Any, beside: bool, effects: bool, **options: Any
) -> tuple[Patching, Patching | None]:
    """(what was found, and the estimates of the plain gradient beside it, if they are asked for and are others)."""
    found = patching(converted, *inputs, effects=effects, **options)
    if not beside or found.rules == PLAIN:
        return found, None
    return found, patching(converted.under(PLAIN), *inputs, **options)


def _of_pictures(
    paths: tuple[str, str],
    target: Any,
    prompts: tuple[str, ...],
    rules: tuple[str, ...],
    which: Mapping[str, Any],
    options: Mapping[str, Any],
) -> tuple[str, Patching, Patching | None]:
    """(the heading, what was found between two pictures, and that of the plain gradient)."""
    for path in paths:
        readable(Path(path))
    loaded = prompted(loaded_model(**which), prompts)
    clean, corrupt = (loaded.preprocess(read_image(Path(path))) for path in paths)
    with stage(f"capturing and rewriting {loaded.name}"):
        converted = convert(loaded.model, (clean,), rules=rules)
    with stage(f"patching {loaded.name}"):
        names = loaded.class_names
        found, plain = _patched(converted, clean, corrupt, target=target, class_names=names, **options)
    return heading(loaded), found, plain


def _of_texts(
    texts: tuple[str, str],
    target: str | None,
    against: str | None,
    rules: tuple[str, ...],
    which: Mapping[str, Any],
    options: Mapping[str, Any],
) -> tuple[str, Patching, Patching | None]:
    """(the heading, what was found between two texts, and that of the plain gradient)."""
    said, host, tokenizer = language_model(texts, rules, which)
    ids, inputs = zip(*(read(host, one) for one in texts))
    if len(ids[0]) != len(ids[1]):
        raise InputError(f"the texts are {len(ids[0])} and {len(ids[1])} tokens, and must be as many: token by token.")
    with stage(f"patching {which['model']}"):
        goal, words = next_token(tokenizer, target, against), pieces(tokenizer, ids[RUNS.index(options["run"])])
        found, plain = _patched(host.conversion(inputs[0]), *inputs, target=goal, token_names=words, **options)
    return said, found, plain
