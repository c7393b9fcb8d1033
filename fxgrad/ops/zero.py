"""What an op gives where its carriers are 0, without the work of the whole op: its bias, in every row or window.

A layer of zeros is the same in each row of a linear layer, and at each place of a convolution. So the op is called with
one row, or one window, and the result is repeated, without a copy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from fxgrad.graph.nodes import arguments_of, op_name
from fxgrad.graph.replay import Replay

Part = Callable[[fx.Node, Tensor, Replay], "tuple[list[int], list[int]] | None"]
"""(node, its carrier's value, values) -> (shape of the smallest carrier, axes of the result with one place of many)."""


def at_zero(original: Replay, name: str, carrying: Sequence[str]) -> Any:
    """A node's result where some operands are 0, shaped as its result in this run.

    Args:
        original: the captured graph at one run's values; of layers it needs the results, too.
        name: the node's name.
        carrying: names of the operands that are 0.

    Example:
        >>> program = torch.export.export(torch.nn.Linear(3, 2), (torch.ones(5, 3),))
        >>> *_, x, linear, _ = program.graph.nodes
        >>> bias = torch.tensor([1.0, 2.0])
        >>> values = dict(zip([n.name for n in linear.all_input_nodes], [torch.ones(5, 3), torch.ones(2, 3), bias]))
        >>> found = at_zero(Replay(program.graph, {**values, "linear": torch.ones(5, 2)}), "linear", [x.name])
        >>> found.shape, found.stride(), bool((found == bias).all())
        (torch.Size([5, 2]), (0, 1), True)
    """
    node, values = original.nodes[name], original.values
    part = _PARTS.get(op_name(node))
    if part is not None and list(carrying) == [next(iter(arguments_of(node).values())).name]:
        x = values[carrying[0]]
        small = part(node, x, original)
        if small is not None:
            shape, places = small
            found = original.call(name, {carrying[0]: x.new_zeros(shape)})
            for axis in places:
                found = found.narrow(axis, 0, 1)
            return found.expand(values[name].shape)
    return original.call(name, {operand: torch.zeros_like(values[operand]) for operand in carrying})


def _row(node: fx.Node, x: Tensor, original: Replay) -> tuple[list[int], list[int]] | None:
    """One row of a linear layer."""
    return [*[1] * (x.dim() - 1), x.shape[-1]], []


def _normalized(node: fx.Node, x: Tensor, original: Replay) -> tuple[list[int], list[int]] | None:
    """One row of a norm over the last axes."""
    over = len(arguments_of(node)["normalized_shape"])
    return [*[1] * (x.dim() - over), *x.shape[x.dim() - over :]], []


def _window(node: fx.Node, x: Tensor, original: Replay) -> tuple[list[int], list[int]] | None:
    """One window of a convolution; None for a transposed one, or one without an axis of examples."""
    arguments = arguments_of(node)
    weight = original.values[arguments["weight"].name]
    axes = weight.dim() - 2
    if arguments.get("transposed") or x.dim() != weight.dim():
        return None
    dilation = arguments.get("dilation", 1)
    steps = [dilation] * axes if isinstance(dilation, int) else [*dilation] * (axes if len(dilation) == 1 else 1)
    sides = [step * (side - 1) + 1 for step, side in zip(steps, weight.shape[2:])]
    return [1, x.shape[1], *sides], list(range(2, x.dim()))


_PARTS: dict[str, Part] = {
    "linear": _row,
    **dict.fromkeys(("layer_norm", "rms_norm"), _normalized),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "convolution"), _window),
}
