"""A flat program as a tree of modules again, each of which is called, so that hooks find their layer.

A module's nodes follow one another in the graph, since it was traced in the order of execution; its module stack says
whose they are. So the program is cut into nested segments, one per call of a module, under the module's own path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import fx, nn

from fxgrad.errors import InputError
from fxgrad.graph.places import calls_of


class _Name(str):
    """In the place of a node among a step's arguments."""


class Step(NamedTuple):
    """One call of an op: its result's name, the op, and its arguments, with names in the place of nodes."""

    name: str
    target: Callable[..., Any]
    args: Any
    kwargs: Any


@dataclass
class Segment:
    """What one call of a module does.

    Attributes:
        path: the module's; a second call of it has @1 behind, as with `torch.export.unflatten`.
        steps: calls of ops, and the segments of calls of modules inside.
        inputs: names of the tensors that it takes from outside, which depend on the program's inputs.
        outputs: names of the values that are read outside of it and depend on the program's inputs.
        beside: names of the others that are read outside, such as sizes; if there are no outputs, these are.
    """

    path: str
    steps: list[Step | Segment] = field(default_factory=list)
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()

    def walk(self) -> Iterator[Segment]:
        """This segment and all inside."""
        yield self
        for step in self.steps:
            if isinstance(step, Segment):
                yield from step.walk()

    def names(self) -> Iterator[str]:
        """Results of all steps, those inside included."""
        for step in self.steps:
            if isinstance(step, Segment):
                yield from step.names()
            else:
                yield step.name


class Part(nn.Module):
    """One module of the tree: takes its inputs from outside, and returns what is read outside.

    It returns a tensor, or a tuple if there are several.
    """

    parts: Mapping[str, Part]
    outside: dict[str, Any]

    def __init__(self, segment: Segment) -> None:
        super().__init__()
        self.segment = segment
        self.outside = {}

    def forward(self, *inputs: Any) -> Any:
        """Run this part, as a part of the whole.

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


class Root(nn.Module):
    """The whole program: the state and the entries to the flattened outputs.

    Args:
        segment: all of it.
        takes: names of what it takes, in order.
        gives: its outputs, with names in the place of nodes.
        parts: module path -> part.
    """

    parts: Mapping[str, Part]

    def __init__(self, segment: Segment, takes: tuple[str, ...], gives: Any, parts: Mapping[str, Part]) -> None:
        super().__init__()
        self.segment, self.takes, self.gives = segment, takes, gives
        object.__setattr__(self, "parts", parts)  # the tree that they stand in is the model's

    def forward(self, *given: Any) -> Any:
        values = dict(zip(self.takes, given))
        run(self.segment, values, self.parts)
        return _filled(self.gives, values)

    def follow(self, other: Root) -> None:
        """Do what `other` does, of the same program on other devices; the parts stay, and the hooks on them."""
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


def unflatten(program: fx.GraphModule, depends: set[str]) -> Root:
    """Cut a program into parts, one per call of a module.

    Args:
        program: a rewritten program, its nodes with the metadata of capture.
        depends: names of the nodes that depend on an attributed input, and of these inputs: what modules take and give.

    Returns:
        What runs as the program does.
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
    return Root(whole, takes, fx.node.map_arg(graph.output_node().args[0], lambda n: _Name(n.name)), parts)


def _filled(arguments: Any, values: Mapping[str, Any]) -> Any:
    """Arguments with values in the place of names."""
    if isinstance(arguments, _Name):
        return values[arguments]
    if isinstance(arguments, (tuple, list)) and not hasattr(arguments, "_fields"):  # details of ops name no values
        return type(arguments)(_filled(a, values) for a in arguments)
    if isinstance(arguments, dict):
        return {key: _filled(a, values) for key, a in arguments.items()}
    if isinstance(arguments, slice):
        return slice(*(_filled(a, values) for a in (arguments.start, arguments.stop, arguments.step)))
    return arguments
