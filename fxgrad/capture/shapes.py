"""Which sizes of a program's inputs are fixed and by which line, and what must hold of the free ones.

`torch.export` guards what it learns while it traces: that a size is a number, equals another one, or lies on one side
of a branch. Some of this shows in the graph's shapes; the rest is kept as checks here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import sympy
import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx.experimental.symbolic_shapes import is_concrete_int

from fxgrad.capture.captured import Captured
from fxgrad.capture.checks import Check, NotSupportedError, text_of
from fxgrad.capture.watch import Guards, Watch, inside, of_layout
from fxgrad.graph.nodes import placeholders_of
from fxgrad.graph.sizes import size_of

CLEAR = 120
"""The longest condition of torch's own that is kept. Longer ones are of strides, and the op itself checks them."""
ONE = "the example, whose size of 1 torch.export takes for a constant"
"""What fixed an axis of size 1."""
FURTHEST = 65
"""Up to here all other sizes are tried before an axis counts as fixed by a check."""
MORE = "torch.export, which takes every other size to be more than 1"
"""What needs a free axis to be longer than 1."""


@dataclass(frozen=True)
class Sizes:
    """What is known of the sizes of a program's inputs besides their shapes.

    Attributes:
        checks: what must hold of the free sizes.
        fixed: (index of an input, axis) -> what fixed this axis.
    """

    checks: tuple[Check, ...] = ()
    fixed: Mapping[tuple[int, int], str] = field(default_factory=dict)

    def of(self, captured: Captured) -> Captured:
        """The captured model with these checks and reasons."""
        inputs = tuple(
            replace(i, fixed={axis: line for (own, axis), line in self.fixed.items() if own == at})
            for at, i in enumerate(captured.inputs)
        )
        return replace(captured, inputs=inputs, checks=self.checks)

    def pinned(self, shapes: Sequence[Sequence[int]]) -> dict[tuple[int, int], str]:
        """Axes whose own checks no other size satisfies, and the line of the strictest of these.

        `torch.export` solves some equations for the only size, and keeps others, such as of a minimum.

        Args:
            shapes: of the example inputs.

        Example:
            >>> only = Check("2 * s0 - 4 == min(4, 2 * s0)", {"s0": (0, 1)}, "net.py:7: a * b")
            >>> Sizes((only,)).pinned([(2, 4)])
            {(0, 1): 'net.py:7: a * b'}
        """
        alone: dict[tuple[int, int], list[Check]] = {}
        for check in self.checks:
            if len(places := set(check.sizes.values())) == 1:
                alone.setdefault(places.pop(), []).append(check)
        found = {}
        for (at, axis), checks in alone.items():
            own = shapes[at][axis]
            others = {*range(1, FURTHEST), own - 1, own + 1, *(own * times for times in range(2, 5))} - {own}
            fitting = [[other for other in others if check.fits({at: {axis: other}})] for check in checks]
            if not set.intersection(*map(set, fitting)):
                found[at, axis] = min(zip(fitting, checks), key=lambda pair: len(pair[0]))[1].line
        return found

    @classmethod
    def within(cls, captured: Captured) -> Sizes:
        """What a captured model knows of its sizes."""
        fixed = {(at, axis): line for at, i in enumerate(captured.inputs) for axis, line in i.fixed.items()}
        return cls(captured.checks, fixed)

    def to_data(self) -> dict[str, Any]:
        """As JSON values."""
        checks = [
            {"holds": c.holds, "sizes": {n: list(p) for n, p in c.sizes.items()}, "line": c.line} for c in self.checks
        ]
        return {"checks": checks, "fixed": [[*place, line] for place, line in self.fixed.items()]}

    @classmethod
    def from_data(cls, data: Any, ranks: Sequence[int]) -> Sizes:
        """From JSON values; `ranks` are the inputs' numbers of axes.

        Raises:
            ValueError: the data have another form, or name other axes.
        """

        def place(at: Any, axis: Any) -> tuple[int, int]:
            if not (type(at) is type(axis) is int and 0 <= at < len(ranks) and 0 <= axis < ranks[at]):
                raise ValueError(f"there is no axis {axis} of input {at}.")
            return at, axis

        checks = [
            Check(str(c["holds"]), {str(name): place(*own) for name, own in c["sizes"].items()}, str(c["line"]))
            for c in data["checks"]
        ]
        return cls(tuple(checks), {place(at, axis): str(line) for at, axis, line in data["fixed"]})


def sizes_in(program: ExportedProgram, watch: Watch | None = None) -> Sizes:
    """The checks that a program needs, and the lines that fixed sizes.

    Args:
        program: as torch.export made it. One that was read from a file has lost its guards.
        watch: was on while the model was traced.

    Raises:
        NotSupportedError: a branch of the model depends on sizes in a way that cannot be checked.

    Example:
        >>> from torch import nn
        >>> from torch.export import Dim
        >>> class Halves(nn.Module):
        ...     def forward(self, x):
        ...         return x[:, ::2] + x[:, 1::2]
        >>> free = ({0: Dim.AUTO, 1: Dim.AUTO},)
        >>> program = torch.export.export(Halves(), (torch.ones(3, 4),), dynamic_shapes=free)
        >>> [check.text(["x"]) for check in sizes_in(program).checks][:1]
        ['(1 + x.shape[1]) // 2 == x.shape[1] // 2']
    """
    return _Reading(program, watch or Watch()).sizes()


class _Reading:
    """The reading of one program's shapes, guards and ranges."""

    def __init__(self, program: ExportedProgram, watch: Watch) -> None:
        nodes = {node.name: node for node in placeholders_of(program.graph)}
        specs = [s for s in program.graph_signature.input_specs if s.kind is InputKind.USER_INPUT]
        values = [nodes[spec.arg.name].meta.get("val") if spec.arg.name in nodes else None for spec in specs]
        self.dims = [
            (at, axis, size)
            for at, value in enumerate(values)
            if isinstance(value, Tensor)
            for axis, size in enumerate(value.shape)
        ]
        self.program, self.watch = program, watch
        sizes: list[Any] = [size for _, _, size in self.dims]
        environments = [size.node.shape_env for size in sizes if isinstance(size, torch.SymInt)]
        self.environment = environments[0] if environments else None
        self.known = Guards(self.environment, watch)
        self.places: dict[str, tuple[int, int]] = {}
        self.names: dict[Any, str] = {}

    def sizes(self) -> Sizes:
        ties = list(self.ties())
        branches, layout = ({check.holds: check for check in self.branches(strides)} for strides in (False, True))
        ranges = self.ranges([*branches.values(), *layout.values()])
        return Sizes((*ties, *branches.values(), *ranges), self.fixed())

    def check(self, holds: str, line: str = "") -> Check:
        return Check(holds, {name: place for name, place in self.places.items() if name in _words(holds)}, line)

    def ties(self) -> Iterator[Check]:
        """Name each free size by the first axis that has it; yield what other axes with it must be."""
        later = []
        for at, axis, size in self.dims:
            if not is_concrete_int(size):
                own = f"s{len(self.places)}"
                self.places[own] = at, axis
                expression = size_of(size)
                if isinstance(expression, sympy.Symbol) and expression not in self.names:
                    self.names[expression] = own
                else:
                    later.append((own, expression))
        for own, expression in later:
            unknown = [symbol for symbol in expression.free_symbols if symbol not in self.names]
            if unknown:
                yield from self.solved(own, expression, unknown)
            else:
                yield self.check(f"{own} == {text_of(expression, self.names)}", self.known.line_for(expression))

    def solved(self, own: str, expression: Any, unknown: Sequence[Any]) -> Iterator[Check]:
        """Name the symbol of an axis whose size is factor * symbol + rest."""
        symbol, *more = unknown
        factor, rest = expression.coeff(symbol), expression.subs(symbol, 0)
        if more or not (factor.is_Integer and rest.is_Integer and factor > 0):
            raise NotSupportedError(f"a size is {expression}.")
        over = own if rest == 0 else f"({own} - {rest})" if rest > 0 else f"({own} + {-rest})"
        self.names[symbol] = own if over == own and factor == 1 else f"({over} // {factor})"
        if factor != 1:
            yield self.check(f"{over} % {factor} == 0")

    def branches(self, strides: bool) -> Iterator[Check]:
        """The guards that the shapes do not show: those of values, or those of memory layouts."""
        for at, guard, condition in self.conditions():
            if condition in (sympy.true, True) or not condition.free_symbols <= set(self.names):
                continue
            own = inside(guard)
            if (own and of_layout(guard, condition)) is not strides:
                continue
            try:
                text = text_of(condition, self.names)
            except NotSupportedError:
                if not own:
                    raise
            else:
                if not own or len(text) <= CLEAR:
                    yield self.check(text, self.watch.line(self.known.guards, at))

    def conditions(self) -> Iterator[tuple[int, Any, Any]]:
        """(index, guard, condition) for each condition of a guard, with the replacements that tracing found."""
        for at, guard in enumerate(self.known.guards):
            condition = self.known.now(guard.expr)
            for part in condition.args if type(condition).__name__ == "And" else (condition,):
                yield at, guard, part

    def ranges(self, others: Sequence[Check]) -> Iterator[Check]:
        """The ranges of free sizes, but for bounds that other checks imply."""
        batches = {size_of(size) for _, axis, size in self.dims if axis == 0}
        for symbol, found in self.program.range_constraints.items():
            name = self.names.get(symbol)
            if name is None:
                continue
            low, high = (int(bound) if bound.is_Integer else None for bound in (found.lower, found.upper))
            if low is not None and low > 2 and not self.implied(name, low - 1, others):
                yield self.check(f"{name} >= {low}")
            elif low is not None and low > 1 and symbol not in batches and not self.implied(name, 1, others):
                yield self.check(f"{name} >= 2", MORE)
            if high is not None and not self.implied(name, high + 1, others):
                yield self.check(f"{name} <= {high}")

    def implied(self, name: str, size: int, others: Sequence[Check]) -> bool:
        """Whether a check of this free size alone refuses a size."""
        place = self.places.get(name)
        shapes = [[size] * (place[1] + 1)] * (place[0] + 1) if place else []
        return any(list(check.sizes.values()) == [place] and not check.fits(shapes) for check in others)

    def fixed(self) -> dict[tuple[int, int], str]:
        found = {}
        for at, axis, size in self.dims:
            if line := self.watch.fixed.get((at, axis)):
                found[at, axis] = line
            elif is_concrete_int(size):
                symbol = getattr(getattr(size, "node", None), "_expr", None)
                if isinstance(symbol, sympy.Symbol):
                    found[at, axis] = self.known.line_for(symbol)
                elif int(size) == 1:
                    found[at, axis] = ONE
                elif reason := self.watch.because.get((at, axis)):
                    found[at, axis] = reason
        return found


def _words(text: str) -> set[str]:
    return set(re.findall(r"s\d+", text))
