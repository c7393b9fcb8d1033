"""The facts about a method that fxgrad needs beside its function; a decorator states them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from fxgrad.errors import InputError
from fxgrad.methods.problem import Map

Function = TypeVar("Function", bound=Callable[..., Map])
_MARK = "_fxgrad_method"


@dataclass(frozen=True)
class Method:
    """An attribution method.

    Attributes:
        name: the printed name.
        function: from a `Problem`, and the method's own options, to a `Map`.
        shares: whether it uses the contributions of constants. If these cannot be told apart by example, it gets the
            examples of a batch one by one.
        layered: whether it is a method of one layer, with the option `layer=`.
        takes_gradient: whether its result depends on the policy.
        of_inputs: whether it maps every attributed input, element by element or summed over the axis `channels=`.
        steps: the option that brings its shares nearer to the target's value; "" if they are exact.
    """

    name: str
    function: Callable[..., Map]
    shares: bool = False
    layered: bool = False
    takes_gradient: bool = True
    of_inputs: bool = False
    steps: str = ""

    def refused(self, option: str) -> str | None:
        """Why the method has no such option; None if it has.

        Example:
            >>> def mine(problem, power=2): ...
            >>> method_of(mine).refused("powers")
            "mine has no option 'powers'; it takes power"
        """
        parameters = list(inspect.signature(self.function).parameters.values())[1:]
        names = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
        if option in names or len(names) < len(parameters):
            return None
        return f"{self.name} has no option {option!r}; it takes {', '.join(names) or 'none of its own'}"


def method(
    *,
    name: str | None = None,
    shares: bool = False,
    layered: bool = False,
    takes_gradient: bool = True,
    of_inputs: bool = False,
    steps: str = "",
) -> Callable[[Function], Function]:
    """State facts about a method. The function stays as it is, and nothing is registered.

    Args:
        name, shares, layered, takes_gradient, of_inputs, steps: see `Method`; the name is the function's by default.

    Returns:
        A decorator.

    Example:
        >>> @method(layered=True)
        ... def mine(problem):
        ...     return Map(tokens=problem.values([problem.layer_node("")]))
        >>> method_of(mine).layered, method_of(mine).shares
        (True, False)
    """

    def marked(function: Function) -> Function:
        facts = Method(name or _name(function), function, shares, layered, takes_gradient, of_inputs, steps)
        setattr(function, _MARK, facts)
        return function

    return marked


def method_of(function: Callable[..., Map]) -> Method:
    """The facts about a function, from its decorator, else the defaults.

    Raises:
        InputError: it is no function.

    Example:
        >>> method_of(lambda problem: Map()).shares
        False
    """
    if not callable(function):
        raise InputError(f"a method is a name, or a function from a Problem to a Map; {function!r} is neither.")
    found: Any = getattr(function, _MARK, None)
    return found if isinstance(found, Method) else Method(_name(function), function)


def _name(function: Callable[..., Map]) -> str:
    return getattr(function, "__name__", type(function).__name__)
