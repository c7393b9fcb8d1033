"""Import of packages that only some data sets need."""

from __future__ import annotations

import importlib
from types import ModuleType

from fxgrad.errors import InputError


def needed(module: str, extra: str) -> ModuleType:
    """A module, which one of fxgrad's extras installs.

    Raises:
        InputError: it is not installed.

    Example:
        >>> needed("no.such", "data")
        Traceback (most recent call last):
        fxgrad.errors.InputError: this data set needs more packages (No module named 'no'): pip install "fxgrad[data]"
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(f'this data set needs more packages ({error}): pip install "fxgrad[{extra}]"') from error
