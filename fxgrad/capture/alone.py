"""Whether a program that was traced for several examples is right for one.

A model that asks whether the batch has one example may mean nothing by it (`if batch != positions.shape[0]: expand`) or
a lot. So both run on the first example alone.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxgrad.capture.captured import Captured
from fxgrad.capture.program import Arguments
from fxgrad.capture.tracing import settings
from fxgrad.graph.replay import Interpreter


def for_one(captured: Captured, model: nn.Module, example: Arguments) -> Captured:
    """The captured model without the checks that refuse a batch of one, if the results of one example are the model's.

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
    free = [bool(i.shape) and i.shape[0] is None for i in captured.inputs]  # type: ignore[index]
    one = [leaf[:1] if varies else leaf for leaf, varies in zip(leaves, free)]
    shapes = [tuple(leaf.shape) if isinstance(leaf, Tensor) else () for leaf in one]
    kept = tuple(check for check in captured.checks if check.fits(shapes))
    if len(kept) == len(captured.checks):
        return captured
    try:
        with settings(), torch.no_grad():
            args, kwargs = pytree.tree_unflatten(one, spec)
            wanted = pytree.tree_leaves(model(*args, **kwargs))
            found = _run(captured, one)
    except Exception:  # of either: the checks stay
        return captured
    return replace(captured, checks=kept) if _alike(found, wanted) else captured


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
