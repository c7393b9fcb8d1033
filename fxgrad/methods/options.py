"""Options of `fxgrad.attribute`, checked for what they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fxgrad.errors import InputError

_FORMS = {
    "layer": "the path of a module",
    "input": "the name of an input",
    "blocks": "a list of module paths",
    "grid": "the sizes of the map of patches, such as (14, 14)",
    "prefix": "a number of tokens",
    "class_token": "the index of a token",
}


def refuse_wrong(options: Mapping[str, Any]) -> None:
    """Raise `InputError` if an option of every method is not what it should be; None is what was not given.

    Example:
        >>> refuse_wrong({"grid": (2, 2), "blocks": None})
        >>> refuse_wrong({"grid": 4})
        Traceback (most recent call last):
        fxgrad.errors.InputError: grid is the sizes of the map of patches, such as (14, 14), not 4.
    """
    for name, value in options.items():
        if value is not None and not _fits(name, value):
            raise InputError(f"{name} is {_FORMS[name]}, not {value!r}.")


def _fits(name: str, value: Any) -> bool:
    if name == "blocks":
        return isinstance(value, (list, tuple)) and all(isinstance(path, str) for path in value)
    if name == "grid":
        return isinstance(value, (list, tuple)) and bool(value) and all(_whole(n) and n > 0 for n in value)
    if name == "prefix":
        return _whole(value) and value >= 0
    return _whole(value) if name == "class_token" else isinstance(value, str)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def refuse_few(name: str, value: Any) -> None:
    """Raise `InputError` if an option is not a whole number of at least 1.

    Example:
        >>> refuse_few("n_steps", 0)
        Traceback (most recent call last):
        fxgrad.errors.InputError: n_steps is a whole number of at least 1, not 0.
    """
    if not _whole(value) or value < 1:
        raise InputError(f"{name} is a whole number of at least 1, not {value!r}.")
