"""Whether a program that was traced for several examples is right for one.

A model that asks whether the batch has one example may mean nothing by it (`if batch != positions.shape[0]: expand`) or
a lot. So both run on the first example alone. So it is with any other axis that must not be 1, such as the second one,
which has the examples of a transformer that takes tokens first.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxgrad.capture.captured import Captured
from fxgrad.capture.checks import Check
from fxgrad.capture.program import Arguments
from fxgrad.capture.tracing import settings
from fxgrad.graph.replay import Interpreter

MOST = 65
"""Below this, a check that refuses 1 is tried for other sizes that it refuses."""


def for_one(captured: Captured, model: nn.Module, example: Arguments) -> Captured:
    """The captured model without the checks that refuse sizes of 1 for which its results are the model's.

    Args:
        captured: with its checks.
        model: what was captured.
        example: that it was captured with.

    Example:
        >>> from fxgrad.capture.export import capture
        >>> class Tripled(nn.Module):
        ...     def forward(self, x):
        ...         return x + x + x if x.shape[0] == 1 else 3 * x
        >>> captured = capture(Tripled().eval(), (torch.ones(2, 3),))
        >>> captured.checks
        ()
    """
    leaves, spec = pytree.tree_flatten(example)
    free = {(at, axis) for at, i in enumerate(captured.inputs) for axis, n in enumerate(i.shape or ()) if n is None}
    first = {place for place in free if place[1] == 0}
    found = _tried(captured, model, spec, [_cut(leaves, first)])
    for check in captured.checks:
        places = set(check.sizes.values()) - first
        if check in found.checks and len(places) == 1 and _only_one(check):
            # Axes of the same size are taken for the same axis: of tokens and of their mask.
            (size,) = (leaves[at].shape[axis] for at, axis in places)
            same = {(at, axis) for at, axis in free - first if leaves[at].shape[axis] == size}
            choices = [_cut(leaves, places | more) for more in (same, same | first)]
            if all(set(c.sizes.values()) <= same for c in found.checks if not _all_fit([c], choices[0])):
                found = _tried(found, model, spec, choices)
    return found


def _cut(leaves: Sequence[Any], places: Collection[tuple[int, int]]) -> list[Any]:
    """The inputs with only the first index along each of some (index of an input, axis)."""
    found = list(leaves)
    for at, axis in places:
        found[at] = found[at].narrow(axis, 0, 1)
    return found


def _all_fit(checks: Sequence[Check], leaves: Sequence[Any]) -> bool:
    shapes = [tuple(leaf.shape) if isinstance(leaf, Tensor) else () for leaf in leaves]
    return all(check.fits(shapes) for check in checks)


def _only_one(check: Check) -> bool:
    """Whether a check may refuse nothing but sizes of 1: one of several sizes, or of one that it lets be any other."""
    places = set(check.sizes.values())
    return len(places) > 1 or all(check.fits({at: {axis: n}}) for at, axis in places for n in range(2, MOST))


def _tried(captured: Captured, model: nn.Module, spec: pytree.TreeSpec, choices: Sequence[list[Any]]) -> Captured:
    """The captured model without the checks that refuse some inputs, if its results are the model's for all of them."""
    kept = tuple(c for c in captured.checks if not _only_one(c) or all(_all_fit([c], leaves) for leaves in choices))
    if len(kept) == len(captured.checks):
        return captured
    try:
        with settings(), torch.no_grad():
            for leaves in choices:
                args, kwargs = pytree.tree_unflatten(leaves, spec)
                # First the model, which may refuse them: the program's kernels check no sizes.
                wanted = pytree.tree_leaves(model(*args, **kwargs))
                with captured.once_cast():
                    found = _run(captured, leaves)
                if not _alike(found, wanted):
                    return captured
    except Exception:  # of either: the checks stay
        return captured
    return replace(captured, checks=kept)


def _run(captured: Captured, leaves: list[Any]) -> list[Any]:
    tensors = {**captured.buffers, **captured.parameters}
    values = [*(tensors[path] for path in captured.state), *leaves]
    if captured.lookup is not None:
        values += Interpreter(fx.GraphModule(nn.Module(), captured.lookup)).run(*values)
    return list(Interpreter(fx.GraphModule(nn.Module(), captured.graph)).run(*values))


def _alike(found: list[Any], wanted: list[Any]) -> bool:
    return len(found) == len(wanted) and all(
        a.shape == b.shape and torch.allclose(a, b, equal_nan=True) if isinstance(a, Tensor) else a == b
        for a, b in zip(found, wanted)
    )
