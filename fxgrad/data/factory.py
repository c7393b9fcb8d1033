"""Import an object by its spec `module.path:name`."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any


def load_object(
    spec: str, *, call: bool = False, directory: str | None = None, options: Mapping[str, Any] | None = None
) -> tuple[ModuleType, Any]:
    """(module, object) by the object's spec; with `call`, the object's return value instead of the object.

    Args:
        spec: `module.path:name`; the module is looked for in `directory` first, then on sys.path.
        call: call the object, with the arguments `options`, by name.
        directory: by default the current one.
        options: by default none.

    Raises:
        Exception: any exception of the import or the call.

    Example:
        >>> load_object("fractions:Fraction", call=True)[1]
        Fraction(0, 1)
    """
    source, _, name = spec.partition(":")
    first = os.getcwd() if directory is None else directory
    sys.path.insert(0, first)
    try:
        module = importlib.import_module(source)
        found = getattr(module, name)
        return module, found(**(options or {})) if call else found
    finally:
        sys.path.remove(first)
