"""Progress on stderr while a command works, and the writing of files."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fxgrad.errors import InputError

Show = Callable[[int, int, str], None]
"""Called with (done, total, what is in progress)."""


@contextlib.contextmanager
def stage(what: str) -> Iterator[None]:
    """Show a spinner while something runs, with what fxgrad's loggers say of it, if stderr is a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    with console.status(f"{what} ...") as status, _heard(lambda said: status.update(f"{what}: {said} ...")):
        yield


@contextlib.contextmanager
def _heard(show: Callable[[str], None]) -> Iterator[None]:
    """Show what fxgrad's loggers say of their work."""
    logger, handler = logging.getLogger("fxgrad"), logging.Handler()
    handler.emit = lambda record: show(record.getMessage())  # type: ignore[method-assign]
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


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


def check_output(path: str | Path, *endings: str, folder: bool = False) -> None:
    """Check, before any work, that a file can be written.

    Args:
        path: of the file.
        endings: the formats, such as ".png"; none: any.
        folder: a path without an ending is good, too: a folder, made by the command.

    Raises:
        InputError: its ending is none of these, there is no folder to write it to, or it may not be written.

    Example:
        >>> check_output("a.bin", ".png", ".svg")
        Traceback (most recent call last):
        fxgrad.errors.InputError: a.bin must end in one of .png, .svg: the ending says which format to write.
    """
    path = Path(path)
    whole = folder and not path.suffix
    if endings and not whole and path.suffix not in endings:
        other = "; without an ending it is a folder" if folder else ""
        raise InputError(
            f"{path} must end in one of {', '.join(endings)}: the ending says which format to write{other}."
        )
    problem = ""
    if path.is_dir() != whole and path.exists():
        problem = "that is a file" if whole else "that is a folder"
    elif not path.parent.is_dir():
        problem = f"there is no folder {path.parent}"
    elif not os.access(path if path.exists() else path.parent, os.W_OK):
        problem = "permission denied"
    if problem:
        raise InputError(f"{path} cannot be written: {problem}.")
