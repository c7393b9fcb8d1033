"""Bags of embeddings, taken apart into the look-up of each token and the sum, mean or maximum of what was looked up."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import Any

import torch
from torch import fx

from fxgrad.graph.nodes import added, op_name

aten = torch.ops.aten
_FLAT = ("view", "reshape", "flatten", "_unsafe_view")


def take_bag_apart(graph: fx.Graph, bag: fx.Node, ids: Collection[fx.Node]) -> tuple[fx.Node, fx.Node]:
    """Let a bag of embeddings read rows that are looked up before, in place: each token has a row of its own then.

    The kernel stays, so the bits do: it reads row after row instead of a row for each id. Padding reads a row of zeros.

    Args:
        graph: functional ATen graph.
        bag: a call of `aten.embedding_bag`, whose ids are among `ids`.
        ids: nodes whose values are token ids.

    Returns:
        (the look-up, the node of the ids that it looks up, before they were flattened).

    Example:
        >>> program = torch.export.export(torch.nn.EmbeddingBag(5, 2), (torch.zeros(3, 4, dtype=torch.int64),))
        >>> graph = program.run_decompositions({}).graph
        >>> flat, bag = (next(n for n in graph.nodes if op_name(n) == name) for name in ("view", "embedding_bag"))
        >>> take_bag_apart(graph, bag, {flat, flat.args[0]})
        (embedding_default, input)
    """
    weight, flat, offsets, *rest = bag.args
    base: Any = flat
    while op_name(base) in _FLAT and base.args[0] in ids:
        base = base.args[0]
    padding = rest[5] if len(rest) > 5 else None

    call = partial(added, graph, bag)
    with graph.inserting_before(bag):
        found = call(aten.embedding.default, weight, base)
        width = found.meta["val"].shape[-1]
        rows = found if base is flat else call(aten.reshape.default, found, [-1, width])
        # Counted by a sum, which needs no size that may be free.
        index = call(aten.cumsum.default, call(aten.ones_like.default, flat), 0, dtype=flat.meta["val"].dtype)  # type: ignore[union-attr]
        if padding is None:
            index = call(aten.sub.Tensor, index, 1)
        else:
            rows = call(aten.cat.default, [call(aten.new_zeros.default, rows, [1, width]), rows])
            index = call(aten.mul.Tensor, index, call(aten.ne.Scalar, flat, padding))
            rest[5] = 0
    bag.args = (rows, index, offsets, *rest)
    return found, base
