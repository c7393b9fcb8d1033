"""What is cut out of a cat or a stack is what was put in.

A tensor has one role, but a joined one may hold a carrier beside a gate, until it is cut apart again. So every cut that
lies within one operand of a join becomes a `piece`: its values come from the cut, and it flows from that operand alone.
Between the join and the cut there may be moves that keep the joined axis (transpose, reshape, expand, cuts of others).
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, NamedTuple

import sympy
import torch
from torch import fx

from fxgrad.graph.axes import Move, move_of, source_of
from fxgrad.graph.nodes import added, arguments_of, differentiable, tensors_of
from fxgrad.graph.places import place_of
from fxgrad.graph.sizes import Size, at_most, number, quotient, same, size_of, sizes_of
from fxgrad.ops.pieces import piece
from fxgrad.table.loading import RuleTable

aten = torch.ops.aten


class _SizeOf(NamedTuple):
    """Stands for a free size in a step's arguments: of which node, and of which axis."""

    node: fx.Node
    axis: int


class _Step(NamedTuple):
    """One move, to be applied to a part: op, and the arguments behind the first."""

    op: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = {}


@dataclass(frozen=True)
class _Part:
    """A range of a joined axis: what was put in there, the moves since then, and the size along the axis."""

    node: fx.Node
    size: Size
    steps: tuple[_Step, ...] = ()

    def after(self, step: _Step) -> _Part:
        last = self.steps[-1] if self.steps else None
        if last and last.op is aten.unsqueeze.default and (step.op, step.args) == (aten.select.int, (*last.args, 0)):
            return replace(self, steps=self.steps[:-1])
        return replace(self, steps=(*self.steps, step))


@dataclass(frozen=True)
class _Joined:
    """The parts of a joined tensor, in their order along the axis `dim`."""

    dim: int
    parts: tuple[_Part, ...]

    @property
    def ends(self) -> list[Size]:
        """Where each part ends on the axis."""
        return list(accumulate(part.size for part in self.parts))


class _UnsettledError(Exception):
    """Free sizes do not tell which parts lie within a cut."""

    def __init__(self, *sizes: Size) -> None:
        super().__init__()
        self.symbols = {symbol for size in sizes for symbol in getattr(size, "free_symbols", ())}


def take_apart(graph: fx.Graph, table: RuleTable) -> dict[Any, str]:
    """Let every cut within one operand of a join flow from that operand, in place.

    Args:
        graph: functional ATen graph, with its nodes' metadata.
        table: whose rows say which ops join, cut and move.

    Returns:
        Symbol of each free size that would tell what is cut out -> the line that cuts.

    Example:
        >>> from fxgrad.table.loading import load
        >>> class Model(torch.nn.Module):
        ...     def forward(self, x, y):
        ...         return torch.cat([x, y], 1)[:, 3:]
        >>> example = (torch.ones(2, 3), torch.ones(2, 4))
        >>> graph = torch.export.export(Model(), example).run_decompositions({}).graph
        >>> take_apart(graph, load())
        {}
        >>> [node.args for node in graph.nodes if node.target is piece]
        [(y, slice_1)]
    """
    joined: dict[fx.Node, _Joined] = {}
    unsettled: dict[Any, str] = {}
    for node in list(graph.nodes):
        if node.op != "call_function" or not differentiable(node):
            continue
        try:
            found = _found(node, _word(node, table), joined)
        except _UnsettledError as error:
            unsettled |= {symbol: place_of(node).source_line for symbol in error.symbols}
            continue
        if found is not None and len(found.parts) > 1:
            joined[node] = found
        elif found is not None:
            _replace(graph, node, found.parts[0])
    return unsettled


def _word(node: fx.Node, table: RuleTable) -> str | None:
    made: Any = node.args[0] if node.target is operator.getitem else node
    row = table.row(made.target) if isinstance(made.target, torch._ops.OpOverload) else None
    return row.options.get("moves") if row else None


def _found(node: fx.Node, word: str | None, joined: Mapping[fx.Node, _Joined]) -> _Joined | None:
    """The parts of a node's value; None where they are not known, or it is not joined."""
    if node.target in (aten.slice_scatter.default, aten.select_scatter.default):
        return _written(node, joined)
    move = move_of(node, word)
    if move is None:
        return None
    if word == "join":
        return _join(node, move, joined)
    before = joined.get(source_of(node))
    return None if before is None else _after(node, move, before)


def _join(node: fx.Node, move: Move, joined: Mapping[fx.Node, _Joined]) -> _Joined | None:
    given = next(v for v in arguments_of(node).values() if isinstance(v, (list, tuple)))
    rank = len(sizes_of(node)) - move.drops
    if len(given) < 2 or any(not isinstance(n, fx.Node) or len(sizes_of(n)) != rank for n in given):
        return None
    if move.drops:
        unsqueeze = _Step(aten.unsqueeze.default, (move.dim,))
        return _Joined(move.dim, tuple(_Part(n, 1, (unsqueeze,)) for n in given))
    parts: list[_Part] = []
    for n in given:
        inner = joined.get(n)
        parts += inner.parts if inner and inner.dim == move.dim else [_Part(n, sizes_of(n)[move.dim])]
    return _Joined(move.dim, tuple(parts))


def _written(node: fx.Node, joined: Mapping[fx.Node, _Joined]) -> _Joined | None:
    """The parts of a tensor into which another one is written: what is before it, the other one, what is behind."""
    arguments = arguments_of(node)
    base, source = arguments["self"], arguments["src"]
    whole = sizes_of(base)
    dim = arguments["dim"] % len(whole)
    if "index" in arguments:
        start, size = arguments["index"], 1
        written = _Part(source, 1, (_Step(aten.unsqueeze.default, (dim,)),))
    else:
        start, size = arguments["start"] or 0, sizes_of(source)[dim]
        written = _Part(source, size)
        if arguments["step"] != 1:
            return None
    if isinstance(start, int) and start < 0 and isinstance(whole[dim], int):
        start += whole[dim]
    if not isinstance(start, int) or start < 0:
        return None
    before = joined.get(base)
    if before is None or before.dim != dim:
        before = _Joined(dim, (_Part(base, whole[dim]),))
    ahead, behind = _range(before, 0, start), _range(before, start + size, whole[dim])
    if not ahead.parts and not behind.parts:
        return joined.get(source)  # the whole of it is written, as along the other axes of `z[:, 1:] = x`
    return _Joined(dim, (*ahead.parts, written, *behind.parts))


def _after(node: fx.Node, move: Move, before: _Joined) -> _Joined | None:
    """The parts after a move."""
    dim, parts = before.dim, before.parts
    if move.word == "permute":
        return _all(before, move.order.index(dim), _Step(aten.permute.default, (list(move.order),)))
    if move.word == "same":
        return before
    if move.word == "expand":
        dim += len(sizes_of(node)) - len(sizes_of(_source(node)))
        if not same(sizes_of(node)[dim], before.ends[-1]):
            return None
        steps = [_Step(aten.expand.default, (_entries(node, dim, part.size),)) for part in parts]
        return _Joined(dim, tuple(part.after(step) for part, step in zip(parts, steps)))
    if move.word == "reshape":
        return _reshaped(node, before)
    if move.word != "cut":
        return None
    if move.dim != dim:
        step = _same_cut(node, move)
        return None if step is None else _all(before, dim - (move.drops and move.dim < dim), step)
    return _cut(node, move, before)


def _all(before: _Joined, dim: int, step: _Step) -> _Joined:
    """The same step for every part."""
    return _Joined(dim, tuple(part.after(step) for part in before.parts))


def _same_cut(node: fx.Node, move: Move) -> _Step | None:
    """A cut along another axis, to be made of each part."""
    if node.target is not operator.getitem:
        return _Step(node.target, node.args[1:], node.kwargs)
    if not isinstance(move.start, int) or not isinstance(move.size, int):
        return None
    if move.drops:
        return _Step(aten.select.int, (move.dim, move.start))
    return _Step(aten.slice.Tensor, (move.dim, move.start, move.start + move.size))


def _cut(node: fx.Node, move: Move, before: _Joined) -> _Joined | None:
    """The parts within a cut along the joined axis."""
    start = _start(node) if move.start is None else move.start
    if start is None:
        return None
    if move.drops or move.step == 1:
        size = 1 if move.drops else move.size
        found = _range(before, start, start + size)
        if not move.drops or len(found.parts) != 1:
            return found
        return _Joined(0, (_taken(found.parts[0], before.dim),))
    for end, part in zip(before.ends, before.parts):
        begin, length = end - part.size, (move.size - 1) * move.step + 1
        first, last = number(start - begin), number(start + length - begin)
        if first is not None and last is not None and first >= 0 and at_most(last, part.size):
            step = _Step(aten.slice.Tensor, (before.dim, first, last, move.step))
            return _Joined(before.dim, (replace(part, size=move.size).after(step),))
    if any(isinstance(size, sympy.Expr) for size in (start, move.size, *before.ends)):
        raise _UnsettledError(start, move.size, *before.ends)
    return None


def _taken(part: _Part, dim: int) -> _Part:
    """The only index of a part of size 1, without the axis."""
    last = part.steps[-1] if part.steps else None
    if last and last.op is aten.slice.Tensor and last.args[0] == dim and len(last.args) == 3:
        return replace(part, steps=(*part.steps[:-1], _Step(aten.select.int, (dim, last.args[1]))))
    return part.after(_Step(aten.select.int, (dim, 0)))


def _start(node: fx.Node) -> Size | None:
    """Where a cut starts, if that is a free size."""
    given = arguments_of(node).get("start", arguments_of(node).get("index"))
    value = given.meta.get("val") if isinstance(given, fx.Node) else None
    start = size_of(value) if isinstance(value, (int, torch.SymInt)) else None
    return start if start is not None and at_most(0, start) else None


def _range(before: _Joined, start: Size, stop: Size) -> _Joined:
    """The parts between two indices, the first and the last of them cut.

    Raises:
        _UnsettledError: sizes do not tell.
    """
    found: list[_Part] = []
    for end, part in zip(before.ends, before.parts):
        begin = end - part.size
        starts_behind, stops_before = at_most(end, start), at_most(stop, begin)
        if starts_behind is None or stops_before is None:
            raise _UnsettledError(start, stop, begin, end)
        if starts_behind or stops_before:
            continue
        whole_ahead, whole_behind = at_most(start, begin), at_most(end, stop)
        if whole_ahead is None or whole_behind is None:
            raise _UnsettledError(start, stop, begin, end)
        if whole_ahead and whole_behind:
            found.append(part)
            continue
        first = 0 if whole_ahead else number(start - begin)
        last = sys.maxsize if whole_behind else number(stop - begin)
        if first is None or last is None:
            raise _UnsettledError(start, stop, begin)
        size = (part.size if whole_behind else last) - first
        found.append(replace(part, size=size).after(_Step(aten.slice.Tensor, (before.dim, first, last))))
    return _Joined(before.dim, tuple(found))


def _reshaped(node: fx.Node, before: _Joined) -> _Joined | None:
    """The parts after a reshape that leaves each of them one range of one axis."""
    old, new = sizes_of(_source(node)), sizes_of(node)
    outer, inner = _product(old[: before.dim]), _product(old[before.dim + 1 :])
    for dim in range(len(new)):
        if not same(_product(new[:dim]), outer):
            continue
        below = _product(new[dim + 1 :])
        sizes = [quotient(part.size * inner, below) for part in before.parts]
        if all(size is not None for size in sizes):
            pairs = zip(before.parts, sizes)
            return _Joined(dim, tuple(_resized(part, size, node, dim) for part, size in pairs))
    return None


def _resized(part: _Part, size: Size, node: fx.Node, dim: int) -> _Part:
    return replace(part, size=size).after(_Step(aten.reshape.default, (_entries(node, dim, size),)))


def _product(sizes: Sequence[Size]) -> Size:
    found: Size = 1
    for size in sizes:
        found = found * size
    return found


def _entries(node: fx.Node, dim: int, size: Size) -> list[Any]:
    """The shape of a part beside that of the whole: `size` along `dim`, else the node's."""
    entries: list[Any] = [s if isinstance(s, int) else _SizeOf(node, i) for i, s in enumerate(sizes_of(node))]
    entries[dim] = size if isinstance(size, int) else -1
    return entries


def _source(node: fx.Node) -> fx.Node:
    source = source_of(node)
    assert isinstance(source, fx.Node)
    return source


def _replace(graph: fx.Graph, node: fx.Node, part: _Part) -> None:
    """Let the users of a cut take its piece."""
    steps = part.steps
    dtypes = [tensors_of(n)[0].dtype for n in (part.node, node)]
    if dtypes[0] != dtypes[1]:
        steps = (*steps, _Step(aten._to_copy.default, (), {"dtype": dtypes[1]}))
    made, last = part.node, node
    for step in steps:
        made, last = _applied(graph, made, step, last, node)
    with graph.inserting_after(last):
        found = graph.create_node("call_function", piece, (made, node), name=f"{node.name}_piece")
    found.meta = dict(node.meta)
    node.replace_all_uses_with(found, delete_user_cb=lambda user: user is not found)


def _applied(graph: fx.Graph, made: fx.Node, step: _Step, last: fx.Node, node: fx.Node) -> tuple[fx.Node, fx.Node]:
    """(the result of a step, the node behind which the next one goes)."""

    def size(entry: Any) -> Any:
        nonlocal last
        if not isinstance(entry, _SizeOf):
            return entry
        with graph.inserting_after(last):
            last = graph.call_function(aten.sym_size.int, tuple(entry))
        last.meta = {**node.meta, "val": tensors_of(entry.node)[0].shape[entry.axis]}
        return last

    args = [[size(entry) for entry in a] if isinstance(a, list) else a for a in step.args]
    with graph.inserting_after(last):
        result = added(graph, node, step.op, made, *args, **step.kwargs)
    return result, result
