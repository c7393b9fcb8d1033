"""The late half of a stretch: the nodes behind its last mixing of tokens, such as a block's perceptron.

There, a token gets something from the same token only. So one backward pass gives the cotangents of all tokens at once,
and only the half before needs one for each token.
"""

from __future__ import annotations

import operator
from collections.abc import Collection
from dataclasses import replace

import networkx as nx
import torch
from torch import Tensor

from fxgrad.classify.moves import word_of
from fxgrad.flows.cuts import Stretches, crossing, flow_of
from fxgrad.graph.mixing import mixes
from fxgrad.graph.sizes import known
from fxgrad.methods.parts import TOKENS
from fxgrad.methods.problem import Problem


def with_late_halves(problem: Problem, cut: Stretches) -> Stretches:
    """The stretches, each with its late half, if it has one.

    Args:
        problem: the model and its target.
        cut: what `fxgrad.flows.cuts.stretches` returned.

    Example:
        >>> import fxgrad, timm
        >>> from fxgrad.flows.cuts import stretches
        >>> from fxgrad.flows.single import of_one_example
        >>> vit = timm.create_model("test_vit", img_size=32, num_classes=5).eval()
        >>> x = torch.randn(1, 3, 32, 32)
        >>> problem = of_one_example(fxgrad.convert(vit, (x,)), x, None, 3, None, "a flow", "fxgrad.flow")
        >>> cut = with_late_halves(problem, stretches(problem, ["blocks.0", "blocks.1"]))
        >>> kinds = {problem.converted.classified.decisions[name].kind.value for name in cut.late}
        >>> "gated_activation" in kinds, "attention" in kinds
        (True, False)
    """
    flow = flow_of(problem)
    late: set[str] = set()
    middle: dict[int, tuple[str, ...]] = {}
    for k, one in enumerate(cut.cuts):
        names = {name for name, own in cut.stretch.items() if own == k}
        found = _late(problem, names, flow) if one.by is None else set()
        if found:
            before = {name for name, own in cut.stretch.items() if own <= k} - found
            inside = flow.subgraph(before | found)
            middle[k] = crossing(before, "", inside, one.nodes)
            late |= found
    return replace(cut, late=frozenset(late), middle=middle)


def _late(problem: Problem, names: Collection[str], flow: nx.DiGraph[str]) -> set[str]:
    """Names of the nodes of a stretch from which on tokens stay apart up to its end."""
    nodes, decisions = problem.nodes, problem.converted.classified.decisions
    axes = {name: axis for name in flow if (axis := axis_of(problem, name)) is not None}
    data = {nodes[name] for name in decisions}

    def apart(name: str, user: str) -> bool:
        """Whether each token of one value goes to the same token of another only."""
        node = nodes[user]
        return name in axes and not mixes(node, nodes[name], axes[name], word_of(node, decisions), data)

    own = [name for name in nodes if name in names and name in decisions and name in axes]

    late: set[str] = set()
    for name in reversed(own):
        users = {user for user in flow.successors(name) if user in names}
        item = nodes[name].target is operator.getitem  # of a tuple, which cannot be in the middle
        if not item and users <= late and all(apart(before, name) for before in flow.predecessors(name)):
            late.add(name)
    return late


def axis_of(problem: Problem, name: str) -> int | None:
    """The axis of a node's value that has all tokens in their order; None if there is none."""
    anatomy = problem.anatomy
    places = anatomy.places.get(name, ())
    found = [(i, atom) for i, axis in enumerate(places) for atom in axis if atom.origin == TOKENS]
    if len(found) != 1 or anatomy.tokens is None:
        return None
    axis, atom = found[0]
    whole = known(atom.size, anatomy.free) == anatomy.tokens and len(places[axis]) == 1
    return axis if whole else None


def labels_of(problem: Problem, name: str, value: Tensor) -> Tensor:
    """Index of the token of every element, int64, of a value that has an axis of tokens."""
    axis = axis_of(problem, name)
    steps = torch.arange(value.shape[axis], device=value.device)  # type: ignore[index]
    return steps.view([-1 if i == axis else 1 for i in range(value.dim())]).expand(value.shape)
