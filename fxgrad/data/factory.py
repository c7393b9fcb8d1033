"""Anything that can be imported, by a text: `module.path:name`."""

from __future__ import annotations

import importlib
import os
import sys
from types import ModuleType
from typing import Any


def load_object(spec: str, *, call: bool = False, directory: str | None = None) -> tuple[ModuleType, Any]:
    """The object that a text names, or what it returns when it is called, and the module that it is from.

    Args:
        spec: `module.path:name`; the module is looked for in a directory first, then on sys.path.
        call: call it without arguments.
        directory: by default the current one.

    Raises:
        Exception: whatever the import or the call raises.

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
        return module, found() if call else found
    finally:
        sys.path.remove(first)
