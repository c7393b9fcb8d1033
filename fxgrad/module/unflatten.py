"""Turn a flat program into a tree of modules that are called, so that hooks on layers work.

A module's nodes are consecutive in the graph, since tracing follows the order of execution, and each node's module
stack names its modules. So the program is cut into nested segments, one per module call, under the module's own path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import fx, nn

from fxgrad.errors import InputError
from fxgrad.graph.places import calls_of


class _Name(str):
    """A node's name, where a step's arguments refer to the node."""


class Step(NamedTuple):
    """One call of an op: its result's name, the op, and its arguments, with names instead of nodes."""

    name: str
    target: Callable[..., Any]
    args: Any
    kwargs: Any


@dataclass
class Segment:
    """The part of the program that one module call runs.

    Attributes:
        path: the module's path; a second call has the path and @1, as in `torch.export.unflatten`.
        steps: calls of ops, and segments of inner module calls.
        inputs: names of the outer tensors that it reads and that depend on the program's inputs.
        outputs: names of its values that are read outside and depend on the program's inputs.
        beside: names of its other values that are read outside, such as sizes; returned if there are no outputs.
    """

    path: str
    steps: list[Step | Segment] = field(default_factory=list)
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()

    def walk(self) -> Iterator[Segment]:
        """This segment and all inner ones."""
        yield self
        for step in self.steps:
            if isinstance(step, Segment):
                yield from step.walk()

    def names(self) -> Iterator[str]:
        """Names of the results of all steps, inner segments included."""
        for step in self.steps:
            if isinstance(step, Segment):
                yield from step.names()
            else:
                yield step.name


class Part(nn.Module):
    """One module of the tree: takes the segment's inputs and returns its outputs.

    It returns a tensor, or a tuple if there are several.
    """

    parts: Mapping[str, Part]
    outside: dict[str, Any]

    def __init__(self, segment: Segment) -> None:
        super().__init__()
        self.segment = segment
        self.outside = {}

    def forward(self, *inputs: Any) -> Any:
        """Run this part, called by the whole program.

        Raises:
            InputError: it is called on its own.
        """
        if not self.outside:
            raise InputError(
                f"{self.segment.path} runs only as a part of the whole module: call that, with a hook here."
            )
        values = self.outside | dict(zip(self.segment.inputs, inputs))
        run(self.segment, values, self.parts)
        self.outside |= {name: values[name] for name in self.segment.beside}
        found = tuple(values[name] for name in self.segment.outputs)
        return found[0] if len(found) == 1 else found


class Embedded(nn.Module):
    """The module of an embedding, called with the tokens that were looked up ahead of the program."""

    def forward(self, tokens: Any) -> Any:
        return tokens


class Root(nn.Module):
    """The whole program: maps the state and the entries to the flattened outputs.

    Args:
        segment: the segment of the whole program.
        takes: names of its inputs, in order.
        gives: its outputs, with names instead of nodes.
        parts: module path -> part.
        embedded: name of an input of embedded tokens -> the path of its embedding.
    """

    parts: Mapping[str, Part]
    embedded: Mapping[str, tuple[str, Embedded]]

    def __init__(
        self,
        segment: Segment,
        takes: tuple[str, ...],
        gives: Any,
        parts: Mapping[str, Part],
        embedded: Mapping[str, str],
    ) -> None:
        super().__init__()
        self.segment, self.takes, self.gives = segment, takes, gives
        object.__setattr__(self, "parts", parts)  # not registered: they are in the model's own module tree
        entries = {name: (path, Embedded()) for name, path in embedded.items() if path not in parts}
        object.__setattr__(self, "embedded", entries)

    def modules_by_path(self) -> Iterator[tuple[str, nn.Module]]:
        """All modules that are called, embeddings first, with their paths."""
        yield from self.embedded.values()
        yield from self.parts.items()

    def forward(self, *given: Any) -> Any:
        values = dict(zip(self.takes, given))
        for name, (_, module) in self.embedded.items():
            values[name] = module(values[name])
        run(self.segment, values, self.parts)
        return _filled(self.gives, values)

    def follow(self, other: Root) -> None:
        """Run the steps of `other`, the same program on other devices; the parts and their hooks stay."""
        self.segment, self.gives = other.segment, other.gives
        for path, part in self.parts.items():
            part.segment = other.parts[path].segment


def run(segment: Segment, values: dict[str, Any], parts: Mapping[str, Part]) -> None:
    """Run a segment's steps; their results go into `values`."""
    for step in segment.steps:
        if isinstance(step, Step):
            values[step.name] = step.target(*_filled(step.args, values), **_filled(step.kwargs, values))
            continue
        part = parts[step.path]
        part.outside = values
        try:
            found = part(*(values[name] for name in step.inputs))
        finally:
            part.outside = {}
        values.update(zip(step.outputs, found if len(step.outputs) != 1 else (found,)))


def unflatten(program: fx.GraphModule, depends: set[str], embedded: Mapping[str, str]) -> Root:
    """Split a program into parts, one per module call.

    Args:
        program: a rewritten program, its nodes with the metadata of capture.
        depends: names of the attributed inputs and of all nodes that depend on them: the values that parts exchange.
        embedded: name of an input of embedded tokens -> the path of its embedding.

    Returns:
        A module that computes the same as the program.
    """
    graph = program.graph
    whole = Segment("")
    open_: list[Segment] = [whole]
    for node, calls in calls_of(graph.nodes):
        own = [segment.path for segment in open_[1:]]
        shared = next((i for i, (a, b) in enumerate(zip(own, calls)) if a != b), min(len(own), len(calls)))
        del open_[shared + 1 :]
        for name in calls[shared:]:
            open_[-1].steps.append(Segment(name))
            open_.append(open_[-1].steps[-1])  # type: ignore[arg-type]
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: _Name(n.name))
        open_[-1].steps.append(Step(node.name, node.target, args, kwargs))  # type: ignore[arg-type]
    nodes = {n.name: n for n in graph.nodes}
    parts = {}
    for segment in list(whole.walk())[1:]:
        inside = set(segment.names())
        outer = [n for name in segment.names() for n in nodes[name].all_input_nodes if n.name not in inside]
        segment.inputs = tuple(dict.fromkeys(n.name for n in outer if n.name in depends))
        read = [n for n in segment.names() if any(user.name not in inside for user in nodes[n].users)]
        segment.outputs = tuple(n for n in read if n in depends) or tuple(read)
        segment.beside = tuple(n for n in read if n not in segment.outputs)
        parts[segment.path] = Part(segment)
    for part in parts.values():
        object.__setattr__(part, "parts", parts)
    takes = tuple(n.name for n in graph.nodes if n.op == "placeholder")
    gives = fx.node.map_arg(graph.output_node().args[0], lambda n: _Name(n.name))
    return Root(whole, takes, gives, parts, embedded)


def _filled(arguments: Any, values: Mapping[str, Any]) -> Any:
    """Arguments with names replaced by values."""
    if isinstance(arguments, _Name):
        return values[arguments]
    if isinstance(arguments, (tuple, list)) and not hasattr(arguments, "_fields"):  # named tuples are details of ops
        return type(arguments)(_filled(a, values) for a in arguments)
    if isinstance(arguments, dict):
        return {key: _filled(a, values) for key, a in arguments.items()}
    if isinstance(arguments, slice):
        return slice(*(_filled(a, values) for a in (arguments.start, arguments.stop, arguments.step)))
    return arguments
