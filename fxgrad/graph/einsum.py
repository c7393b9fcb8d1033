"""Which axes of an einsum's operands are which axes of its result."""

from __future__ import annotations

import string
from collections.abc import Sequence

from torch import fx

from fxgrad.graph.nodes import arguments_of, op_name
from fxgrad.graph.sizes import sizes_of


def letters_of(node: fx.Node) -> tuple[list[tuple[fx.Node, str]], str] | None:
    """A letter for each axis of an einsum's operands, and of its result; None for any other op.

    Axes under an ellipsis get capital letters that the equation does not have; they are counted from the last.

    Example:
        >>> import torch
        >>> class Scores(torch.nn.Module):
        ...     def forward(self, q, k):
        ...         return torch.einsum("...id,...jd->...ij", q, k)
        >>> program = torch.export.export(Scores(), (torch.ones(2, 3, 4), torch.ones(2, 5, 4)))
        >>> (node,) = [n for n in program.graph.nodes if n.op == "call_function"]
        >>> letters_of(node)
        ([(q, 'Aid'), (k, 'Ajd')], 'Aij')
    """
    if op_name(node) != "einsum":
        return None
    arguments = arguments_of(node)
    operands: Sequence[fx.Node] = arguments["tensors"]
    given, arrow, result = str(arguments["equation"]).replace(" ", "").partition("->")
    parts = given.split(",")
    ranks = [len(sizes_of(operand)) for operand in operands]
    free = [c for c in string.ascii_uppercase if c not in given]
    hidden = [rank - len(part.replace("...", "")) for part, rank in zip(parts, ranks)]
    widest = max((h for part, h in zip(parts, hidden) if "..." in part), default=0)
    ellipsis = "".join(free[:widest])
    if not arrow:  # what occurs once, in the order of the alphabet
        result = "..." + "".join(sorted(c for c in set(given) - set(",.") if given.count(c) == 1))
    spelled = [part.replace("...", ellipsis[widest - h :]) for part, h in zip(parts, hidden)]
    return list(zip(operands, spelled)), result.replace("...", ellipsis)
