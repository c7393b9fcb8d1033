"""The command line: convert, check, explain, evaluate a model; look rules up; put a zoo of models through the pass.

MODEL is `timm:NAME` or `module.path:factory`. What a command found goes to stdout, progress and errors to stderr.
Exit codes: 0; 1 where a check fails; 2 for everything that cannot be done.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import json
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import torch

try:
    import click
    from rich.console import Console

    from fxgrad.commands import explain as explaining
    from fxgrad.commands.evaluate import command as evaluate
    from fxgrad.commands.zoo import zoo
    from fxgrad.data import models
    from fxgrad.explainer import run as running
except ImportError as missing:
    sys.stderr.write(f'error: the command line needs more packages ({missing}): pip install "fxgrad[cli]"\n')
    raise SystemExit(2) from missing

from fxgrad.errors import FxgradError, InputError
from fxgrad.explainer import METHODS, export_explainer
from fxgrad.kinds import Kind
from fxgrad.methods.targets import resolve
from fxgrad.pipeline import convert as convert_model
from fxgrad.proof.check import check as check_converted
from fxgrad.report import Table
from fxgrad.table.load import load, presets
from fxgrad.table.row import Row

Command = TypeVar("Command", bound=Callable[..., Any])
_RULES_HELP = "A policy's name, or a TOML file of rows or of a policy. Repeatable. Default: libragrad."


class _Commands(click.Group):
    """Commands whose `FxgradError`s are one line on stderr and exit code 2."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except FxgradError as error:
            click.echo(f"error: {error}", err=True)
            ctx.exit(2)


def _version() -> str:
    try:
        return metadata.version("fxgrad")
    except metadata.PackageNotFoundError:
        return "unknown: not installed, run from source"


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(_version(), prog_name="fxgrad")
def main() -> None:
    """Rewrite PyTorch models so that their gradient attributions add up to the output (LibraGrad).

    MODEL is timm:NAME, or module.path:factory for a function or class in any module that can be imported, here
    or on sys.path, and that returns an nn.Module when called without arguments.

    \b
    Examples:
      fxgrad convert timm:vit_tiny_patch16_224
      fxgrad check timm:resnet18 --dtype float64 --randomize
      fxgrad explain timm:vit_base_patch16_224 cat.jpg --pretrained --target tabby
      fxgrad export timm:vit_base_patch16_224 --pretrained -o vit.onnx
      fxgrad run vit.onnx cat.jpg
      fxgrad rules gelu
    """


main.add_command(evaluate)
main.add_command(zoo)


def _model_options(command: Command) -> Command:
    """The options that say which model, and under which rules."""
    options = [
        click.argument("model"),
        click.option("--pretrained", is_flag=True, help="timm's weights, from the hub or its cache; random otherwise."),
        click.option("--checkpoint", metavar="FILE", help="Weights: a .safetensors file that fits the model exactly."),
        click.option("--input-size", nargs=3, type=click.IntRange(1), metavar="C H W", help="Size of one input."),
        click.option("--rules", multiple=True, default=["libragrad"], metavar="NAME|FILE", help=_RULES_HELP),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@main.command()
@_model_options
@click.option("--details", is_flag=True, help="Every node, not only a summary.")
@click.option("--json", "json_file", metavar="FILE", help="Also write every node to a JSON file.")
def convert(json_file: str | None, details: bool, rules: tuple[str, ...], **which: Any) -> None:
    """Convert MODEL, report what got which rule.

    \b
    Example:
      fxgrad convert timm:swin_tiny_patch4_window7_224 --details
    """
    loaded = _load(**which)
    with stage(f"capturing and rewriting {loaded.name}"):
        report = convert_model(loaded.model, (loaded.example(),), rules=rules).report
    click.echo(_heading(loaded))
    click.echo(report.details() if details else report.summary())
    if json_file:
        _write(json_file, report.to_json() + "\n")


@main.command()
@_model_options
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float64", "bfloat16"]),
    default="float32",
    show_default=True,
    help="Of weights and input. float64 shows whether an error is rounding or a fault.",
)
@click.option("--batch", type=click.IntRange(1), default=2, show_default=True, help="Size of the random batch.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of input, cotangent and --randomize.")
@click.option("--scale", type=float, default=1.0, show_default=True, help="Standard deviation of the input.")
@click.option("--randomize", is_flag=True, help="Perturb biases, norms, tokens and statistics: no source is 0 by luck.")
@click.option("--json", "json_file", metavar="FILE", help="Also write the whole ledger to a JSON file.")
def check(
    dtype: str,
    batch: int,
    seed: int,
    scale: float,
    randomize: bool,
    json_file: str | None,
    rules: tuple[str, ...],
    **which: Any,
) -> None:
    """Convert MODEL and prove the result.

    Same forward, bit for bit; complete gradient; every node balanced. Input and cotangent are random. The exit
    code is 1 where the check fails.

    \b
    Example:
      fxgrad check timm:vit_tiny_patch16_224 --randomize --dtype float64
    """
    loaded = _load(**which)
    if randomize:
        models.randomize(loaded.model, seed)
    precision = getattr(torch, dtype)
    model, x = loaded.model.to(precision), loaded.example(batch, seed=seed, scale=scale).to(precision)
    with stage(f"capturing and rewriting {loaded.name}"):
        converted = convert_model(model, (x,), rules=rules)
    with stage("checking"):
        report = check_converted(converted, (x,), original=model, seed=seed)
        plain_error = check_converted(converted.under("gradient"), (x,), seed=seed).completeness_error
    click.echo(_heading(loaded, f"{dtype}, batch of {batch}"))
    click.echo(f"{report}\n\nplain gradient, for comparison: completeness error {plain_error:.2e}")
    if json_file:
        found = {"model": loaded.name, "plain_completeness_error": plain_error, **json.loads(report.to_json())}
        _write(json_file, json.dumps(found, indent=1) + "\n")
    if not report.passed:
        click.get_current_context().exit(1)


@main.command()
@_model_options
@click.argument("image")
@click.option("--target", help="Class to explain: its number or its name. Default: the largest logit.")
@click.option("--prompt", metavar="TEXT", help="For CLIP-like models: explain how well the picture fits a text.")
@click.option("--method", default="input_x_gradient", show_default=True, metavar="NAME", help="Of `fxgrad.attribute`.")
@click.option("-o", "--output", default="explain.png", show_default=True, help="Picture to write: .png, .pdf, .svg.")
@click.option("--html", "html_file", metavar="FILE", help="Also write a self-contained HTML report.")
@click.option("--pool", type=click.IntRange(1), help="Sum over blocks of so many pixels. Default: a patch, or 1.")
def explain(
    image: str,
    target: str | None,
    prompt: str | None,
    method: str,
    output: str,
    html_file: str | None,
    pool: int | None,
    rules: tuple[str, ...],
    **which: Any,
) -> None:
    """Draw what in IMAGE speaks for a class.

    An attribution under the plain gradient and under the rules, side by side, each with its completeness error: the
    share of the logit that inputs and sources do not account for.

    \b
    Examples:
      fxgrad explain timm:vit_base_patch16_224 cat.jpg --pretrained --target "tabby cat" -o cat.png
      fxgrad explain timm:vit_base_patch16_224 cat.jpg --pretrained --method fullgrad_plus
      fxgrad explain mypackage.models:my_clip numbers.png --prompt "a red seven"
    """
    picture = explaining.read_image(image)
    loaded = _load(**which)
    if prompt is not None:
        if target is not None:
            raise InputError("--target and --prompt are two ways to say what to explain. Give one of them.")
        loaded, target = loaded.prompted(prompt), "0"
    x = loaded.preprocess(picture)
    with stage(f"capturing and rewriting {loaded.name}"):
        converted = convert_model(loaded.model, (x,), rules=rules)
    with stage("attributing and checking"):
        explanation = explaining.explain(
            converted, x, target, picture=loaded.preprocess.invert(x), class_names=loaded.class_names, method=method
        )
    title, blocks = f"{loaded.name}, {loaded.weights} weights", pool or loaded.patch_size
    explaining.draw(explanation, output, title=title, pool=blocks)
    errors = ", ".join(f"{a.rules} {a.check.completeness_error:#.2g}" for a in (explanation.plain, explanation.ours))
    click.echo(_heading(loaded))
    what = f"prompt {prompt!r}" if prompt is not None else f"target {explanation.target} ({explanation.label})"
    click.echo(f"{what}, logit {explanation.logit:.4g}, {method}")
    click.echo(f"completeness error: {errors}\nwrote {output}")
    if html_file:
        png = io.BytesIO()
        explaining.draw(explanation, png, title=title, pool=blocks)
        sections = [
            (f"Check of {explanation.ours.rules}", explanation.ours.check._repr_html_()),
            ("Check of the plain gradient", explanation.plain.check._repr_html_()),
            ("Conversion", converted.report.summary()._repr_html_() + converted.report._repr_html_()),
        ]
        _write(html_file, explaining.page(f"{explanation.label}: {title}", png.getvalue(), sections))
        click.echo(f"wrote {html_file}")


@main.command()
@_model_options
@click.option("-o", "--output", required=True, metavar="FILE", help="Ends in .onnx, .pt2 or .aoti.")
@click.option("--method", type=click.Choice(list(METHODS)), default="input_x_gradient", show_default=True)
@click.option("--targets", type=click.IntRange(1), help="So many targets an item, from one forward. Default: one.")
@click.option("--pool", type=click.IntRange(1), default=1, show_default=True, help="Sum over blocks of so many pixels.")
@click.option("--each-channel", is_flag=True, help="Do not sum over channels.")
@click.option("--no-completeness", is_flag=True, help="Leave out the completeness error.")
def export(
    output: str,
    method: str,
    targets: int | None,
    pool: int,
    each_channel: bool,
    no_completeness: bool,
    rules: tuple[str, ...],
    **which: Any,
) -> None:
    """Write MODEL and its attribution as one program, for onnxruntime, plain PyTorch or C++.

    \b
    Example:
      fxgrad export timm:vit_base_patch16_224 --pretrained -o vit.onnx
      fxgrad run vit.onnx cat.jpg -o cat.png
    """
    loaded = _load(**which)
    with stage(f"capturing and rewriting {loaded.name}"):
        converted = convert_model(loaded.model, (loaded.example(),), rules=rules)
    described = {"model": loaded.name, "weights": loaded.weights, "preprocessing": loaded.preprocess.constants()}
    if loaded.class_names:
        described["class_names"] = loaded.class_names
    with stage(f"tracing {method} and writing {output}"):
        found = export_explainer(
            converted,
            (loaded.example(),),
            output,
            method=method,
            targets=targets,
            channels=None if each_channel else "auto",
            pool=pool,
            completeness=not no_completeness,
            metadata=described,
        )
    click.echo(_heading(loaded))
    click.echo(f"inputs {', '.join(found['inputs'])}; outputs {', '.join(found['outputs'])}")
    click.echo(f"wrote {output}, {Path(output).stat().st_size / 1e6:.1f} MB")


@main.command("run")
@click.argument("explainer")
@click.argument("image")
@click.option("--target", help="Class to explain: its number or its name. Default: the largest logit.")
@click.option("-o", "--output", default="run.png", show_default=True, help="Picture to write: .png, .pdf, .svg.")
def run_explainer(explainer: str, image: str, target: str | None, output: str) -> None:
    """Explain IMAGE by EXPLAINER, an .onnx file that `fxgrad export` wrote, in onnxruntime.

    \b
    Example:
      fxgrad run vit.onnx cat.jpg --target "tabby cat" -o cat.png
    """
    picture = explaining.read_image(image)
    with stage(f"loading {explainer}"):
        loaded = running.OnnxExplainer(explainer)
    with stage("running"):
        found = loaded.explain(picture)
        names = loaded.class_names
        index = found.target if target is None else resolve(target, len(found.logits), names)
        if index != found.target:
            found = loaded.explain(picture, index)
    label = names[index] if names else f"class {index}"
    running.draw(found, output, title=f"{label}: logit {found.logits[index]:.3g}")
    click.echo(f"target {index} ({label}), logit {found.logits[index]:.4g}")
    if found.completeness_error is not None:
        click.echo(f"completeness error: {found.completeness_error:#.2g}")
    click.echo(f"wrote {output}")


@dataclass(frozen=True)
class RuleRow:
    """One op as `fxgrad rules` prints it."""

    op: str
    kind: str
    backward: str
    row: str


@dataclass(frozen=True)
class PolicyRow:
    """One kind of a policy as `fxgrad rules --policy` prints it."""

    kind: str
    backward: str
    ops: int


@main.command()
@click.argument("query", required=False)
@click.option("--policy", metavar="NAME|FILE", help="Show which backward each kind gets under this policy.")
def rules(query: str | None, policy: str | None) -> None:
    """Look up ops, kinds and policies.

    QUERY is a part of an op's name, or of a kind. Without one: all kinds and policies.

    \b
    Examples:
      fxgrad rules softmax
      fxgrad rules normalization --policy gradient
      fxgrad rules --policy libragrad
    """
    table = load(policy or "libragrad")
    rows = list(table.rows.values())
    if query:
        found = [row for row in rows if query.lower() in f"{row.op} {row.kind.value}".lower()]
        if not found:
            known = {name for row in rows for name in (row.op, row.op.partition(".")[2], row.kind.value)}
            close = ", ".join(difflib.get_close_matches(query, sorted(known), 3))
            raise InputError(f"no op and no kind has {query!r} in its name. Close to it: {close or 'nothing'}.")
        shown = [RuleRow(r.op, r.kind.value, str(table.backwards.get(r.kind, "-")), _describe(r)) for r in found]
        click.echo(Table(f"{table.name}: ops and kinds with {query!r}", shown, shown=len(shown)))
    elif policy:
        kinds = [PolicyRow(k.value, str(b), sum(r.kind is k for r in rows)) for k, b in table.backwards.items()]
        click.echo(Table(f"{table.name}\n{table.cite}", kinds))
    else:
        for kind in Kind:
            ops = ", ".join(row.op for row in rows if row.kind is kind)
            click.echo(f"{kind.value}\n{textwrap.fill(ops, 110, initial_indent='  ', subsequent_indent='  ')}")
        click.echo("\npolicies")
        for name, cite in presets().items():
            click.echo(textwrap.fill(f"{name}: {cite}", 110, initial_indent="  ", subsequent_indent="    "))


def _describe(row: Row) -> str:
    parts = [f"{part} = {', '.join(names)}" for part, names in row.parts.items()]
    return "; ".join([*parts, *(f"{key} = {value}" for key, value in row.options.items())])


def _load(model: str, **options: Any) -> models.LoadedModel:
    with stage(f"loading {model}"):
        return models.load_model(model, **options)


def _heading(loaded: models.LoadedModel, more: str = "") -> str:
    size = " x ".join(map(str, loaded.preprocess.size))
    return f"{loaded.name}: {loaded.weights} weights, input {size}{', ' if more else ''}{more}"


@contextlib.contextmanager
def stage(what: str) -> Iterator[None]:
    """A spinner on stderr while something runs, where a person is watching."""
    console = Console(stderr=True)
    with console.status(f"{what} ...") if console.is_terminal else contextlib.nullcontext():
        yield


def _write(path: str, text: str) -> None:
    try:
        Path(path).write_text(text, "utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}.") from error
