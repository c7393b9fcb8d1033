"""`fxgrad check`."""

from __future__ import annotations

import json
from typing import Any

import click

from fxgrad.commands.options import heading, loaded_model, model_options
from fxgrad.commands.parsing import command, output_file
from fxgrad.commands.printing import narrow, say
from fxgrad.commands.terminal import stage
from fxgrad.data.models import randomize as randomize_model
from fxgrad.pipeline import convert
from fxgrad.proof.check import check as check_converted
from fxgrad.writing import write_text


@command()
@model_options
@click.option("--batch", type=click.IntRange(1), default=2, show_default=True, help="Size of the random batch.")
@click.option("--scale", type=float, default=1.0, show_default=True, help="Standard deviation of the input.")
@click.option("--randomize", is_flag=True, help="Perturb biases, norms, tokens and statistics: no source is 0 by luck.")
@click.option(
    "--json", "json_file", metavar="FILE", callback=output_file(), help="Also write the whole ledger to a JSON file."
)
def check(
    batch: int,
    seed: int,
    scale: float,
    randomize: bool,
    json_file: str | None,
    rules: tuple[str, ...],
    **which: Any,
) -> None:
    """Convert MODEL and prove the result.

    Same forward, bit for bit; complete gradient; every node balanced. Input and cotangent are random. In float64 an
    error is a fault, not rounding. The exit code is 1 where the check fails.

    \b
    Example:
      fxgrad check timm:vit_tiny_patch16_224 --randomize --dtype float64
    """
    loaded = loaded_model(**which, seed=seed)
    if randomize:
        randomize_model(loaded.model, seed)
    model, x = loaded.model, loaded.example(batch, scale=scale)
    with stage(f"capturing and rewriting {loaded.name}"):
        converted = convert(model, (x,), rules=rules)
    with stage("checking"):
        report = check_converted(converted, (x,), original=model, seed=seed)
        plain_error = check_converted(converted.under("gradient"), (x,), seed=seed).completeness_error
    say(heading(loaded, f"{which['dtype']}, batch of {batch}"))
    say(str(report).partition("\n\n")[0])
    say(f"\n{narrow(report.ledger, 'op', 'rule', 'error', 'module_path')}")
    say(f"\n{narrow(report.sources, 'source', 'contribution', 'share')}")
    say(f"\nplain gradient, for comparison: completeness error {plain_error:.2e}")
    if json_file:
        found = {"model": loaded.name, "plain_completeness_error": plain_error, **json.loads(report.to_json())}
        write_text(json_file, json.dumps(found, indent=1) + "\n")
    if not report.passed:
        click.get_current_context().exit(1)
