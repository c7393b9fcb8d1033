"""`fxgrad evaluate`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from fxgrad.commands.options import weight_options
from fxgrad.commands.terminal import progress, write
from fxgrad.data import DATA
from fxgrad.errors import InputError
from fxgrad.evaluate.page import pages
from fxgrad.evaluate.plan import POLICIES, Plan
from fxgrad.evaluate.run import evaluate as measure
from fxgrad.evaluate.store import read
from fxgrad.evaluate.values import read_values, write_values
from fxgrad.methods import METHODS

_DATA_HELP = f"{', '.join(sorted(DATA))}: NAME:PATH, but digits alone; or module.path:factory."
_METHODS_HELP = f"{', '.join(METHODS)}; or module.path:function of your own. Repeatable. Default: all of fxgrad's."
_METRICS_HELP = "module.path:metric of your own, beside fxgrad's: a fxgrad.metrics.Metric. Repeatable."


@click.command("evaluate")
@click.argument("models", nargs=-1)
@click.option("--data", default="digits", show_default=True, metavar="NAME[:PATH]", help=_DATA_HELP)
@click.option("--count", type=click.IntRange(1), default=200, show_default=True, help="How many pictures.")
@click.option("--all-pictures", is_flag=True, help="All there are, instead of --count.")
@click.option("--method", "methods", multiple=True, metavar="NAME", help=_METHODS_HELP)
@click.option("--policy", "policies", multiple=True, metavar="NAME|FILE", help="Repeatable. Default: all presets.")
@click.option("--target", type=click.Choice(["label", "predicted"]), default="label", show_default=True)
@click.option(
    "--removal",
    type=click.Choice(["auto", "drop", "zero", "blur"]),
    default="auto",
    show_default=True,
    help="How tokens are removed; auto drops them where the model can run on fewer, else blurs.",
)
@click.option(
    "--steps", type=click.IntRange(0), default=5, show_default=True, help="Of deletion and insertion; 0: none."
)
@click.option(
    "--option", "options", multiple=True, metavar="M.O=V", help="Of a method: smoothgrad.samples=5. Repeatable."
)
@click.option("--metric", "metrics", multiple=True, metavar="MODULE:METRIC", help=_METRICS_HELP)
@click.option("--chunk", type=click.IntRange(1), default=25, show_default=True, help="Pictures at once.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--dtype", type=click.Choice(["float32", "float64", "bfloat16"]), default="float32", show_default=True)
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Of the choice of pictures, and of random methods."
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
@click.option("--values", metavar="FILE.npz", help="Write every picture's values there, and make the tables from them.")
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
    **options: Any,
) -> None:
    """Measure attributions of MODELS: methods x policies x metrics over a data set.

    Faithfulness (what the model says without the most, or the least, influential tokens and pixels), agreement with
    masks, completeness; with bootstrap intervals, paired with the plain gradient's. What the store holds already is not
    measured again, so a run that was killed goes on where it was. Under torchrun, processes share the work.

    \b
    Examples:
      fxgrad evaluate fxgrad.demo:digits_vit --count 50 --method input_x_gradient
      fxgrad evaluate timm:vit_base_patch16_224 --pretrained --data imagenet-s:/data/ImageNetS919 --dtype bfloat16
      torchrun --nproc-per-node 2 -m fxgrad evaluate fxgrad.demo:digits_vit --out results.md
    """
    if len(stores) > 1 and not summary:
        raise InputError("a run has one --store; several are for --summary.")
    if summary:
        runs = [run for store in stores for run in (read_values(store) if store.endswith(".npz") else [read(store)])]
    else:
        plan = Plan(
            models,
            methods or tuple(METHODS),
            policies or POLICIES,
            count=None if all_pictures else count,
            **options,
        )
        with progress() as watch:
            runs = [measure(plan, stores[0], watch=watch)]
        if os.environ.get("RANK", "0") != "0":
            return
    if values is not None:
        write_values(runs, values)
        runs = read_values(values)
        click.echo(f"wrote {values}", err=out is None)
    if out is None:
        click.echo("\n".join(pages(runs).values()), nl=False)
        return
    for name, text in pages(runs, Path(out).stem).items():
        path = Path(out).parent / name if name != f"{Path(out).stem}.md" else Path(out)
        write(path, text, folder=True)
        click.echo(f"wrote {path}")
