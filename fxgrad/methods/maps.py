"""Which values are feature maps, and which of a value's axes are channels: by the ops that read it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from torch import fx

from fxgrad.errors import InputError
from fxgrad.graph.axes import Atom, Axes
from fxgrad.graph.nodes import arguments_of, op_name
from fxgrad.graph.sizes import same, sizes_of

CONVOLUTIONS = (
    *("conv", "batch_norm", "native_batch_norm", "_native_batch_norm", "group_norm", "instance_norm"),
    *("max_pool", "avg_pool", "adaptive_avg_pool"),
)
"""Starts of names of ops whose operand has its channels before rows and columns."""
_CHANNELS_LAST = ("linear", "layer_norm", "lstm", "gru", "rnn_tanh", "rnn_relu")
_PRODUCTS = ("mm", "addmm", "matmul", "bmm")
_NEAR = 12
"""The largest number of nodes of one shape to search for an op that tells which axis has the channels."""
_READERS = 8
"""The largest number of ops that read an input to ask for its channels."""
Channels = Mapping[str, "int | None"]
"""Input's name -> its axis of channels, or None to map it element by element."""


def is_map(node: fx.Node) -> bool:
    """Whether a value is a feature map: (batch, channels, rows, columns), or with one or three such axes at the end."""
    shape = sizes_of(node)
    if not 3 <= len(shape) <= 5:
        return False
    seen, pending = {node}, [node]
    while pending and len(seen) < _NEAR:
        current = pending.pop(0)
        ops = [current, *current.users]
        if any(op_name(n).startswith(CONVOLUTIONS) and _of_rank(n, len(shape)) for n in ops):
            return True
        if any(op_name(n) in _CHANNELS_LAST for n in ops):
            return False
        near = [n for n in (*current.users, *current.all_input_nodes) if n not in seen and sizes_of(n) == shape]
        seen.update(near)
        pending += near
    return False


def _of_rank(node: fx.Node, rank: int) -> bool:
    """Whether an op of feature maps reads maps with this number of axes: its kernel has as many."""
    weight = arguments_of(node).get("weight")
    kernel = len(sizes_of(weight)) if isinstance(weight, fx.Node) else 1
    pooled = [n for n in node.all_input_nodes if len(sizes_of(n)) == rank]
    return kernel == rank if kernel > 1 else bool(pooled)


def spatial_axes(node: fx.Node) -> tuple[int, ...]:
    """The axes of rows and columns in a value with one, two or three such axes."""
    rank = len(sizes_of(node))
    return tuple(range(2, rank)) if is_map(node) else tuple(range(1, rank - 1))


def channels_read(
    source: fx.Node,
    nodes: Sequence[fx.Node],
    examples: int | None,
    follow: Callable[[Sequence[fx.Node], Mapping[fx.Node, Axes]], Mapping[fx.Node, Axes]],
) -> tuple[int, ...]:
    """The axes of an input that the first op that tells them apart reads as channels.

    An input whose only axis besides the examples' is one of features has no channels: its map is of the features.

    Args:
        source: the input's placeholder.
        nodes: the nodes that depend on it, in the order of the graph.
        examples: its axis of examples.
        follow: follows axes along some nodes from seeds.

    Returns:
        The axes, in order. Where no op tells, the first axis of four or more, and the last of three.
    """
    shape = sizes_of(source)
    others = [i for i in range(len(shape)) if i != examples]
    if len(others) < 2:
        return ()
    reached: set[fx.Node] = {source, *nodes}
    seeds = {source: tuple((Atom(source.name, i, size),) for i, size in enumerate(shape))}
    wide = {i for i in others if not same(shape[i], 1)}
    asked = 0
    for index, node in enumerate(nodes):
        read = _read(node, reached)
        if read is None:
            continue
        operand, axis = read
        found = [axis] if operand is source else _origins(follow(nodes[:index], seeds).get(operand, ()), axis, source)
        found = [i for i in found if i != examples]
        if found and (operand is source or not wide <= set(found)):
            return tuple(found)
        asked += 1
        if asked == _READERS:
            break
    return (others[0],) if len(shape) > 3 else (others[-1],)


def _origins(axes: Axes, axis: int, source: fx.Node) -> list[int]:
    """The axes of the source that are wholly in an axis of another value; one of size 1 has no atom to follow."""
    shape = sizes_of(source)
    if axes and not axes[axis]:
        return [i for i, size in enumerate(shape) if i and same(size, 1)][:1]
    atoms = axes[axis] if axes else ()
    return sorted(a.axis for a in atoms if a.origin == source.name and same(a.size, shape[a.axis]))


def _read(node: fx.Node, reached: Collection[fx.Node]) -> tuple[fx.Node, int] | None:
    """The operand of which an op reads an axis as channels, and that axis."""
    name, arguments = op_name(node), arguments_of(node)
    operand: Any = next((v for v in arguments.values() if isinstance(v, fx.Node) and v in reached), None)
    if operand is None:
        return None
    rank = len(sizes_of(operand))
    if name in _PRODUCTS:
        matrices = [v for v in arguments.values() if isinstance(v, fx.Node) and sizes_of(v)][-2:]
        return (operand, rank - 1) if matrices[0] is operand and matrices[1] not in reached else None
    if name in _CHANNELS_LAST:
        return operand, rank - 1
    if name.startswith("conv"):
        weight = arguments.get("weight")
        fits = isinstance(weight, fx.Node) and weight not in reached
        return (operand, rank + 1 - len(sizes_of(weight))) if fits else None  # type: ignore[arg-type]
    if name.startswith(CONVOLUTIONS) and "norm" in name and rank > 1:
        return operand, 1
    return None


def channels_given(
    given: int | Channels | None, inputs: Mapping[str, tuple[int, int | None]], chosen: str
) -> dict[str, tuple[int, ...]]:
    """The axes of channels that the user names.

    Args:
        given: the axis of the chosen input, None to map all inputs element by element, or input's name -> one of these.
        inputs: name of an attributed input -> (its number of axes, its axis of examples).
        chosen: name of the input that a single number is for.

    Raises:
        InputError: no such input or axis, or it is the axis of the examples.

    Example:
        >>> channels_given(-1, {"x": (4, 0)}, "x"), channels_given(None, {"x": (4, 0)}, "x")
        ({'x': (3,)}, {'x': ()})
    """
    if given is None:
        return dict.fromkeys(inputs, ())
    named = given if isinstance(given, Mapping) else {chosen: given}
    found: dict[str, tuple[int, ...]] = {}
    for name, axis in named.items():
        if name not in inputs:
            raise InputError(f"channels names the input {name!r}; the attributed inputs are {', '.join(inputs)}.")
        if axis is None:
            found[name] = ()
            continue
        rank, examples = inputs[name]
        if not isinstance(axis, int) or isinstance(axis, bool) or not -rank <= axis < rank:
            raise InputError(
                f"channels={axis!r} is no axis of input {name!r}, which has {rank}. Pass 0 to {rank - 1}, or "
                "None for a map of every element."
            )
        if axis % rank == examples:
            raise InputError(
                f"axis {axis} of input {name!r} has the examples, so it cannot be that of the channels. Pass another, "
                "or None for a map of every element."
            )
        found[name] = (axis % rank,)
    return found
