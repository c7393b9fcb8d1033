"""A policy: which backward every kind gets, as a file spells it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Union

from fxgrad.errors import RuleTableError
from fxgrad.kinds import Kind
from fxgrad.ops.backward import Backward
from fxgrad.ops.vocabulary import BACKWARDS
from fxgrad.table.row import GRAMMAR

Choice = Union[str, Mapping[str, Any]]
"""A backward's name, or a table of its name and its parameters: { backward = "secant", reference = -1.0 }."""
Policy = Mapping[Kind, Choice]


def backward_of(choice: Choice) -> Backward:
    """The backward that a policy chooses.

    Raises:
        ValueError: the backward has no such parameters.
        KeyError: there is no such backward.

    Example:
        >>> str(backward_of({"backward": "secant", "reference": -1.0}))
        'secant (reference = -1)'
    """
    if isinstance(choice, str):
        return BACKWARDS[choice]
    given = dict(choice)
    return BACKWARDS[given.pop("backward")].with_parameters(given)


def split_name(name: str) -> tuple[str, dict[str, float]]:
    """A policy's name or path, and the parameters that are written behind it.

    Args:
        name: as `gamma`, or `gamma (gamma = 0.5)`; several are separated by commas.

    Raises:
        ValueError: what stands in the parentheses is not `name = number, ...`.

    Example:
        >>> split_name("alpha-beta (alpha = 3, beta = 2)")
        ('alpha-beta', {'alpha': 3.0, 'beta': 2.0})
    """
    written = re.fullmatch(r"(.*\S)\s*\(([^()]*)\)", name)
    if written is None:
        return name, {}
    given = {}
    for item in written[2].split(","):
        parameter, equals, number = (part.strip() for part in item.partition("="))
        try:
            given[parameter] = float(number)
        except ValueError:
            given.pop(parameter, None)
            equals = ""
        if not equals or not parameter.isidentifier():
            raise ValueError(f"{item.strip()!r} is not written as name = number")
    return written[1], given


def named(name: str, given: Mapping[str, Any]) -> str:
    """A policy's name with its parameters, as `split_name` reads it.

    Example:
        >>> named("gamma", {"gamma": 0.5}), named("gamma", {})
        ('gamma (gamma = 0.5)', 'gamma')
    """
    numbers = ", ".join(f"{parameter} = {_number(value)}" for parameter, value in given.items())
    return f"{name} ({numbers})" if numbers else name


def _number(value: Any) -> str:
    """A number with all its digits and no others; whatever else is given, as Python shows it."""
    short = f"{value:g}" if isinstance(value, (int, float)) else ""
    return short if short and float(short) == value else repr(value)


def with_parameters(policy: Policy, given: Mapping[str, Any]) -> dict[Kind, Choice]:
    """The policy with other values for parameters of its backwards; every backward that has one gets it.

    Args:
        policy: any.
        given: parameter -> number.

    Raises:
        ValueError: no backward of the policy has the parameter, or refuses the number.

    Example:
        >>> with_parameters({Kind.SQUASH: "secant", Kind.SOFTMAX: "hold"}, {"reference": -1.0})[Kind.SQUASH]
        {'backward': 'secant', 'reference': -1.0}
    """
    chosen = {kind: backward_of(choice) for kind, choice in policy.items()}
    known = sorted({parameter for backward in chosen.values() for parameter in backward.parameters})
    if unknown := sorted(set(given) - set(known)):
        takes = f"takes {', '.join(known)}" if known else "takes none"
        raise ValueError(f"there is no parameter {unknown[0]!r}; the policy {takes}")
    found: dict[Kind, Choice] = {}
    for kind, choice in policy.items():
        own = {parameter: value for parameter, value in given.items() if parameter in chosen[kind].parameters}
        table = {"backward": choice} if isinstance(choice, str) else dict(choice)
        found[kind] = {**table, **own} if own else choice
        backward_of(found[kind])
    return found


def policy_of(origin: str, section: Any) -> dict[Kind, Choice]:
    """The checked section `backward` of a file: kind -> choice.

    Args:
        origin: the file, for messages.
        section: the section as parsed from TOML.

    Raises:
        RuleTableError: no section, an unknown kind, a backward that does not serve the kind, or an unknown parameter.

    Example:
        >>> policy_of("mine.toml", {"softmax": "native"})
        {<Kind.SOFTMAX: 'softmax'>: 'native'}
    """
    if not isinstance(section, dict):
        raise RuleTableError(f"{origin}: backward must be a section, not {section!r}.")
    found: dict[Kind, Choice] = {}
    for key, choice in section.items():
        if key not in {kind.value for kind in GRAMMAR if kind is not Kind.CONSTANT}:
            raise RuleTableError(f"{origin} [backward] {key!r}: not a kind that has a backward.")
        kind = Kind(key)
        served = [name for name, known in BACKWARDS.items() if kind in known.kinds]
        name = choice.get("backward") if isinstance(choice, dict) else choice
        if name not in served:
            raise RuleTableError(f"{origin} [backward] {key} = {name!r}: must be one of {', '.join(served)}.")
        try:
            backward_of(choice)
        except ValueError as error:
            raise RuleTableError(f"{origin} [backward] {key}: {error}.") from error
        found[kind] = choice
    return found
