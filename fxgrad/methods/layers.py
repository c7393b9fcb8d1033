"""A layer by its module path: which nodes belong to it, and which holds its output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import fx

from fxgrad.classify.decision import Decision
from fxgrad.errors import InputError, closest
from fxgrad.graph.axes import Atom
from fxgrad.graph.nodes import descendants
from fxgrad.graph.places import calls_of
from fxgrad.graph.sizes import known, sizes_of
from fxgrad.methods.maps import is_map, spatial_axes
from fxgrad.methods.parts import TOKENS, Anatomy
from fxgrad.methods.placing import within

Source = tuple[str, fx.Node]
"""The attributed input: its name and its placeholder."""


def output_of(layer: str, nodes: Mapping[str, fx.Node], decisions: Mapping[str, Decision], source: Source) -> str:
    """Name of the node of a layer's output.

    Args:
        layer: a module path. The calls of a layer are named `f`, `f@1`, ...; plain `f` means the call that depends on
            the attributed input.
        nodes: name of each node -> the node.
        decisions: name of each data node -> its decision.
        source: the attributed input.

    Raises:
        InputError: no node of the program belongs to that layer, or it is called several times on the same input.
    """
    inside = _call(layer, nodes, decisions, source)
    exits = [n for n in decisions if n in inside and any(u.name not in inside for u in nodes[n].users)]
    if not exits:
        paths = sorted({d.place.module_path for d in decisions.values()})
        raise InputError(f"no layer {layer!r} that depends on the input. Close to it: {closest(layer, paths)}.")
    return exits[-1]


def _call(layer: str, nodes: Mapping[str, fx.Node], decisions: Mapping[str, Decision], source: Source) -> set[str]:
    """Names of the data nodes in a call of a layer; for a path that is no call, in everything below it."""
    calls: dict[str, set[str]] = {}
    for node, names in calls_of(nodes.values()):
        for name in names if node.name in decisions else ():
            calls.setdefault(name, set()).add(node.name)
    path, at, number = layer.partition("@")
    if at:
        return calls.get(path if number == "0" else layer, set())
    own = {name: inside for name, inside in calls.items() if name.partition("@")[0] == path}
    if not own:
        return {n for n, d in decisions.items() if f"{d.place.module_path}.".startswith(f"{path}.")}
    reached = {n.name for n in descendants(source[1])}
    fitting = {name: inside for name, inside in own.items() if inside & reached} if len(own) > 1 else own
    if len(fitting) > 1:
        choices = ", ".join(repr(name if "@" in name else f"{name}@0") for name in fitting)
        raise InputError(
            f"layer {layer!r} is called {len(fitting)} times on what depends on {source[0]!r}. Pick a call: {choices}."
        )
    return next(iter(fitting.values()), set())


def of_layer(parts: Anatomy, node: fx.Node) -> Anatomy:
    """The anatomy with a layer's map of features, or its tokens, as those of a model that has none in blocks.

    Args:
        parts: the model's anatomy.
        node: the node of the layer's output.
    """
    shape = [known(size, parts.free) for size in sizes_of(node)]
    if is_map(node) or len(shape) > 3:
        return replace(parts, grid=tuple(shape[axis] for axis in spatial_axes(node)))
    place = within(node, parts)
    if len(shape) != 3 or (place is not None and place.axis == 2):
        return parts
    axis = 1 if place is None or place.axis == 0 else 0
    axes = list(parts.places.get(node.name, ((), (), ())))
    axes[axis] = (Atom(TOKENS, 0, shape[axis]),)
    return replace(parts, tokens=shape[axis], places={**parts.places, node.name: tuple(axes)})
