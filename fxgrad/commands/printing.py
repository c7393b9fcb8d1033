"""What commands print on stdout: text and tables that fit the terminal."""

from __future__ import annotations

import dataclasses
import io
import sys
import textwrap
from typing import Any

import click
from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table as RichTable
from rich.text import Text

from fxgrad.report import Table


def columns() -> int:
    """How many characters a line of stdout has: the terminal's (or COLUMNS), else 80."""
    return Console(file=sys.stdout).width


def say(text: str, hang: int = 2) -> None:
    """Print on stdout, lines no longer than the terminal's; what has no spaces, such as a path, stays whole.

    Args:
        text: any lines.
        hang: by how many spaces the rest of a long line is indented.
    """
    for line in text.splitlines() or [""]:
        indent = " " * (len(line) - len(line.lstrip()) + hang)
        options: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}
        click.echo("\n".join(textwrap.wrap(line, columns(), subsequent_indent=indent, **options)))


def document(text: str) -> None:
    """Print a page of Markdown on stdout: drawn to fit, in a terminal; else as it is, for a file."""
    if sys.stdout.isatty():
        Console(file=sys.stdout).print(Markdown(text))
    else:
        click.echo(text, nl=False)


def narrow(table: Table[Any], *keep: str) -> str:
    """A table as text that fits the terminal: all columns if there is room, else some, their cells wrapped.

    Args:
        table: as many rows are shown as it shows itself.
        keep: the columns that matter most.

    Example:
        >>> @dataclasses.dataclass
        ... class Row:
        ...     op: str
        ...     line: str
        >>> print(narrow(Table("Rows", [Row("aten.add", "x" * 100)]), "op"))
        Rows
        op
        aten.add
    """
    plain = str(table)
    if max(map(len, plain.splitlines())) <= columns():
        return plain
    names = [f.name for f in dataclasses.fields(table[0]) if f.name in keep]
    made = RichTable(*names, box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="")
    for row in table[: table.shown]:
        made.add_row(*(Text(_short(name, getattr(row, name)), overflow="fold") for name in names))
    file = io.StringIO()
    Console(file=file, width=columns(), color_system=None, highlight=False).print(made)
    lines = [table.title, *(line.rstrip() for line in file.getvalue().splitlines())]
    return "\n".join([*lines, *([f"... and {len(table) - table.shown} more rows"] if len(table) > table.shown else [])])


def _short(name: str, value: Any) -> str:
    """A cell; of a line of source, the place alone; an op as the rules call it."""
    if name == "source_line":
        return str(value).partition(": ")[0]
    if name == "op":
        return str(value).removesuffix(".default")
    return f"{value:.4g}" if isinstance(value, float) else str(value)
