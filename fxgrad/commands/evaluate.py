"""`fxgrad evaluate`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from fxgrad.commands.options import each_loads, refuse_absent, weight_options
from fxgrad.commands.parsing import command, output_file
from fxgrad.commands.printing import document
from fxgrad.commands.terminal import progress
from fxgrad.data import DATA
from fxgrad.errors import InputError
from fxgrad.evaluate.page import pages
from fxgrad.evaluate.plan import POLICIES, REMOVALS, Plan
from fxgrad.evaluate.protocol import PROTOCOLS, protocol
from fxgrad.evaluate.run import evaluate as measure
from fxgrad.evaluate.store import read
from fxgrad.evaluate.values import read_values, write_values
from fxgrad.methods import BLACK_BOX, METHODS
from fxgrad.metrics import FRACTIONS, OPTIONAL
from fxgrad.writing import write_text

_PROTOCOL_HELP = "Settings of a publication, such as libragrad:imagenet; what else is given counts instead of them."
_DATA_HELP = f"{', '.join(sorted(DATA))}: NAME:PATH, but digits alone; or module.path:factory."
_METHODS_HELP = (
    f"{', '.join(METHODS)}; or module.path:function of your own. Repeatable. Default: all but {', '.join(BLACK_BOX)}."
)
_MEASURES_HELP = "Measure these metrics only, such as 'srg_*'. Repeatable. Default: all."
_METRICS_HELP = f"{', '.join(OPTIONAL)}; or module.path:metric of your own, a fxgrad.metrics.Metric. Repeatable."


def _numbers(context: click.Context, parameter: click.Parameter, value: str) -> tuple[float, ...]:
    """Numbers with commas between them."""
    try:
        return tuple(map(float, value.split(",")))
    except ValueError:
        raise click.BadParameter(f"{value!r} is no list of numbers, such as 0.1,0.5,0.9.") from None


@command("evaluate")
@click.argument("models", nargs=-1)
@click.option("--data", default="digits", show_default=True, metavar="NAME[:PATH]", help=_DATA_HELP)
@click.option("--count", type=click.IntRange(1), default=200, show_default=True, help="How many pictures, or texts.")
@click.option("--all-pictures", is_flag=True, help="All there are, instead of --count.")
@click.option(
    "--shuffle",
    type=click.Choice(["torch", "numpy", "none"]),
    default="torch",
    show_default=True,
    help="How the seed draws pictures; numpy is as datasets' shuffle.",
)
@click.option("--ids", metavar="FILE", help="Ids of the pictures to take, one per line, instead of a shuffle.")
@click.option("--mode", metavar="MODE", help="Take only pictures of this mode of Pillow's, such as RGB.")
@click.option("--prompt", "prompts", multiple=True, metavar="TEXT", help="For CLIP models, one per label. Repeatable.")
@click.option("--method", "methods", multiple=True, metavar="NAME", help=_METHODS_HELP)
@click.option(
    "--policy",
    "policies",
    multiple=True,
    metavar="NAME|FILE",
    callback=each_loads,
    help=f"{', '.join(POLICIES)}; or a file. Repeatable. Default: all of these.",
)
@click.option("--target", type=click.Choice(["label", "predicted", "second"]), default="label", show_default=True)
@click.option(
    "--value",
    type=click.Choice(["logit", "probability", "margin"]),
    default="logit",
    show_default=True,
    help="Of the target, what is attributed; the margin is over the other of two classes.",
)
@click.option(
    "--removal",
    type=click.Choice(REMOVALS),
    default="auto",
    show_default=True,
    help="How tokens are removed; auto drops them where the model can run on fewer, else blurs. Of texts: drop, hide "
    "from the attention, mask or pad; auto is the first of drop, hide, mask that the model can do.",
)
@click.option(
    "--fractions",
    callback=_numbers,
    default=",".join(map(str, FRACTIONS)),
    show_default=True,
    metavar="LIST",
    help="Shares of the tokens to remove; from 0 on, areas have the unmasked picture, too.",
)
@click.option(
    "--maps",
    type=click.Choice(["linear", "cubic"]),
    default="linear",
    show_default=True,
    help="How a map of patches becomes one of pixels.",
)
@click.option("--least-area", type=float, default=0.0, help="Masks that cover a smaller share of the input are none.")
@click.option(
    "--steps", type=click.IntRange(0), default=5, show_default=True, help="Of deletion and insertion; 0: none."
)
@click.option(
    "--option", "options", multiple=True, metavar="M.O=V", help="Of a method: smoothgrad.samples=5. Repeatable."
)
@click.option("--measure", "measures", multiple=True, metavar="PATTERN", help=_MEASURES_HELP)
@click.option("--metric", "metrics", multiple=True, metavar="NAME", help=_METRICS_HELP)
@click.option("--chunk", type=click.IntRange(1), default=25, show_default=True, help="Pictures, or texts, at once.")
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    default="cpu",
    show_default=True,
    help="With cuda, each process of torchrun takes its own.",
)
@click.option("--dtype", type=click.Choice(["float32", "float64", "bfloat16"]), default="float32", show_default=True)
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Of the choice of pictures, random methods, random weights."
)
@weight_options
@click.option(
    "--store",
    "stores",
    default=["evaluation"],
    show_default=True,
    multiple=True,
    metavar="FOLDER",
    help="Results; resumed from there. Several with --summary, which reads files of --values, too.",
)
@click.option(
    "--out",
    metavar="FILE.md",
    help="Write the tables there, and those of each of several models in a folder beside it; instead of to stdout.",
)
@click.option("--summary", is_flag=True, help="Measure nothing: print the tables of --store.")
@click.option(
    "--values",
    metavar="FILE.npz",
    callback=output_file(".npz"),
    help="Also every picture's values; the tables are made from them.",
)
@click.option("--protocol", "named", metavar="NAME:PART", help=_PROTOCOL_HELP)
@click.option("--show", is_flag=True, help="Measure nothing: say what --protocol runs.")
def evaluate(
    models: tuple[str, ...],
    count: int,
    all_pictures: bool,
    methods: tuple[str, ...],
    policies: tuple[str, ...],
    stores: tuple[str, ...],
    out: str | None,
    summary: bool,
    values: str | None,
    named: str | None,
    show: bool,
    **options: Any,
) -> None:
    """Measure attributions of MODELS: methods x policies x metrics over a data set.

    Faithfulness (what the model says without the most, or the least, influential tokens and pixels), agreement with
    masks or rationales, completeness; with bootstrap intervals, paired with the plain gradient's. What the store holds
    already is not measured again, so a run that was killed goes on where it was. Under torchrun, processes share the
    work.

    \b
    Examples:
      fxgrad evaluate fxgrad.demo:digits_vit --count 50 --method saliency
      fxgrad evaluate timm:vit_base_patch16_224 --pretrained \\
          --data imagenet-s:/data/ImageNetS919 --dtype bfloat16
      fxgrad evaluate hf:path/to/classifier --pretrained \\
          --data rationales:reviews.jsonl --out results.md
      fxgrad evaluate --protocol libragrad:imagenet --pretrained \\
          timm:vit_base_patch16_224.augreg2_in21k_ft_in1k
      torchrun --nproc-per-node 2 -m fxgrad evaluate \\
          fxgrad.demo:digits_vit --out results.md
    """
    if len(stores) > 1 and not summary:
        raise InputError("a run has one --store; several are for --summary.")
    if summary:
        runs = [run for store in stores for run in (read_values(store) if store.endswith(".npz") else [read(store)])]
    else:
        chosen = {
            "methods": methods or tuple(name for name in METHODS if name not in BLACK_BOX),
            "policies": policies or POLICIES,
            "count": None if all_pictures else count,
            **options,
        }
        if named or show:
            plan, said = _of_protocol(named or "", models, chosen)
            click.echo(said, err=not show)
            if show:
                return
        else:
            plan = Plan(models, **chosen)
        refuse_absent(plan.device)
        with progress() as watch:
            runs = [measure(plan, stores[0], watch=watch)]
        if os.environ.get("RANK", "0") != "0":
            return
    if values is not None:
        write_values(runs, values)
        runs = read_values(values)
        click.echo(f"wrote {values}", err=out is None)
    if out is None:
        document("\n".join(pages(runs).values()))
        return
    for name, text in pages(runs, Path(out).stem).items():
        path = Path(out).parent / name if name != f"{Path(out).stem}.md" else Path(out)
        write_text(path, text, folder=True)
        click.echo(f"wrote {path}")


def _of_protocol(named: str, models: tuple[str, ...], chosen: dict[str, Any]) -> tuple[Plan, str]:
    """The plan of a protocol's part, in which what the command line gives counts first; and what it runs, in words."""
    name, _, which = named.rpartition(":") if ":" in named else (named, "", "")
    if not named:
        raise InputError(f"--show says what --protocol NAME:PART runs: {', '.join(PROTOCOLS)}.")
    found, context = protocol(name), click.get_current_context()
    part = found.part(which)
    given = {k for k in context.params if context.get_parameter_source(k) is not ParameterSource.DEFAULT}
    given |= {"count"} if "all_pictures" in given else set()
    settings = {**chosen, **{k: v for k, v in part.settings.items() if k not in given}}
    if "ROOT" in settings["data"].split(":"):
        raise InputError(f"say where the data is: --data {settings['data']}, with its folder for ROOT.")
    plan = Plan(models, **settings)
    return plan, found.described(part, plan)
