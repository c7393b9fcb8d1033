"""Conversions that tests share: most of the suite's time is torch.export of the same few models."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

from torch import nn

import fxgrad

Build = Callable[[], tuple[nn.Module, tuple[Any, ...]]]


@functools.lru_cache(maxsize=16)
def _shared(build: Build) -> tuple[nn.Module, tuple[Any, ...], fxgrad.ConvertedModule]:
    model, args = build()
    return model, args, fxgrad.convert(model, args)


def converted(build: Build, rules: Any = None) -> tuple[nn.Module, tuple[Any, ...], fxgrad.ConvertedModule]:
    """The model that `build` makes, its example inputs and its conversion: copies, free to be changed.

    Args:
        build: a function of a module. It sets its own seed, as it runs once in a process.
        rules: another policy; the captured graph is classified again by it, as `convert` would.
    """
    model, args, libra = _shared(build)
    changed = libra if rules is None else libra.under(rules)
    return copy.deepcopy(model), copy.deepcopy(args), copy.deepcopy(changed)
