"""Every example in the docstrings runs, and every public function has one."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil

import pytest

import fxgrad

MODULES = sorted(m.name for m in pkgutil.walk_packages(fxgrad.__path__, "fxgrad.") if not m.name.endswith("__main__"))


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.failed == 0


@pytest.mark.parametrize("name", fxgrad.__all__)
def test_public_names_are_documented(name: str) -> None:
    value = getattr(fxgrad, name)
    assert value.__doc__
    if inspect.isfunction(value):
        for part in ("Args:", "Returns:", "Raises:", "Example:", "Source:"):
            assert part in value.__doc__, f"{name} lacks {part}"
