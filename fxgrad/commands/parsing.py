"""How every command reads its command line: what takes one value takes one, and files are checked before any work."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from fxgrad.commands.terminal import check_output
from fxgrad.errors import InputError


class Command(click.Command):
    """A command whose options take one value each, unless they say that they take several: a second is an error."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        given = self.make_parser(ctx).parse_args(list(args))[2]
        for option in given:
            if not isinstance(option, click.Option) or option.multiple or option.is_flag or option.count:
                continue
            if sum(option is other for other in given) > 1:
                raise InputError(f"{option.opts[-1]} is given more than once, and only one can count. Give it once.")
        return super().parse_args(ctx, args)


command = functools.partial(click.command, cls=Command)
"""`click.command` for the commands of fxgrad."""


def output_file(*endings: str, folder: bool = False) -> Callable[..., Any]:
    """The callback of an option that is a file to write: checks it when the command line is read.

    Args:
        endings: the formats, such as ".png"; none: any.
        folder: a path without an ending is good, too: a folder, which the command makes.
    """

    def checked(context: click.Context, option: click.Parameter, value: str | None) -> str | None:
        if value is not None:
            check_output(value, *endings, folder=folder)
        return value

    return checked


def input_file(context: click.Context, option: click.Parameter, value: str | None) -> str | None:
    """The callback of an option that is a file to read: checks that it is there."""
    if value is not None and not Path(value).is_file():
        raise InputError(f"{value} cannot be read: {'it is a folder' if Path(value).is_dir() else 'no such file'}.")
    return value
