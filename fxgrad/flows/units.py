"""What a cut is divided into besides tokens: the heads of an attention, or channels of what leaves a module."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Union

import torch
from torch import Tensor, fx

from fxgrad.errors import InputError
from fxgrad.flows.tokens import Tokens
from fxgrad.methods.layers import output_of
from fxgrad.methods.maps import is_map, spatial_axes
from fxgrad.methods.problem import Problem
from fxgrad.methods.search import attention_of


@dataclass(frozen=True)
class Heads:
    """A cut at an attention's heads: what each gives to each token, before the output projection mixes them.

    Args:
        path: module path of the attention, or of a module that has one.

    Example:
        >>> import fxgrad, timm
        >>> vit = timm.create_model("test_vit", img_size=32, num_classes=5).eval()
        >>> x = torch.randn(1, 3, 32, 32)
        >>> graph = fxgrad.flow(fxgrad.convert(vit, (x,)), (x,), target=3, cuts=[Heads("blocks.2.attn")])
        >>> graph.nodes["blocks.2.attn by heads[4, head 1]"]["name"]
        'patch 1, 1, head 1'
    """

    path: str

    def __str__(self) -> str:
        return f"{self.path} by heads"

    def node(self, problem: Problem) -> str:
        """Name of the node that has the heads' results.

        Raises:
            InputError: the module has no attention, or several.
        """
        decisions = problem.converted.classified.decisions
        under = {n: d for n, d in decisions.items() if f"{d.place.module_path}.".startswith(f"{self.path}.")}
        found = [n for n, d in under.items() if attention_of(problem.nodes[n], d, decisions) is not None]
        if len(found) != 1:
            places = ", ".join(dict.fromkeys(decisions[name].place.module_path for name in found))
            has = f"has several: {places}" if found else "has none in the graph"
            raise InputError(f"Heads takes the module path of one attention, and {self.path!r} {has}. Name another.")
        return found[0]

    def divided(self, tokens: Tokens, value: Tensor, node: fx.Node) -> Tokens:
        """The tokens of the node's value, (..., heads, tokens, width), each divided by heads.

        Raises:
            InputError: the heads are merged with windows of tokens.
        """
        count = value.shape[-3] if value.dim() > 2 else 1
        if value.dim() == 3 and bool((tokens.labels != tokens.labels[:1]).any()):
            raise InputError(f"the heads of {self.path!r} are merged with its windows of tokens. Cut at its output.")
        heads = torch.arange(count, device=value.device).view(-1, 1, 1).expand(value.shape)
        return tokens.divided(heads, [f"head {i}" for i in range(count)])


@dataclass(frozen=True)
class Channels:
    """A cut at what leaves a module, channel by channel (neurons), or by groups of neighbouring channels.

    Args:
        path: module path.
        groups: how many groups of equal size; None: each channel is one.

    Example:
        >>> import fxgrad
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.GELU(), torch.nn.Linear(4, 2)).eval()
        >>> x = torch.randn(1, 3)
        >>> found = fxgrad.patching(fxgrad.convert(model, (x,)), x, 0 * x, target=1, cuts=[Channels("1", groups=2)])
        >>> found.nodes["1 by channels"]
        ('1 by channels[0, channels 0 to 1]', '1 by channels[0, channels 2 to 3]')
    """

    path: str
    groups: int | None = None

    def __str__(self) -> str:
        return f"{self.path} by channels"

    def node(self, problem: Problem) -> str:
        """Name of the node of the module's output.

        Raises:
            InputError: there is no such module.
        """
        source = problem.anatomy.input, problem.inputs[problem.anatomy.input]
        return output_of(self.path, problem.nodes, problem.converted.classified.decisions, source)

    def divided(self, tokens: Tokens, value: Tensor, node: fx.Node) -> Tokens:
        """The tokens of the node's value, each divided by channels: the axis of a map that has no place, or the last.

        Raises:
            InputError: groups do not divide the channels, or the last axis is that of tokens.
        """
        axis = value.dim() - 1
        if is_map(node):
            axis = next(i for i in range(1, value.dim()) if i not in spatial_axes(node))
        size = value.shape[axis]
        groups = size if self.groups is None else self.groups
        if groups < 1 or size % groups or bool((tokens.labels != tokens.labels.narrow(axis, 0, 1)).any()):
            raise InputError(f"what leaves {self.path!r} has {size} channels, which {groups} groups do not divide.")
        steps = torch.arange(size, device=value.device) // (size // groups)
        labels = steps.view([-1 if i == axis else 1 for i in range(value.dim())]).expand(value.shape)
        return tokens.divided(labels, [_named(i, size // groups) for i in range(groups)])


Place = Union[str, Heads, Channels]
"""What a cut is asked for by: a module path, for what leaves the module; or that, divided."""


class Asked(NamedTuple):
    """A value to cut at.

    Attributes:
        name: of the cut.
        node: name of the node.
        by: what divides its tokens; None: nothing.
    """

    name: str
    node: str
    by: Heads | Channels | None


def found_at(problem: Problem, places: Sequence[Place]) -> list[Asked]:
    """The values of some cuts.

    Raises:
        InputError: there is no such value.
    """
    found = []
    for place in places:
        unit = Channels(place) if isinstance(place, str) else place
        found.append(Asked(str(place), unit.node(problem), None if isinstance(place, str) else place))
    return found


def _named(group: int, size: int) -> str:
    first = group * size
    return f"channel {first}" if size == 1 else f"channels {first} to {first + size - 1}"
