"""Protocols: named settings of plans, one part for each data set, read from a TOML file."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any

from fxgrad.errors import InputError
from fxgrad.evaluate.plan import Plan

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found,unused-ignore]

PROTOCOLS = ("libragrad",)
"""The protocols that are shipped."""
_KEYS = {field.name for field in fields(Plan)} - {"models"}


@dataclass(frozen=True)
class Part:
    """One part of a protocol: the settings of one evaluation.

    Attributes:
        name: such as imagenet-s.
        about: what it measures, in words.
        settings: field of `Plan` -> its value.
    """

    name: str
    about: str
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Protocol:
    """Settings of evaluations that belong together.

    Attributes:
        name, title, cite: what it is, and where it is from.
        policies: the publication's name of a policy -> ours.
        parts: name -> part.
    """

    name: str
    title: str
    cite: str
    policies: Mapping[str, str]
    parts: Mapping[str, Part]

    def part(self, name: str) -> Part:
        """One of its parts.

        Raises:
            InputError: there is no such part.
        """
        if name not in self.parts:
            what = f"there is no part {name!r}" if name else "choose a part"
            raise InputError(
                f"{what} of the protocol {self.name}: {', '.join(self.parts)}, as in --protocol "
                f"{self.name}:{next(iter(self.parts))}. --show says what it runs."
            )
        return self.parts[name]

    def described(self, part: Part, plan: Plan) -> str:
        """What a plan of this protocol runs, in lines of text."""
        order = f"by the ids in {plan.ids}" if plan.ids else f"shuffle {plan.shuffle}, seed {plan.seed}"
        only = f", mode {plan.mode}" if plan.mode else ""
        named: dict[str, list[str]] = {}
        for theirs, ours in self.policies.items():
            named.setdefault(ours, []).append(theirs)
        shown = {
            "models": ", ".join(plan.models),
            "pictures": f"{plan.data}, {'all' if plan.count is None else f'the first {plan.count:,}'}, {order}{only}",
            "attributed": f"the {plan.value} of the {plan.target}",
            "policies": "; ".join(f"{p} ({', '.join(named[p])})" if p in named else p for p in plan.policies),
            "methods": ", ".join(plan.methods),
            "options": ", ".join(plan.options) or "none",
            "removal": f"{plan.removal}, of {', '.join(f'{share:g}' for share in plan.fractions)}",
            "maps": f"{plan.maps}, masks from {plan.least_area:g} of the picture on",
            "measures": ", ".join(plan.measures) or "all",
            "prompts": ", ".join(map(repr, plan.prompts)),
        }
        lines = [f"{self.title}, part {part.name}: {part.about}.", *(f"  {k}: {v}" for k, v in shown.items() if v)]
        return "\n".join(lines)


def protocol(name: str) -> Protocol:
    """Read a protocol.

    Args:
        name: one of `PROTOCOLS`, or the path of a .toml file of the same form.

    Raises:
        InputError: there is no such protocol, or its file says what a plan does not know.

    Example:
        >>> protocol("libragrad").parts["imagenet-s"].settings["count"]
        5000
    """
    try:
        file = Path(name) if name.endswith(".toml") else _shipped(name)
        content = tomllib.loads(file.read_text("utf-8"))
        common, parts = content.get("common", {}), content["parts"]
        policies = {str(theirs): str(ours) for theirs, ours in content.get("policies", {}).items()}
        found = {part: _part(name, part, {**common, **own}) for part, own in parts.items()}
    except (OSError, KeyError, AttributeError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"the protocol {name} cannot be read: {type(error).__name__}: {error}.") from error
    return Protocol(name, content.get("title", name), content.get("cite", ""), policies, found)


def _shipped(name: str) -> Any:
    if name not in PROTOCOLS:
        raise InputError(f"there is no protocol {name!r}. There is {', '.join(PROTOCOLS)}; or give a .toml file.")
    return resources.files("fxgrad") / "evaluate" / f"{name}.toml"


def _part(protocol: str, name: str, settings: dict[str, Any]) -> Part:
    about = str(settings.pop("about", name))
    if strangers := sorted(set(settings) - _KEYS):
        raise InputError(
            f"the protocol {protocol} [parts.{name}]: a plan has no setting {strangers[0]!r}. It has "
            f"{', '.join(sorted(_KEYS))}."
        )
    return Part(name, about, {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()})
