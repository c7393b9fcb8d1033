"""Conditions on the sizes of a model's inputs: kept as text, parsed here, evaluated on whole numbers.

A program that was traced for free sizes holds only where the model would take the same branches: for an even width, for
sequences that are not longer than the table of positions, for two inputs of one length.
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sympy

Test = Callable[[Mapping[str, int]], Any]
HIGHEST = 4
"""Power of a size."""
LONGEST = 2000
"""Of a condition's text, which may come from a file."""


class NotSupportedError(ValueError):
    """A condition has a part that is no arithmetic of sizes."""


@dataclass(frozen=True)
class Check:
    """A condition on the sizes of inputs.

    Attributes:
        holds: the condition in Python, such as "s0 % 2 == 0".
        sizes: name in it -> (index of the input, axis).
        line: the line of the user's code that needs it, or "".

    Raises:
        NotSupportedError: the text is not a condition on these names.

    Example:
        >>> even = Check("s0 % 2 == 0", {"s0": (0, 1)})
        >>> even.fits([(3, 4)]), even.fits([(3, 5)]), even.text(["x"])
        (True, False, 'x.shape[1] % 2 == 0')
    """

    holds: str
    sizes: Mapping[str, tuple[int, int]]
    line: str = ""
    _test: Test = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_test", _parsed(self.holds, set(self.sizes)))

    def fits(self, shapes: Sequence[Sequence[int]] | Mapping[int, Mapping[int, int]]) -> bool:
        """Whether the condition holds for inputs of these shapes.

        A condition that divides by zero at these sizes says nothing of them.
        """
        try:
            return bool(self._test({name: shapes[at][axis] for name, (at, axis) in self.sizes.items()}))
        except ZeroDivisionError:
            return True

    def text(self, names: Sequence[str]) -> str:
        """The condition in the inputs' names."""
        called = {name: f"{names[at]}.shape[{axis}]" for name, (at, axis) in self.sizes.items()}
        return re.sub(r"s\d+", lambda found: called.get(found[0], found[0]), self.holds)


_OPERATORS: Mapping[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "min": min,
    "max": max,
    "ceil": math.ceil,
    "floor": math.floor,
    "trunc": math.trunc,
}


def _parsed(text: str, names: set[str]) -> Test:
    if len(text) > LONGEST:
        raise NotSupportedError(f"a condition of {len(text)} characters is too long.")
    try:
        return _compiled(ast.parse(text, mode="eval").body, names)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        if isinstance(error, NotSupportedError):
            raise
        raise NotSupportedError(f"{text[:60]!r} is no condition on sizes.") from error


def _compiled(node: ast.expr, names: set[str]) -> Test:
    """A function of the names' values that computes an expression; only arithmetic and comparisons are known."""
    if isinstance(node, ast.Constant) and type(node.value) in (int, float, bool):
        value = node.value
        return lambda _: value
    if isinstance(node, ast.Name) and node.id in names:
        name = node.id
        return lambda values: values[name]
    if isinstance(node, ast.BoolOp):
        parts, every = [_compiled(part, names) for part in node.values], isinstance(node.op, ast.And)
        return lambda values: (all if every else any)(part(values) for part in parts)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.Not)):
        inner, unary = _compiled(node.operand, names), operator.neg if isinstance(node.op, ast.USub) else operator.not_
        return lambda values: unary(inner(values))
    binary: tuple[ast.expr, Any, ast.expr] | None = None
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        base, power = _compiled(node.left, names), getattr(node.right, "value", None)
        if isinstance(power, (int, float)) and 0 < power <= HIGHEST:
            return lambda values: base(values) ** power
    elif isinstance(node, ast.BinOp):
        binary = node.left, node.op, node.right
    elif isinstance(node, ast.Compare) and len(node.ops) == 1:
        binary = node.left, node.ops[0], node.comparators[0]
    if binary is not None and type(binary[1]) in _OPERATORS:
        left, do, right = _compiled(binary[0], names), _OPERATORS[type(binary[1])], _compiled(binary[2], names)
        return lambda values: do(left(values), right(values))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        function, arguments = _FUNCTIONS.get(node.func.id), [_compiled(part, names) for part in node.args]
        if function is not None and arguments:
            return lambda values: function(*(part(values) for part in arguments))
    raise NotSupportedError(f"{ast.unparse(node)[:60]!r} is no arithmetic of sizes.")


_RELATIONS = {
    "Equality": "==",
    "Unequality": "!=",
    "StrictLessThan": "<",
    "LessThan": "<=",
    "StrictGreaterThan": ">",
    "GreaterThan": ">=",
}
_BETWEEN = {"FloorDiv": "//", "CleanDiv": "//", "Mod": "%", "PythonMod": "%", "IntTrueDiv": "/", "FloatTrueDiv": "/"}
_CALLS = {"Max": "max", "Min": "min", "CeilToInt": "ceil", "FloorToInt": "floor", "TruncToInt": "trunc"}
_CALLS |= {"ceiling": "ceil", "floor": "floor"}
_ROOTS = {"OpaqueUnaryFn_sqrt": 0.5}


def text_of(expression: Any, names: Mapping[Any, str]) -> str:
    """A symbolic size, or a condition on sizes, as text for `Check`.

    Args:
        expression: of sympy and of torch's functions of sizes.
        names: symbol -> name, or text in brackets.

    Raises:
        NotSupportedError: it has an unknown symbol or function.

    Example:
        >>> s = sympy.Symbol("s", integer=True, positive=True)
        >>> text_of(sympy.Le(2 * s + 1, 9), {s: "s0"})
        '1 + 2 * s0 <= 9'
    """
    kind, arguments = type(expression).__name__, expression.args
    if expression in names:
        return names[expression]
    if isinstance(expression, (sympy.Number, sympy.logic.boolalg.BooleanAtom)):
        return _number(expression)

    def inner(part: Any) -> str:
        text = text_of(part, names)
        return text if re.fullmatch(r"[\w.]+|\w*\([^()]*\)", text) else f"({text})"

    if kind == "Equality":
        for least, other in (arguments, arguments[::-1]):
            if type(least).__name__ == "Min" and len(least.args) == 2 and other in least.args:
                (bound,) = (part for part in least.args if part != other)
                return f"{text_of(other, names)} <= {text_of(bound, names)}"
    if kind in _RELATIONS:
        return f"{text_of(arguments[0], names)} {_RELATIONS[kind]} {text_of(arguments[1], names)}"
    if kind in _BETWEEN:
        return f"{inner(arguments[0])} {_BETWEEN[kind]} {inner(arguments[1])}"
    if kind in _CALLS:
        return f"{_CALLS[kind]}({', '.join(text_of(part, names) for part in arguments)})"
    if kind in ("Add", "Mul", "And", "Or"):
        sign = {"Add": "+", "Mul": "*", "And": "and", "Or": "or"}[kind]
        parts = arguments if kind in ("Add", "Mul") else sorted(arguments, key=str)
        return f" {sign} ".join(text_of(p, names) if kind == "Add" and p.is_Mul else inner(p) for p in parts)
    if kind == "Not":
        return f"not {inner(arguments[0])}"
    if kind in _ROOTS:
        return f"{inner(arguments[0])} ** {_ROOTS[kind]}"
    if kind in ("ToFloat", "Identity"):
        return text_of(arguments[0], names)
    if kind in ("Pow", "PowByNatural", "FloatPow") and arguments[1].is_number and 0 < arguments[1] <= HIGHEST:
        power = arguments[1] if arguments[1].is_Integer else sympy.Float(arguments[1])
        return f"{inner(arguments[0])} ** {_number(power)}"
    raise NotSupportedError(f"{expression} is no arithmetic of sizes.")


def _number(number: Any) -> str:
    if number.is_Boolean:
        return str(bool(number))
    if number.is_Integer:
        return str(int(number))
    if number.is_Rational:
        return f"{number.p} / {number.q}"
    if number.is_Float:
        return repr(float(number))
    raise NotSupportedError(f"{number} is no size.")
