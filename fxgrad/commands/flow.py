"""`fxgrad flow`."""

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
from fxgrad.flows.files import ENDINGS, write
from fxgrad.flows.graph import flow as flow_of
from fxgrad.flows.shown import caption
from fxgrad.flows.strongest import edges_of
from fxgrad.methods.photo import photo
from fxgrad.methods.targets import Contrast
from fxgrad.pipeline import convert
from fxgrad.reading import read_image, readable
from fxgrad.text.pieces import pieces

MOST = 5
"""How many edges are printed."""


@command()
@model_options
@click.argument("picture", required=False)
@click.option("--text", help="A text, for a causal language model hf:NAME: of its next token.")
@click.option(
    "--target", metavar="CLASS", help="A class's number or name; of a --text, a token. Default: the likeliest."
)
@click.option("--against", metavar="CLASS", help="Another: what flows to the one and not to the other.")
@prompt_option
@click.option(
    "--cut", "cuts", multiple=True, metavar="MODULE", help="Cut at what leaves it. Repeatable. Default: blocks."
)
@click.option("--top", type=click.IntRange(0), help="Keep so many edges between two cuts. Default: all.")
@click.option("-o", "--output", default="flow.html", show_default=True, help=f"{', '.join(ENDINGS)}.")
def flow(
    picture: str | None,
    text: str | None,
    target: str | None,
    against: str | None,
    prompts: tuple[str, ...],
    cuts: tuple[str, ...],
    top: int | None,
    output: str,
    rules: tuple[str, ...],
    **which: Any,
) -> None:
    """Draw how the value of a class flows through MODEL, from PICTURE, or a text, token by token.

    OUTPUT is a page, where pointing at a token shows its edges in and out, a picture, or the graph itself: JSON or
    GraphML for networkx and Gephi, .circuit.json for the viewer of circuit-tracer. It takes about as many backward
    passes as the model has tokens.

    \b
    Examples:
      fxgrad flow timm:vit_tiny_patch16_224 cat.jpg --pretrained --target tabby
      fxgrad flow timm:vit_base_patch16_224 cat.jpg --top 500 -o flow.graphml
      fxgrad flow hf:gpt2 --pretrained --text "The sky is" --target " blue" \\
          --against " red" -o sky.html
    """
    check_output(output, *ENDINGS)
    if (picture is None) == (text is None):
        raise InputError("give a PICTURE, or a --text, to see what flows from it.")
    options: dict[str, Any] = {"cuts": list(cuts) or None, "top": top}
    if text is not None:
        first, graph = _of_text(text, target, against, rules, which, options)
        write(graph, output)
    else:
        readable(Path(str(picture)))
        if Path(output).resolve() == Path(str(picture)).resolve():
            raise InputError(f"{output} is the picture itself. Choose another --output.")
        loaded = prompted(loaded_model(**which), prompts)
        image = read_image(Path(str(picture)))
        x = loaded.preprocess(image)
        with stage(f"capturing and rewriting {loaded.name}"):
            converted = convert(loaded.model, (x,), rules=rules)
        with stage(f"following the flow through {loaded.name}"):
            graph = flow_of(converted, (x,), target=_target(target, against), class_names=loaded.class_names, **options)
        write(graph, output, photo(image, loaded.preprocess.size[1:], loaded.preprocess.window(*image.size)))
        first = heading(loaded)
    say("\n".join([first, caption(graph), *_strongest(graph), f"wrote {output}"]))


def _of_text(
    text: str,
    target: str | None,
    against: str | None,
    rules: tuple[str, ...],
    which: Mapping[str, Any],
    options: Mapping[str, Any],
) -> tuple[str, Any]:
    """(the heading, the flow to the next token of a text)."""
    said, host, tokenizer = language_model([text], rules, which)
    ids, kwargs = read(host, text)
    with stage(f"following the flow through {which['model']}"):
        converted, goal = host.conversion(kwargs), next_token(tokenizer, target, against)
        graph = flow_of(converted, kwargs=kwargs, target=goal, token_names=pieces(tokenizer, ids), **options)
    return said, graph


def _target(target: str | None, against: str | None) -> Any:
    return target if against is None else Contrast(target, against)


def _strongest(graph: Any) -> list[str]:
    return [f"{a} -> {b}: {weight:.4g}" for a, b, weight in edges_of(graph)[:MOST]]
