"""Cuts of a model: sets of values that all of the target's flow passes through, and the stretches between them.

What lies before a cut is closed under "flows into", so the values that flow out of it always separate the graph. Where
they are more than the value that was asked for, the others pass by it (a skip connection over several blocks, the
encoder's output beside a decoder's block): these are values of the cut, too.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import networkx as nx
from torch import fx

from fxgrad.classify.liveness import flow_graph
from fxgrad.errors import InputError
from fxgrad.flows.units import Asked, Channels, Heads, Place, found_at
from fxgrad.methods.problem import Problem


@dataclass(frozen=True)
class Cut:
    """One cut.

    Attributes:
        name: the module path that was asked for.
        node: name of the node that was asked for.
        nodes: names of all nodes whose values flow over the cut, that one first.
        by: what divides that node's tokens; None: nothing.
    """

    name: str
    node: str
    nodes: tuple[str, ...]
    by: Heads | Channels | None = None


@dataclass(frozen=True)
class Stretches:
    """A model in stretches, from its inputs to the target, with a cut between two of them.

    Attributes:
        cuts: in the order of the flow; cut k ends stretch k, and the last stretch ends in the target.
        stretch: name of every node that the target's flow passes, inputs included -> index of its stretch.
        ends: names of the output's nodes that the target reads.
        late: names of the nodes behind the last mixing of tokens in their stretch; see `fxgrad.flows.late`.
        middle: index of a stretch with such nodes -> names of the values that flow to them, or pass by them.
    """

    cuts: tuple[Cut, ...]
    stretch: dict[str, int]
    ends: tuple[str, ...]
    late: frozenset[str] = frozenset()
    middle: Mapping[int, tuple[str, ...]] = field(default_factory=dict)

    @cached_property
    def half(self) -> dict[str, int]:
        """Name of every node that the target's flow passes -> 2 k in stretch k, one more if it is late."""
        return {name: 2 * k + (name in self.late) for name, k in self.stretch.items()}

    @cached_property
    def starting(self) -> dict[int, tuple[str, ...]]:
        """Index of a half, as in `half` -> names of the values that it starts from, but for inputs."""
        middle = {2 * k + 1: names for k, names in self.middle.items()}
        return {2 * k + 2: cut.nodes for k, cut in enumerate(self.cuts)} | middle

    def ending(self, half: int) -> tuple[str, ...]:
        """Names of the values that a half ends in."""
        k, late = divmod(half, 2)
        if not late and k in self.middle:
            return self.middle[k]
        return self.cuts[k].nodes if k < len(self.cuts) else self.ends


def stretches(problem: Problem, cuts: Sequence[Place] | None) -> Stretches:
    """Cut a model.

    Args:
        problem: the model and its target.
        cuts: module paths, for the values that leave these modules, `Heads` or `Channels`; None: what enters each
            block.

    Raises:
        InputError: there is no such module, none of the target's flow passes it, or two of them are the same value.
    """
    ends, flow = tuple(problem.ends), flow_of(problem)
    stretch: dict[str, int] = {}
    made: list[Cut] = []
    before: set[str] = set()
    entries = {node.name for node in problem.inputs.values()}
    for path, name, by in asked(problem, cuts, flow):
        own = _whole({name, *nx.ancestors(flow, name)} - before, flow, problem.nodes)
        if own <= entries:
            if cuts is not None:
                raise InputError(f"the cut {path!r} is where another is, or the inputs are. Leave one of them out.")
            continue
        stretch |= dict.fromkeys(own, len(made))
        before |= own
        made.append(Cut(path, name, crossing(before, name, flow, ends), by))
    stretch |= dict.fromkeys(flow.nodes - before, len(made))
    return Stretches(tuple(made), stretch, ends)


def flow_of(problem: Problem) -> nx.DiGraph[str]:
    """Names of the nodes that the target's flow passes, inputs included, with an edge to each that it flows on to."""
    ends = problem.ends
    flow = flow_graph(problem.converted.classified.decisions)
    flow.add_nodes_from(ends)  # an input may be an output
    return flow.subgraph({*ends, *(n for end in ends for n in nx.ancestors(flow, end))})


def asked(problem: Problem, cuts: Sequence[Place] | None, flow: nx.DiGraph[str]) -> list[Asked]:
    """The values to cut at, in the order of the graph.

    Args:
        problem: the model and its target.
        cuts: as for `stretches`.
        flow: what `flow_of` returned.

    Raises:
        InputError: there is no such module, or none of the target's flow passes it.
    """
    if cuts is None:
        found = [Asked(block.path, block.entry, None) for block in problem.anatomy.blocks if block.entry in flow]
    else:
        found = found_at(problem, cuts)
        for one in found:
            if one.node not in flow:
                raise InputError(f"nothing of the target flows through {one.name!r}. Cut elsewhere.")
    order = {name: i for i, name in enumerate(problem.nodes)}
    return sorted(found, key=lambda one: order[one.node])


def _whole(names: set[str], flow: nx.DiGraph[str], nodes: Mapping[str, fx.Node]) -> set[str]:
    """These nodes, with the items of those that are tuples: a cut has tensors only."""
    items = {user for name in names for user in flow.successors(name) if nodes[user].target is operator.getitem}
    return names if items <= names else _whole(names | items, flow, nodes)


def crossing(before: set[str], first: str, flow: nx.DiGraph[str], ends: Sequence[str]) -> tuple[str, ...]:
    """Names of the values that flow from some nodes to others or to the target, `first` ahead.

    Args:
        before: names of the nodes, closed under "flows into".
        first: one of these values.
        flow: what `flow_of` returned.
        ends: names of the output's nodes that the target reads.
    """
    found = [name for name in flow if name in before and (name in ends or not before.issuperset(flow.successors(name)))]
    return tuple(sorted(found, key=lambda name: name != first))
