"""`fxgrad convert`."""

from __future__ import annotations

from typing import Any

import click

from fxgrad.commands.options import heading, loaded_model, model_options
from fxgrad.commands.parsing import command, output_file
from fxgrad.commands.printing import narrow, say
from fxgrad.commands.terminal import stage
from fxgrad.pipeline import convert as convert_model
from fxgrad.report import Table
from fxgrad.writing import write_text


@command()
@model_options
@click.option("--details", is_flag=True, help="Every node, not only a summary.")
@click.option(
    "--json", "json_file", metavar="FILE", callback=output_file(), help="Also write every node to a JSON file."
)
def convert(json_file: str | None, details: bool, rules: tuple[str, ...], **which: Any) -> None:
    """Convert MODEL, report what got which rule.

    \b
    Example:
      fxgrad convert timm:swin_tiny_patch4_window7_224 --details
    """
    loaded = loaded_model(**which)
    with stage(f"capturing and rewriting {loaded.name}"):
        report = convert_model(loaded.model, (loaded.example(),), rules=rules).report
    say(heading(loaded))
    if details:
        say(narrow(Table(report.title, report.rows, len(report)), "node", "rule", "source_line"))
        say("\n".join([*report.sizes, *(refusal.message for refusal in report.refusals)]))
    else:
        say(narrow(report.summary(), "count", "op", "rule", "first_at"))
    if json_file:
        write_text(json_file, report.to_json() + "\n")
