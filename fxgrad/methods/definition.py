"""What a method returns, and the facts about it that fxgrad needs beside its function; a decorator states them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from torch import Tensor

from fxgrad.errors import InputError
from fxgrad.methods.parts import PARTS

Function = TypeVar("Function", bound="Callable[..., Map]")
Passes = Literal["shared", "own", "hundreds"]
_MARK = "_fxgrad_method"


@dataclass(frozen=True, eq=False)
class Map:
    """The result of a method: a map of the input's pixels, or of the tokens.

    Attributes:
        pixels: (batch, height, width), or as many axes as the input's map has; None if the map is of tokens.
        tokens: (batch, prefix tokens and patches); None if the map is of pixels.
        apart: contributions that belong to no part of any map, (batch,); None if the numbers are no shares.
        copies: all shares add up to this multiple of the target's value.
        maps: name of an attributed input -> its map, `Problem.reduced`; for shares, those of all inputs that are not in
            `pixels` or `tokens`. If it has the problem's own input, `pixels` and `tokens` are left out.
    """

    pixels: Tensor | None = None
    tokens: Tensor | None = None
    apart: Tensor | None = None
    copies: int = 1
    maps: Mapping[str, Tensor] = field(default_factory=dict)


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
        reads: of which nodes it asks `Problem.run`, or `values`, for more than the inputs: `PARTS`, those of blocks and
            attentions; `BLOCKS`, the blocks' inputs and outputs; `INPUTS`, none; `NOTHING`: it runs the model at other
            inputs only. All methods of a call share one run that has these; a node beyond them costs another run.
        passes: what it costs: "shared", at most one forward and one backward pass, which all such methods of a call
            share; "own", several passes of its own; "hundreds", hundreds of forward passes, and no gradient.
        steps: the option that brings its shares nearer to the target's value; "" if they are exact.
    """

    name: str
    function: Callable[..., Map]
    shares: bool = False
    layered: bool = False
    takes_gradient: bool = True
    of_inputs: bool = False
    reads: str = PARTS
    passes: Passes = "shared"
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
    reads: str = PARTS,
    passes: Passes = "shared",
    steps: str = "",
) -> Callable[[Function], Function]:
    """State facts about a method. The function stays as it is, and nothing is registered.

    Args:
        name: by default the function's.
        shares, layered, takes_gradient, of_inputs, reads, passes, steps: see `Method`.

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
        known = name or _name(function)
        facts = Method(known, function, shares, layered, takes_gradient, of_inputs, reads, passes, steps)
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
