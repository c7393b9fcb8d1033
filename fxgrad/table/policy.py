"""A policy: which backward every kind gets, as a file spells it."""

from __future__ import annotations

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
