"""Does a model itself run, and twice alike? What does not says nothing about the pass, and is not counted."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxgrad.capture.tracing import without_fast_path
from fxgrad.errors import one_line
from fxgrad.proof.check import identical
from fxgrad.zoo.rows import FAILS, RANDOM

Example = tuple[tuple[Any, ...], dict[str, Any]]
_WAYS = [
    ("", torch.float32, torch.float64),
    ("default dtype float64", torch.float64, torch.float64),
    ("in float32", torch.float32, torch.float32),
]
"""(note, torch's default dtype, the model's dtype): the first in which the model runs is measured."""


class Unfit(Exception):
    """The model itself fails or is random; the message is the row's reason."""


@contextlib.contextmanager
def runnable(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Iterator[tuple[tuple[Any, ...], dict[str, Any], str]]:
    """Cast a model in place to float64, and to float32 only if it does not run in float64.

    Some models make tensors of torch's default dtype as they run, which a float64 model does not take; so that default
    is float64 inside the context if the model needs it.

    Args:
        model: in eval mode.
        args, kwargs: its example.

    Returns:
        args, kwargs: the example in the model's dtype.
        note: how it runs, in words; "" for plain float64.

    Raises:
        Unfit: the model fails on the example in every dtype, or two calls on it differ.

    Example:
        >>> with runnable(nn.Linear(2, 3), (torch.ones(1, 2),), {}) as ((x,), _, note):
        ...     x.dtype, note
        (torch.float64, '')
    """
    before = torch.get_default_dtype()
    fault: Exception | None = None
    try:
        for note, default, dtype in _WAYS:
            torch.set_default_dtype(default)
            ours = _cast(args, kwargs, dtype)
            try:
                model._apply(partial(_in, dtype))  # type: ignore[no-untyped-call]
                outputs = _run(model, ours, seed=0)
            except Exception as error:
                fault = fault or error
                continue
            _refuse_other_outputs(outputs, _run(model, ours, seed=1))
            yield (*ours, note)
            return
        raise Unfit(f"{FAILS}: {one_line(fault) if fault else ''}") from fault
    finally:
        torch.set_default_dtype(before)


def _cast(args: tuple[Any, ...], kwargs: dict[str, Any], dtype: torch.dtype) -> Example:
    found: Example = pytree.tree_map(
        lambda leaf: _in(dtype, leaf) if isinstance(leaf, Tensor) else leaf, (args, kwargs)
    )
    return found


def _in(dtype: torch.dtype, tensor: Tensor) -> Tensor:
    """A tensor of real or complex numbers in a precision; others as they are. (`Module.to` would make complex real.)"""
    if tensor.is_complex():
        return tensor.to(dtype.to_complex())
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _run(model: nn.Module, example: Example, seed: int) -> Any:
    """The outputs on a copy of the example, with the random generators seeded."""
    args, kwargs = pytree.tree_map_only(Tensor, Tensor.clone, example)
    with torch.random.fork_rng(devices=[]), torch.no_grad(), without_fast_path():
        torch.manual_seed(seed)
        return model(*args, **kwargs)


def _refuse_other_outputs(first: Any, second: Any) -> None:
    tensors = [leaf for leaf in pytree.tree_leaves(first) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    if any(not leaf.isfinite().all() for leaf in tensors):
        raise Unfit(f"{FAILS}: its output is not finite")
    if not identical(first, second):
        raise Unfit(f"{RANDOM}: two calls on the same example give different outputs")
