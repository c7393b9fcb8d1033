"""Packages whose public names are imported on first use, so that what needs no torch does not wait for it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def names(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """A package's `__getattr__` and `__dir__`.

    Args:
        package: its `__name__`.
        homes: public name -> the module in it that has the name; "" for a module of the package itself.

    Example:
        >>> attribute, listing = names("fxgrad", {"convert": "pipeline"})
        >>> attribute("convert").__module__, "convert" in listing()
        ('fxgrad.pipeline', True)
    """

    def attribute(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        home = homes[name]
        value = getattr(module(home), name) if home else module(name)
        setattr(sys.modules[package], name, value)
        return value

    def module(name: str) -> Any:
        return importlib.import_module(f"{package}.{name}")

    def listing() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes})

    return attribute, listing
