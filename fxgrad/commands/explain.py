"""`fxgrad explain`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from fxgrad.commands import explanation as explaining
from fxgrad.commands.answer import explain_text
from fxgrad.commands.explanation import Explanation
from fxgrad.commands.options import heading, loaded_model, method_option, model_options, prompt_option, prompted
from fxgrad.commands.parsing import command, output_file
from fxgrad.commands.printing import say
from fxgrad.commands.result import Result, Style
from fxgrad.commands.terminal import check_output, progress, stage
from fxgrad.data.models import LoadedModel
from fxgrad.errors import InputError
from fxgrad.evaluate.methods import method_options
from fxgrad.methods.drawing import named
from fxgrad.methods.entry import METHODS, known
from fxgrad.methods.names import resolve
from fxgrad.methods.photo import photo
from fxgrad.module.converted import ConvertedModule
from fxgrad.pipeline import convert
from fxgrad.reading import pictures_in, read_image, readable
from fxgrad.table.loading import load

FORMATS = (".png", ".pdf", ".svg", ".html")
PAGE_TARGETS = 3
"""How many of the largest logits a page has, where no target is given."""


def _listed(context: click.Context, option: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    """Names that are separated by commas, or given one by one; each once."""
    found = tuple(dict.fromkeys(name.strip() for part in value for name in part.split(",") if name.strip()))
    if value and not found:
        raise InputError(f"{option.opts[0]} names nothing. Give one or more names, separated by commas.")
    return found


def _methods(context: click.Context, option: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    names = _listed(context, option, value)
    for name in names:
        known(name)
    return names


def _policies(context: click.Context, option: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    names = _listed(context, option, value)
    for name in names:
        load(name)
    return names


@command()
@model_options
@click.argument("pictures", nargs=-1)
@click.option("--text", help="A text, for a language model hf:NAME; with PICTURES, about them.")
@click.option("--answer", metavar="TEXT", help="With --text: what follows it, or a label. Default: the model's own.")
@click.option("--against", metavar="TEXT", help="With --text: another answer, that values are contrasted with.")
@click.option("--target", "targets", multiple=True, metavar="CLASS", help="Its number or name. Repeatable.")
@click.option("--top", type=click.IntRange(1), help="Without --target: so many largest logits. Default: 1; a page: 3.")
@prompt_option
@click.option(
    "--methods",
    "--method",
    multiple=True,
    default=["input_x_gradient"],
    show_default=True,
    callback=_methods,
    metavar="NAME,...",
    help=f"{', '.join(METHODS)}. Repeatable.",
)
@method_option
@click.option(
    "--policies", multiple=True, callback=_policies, metavar="NAME,...", help="Default: gradient and --rules."
)
@click.option(
    "-o",
    "--output",
    default="explain.png",
    show_default=True,
    help="A picture, a page (.html), or a folder; of a --text, numbers (.json), too.",
)
@click.option("--html", "html_file", metavar="FILE", callback=output_file(".html"), help="Also write a page.")
@click.option("--pool", type=click.IntRange(1), help="Sum over blocks of so many pixels. Default: a patch, or 1.")
@click.option("--scale", type=click.Choice(["panel", "row"]), default="panel", show_default=True, help="One for each.")
@click.option("--cmap", metavar="NAME", help="Of figures: a colormap of matplotlib. Default: red, blue.")
def explain(
    pictures: tuple[str, ...],
    text: str | None,
    answer: str | None,
    against: str | None,
    targets: tuple[str, ...],
    top: int | None,
    prompts: tuple[str, ...],
    methods: tuple[str, ...],
    options: tuple[str, ...],
    policies: tuple[str, ...],
    output: str,
    html_file: str | None,
    pool: int | None,
    scale: str,
    cmap: str | None,
    rules: tuple[str, ...],
    **which: Any,
) -> None:
    """Draw what in PICTURES, or in a text, speaks for a class, or for an answer.

    PICTURES are files and folders. Each is attributed by every method under every policy, by default the plain gradient
    and libragrad; if the numbers are shares of the logit, with the part of it that they do not account for.

    OUTPUT is one picture of all; a page that switches policy, method and target, and reads off numbers; or, without an
    ending, a folder with a picture each and a manifest.

    \b
    Examples:
      fxgrad explain timm:vit_base_patch16_224 cat.jpg --pretrained \\
          --target "tabby cat" -o cat.png
      fxgrad explain torchvision:vit_b_16 photos/ --pretrained \\
          --methods fullgrad_plus,tokentm -o maps
      fxgrad explain hf:OWNER/NAME cat.jpg dog.jpg --pretrained -o page.html
      fxgrad explain open_clip:ViT-B-16@openai cat.jpg --prompt "a cat"
      fxgrad explain hf:gpt2 --pretrained --text "The sky is" \\
          --answer " blue" -o sky.html
      fxgrad explain hf:llava-hf/llava-1.5-7b-hf cat.jpg --pretrained \\
          --text "USER: <image> What is this? ASSISTANT:" -o cat.html
    """
    check_output(output, *FORMATS, *([".json"] if text is not None else []), folder=text is None)
    if text is not None:
        pictorial = {"--target": targets, "--top": top, "--prompt": prompts, "--option": options,
                 "--policies": policies, "--html": html_file, "--pool": pool, "--cmap": cmap}  # fmt: skip
        _refuse_beside_text([name for name, value in pictorial.items() if value])
        files = pictures_in(pictures) if pictures else []
        _spare(files, [output])
        asked = which.pop("model"), text, answer, against, output, files
        explain_text(*asked, rules=rules, methods=methods, **which)
        return
    _refuse_without_text(pictures, answer, against)
    if bool(targets) + bool(prompts) + (top is not None) > 1:
        raise InputError("--target and --prompt are two ways to say what to explain, --top a third. Give one of them.")
    if cmap is not None:
        named(cmap)
    files, given = pictures_in(pictures), method_options(methods, options, seed=which["seed"])
    for file in files:
        readable(file)
    _spare(files, [output, *([html_file] if html_file else [])])
    loaded = loaded_model(**which)
    loaded = prompted(loaded, prompts)
    targets = tuple(map(str, range(len(prompts)))) or targets
    for target in targets if loaded.class_names else ():
        resolve(target, len(loaded.class_names or ()), loaded.class_names)
    modules = _converted(loaded, files[0], rules, policies)
    style = Style(f"{loaded.name}, {loaded.described_weights}", pool or loaded.patch_size, scale == "row", cmap)
    result = Result(loaded, modules, style, Path(output), Path(html_file) if html_file else None, bool(prompts))
    top = top or (PAGE_TARGETS if Path(output).suffix == ".html" else 1)
    with progress() as show:
        for i, file in enumerate(files):
            show(i, len(files), file.name)
            how: dict[str, Any] = {"targets": targets or (None,), "top": top, "methods": methods, "options": given}
            result.add(file, _explained(loaded, modules, file, **how))
        show(len(files), len(files), "writing")
        written = result.write()
    say("\n".join([heading(loaded), *result.said(), *(f"wrote {path}" for path in written)]))


def _refuse_beside_text(given: Sequence[str]) -> None:
    if given:
        raise InputError(f"{given[0]} is for pictures without a --text. Leave it out.")


def _refuse_without_text(pictures: Sequence[str], answer: str | None, against: str | None) -> None:
    if answer is not None or against is not None:
        raise InputError(f"{'--answer' if answer is not None else '--against'} is what follows a --text. Give one.")
    if not pictures:
        raise InputError("there is nothing to explain. Give pictures, files or folders, or a --text.")


def _spare(files: Sequence[Path], outputs: Sequence[str]) -> None:
    """Refuse to write over a picture, or beside the pictures, where the next call would take maps for pictures."""
    for path in map(Path, outputs):
        if any(path.resolve() in (file.resolve(), file.resolve().parent) for file in files):
            raise InputError(f"{path} is where the pictures are that are to be explained. Choose another --output.")


def _converted(
    loaded: LoadedModel, first: Path, rules: tuple[str, ...], policies: Sequence[str]
) -> list[ConvertedModule]:
    """The model, captured once, under each policy; by default under the plain gradient and that of the rules."""
    with stage(f"capturing and rewriting {loaded.name}"):
        converted = convert(loaded.model, (loaded.preprocess(read_image(first)),), rules=rules)
        own = converted.classified.table.name
        names = policies or dict.fromkeys(("gradient", own))
        return [converted if name == own else converted.under(name) for name in names]


def _explained(loaded: LoadedModel, modules: list[ConvertedModule], file: Path, **asked: Any) -> list[Explanation]:
    """The explanations of one picture."""
    image = read_image(file)
    shown = photo(image, loaded.preprocess.size[1:], loaded.preprocess.window(*image.size))
    asked |= {"class_names": loaded.class_names, "name": file.name}
    return explaining.explain(modules, loaded.preprocess(image), picture=shown, **asked)
