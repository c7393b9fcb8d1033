"""Other forms of a converted module: under another policy, checkpointed, unflattened. All share its tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from fxgrad.classify.walk import classify
from fxgrad.module.core import Core
from fxgrad.module.unflatten import Root
from fxgrad.table.loading import Rules, load

Module = TypeVar("Module", bound=Core)


def under(module: Module, rules: Rules, parameters: Mapping[str, Any]) -> Module:
    """The same captured model under another policy; see `ConvertedModule.under`."""
    classified = module.with_tensors()
    other = load(rules, classified.table.on_unknown, parameters)
    table = replace(classified.table, name=other.name, policy=other.policy, cite=other.cite)
    return module.__class__(classify(classified.captured, table))


def checkpointed(module: Module) -> Module:
    """The same module with activation checkpointing; see `ConvertedModule.checkpointed`."""
    other = module.__class__(module.with_tensors())
    other.run_as("checkpointed", other.runner_of("checkpointed"))
    return other


def unflattened(module: Module) -> Module:
    """The same module, with submodules that are called; see `ConvertedModule.unflattened`."""
    other = module.__class__(module.with_tensors())
    root = other.runner_of("unflattened")
    assert isinstance(root, Root)
    for path, part in root.modules_by_path():
        owner, name = other.owner(path), path.rpartition(".")[2]
        held = owner._modules.get(name)
        if held is not None:
            part._parameters, part._buffers, part._modules = held._parameters, held._buffers, held._modules
            part._non_persistent_buffers_set = held._non_persistent_buffers_set
        owner._modules[name] = part
    other.find_state()
    other.run_as("unflattened", root)
    return other.eval()


def _flat(module: Module) -> Module:
    return module


FORMS: dict[str, Callable[[Core], Core]] = {"flat": _flat, "checkpointed": checkpointed, "unflattened": unflattened}
"""Form -> the function that brings a flat module into it."""
