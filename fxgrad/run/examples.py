"""Which axis of every value has the examples of the batch, so that constants' contributions are known per example."""

from __future__ import annotations

from torch import fx

from fxgrad.classify.decision import Classified
from fxgrad.classify.moves import word_of
from fxgrad.graph.axes import Atom, Axes, Axis
from fxgrad.graph.follow import Seeds, follow
from fxgrad.graph.sizes import Size, sizes_of

BATCH = "batch"
"""The label of the examples among the atoms of an axis."""


def places_of(classified: Classified, batch: Size, seeds: Seeds | None = None) -> dict[str, Axes]:
    """The axes of the outputs and of all values that depend on an attributed input, as atoms.

    Args:
        classified: what `fxgrad.classify.classify` returned.
        batch: the captured number of examples, mostly a symbol.
        seeds: further known axes; see `fxgrad.graph.follow.follow`.

    Returns:
        Node name -> axes.

    Example:
        >>> import fxgrad, torch
        >>> from fxgrad.graph.axes import where
        >>> class Merged(torch.nn.Module):
        ...     def forward(self, x):
        ...         return x.transpose(0, 1).reshape(-1, 2).exp()
        >>> classified = fxgrad.convert(Merged().eval(), (torch.zeros(3, 5, 2),)).classified
        >>> batch = sizes_of(next(iter(classified.captured.graph.nodes)))[0]
        >>> [where(axes, BATCH, batch)[:2] for axes in places_of(classified, batch).values()]
        [(0, 1), (1, 1), (0, 5), (0, 5)]
    """
    graph, decisions = classified.captured.graph, classified.decisions
    known = {**batch_of(classified, batch), **(seeds or {})}
    outputs = graph.output_node().all_input_nodes
    nodes = [node for node in graph.nodes if node.name in decisions or (node in outputs and node not in known)]
    found = follow(nodes, lambda node: word_of(node, decisions), known)
    return {node.name: axes for node, axes in found.items()}


def batch_of(classified: Classified, batch: Size) -> dict[fx.Node, list[Axis | None]]:
    """Seeds for every input: its first axis has the examples if its size is `batch`; other axes are unknown.

    Example:
        >>> import fxgrad, torch
        >>> classified = fxgrad.convert(torch.nn.ReLU().eval(), (torch.zeros(3, 5),)).classified
        >>> [axes[1] for axes in batch_of(classified, 3).values()]
        [None]
    """
    captured = classified.captured
    found: dict[fx.Node, list[Axis | None]] = {}
    for node in captured.entry_nodes:
        shape = sizes_of(node)
        if shape:
            found[node] = [(Atom(BATCH, 0, batch),) if shape[0] == batch else None, *[None] * (len(shape) - 1)]
    return found
