"""`fxgrad zoo`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click

from fxgrad.commands.parsing import command
from fxgrad.commands.printing import columns, document, say
from fxgrad.commands.terminal import progress
from fxgrad.errors import InputError
from fxgrad.zoo.case import Limits
from fxgrad.zoo.report import page
from fxgrad.zoo.rows import Row, bar, read
from fxgrad.zoo.running import Watch, run, summary
from fxgrad.zoo.suites import SUITES, named, suite

_PIXELS = "Larger images are made smaller where the model allows it. Default: 256 for timm-families, else 128."
_PAGE = "Run nothing: print bench/measured/architectures.md as it follows from such a table. Repeatable."


@command()
@click.argument("models", nargs=-1)
@click.option("--suite", "suites", multiple=True, type=click.Choice(list(SUITES)), help="A whole suite. Repeatable.")
@click.option("--csv", metavar="FILE", help="Table to append to and to resume. Default: SUITE.csv, or zoo.csv.")
@click.option("--retry", is_flag=True, help="Run those again whose row in the table did not pass.")
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="How many models at once.")
@click.option("--timeout", type=float, default=600, show_default=True, help="Seconds for one model.")
@click.option("--memory", type=float, default=8, show_default=True, help="GB of resident memory for one model.")
@click.option(
    "--max-parameters",
    type=click.IntRange(1),
    default=Limits.parameters,
    show_default=True,
    help="A model beyond that is measured with one or two blocks of each sort.",
)
@click.option("--image-size", type=click.IntRange(1), metavar="PIXELS", help=_PIXELS)
@click.option("--summary", "tables", multiple=True, metavar="FILE", help=_PAGE)
@click.option("--list", "list_only", is_flag=True, help="Run nothing: print the models.")
def zoo(
    models: tuple[str, ...],
    suites: tuple[str, ...],
    csv: str | None,
    retry: bool,
    jobs: int,
    timeout: float,
    memory: float,
    max_parameters: int,
    image_size: int | None,
    tables: tuple[str, ...],
    list_only: bool,
) -> None:
    """Put MODELS, or every model of a suite, through the pass, and keep a row of each.

    A model is one of the suites', as timm:NAME, torchvision:NAME, transformers:NAME or PACKAGE:NAME, such as
    x-transformers:decoder; hf:NAME or open_clip:NAME; or module.path:factory, where the factory returns
    (model, args, kwargs). Arguments may follow: "timm:NAME?img_size=64". Each is converted in float64 in a process of
    its own, its forward compared bit for bit at batches of one and two, its completeness checked. The exit code is 1
    where one of them does not pass; a model that fails itself, or is random, does not count. A package of the suite
    "packages" that is not installed is skipped, and a line says how to install it.

    \b
    Examples:
      fxgrad zoo timm:resnet18 torchvision:swin_t
      fxgrad zoo --suite timm-families --csv timm-families.csv
      fxgrad zoo --suite packages
      fxgrad zoo --summary timm-families.csv > architectures.md
    """
    if tables:
        document(page({Path(table).stem: _read(table) for table in tables}))
        return
    limits = Limits(max_parameters, image_size)
    cases = [case for name in suites for case in suite(name, limits)] + [named(spec, limits) for spec in models]
    if not cases:
        raise InputError(f"which models? Name some, as in timm:resnet18, or give --suite: {', '.join(SUITES)}.")
    if list_only:
        click.echo("\n".join(case.name for case in cases))
        return
    file = csv or f"{suites[0] if len(suites) == 1 else 'zoo'}.csv"
    with _progress([case.name for case in cases]) as watch:
        rows = run(cases, file, jobs=jobs, timeout=timeout, memory=memory, retry=retry, watch=watch)
    say(summary(rows))
    if not all(row.passed for row in rows if row.counted):
        click.get_current_context().exit(1)


@contextmanager
def _progress(names: Sequence[str]) -> Iterator[Watch]:
    """Print a line on stdout for every new row, and show a progress bar."""
    done: list[Row] = []
    width = min(max(map(len, names)), 30)
    with progress() as show:

        def watch(row: Row | None, busy: Sequence[str]) -> None:
            if row is not None:
                done.append(row)
                line = f"{row.model:{width}}  {_outcome(row)}"
                say(line if len(line) <= columns() or not row.reason else f"{line[: columns() - 3]}...")
            show(len(done), len(names), ", ".join(busy))

        yield watch


def _outcome(row: Row) -> str:
    if row.reason:
        return row.reason  # whole in the table
    forward = "identical" if row.forward_identical else "DIFFERS"
    beyond = "" if row.passed else f", beyond {bar(row.precision):.0e}, worst {row.worst_node}"
    return f"{forward}, error {row.completeness_error:.1e}, plain {row.plain_error:.1e}, {row.seconds:.0f} s{beyond}"


def _read(table: str) -> list[Row]:
    if not Path(table).exists():
        raise InputError(f"{table} does not exist.")
    return read(Path(table))
