"""Backward passes over what autograd recorded: one, and as many at once as there is room for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxgrad.errors import InputError, first_line
from fxgrad.module.converted import ConvertedModule

CACHED = 2**25
"""The largest size in bytes of a batch of cotangents on a CPU; beyond the cache, batching gains nothing."""


def arriving(
    outputs: list[Any], cotangents: Sequence[Any], values: Mapping[str, Any], *, keep: bool, record: bool = False
) -> dict[str, Any]:
    """Name -> the cotangent that arrives at a value (a tensor or a list of tensors), from one call of autograd.

    Args:
        outputs: with autograd's graph between them and the values.
        cotangents: one per output, shaped alike; None for one that takes no part.
        values: name -> value.
        keep: whether the graph is kept for another backward pass.
        record: whether autograd records this pass, too.

    Raises:
        InputError: an op has no gradient at these values.

    Example:
        >>> x = torch.ones(2, requires_grad=True)
        >>> arriving([3 * x], [torch.ones(2)], {"x": x, "constant": torch.ones(1)}, keep=False)
        {'x': tensor([3., 3.]), 'constant': None}
    """
    ends = [v for v, g in zip(outputs, cotangents) if g is not None and v.requires_grad]
    starts = [g for v, g in zip(outputs, cotangents) if g is not None and v.requires_grad]
    leaves, spec = pytree.tree_flatten(dict(values))
    reached = [isinstance(v, Tensor) and v.requires_grad for v in leaves]
    wanted = [v for v, r in zip(leaves, reached) if r]
    if not ends or not wanted:
        return dict.fromkeys(values)
    found = iter(differentiated(ends, wanted, starts, keep=keep, record=record))
    tree = pytree.tree_unflatten([next(found) if r else None for r in reached], spec)
    nothing = {name for name, g in tree.items() if all(leaf is None for leaf in pytree.tree_leaves(g))}
    return {name: None if name in nothing else g for name, g in tree.items()}


def differentiated(
    outputs: Sequence[Tensor],
    inputs: Sequence[Tensor],
    cotangents: Sequence[Tensor],
    *,
    keep: bool = False,
    record: bool = False,
) -> list[Tensor | None]:
    """The gradients of <cotangents, outputs> in each of the inputs; None where no cotangent arrives.

    Args:
        outputs, inputs: with autograd's graph between them.
        cotangents: one per output, shaped alike.
        keep: whether the graph is kept for another backward pass.
        record: whether the gradients have a graph of their own.

    Raises:
        InputError: an op has no gradient at these values.

    Example:
        >>> x = torch.ones(2, requires_grad=True)
        >>> differentiated([3 * x], [x], [torch.ones(2)])
        [tensor([3., 3.])]
    """
    try:
        return list(
            torch.autograd.grad(
                outputs, inputs, cotangents, retain_graph=keep or record, create_graph=record, allow_unused=True
            )
        )
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise InputError(
            f"some op has no gradient at these inputs: {first_line(error).rstrip('.')}. fxgrad.check names the op that "
            'no rule balances; convert(..., rules="gradient") has PyTorch\'s own gradients, for comparison.'
        ) from error


@contextlib.contextmanager
def measuring(converted: ConvertedModule) -> Iterator[list[int]]:
    """Measure what autograd saves of a module's forward pass: a list with the size of the largest tensor in bytes.

    Its weights do not count, for their gradients are not asked for.
    """
    widest, weights = [0], {tensor.untyped_storage().data_ptr() for tensor in converted.state if tensor is not None}

    def measure(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            widest[0] = max(widest[0], tensor.numel() * tensor.element_size())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(measure, lambda tensor: tensor):
        yield widest


def at_once(count: int, widest: int, outputs: Sequence[Any]) -> int:
    """How many cotangents to take at once; a backward pass has about two gradients of the largest size at a time.

    Args:
        count: how many there are.
        widest: the largest tensor that the backward pass reads, in bytes.
        outputs: on the device that computes.

    Example:
        >>> at_once(100, CACHED // 8, [torch.zeros(1)])
        4
    """
    device = next(v.device for v in outputs if isinstance(v, Tensor))
    room = torch.cuda.mem_get_info(device)[0] // 4 if device.type == "cuda" else CACHED
    return max(1, min(count, room // max(2 * widest, 1)))
