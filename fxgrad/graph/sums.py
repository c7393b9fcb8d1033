"""The sums that a value is added to before anything else is done with it."""

from __future__ import annotations

import torch
from torch import fx

from fxgrad.graph.nodes import op_name, tensors_of


def sums_of(node: fx.Node) -> list[fx.Node]:
    """The sums that a value is an addend of, or a multiple of it is, directly or through other sums.

    Example:
        >>> class Words(torch.nn.Module):
        ...     def forward(self, a, b):
        ...         return (2 * a + b + 1).relu()
        >>> a, b, *_ = torch.export.export(Words(), (torch.ones(2), torch.ones(2))).graph.nodes
        >>> sums_of(a), sums_of(b)
        ([add, add_1], [add, add_1])
    """
    found: list[fx.Node] = []
    pending = [node]
    while pending:
        for user in pending.pop().users:
            if user in found or torch.Tag.pointwise not in getattr(user.target, "tags", ()):
                continue
            addend = op_name(user) == "add"
            scaled = op_name(user) in ("mul", "div") and len([n for n in user.all_input_nodes if tensors_of(n)]) == 1
            if addend:
                found.append(user)
            if addend or scaled:
                pending.append(user)
    return found
