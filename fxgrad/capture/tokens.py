"""Cut the graph of a model on token ids after the embeddings, whose outputs are attributed instead of the ids.

No gradient can reach an integer. The part of the graph after the embeddings is a function of floating-point values,
like any other model.
"""

from __future__ import annotations

import operator
from collections import Counter

import torch
from torch import Tensor, fx

from fxgrad.capture.bags import take_bag_apart
from fxgrad.graph.copies import prune
from fxgrad.graph.nodes import arguments_of, differentiable, op_name, placeholders_of, tensors_of
from fxgrad.graph.places import place_of
from fxgrad.table.loading import RuleTable


def cut_lookups(
    graph: fx.Graph, ids: list[fx.Node], table: RuleTable
) -> tuple[fx.Graph | None, list[tuple[str, fx.Node]]]:
    """Cut a captured graph, in place, behind the embeddings that look up integer inputs.

    Only ids that come straight from an input count: a position that is computed from them (by a cumulative sum
    of the mask, say) is a constant, and its embedding a source.

    Args:
        graph: functional ATen graph.
        ids: the placeholders of the integer inputs.
        table: whose rows say which ops hand ids on, since they move or pick elements.

    Returns:
        The part that was cut off, from the same placeholders to the embeddings' outputs, or None where nothing is
        looked up; and for each of these outputs its name (the embedding's module path) and the placeholder, behind
        all others, that now stands for it.

    Example:
        >>> from fxgrad.table.loading import load
        >>> class Bag(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.words = torch.nn.Embedding(5, 2)
        ...
        ...     def forward(self, ids):
        ...         return self.words(ids).sum(1)
        >>> graph = torch.export.export(Bag(), (torch.zeros(2, 3, dtype=torch.int64),)).run_decompositions({}).graph
        >>> lookup, found = cut_lookups(graph, placeholders_of(graph)[1:], load())
        >>> found
        [('words', embedded)]
    """
    lookups = _lookups(graph, ids, table)
    if not lookups:
        return None, []
    whole = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    whole.graph_copy(graph, copies)
    whole.output(tuple(copies[node] for node, _ in lookups))
    paths = Counter(place_of(node).module_path for node, _ in lookups)
    found: list[tuple[str, fx.Node]] = []
    taken: Counter[str] = Counter()
    last = placeholders_of(graph)[-1]
    for node, origin in lookups:
        path = place_of(node).module_path or "embedding"
        with graph.inserting_after(last):
            last = graph.placeholder("embedded")
        last.target, last.meta = last.name, dict(node.meta)
        node.replace_all_uses_with(last)
        name = path if paths[path] <= 1 else f"{path}({origin.name})"
        found.append((f"{name}@{taken[name]}" if taken[name] else name, last))  # a second call, as for modules
        taken[name] += 1
    for part in (graph, whole):
        prune(part)
    return whole, found


def _lookups(graph: fx.Graph, ids: list[fx.Node], table: RuleTable) -> list[tuple[fx.Node, fx.Node]]:
    """The embeddings of ids that come straight from an input, each with that input."""
    moved = {node: node for node in ids}
    codes: dict[fx.Node, fx.Node] = {}  # whole numbers for each id, from which the embedding is computed
    lookups = []
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        origin = next((codes[n] for n in node.all_input_nodes if n in codes), None)
        if op_name(node) == "embedding_bag" and node.args[1] in moved and node.args[0] not in codes:
            found, base = take_bag_apart(graph, node, moved)
            lookups.append((found, moved[base]))
            continue
        if op_name(node) == "one_hot" and node.args[0] in moved:
            codes[node] = moved[node.args[0]]
            continue
        if op_name(node) == "embedding" and node.args[1] in moved:
            origin = moved[node.args[1]]
        if origin is not None:
            if differentiable(node):
                lookups.append((node, origin))
            elif tensors_of(node):
                codes[node] = origin
            continue
        origins = [moved[n] for n in _handed_on(node, table) if n in moved]
        if origins and _holds_ids(node):
            moved[node] = origins[0]
    return lookups


def _handed_on(node: fx.Node, table: RuleTable) -> list[fx.Node]:
    """The operands whose elements an op hands on; none for an op that computes with them."""
    if node.target is operator.getitem:
        return node.all_input_nodes
    row = table.row(node.target) if isinstance(node.target, torch._ops.OpOverload) else None
    if row is None or "moves" not in row.options:
        return []
    arguments = arguments_of(node)
    given = [arguments[name] for name in row.parts["carrier"]]
    return [
        n for value in given for n in (value if isinstance(value, (list, tuple)) else [value]) if isinstance(n, fx.Node)
    ]


def _holds_ids(node: fx.Node) -> bool:
    value = node.meta.get("val")
    first = value[0] if isinstance(value, (list, tuple)) and value else value
    return isinstance(first, Tensor) and first.dtype in (torch.int64, torch.int32)
