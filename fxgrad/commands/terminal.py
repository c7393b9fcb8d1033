"""Progress on stderr while a command works, and the writing of files."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fxgrad.errors import InputError

Show = Callable[[int, int, str], None]
"""Called with (done, total, what is in progress)."""


@contextlib.contextmanager
def stage(what: str) -> Iterator[None]:
    """Show a spinner while something runs, if stderr is a terminal."""
    console = Console(stderr=True)
    with console.status(f"{what} ...") if console.is_terminal else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def progress() -> Iterator[Show]:
    """Show a progress bar, if stderr is a terminal."""
    console = Console(stderr=True)
    columns = [BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()]
    bar = Progress(TextColumn("{task.description}"), *columns, console=console, disable=not console.is_terminal)
    task = bar.add_task("starting", total=None)

    def show(done: int, total: int, what: str) -> None:
        bar.update(task, completed=done, total=total, description=what or "done")

    with bar:
        yield show


def write(path: str | Path, text: str, *, folder: bool = False) -> None:
    """Write a text file; with `folder`, create its folder if missing.

    Raises:
        InputError: the file cannot be written.
    """
    try:
        if folder:
            Path(path).parent.mkdir(exist_ok=True)
        Path(path).write_text(text, "utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}.") from error
