"""What fxgrad knows of a method beside its function: a few facts, written down where the function is."""

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
        name: as it is printed.
        function: from a `Problem`, and the method's own options, to a `Map`.
        shares: it also counts what constants contribute. Examples of a batch whose constants cannot be told apart are
            then given to it one by one.
        layered: it looks at one layer, and takes `layer=`.
        takes_gradient: it differs from policy to policy.
    """

    name: str
    function: Callable[..., Map]
    shares: bool = False
    layered: bool = False
    takes_gradient: bool = True

    def refused(self, option: str) -> str | None:
        """Why there is no such option; None where there is.

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
    *, name: str | None = None, shares: bool = False, layered: bool = False, takes_gradient: bool = True
) -> Callable[[Function], Function]:
    """State facts about a method beside its function. The function stays as it is, and nothing is registered.

    Args:
        name, shares, layered, takes_gradient: see `Method`; the name is the function's by default.

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
        facts = Method(name or _name(function), function, shares, layered, takes_gradient)
        setattr(function, _MARK, facts)
        return function

    return marked


def method_of(function: Callable[..., Map]) -> Method:
    """The facts about a function: those that its decorator states, else that it has no special ones.

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
