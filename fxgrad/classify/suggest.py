"""Guess the kind of an op without a row from its values at random numbers, and write the row to add.

A suggestion, not a rule: a few numbers in (-0.5, 0.5) prove nothing. The user decides whether to add the row, and
`fxgrad.check` then confirms it or names the op.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from fxgrad.kinds import Kind


class Suggestion(NamedTuple):
    """A kind, the row that states it, and the evidence."""

    kind: Kind
    row: str
    because: str


def suggest(node: fx.Node, data: list[str]) -> Suggestion:
    """Guess the kind of a captured node's op by running it on small random tensors of its operands' shapes.

    Args:
        node: a call of a `torch._ops.OpOverload`.
        data: the names, as in the op's schema, of the operands that depend on the model's inputs.

    Returns:
        The closest kind; `composed`, which fits every op, where no other kind fits or the op fails.

    Example:
        >>> graph = torch.export.export(torch.nn.Tanh(), (torch.zeros(2, 3),)).graph
        >>> node = next(n for n in graph.nodes if n.op == "call_function")
        >>> suggest(node, ["self"]).row
        '"aten.tanh" = { carrier = "self", odd = true }'
    """
    op: Any = node.target
    name = str(op).removesuffix(".default")
    try:
        with torch.no_grad():
            guesses = [_guess(_Probe(node, data, item), data) for item in _items(node)]
        kind, row, because = guesses[0]
        if any(guess[:2] != guesses[0][:2] for guess in guesses):
            kind, row, because = Kind.COMPOSED, f"carrier = {_names(data)}", "its results are of several kinds"
    except Exception:  # raised by the op, which does not take random numbers
        kind, row, because = Kind.COMPOSED, f"carrier = {_names(data)}", "it could not be tried on random numbers"
    return Suggestion(kind, f'"{name}" = {{ {row} }}', because)


def _names(names: list[str]) -> str:
    quoted = [f'"{name}"' for name in names]
    return quoted[0] if len(quoted) == 1 else f"[{', '.join(quoted)}]"


def _items(node: fx.Node) -> list[int | None]:
    """Which of the op's results are used, of floating dtype; None if it has one alone."""
    results = node.meta["val"]
    if not isinstance(results, (list, tuple)):
        return [None]
    used: list[Any] = sorted({user.args[1] for user in node.users if user.target is operator.getitem})
    return [item for item in used if isinstance(results[item], Tensor) and results[item].is_floating_point()]


class _Probe:
    """One result of the op, by its index, as a function of its data operands; all other arguments are fixed."""

    def __init__(self, node: fx.Node, data: list[str], item: int | None) -> None:
        op: Any = node.target
        names = [a.name for a in op._schema.arguments]
        arguments = dict(zip(names, node.args)) | node.kwargs
        generator = torch.Generator().manual_seed(0)
        self.fixed = {k: fx.node.map_arg(v, lambda n: _stand_in(n, generator)) for k, v in arguments.items()}
        self.op, self.data, self.item, self.generator = op, data, item, generator
        if any(not isinstance(self.fixed[name], Tensor) for name in data):
            raise TypeError("lists of tensors are not tried")

    def draw(self) -> list[Tensor]:
        return [
            torch.rand(self.fixed[n].shape, generator=self.generator, dtype=torch.float64) * 0.8 - 0.4
            for n in self.data
        ]

    def __call__(self, *values: Tensor) -> Tensor:
        result = self.op(**(self.fixed | dict(zip(self.data, values))))
        own = result if self.item is None else result[self.item]
        if not isinstance(own, Tensor) or not own.isfinite().all():
            raise ValueError("not finite")
        return own


def _stand_in(node: fx.Node, generator: torch.Generator) -> Any:
    value = node.meta["val"]
    if not isinstance(value, Tensor):
        return _number(value)
    shape = [_number(size) for size in value.shape]
    if value.is_floating_point():
        return torch.rand(shape, generator=generator, dtype=torch.float64)
    return torch.zeros(shape, dtype=value.dtype)


def _number(size: Any) -> Any:
    return size if isinstance(size, (int, float)) else size.node.hint


def _guess(f: _Probe, data: list[str]) -> tuple[Kind, str, str]:
    carriers = f"carrier = {_names(data)}"
    x, y = f.draw(), f.draw()
    origin = _or_none(lambda: f(*[0 * a for a in x]))
    if origin is not None and _close(
        f(*[a + 2 * b for a, b in zip(x, y)]) - origin, f(*x) - origin + 2 * (f(*y) - origin)
    ):
        return Kind.LINEAR, carriers, "affine in " + ", ".join(data)
    degree = _degree(f, x)
    if len(data) == 2:
        return _guess_of_two(f, data, x, y, degree)
    if degree == 1:
        return Kind.PIECEWISE_LINEAR, carriers, "homogeneous of degree 1"
    if degree == 0:  # such a function hands nothing on, by Euler's theorem
        return Kind.GATE, carriers, "homogeneous of degree 0"
    if degree is not None:
        kind = Kind.POWER if degree > 0 else Kind.GATE
        return kind, f"{carriers}, degree = {degree:g}", f"homogeneous of degree {degree:g}"
    if len(data) == 1 and _elementwise(f, x[0]):
        return _guess_elementwise(f, carriers, origin)
    if len(data) == 1 and any(_close(f(*x).sum(d), torch.ones(())) for d in range(f(*x).dim())):
        return Kind.SOFTMAX, carriers, "it adds up to 1"
    return Kind.COMPOSED, carriers, "no other kind fits"


def _guess_of_two(
    f: _Probe, data: list[str], x: list[Tensor], y: list[Tensor], degree: float | None
) -> tuple[Kind, str, str]:
    if degree == 2 and _close(f(x[0], y[1]) + f(x[0], x[1]), f(x[0], x[1] + y[1])):
        return Kind.PRODUCT, f"factor = {_names(data)}", "linear in each factor"
    if degree == 0 and _close(f(2 * x[0], x[1]), 2 * f(*x)):
        return Kind.QUOTIENT, f'numerator = "{data[0]}", denominator = "{data[1]}"', "a ratio"
    if degree == 1:
        return Kind.PIECEWISE_LINEAR, f"carrier = {_names(data)}", "homogeneous of degree 1 in both together"
    return Kind.COMPOSED, f"carrier = {_names(data)}", "no other kind fits"


def _guess_elementwise(f: _Probe, carriers: str, origin: Tensor | None) -> tuple[Kind, str, str]:
    shape = f.fixed[f.data[0]].shape

    def at(value: float) -> Tensor | None:
        return _or_none(lambda: f(torch.full(shape, value, dtype=torch.float64)))

    if origin is None:
        return Kind.GATE, carriers, "element by element, not finite at 0"
    if not _close(origin, torch.zeros(())):
        return Kind.GATE, f"{carriers}, secant = true", "element by element, not 0 at 0"
    x = f.draw()[0]
    if _close(f(-x), -f(x)):
        far, farther = at(1e4), at(1e8)
        bounded = at(1.5) is None if far is None or farther is None else bool((farther.abs() <= 1.5 * far.abs()).all())
        return Kind.SQUASH, f"{carriers}{', odd = true' if bounded else ''}", "element by element, 0 at 0 and odd"
    left, right = at(-30.0), at(30.0)
    if left is not None and right is not None and float(left.abs().max()) < 1 and _close(right, torch.tensor(30.0)):
        return Kind.GATED_ACTIVATION, carriers, "element by element, x times a gate from 0 to 1"
    return Kind.SQUASH, carriers, "element by element, 0 at 0"


def _degree(f: _Probe, x: list[Tensor]) -> float | None:
    """n if f(c x) = c^n f(x) for c > 0, else None."""
    one, two, three = (f(*[c * a for a in x]) for c in (1, 2, 3))
    if not (one.abs() > 1e-9).all():
        keep = one.abs() > 1e-9
        one, two, three = one[keep], two[keep], three[keep]
    if not one.numel() or not ((two / one) > 0).all():
        return None
    n = round(math.log2(float((two / one).flatten()[0])), 6)
    return n if _close(two, 2**n * one) and _close(three, 3**n * one) else None


def _elementwise(f: _Probe, x: Tensor) -> bool:
    y = f(x)
    moved = x.clone()
    moved.view(-1)[0] += 0.05
    changed = (f(moved) - y).abs() > 1e-12
    return y.shape == x.shape and int(changed.sum()) <= 1 and (not changed.any() or bool(changed.view(-1)[0]))


def _close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a.double(), b.double().expand_as(a), rtol=1e-6, atol=1e-9)


def _or_none(f: Callable[[], Tensor]) -> Tensor | None:
    try:
        return f()
    except ValueError:
        return None
