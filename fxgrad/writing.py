"""Write files, and say it when that fails."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from fxgrad.errors import InputError


@contextlib.contextmanager
def writing(path: str | Path, *, folder: bool = False) -> Iterator[Path]:
    """The path of a file that is written inside the `with` block.

    Args:
        path: of the file.
        folder: create its folders if missing.

    Raises:
        InputError: the file cannot be written.

    Example:
        >>> with writing("no/such/folder/page.html") as path:
        ...     path.touch()
        Traceback (most recent call last):
        fxgrad.errors.InputError: no/such/folder/page.html cannot be written: No such file or directory.
    """
    try:
        if folder:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        yield Path(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}.") from error


def write_text(path: str | Path, text: str, *, folder: bool = False) -> None:
    """Write a text file in UTF-8; with `folder`, create its folders if missing.

    Raises:
        InputError: the file cannot be written.
    """
    with writing(path, folder=folder) as file:
        file.write_text(text, "utf-8")
