"""One example of a model, and the tokens of its values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from fxgrad.errors import InputError
from fxgrad.flows.tokens import Tokens, tokens_of
from fxgrad.methods.definition import Map, Method
from fxgrad.methods.layers import of_layer
from fxgrad.methods.names import Names
from fxgrad.methods.parts import NOTHING
from fxgrad.methods.problem import Problem
from fxgrad.methods.targets import Target
from fxgrad.methods.together import Asked, Together
from fxgrad.module.converted import ConvertedModule


def of_one_example(
    converted: ConvertedModule, args: Any, kwargs: Any, target: Target, names: Names | None, what: str, call: str
) -> Problem:
    """The model, one example, and the target.

    Args:
        converted, args, kwargs, target: as for `fxgrad.flow`.
        names: of the classes.
        what: what is made of it, and `call`, the function that makes it, for messages.

    Raises:
        InputError: several targets, or several examples.
    """
    together = Together(converted, args, kwargs, [Asked(Method(call, Map, reads=NOTHING))], 1)
    if isinstance(target, list):
        raise InputError(f"{what} has one target, not a list of them. Call {call} for each.")
    problem = together.problem(target, names)
    if problem.aim.batch != 1:
        raise InputError(f"{what} is of one example, and these are {problem.aim.batch}. Pass one.")
    return problem


def tokens_of_all(
    problem: Problem, values: Mapping[str, Tensor], last: str | None, names: Sequence[str] | None
) -> dict[str, Tokens]:
    """The tokens of some values.

    Args:
        problem: the model and one example.
        values: node name -> its value.
        last: name of the node whose tokens, or map, a model has that has none in blocks; None: nothing has.
        names: the input's tokens as text.

    Returns:
        Node name -> the value's tokens.
    """
    parts = problem.anatomy
    if last is not None and parts.grid is None and parts.tokens is None:
        parts = of_layer(parts, problem.nodes[last])
    others = {problem.inputs[name].name for name in problem.attributed if name not in problem.main}
    found = {}
    for name, value in values.items():  # with another sequence before it, such as a decoder's, it may have other tokens
        words = names if others <= problem.behind(name) else None
        found[name] = tokens_of(value, problem.nodes[name], parts, words)
    return found
