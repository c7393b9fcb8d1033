"""Which axes have the examples of the batch, so that contributions are known example by example.

An axis of examples is an axis of an input that reaches an axis of an output, with nothing on the way that mixes its
elements. So the nodes of a graph are no examples: an edge list gathers some of them, and a mean takes all.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from fxgrad.classify.decision import Classified
from fxgrad.classify.moves import word_of
from fxgrad.graph.axes import MOVES, Atom, Axes, Axis, source_of
from fxgrad.graph.follow import Seeds, follow
from fxgrad.graph.mixing import mixes
from fxgrad.graph.nodes import arguments_of, descendants, tensors_of
from fxgrad.graph.sizes import Size, known, same, sizes_of

BATCH = "batch"
"""The label of the examples among the atoms of an axis."""


@dataclass(frozen=True)
class Examples:
    """Where the examples are.

    Attributes:
        size: the captured size of their axis, mostly a symbol; 1 if no input has such an axis.
        inputs: placeholder's name -> its axis of examples. The examples share all other inputs.
        places: node name -> its axes as atoms; examples have the origin `BATCH`.
        followed: whether the axis was followed to the output; else it is only as long as the output's first one.
    """

    size: Size
    inputs: Mapping[str, int]
    places: Mapping[str, Axes] = field(repr=False)
    followed: bool = True


def tracked(classified: Classified, seeds: Seeds | None = None) -> dict[fx.Node, Axes]:
    """The axes of the outputs and of all values that depend on an attributed input, as atoms of the inputs' axes.

    Args:
        classified: what `fxgrad.classify.classify` returned.
        seeds: further known axes; see `fxgrad.graph.follow.follow`.

    Example:
        >>> import fxgrad, torch
        >>> from torch import nn
        >>> classified = fxgrad.convert(nn.Flatten().eval(), (torch.zeros(3, 5, 2),)).classified
        >>> [[(atom.origin, atom.axis) for axis in axes for atom in axis] for axes in tracked(classified).values()]
        [[('input_', 0), ('input_', 1), ('input_', 2)], [('input_', 0), ('input_', 1), ('input_', 2)]]
    """
    captured, decisions = classified.captured, classified.decisions
    given = seeds or {}
    entries: dict[fx.Node, Sequence[Axis | None]] = {n: _entry(n, given.get(n)) for n in captured.entry_nodes}
    own = {**given, **{n: axes for n, axes in entries.items() if axes}}
    outputs = captured.graph.output_node().all_input_nodes
    nodes = [n for n in captured.graph.nodes if n.name in decisions or (n in outputs and n not in own)]
    return follow(nodes, lambda node: word_of(node, decisions), own)


def examples_of(
    classified: Classified, found: Mapping[fx.Node, Axes], source: fx.Node, free: Mapping[Any, int] | None = None
) -> Examples:
    """The axes of examples: those of the inputs that are one axis of an output, and that nothing mixes on the way.

    Args:
        classified: what `fxgrad.classify.classify` returned.
        found: what `tracked` returned.
        source: the input whose examples are preferred, where each output has the examples of another input.
        free: free size -> its value, if the inputs are known.

    Example:
        >>> import fxgrad, torch
        >>> class Merged(torch.nn.Module):
        ...     def forward(self, x):
        ...         return x.transpose(0, 1).reshape(-1, 2).exp().reshape(x.shape[1], -1, 2)
        >>> classified = fxgrad.convert(Merged().eval(), (torch.zeros(3, 5, 2),)).classified
        >>> found = examples_of(classified, tracked(classified), classified.captured.entry_nodes[0])
        >>> found.inputs, [[atom.origin for atom in axes[0]] for axes in found.places.values()]
        ({'x': 0}, [['batch'], ['x'], ['x', 'batch'], ['x', 'batch'], ['x']])
    """
    captured = classified.captured
    entries = [n for n in captured.entry_nodes if sizes_of(n)]
    attributed = [n for n, declared in zip(captured.entry_nodes, captured.entries) if declared.attributed]
    data, behind, mixed_before = _data(classified), descendants(source), False
    chosen: list[tuple[dict[fx.Node, int], set[Atom], bool, Size]] = []
    for output in tensors_among(captured.graph.output_node().all_input_nodes):
        if mixed_before or (chosen and chosen[-1][0].get(source) == 0):
            break
        sound = []
        for i, lead, size in _leads(found.get(output, ()), sizes_of(output), {n.name for n in entries}):
            members = _members(entries, found, lead, size, found.get(output, ()), first=i == 0)
            if not set(attributed) & set(members):
                continue
            atoms = {axis[0] for axis in (lead, *(found[n][i] for n, i in members.items())) if len(axis) == 1}
            if not _mixed(classified, found, output, atoms, data):
                sound.append((members, atoms, _linked(members, found, lead), size))
        # An output has the examples of the first input that has any, whatever source is looked at, for what a class
        # is depends on them; but where as many examples are compared with as many others, those of the source, whose
        # classes are the others. An input's first axis is better than another one.
        counts = {known(size, free or {}) for *_, size in sound}
        square = len(sizes_of(output)) == 2 == len(sound) and len(counts) == 1 and counts != {-1}
        ahead = [s for s in sound if square and s[0].get(source) == 0]
        chosen += sorted(
            ahead or sound, key=lambda s: min((attributed.index(n), i) for n, i in s[0].items() if n in attributed)
        )[:1]
        # The patches of one picture, say, of which an earlier output with one row takes all.
        mixed_before = bool(sound) and source not in chosen[-1][0] and same(chosen[-1][3], 1) and output in behind
    for members, atoms, linked, size in sorted(chosen, key=lambda s: s[0].get(source, len(sizes_of(source)))):
        return Examples(size, {n.name: i for n, i in members.items()}, _labelled(found, atoms), linked)
    return Examples(1, {}, _labelled(found, set()))


def _leads(axes: Axes, shape: Sequence[Size], entries: Collection[str]) -> Iterator[tuple[int, Axis, Size]]:
    """(index, axis, size) of each axis of an output that may have the examples, or of the parts of a merged one.

    The last axis of several is that of classes or features, unless it is an input's first axis.
    """
    for i, size in enumerate(shape):
        axis = axes[i] if i < len(axes) else ()
        parts: list[tuple[Axis, Size]] = [((atom,), atom.size) for atom in axis] if len(axis) > 1 else [(axis, size)]
        for part, own in parts:
            first = bool(part) and part[0].origin in entries and part[0].axis == 0
            if first or i == 0 or i + 1 < len(shape):
                yield i, part, own


def _entry(node: fx.Node, given: Sequence[Axis | None] | None) -> list[Axis | None]:
    """The axes of an input: its first axis has a label of its own."""
    shape = sizes_of(node)
    axes = list(given or [None] * len(shape))
    if shape and axes[0] is None and not same(shape[0], 1):
        axes[0] = (Atom(node.name, 0, shape[0]),)
    return axes


def _members(
    entries: list[fx.Node], found: Mapping[fx.Node, Axes], lead: Axis, size: Size, output: Axes, *, first: bool
) -> dict[fx.Node, int]:
    """Input -> its axis that is an axis of the output: by its atom, else the first axis, if it has this size."""
    members: dict[fx.Node, int] = {}
    for node in entries:
        shape = sizes_of(node)
        axes = found.get(node, ())
        reached = [i for i, axis in enumerate(axes) if axis and axis == lead and same(shape[i], size)]
        elsewhere = axes and axes[0] and axes[0] in output and axes[0] != lead
        if reached:
            members[node] = reached[0]
        elif same(shape[0], size) and not elsewhere:
            members[node] = 0
    return members if first or _linked(members, found, lead) else {}


def _linked(members: Mapping[fx.Node, int], found: Mapping[fx.Node, Axes], lead: Axis) -> bool:
    """Whether an axis of an output is an axis of an input by its atoms."""
    return any(found[n][i] == lead for n, i in members.items() if lead and n in found)


def _mixed(
    classified: Classified, found: Mapping[fx.Node, Axes], output: fx.Node, atoms: set[Atom], data: set[fx.Node]
) -> bool:
    """Whether a node on the way of a cotangent from an output to the inputs mixes the elements of an axis."""
    decisions, named = classified.decisions, {n.name: n for n in classified.captured.graph.nodes}
    seen, pending = {output.name}, [output.name]
    while pending:
        name = pending.pop()
        if name not in decisions:
            continue
        node = named[name]
        if sum(bool(atoms & set(axis)) for axis in found.get(node, ())) > 1:
            return True  # examples with examples
        for operand in decisions[name].data:
            if not decisions[name].receives(str(operand.value)):
                continue
            source = named[str(operand.value)]
            word = word_of(node, decisions)
            whole = source_of(node) if word in MOVES and isinstance(source.meta["val"], (list, tuple)) else source
            bag = "offsets" in arguments_of(node)  # joins rows, which may be of several examples
            own = enumerate(found.get(whole, ()))
            axes = [i for i, axis in own if (bag or len(axis) == 1) and atoms & set(axis)]
            # A piece of a layer's features has the layer's input for its operand, and mixes none of its rows.
            direct = source in node.all_input_nodes
            if direct and any(mixes(node, whole, axis, word, data) for axis in axes):
                return True
            if source.name not in seen:
                seen.add(source.name)
                pending.append(source.name)
    return False


def _data(classified: Classified) -> set[fx.Node]:
    """The nodes that depend on attributed inputs, those of integers, too."""
    captured = classified.captured
    data = {n for n, d in zip(captured.entry_nodes, captured.entries) if d.attributed}
    for node in captured.graph.nodes:
        if tensors_of(node) and any(n in data for n in node.all_input_nodes):
            data.add(node)
    return data


def _labelled(found: Mapping[fx.Node, Axes], examples: Collection[Atom]) -> dict[str, Axes]:
    """All axes, those of examples under the label `BATCH`."""
    origins = {atom[:2] for atom in examples}

    def renamed(atom: Atom) -> Atom:
        return atom._replace(origin=BATCH, axis=0) if atom[:2] in origins else atom

    return {n.name: tuple(tuple(renamed(atom) for atom in axis) for axis in axes) for n, axes in found.items()}


def tensors_among(outputs: Iterable[fx.Node]) -> list[fx.Node]:
    """The nodes of a graph's outputs that are tensors of floating dtype, in order."""
    return [n for n in outputs if any(t.is_floating_point() for t in tensors_of(n))]
