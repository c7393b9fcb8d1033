"""Arguments that PyTorch takes for whole numbers, such as sizes, where a model gives a tensor of one.

PyTorch's parser of arguments reads the number out of such a tensor, and no mode sees it. The schemas of the ops say
where it does: where a number is wanted, and a tensor is not.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

_INSIDE = {"narrow", "tensor_split"}
"""Functions that take a tensor, and read its number themselves."""


def with_numbers(
    func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], number: Callable[[Tensor], int]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a function of PyTorch with numbers in the place of tensors that it would read.

    Args:
        func: as a TorchFunctionMode gets it.
        args, kwargs: of the call.
        number: reads a tensor.

    Example:
        >>> with_numbers(torch.nn.functional.one_hot, (torch.tensor([1, 0]), torch.tensor(2)), {}, int)
        ((tensor([1, 0]), 2), {})
        >>> with_numbers(torch.add, (torch.tensor([1, 0]), torch.tensor(2)), {}, int)
        ((tensor([1, 0]), tensor(2)), {})
    """

    def changed(place: int | str, value: Any) -> Any:
        found = any(is_whole(leaf) for leaf in pytree.tree_leaves(value))
        if not found or not _takes_numbers(getattr(func, "__name__", ""), place):
            return value
        return pytree.tree_map(lambda leaf: number(leaf) if is_whole(leaf) else leaf, value)

    given = tuple(changed(place, value) for place, value in enumerate(args))
    return given, {name: changed(name, value) for name, value in kwargs.items()}


def is_whole(leaf: Any) -> bool:
    """Whether a value is a tensor of one whole number, without axes.

    Example:
        >>> is_whole(torch.tensor(3)), is_whole(torch.tensor([3])), is_whole(torch.tensor(True))
        (True, False, False)
    """
    return (
        isinstance(leaf, Tensor)
        and not leaf.dim()
        and leaf.dtype is not torch.bool
        and not (leaf.is_floating_point() or leaf.is_complex())
    )


@functools.cache
def _takes_numbers(name: str, place: int | str) -> bool:
    """Whether a function reads a tensor that it gets as this argument; numbers beyond the last belong to it."""
    if name in _INSIDE:
        return place != 0
    packet = None if name.startswith("_") else getattr(torch.ops.aten, name, None)
    types: dict[int | str, set[str]] = defaultdict(set)
    last = 0
    for overload in packet.overloads() if packet else ():
        arguments = getattr(packet, overload)._schema.arguments
        for at, argument in enumerate(arguments):
            types[argument.name].add(str(argument.type))
            if not argument.kwarg_only:
                types[at].add(str(argument.type))
                last = max(last, at)
    wanted = types[min(place, last) if isinstance(place, int) else place]
    number = any("int" in text or text == "number" for text in wanted)
    return number and not any("Tensor" in text for text in wanted)
