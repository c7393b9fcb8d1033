"""Which class of each example a target means: by number, by name, one per example, or that of the largest logit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fxgrad.errors import InputError
from fxgrad.methods.names import resolve, whole
from fxgrad.methods.outputs import differentiable, instead


def class_of(target: Any, logits: Tensor, names: Sequence[str] | None, path: str = "output") -> tuple[Tensor, str]:
    """(the class of each example, int64 (batch,); the classes in words).

    Args:
        target: a class's number or name, an int64 tensor (batch,), or None for the largest logit.
        logits: (batch, classes).
        names: one per class.
        path: the expression for the logits in a function of the outputs, for messages.

    Raises:
        InputError: there is no such class, or these are no logits.
    """
    if logits.dim() != 2:
        known = logits.shape[-1 if logits.dim() == 3 else 1] if logits.dim() > 2 else 1
        asked = whole(target)
        advice = instead(logits, path, asked if asked is not None and 0 <= asked < known else 0)
        raise InputError(
            f"a class as the target needs logits (batch, classes); the output is {tuple(logits.shape)}. Pass {advice}."
        )
    count = logits.shape[1]
    if isinstance(target, Tensor):
        index = each(target, len(logits), "a tensor as the target holds one class per example").to(logits.device)
        if bool(((index < 0) | (index >= count)).any()):
            raise InputError(
                f"there is no class {int(index[(index < 0) | (index >= count)][0])}: the model has {count}."
            )
    elif target is None:
        index = logits.detach().argmax(1)
    else:
        index = torch.full((len(logits),), resolve(target, count, names), device=logits.device)
    classes = sorted(set(index.tolist()))
    if len(classes) > 1:
        return index, "a class per example"
    named = names is not None and len(names) == count
    return index, str(names[classes[0]]) if named and names else f"class {classes[0]}"


def each(value: Any, batch: int, what: str) -> Tensor:
    """A number, or a tensor with one per example, as int64 (batch,)."""
    if isinstance(value, Tensor):
        if differentiable(value) or value.dtype is torch.bool or value.shape not in ((), (batch,)):
            raise InputError(f"{what}, int64 ({batch},); this one is {value.dtype} {tuple(value.shape)}.")
        return value.to(torch.int64).expand(batch)
    number = whole(value)
    if number is None:
        raise InputError(f"{what}, int64 ({batch},); this one is {value!r}.")
    return torch.full((batch,), number)
