"""The parts of a model that attribution methods ask about: blocks, attentions, tokens, patches."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fxgrad.errors import InputError
from fxgrad.graph.axes import Axes

Grid = tuple[int, int]
"""Rows and columns."""
TOKENS = "tokens"
"""The label of the tokens among the atoms of an axis; rows and columns of a map are parts of them."""


@dataclass(frozen=True)
class Attention:
    """One attention, A v.

    Attributes:
        node: whose result is A v.
        weights: the node whose value is A, (..., rows, columns); None for the fused op, which has q and k instead.
        value: the node of v.
        reads: names of all nodes whose values are needed to have A and v.
    """

    node: str
    weights: str | None
    value: str
    reads: tuple[str, ...]


@dataclass(frozen=True)
class Block:
    """One numbered part of the model.

    Attributes:
        path: the module's.
        entry, exit: the nodes of its input and of its output.
        attentions: of all tokens to all tokens.
        residuals: its sums of a stream and a branch, shaped as the input: (stream, branch, sum).
    """

    path: str
    entry: str
    exit: str
    attentions: tuple[Attention, ...]
    residuals: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True)
class Anatomy:
    """What a model has, as far as an attribution method may ask.

    Attributes:
        input: the attributed input that everything here depends on, by its name.
        batch: the size of its first axis as it was captured, such as s77: by this an axis is known as the batch's.
        size: height and width of the picture that goes in; None where the input is no picture.
        blocks: in the order of the graph.
        tokens: how many tokens there are, those ahead of the patches included; None where no token axis is found.
        prefix: how many tokens lie ahead of the patches (class token, registers).
        grid: of the patches; None for text and other sequences.
        class_token: which token the output is read from, or None: all of them.
        places: node's name -> what its axes are made of, as far as they come from examples and tokens.
        examples: the size of the batch's axis, a symbol where it is free.
        free: the free sizes of the graph, where the inputs are known.
    """

    input: str
    batch: str
    size: Grid | None
    blocks: tuple[Block, ...]
    tokens: int | None
    prefix: int
    grid: Grid | None
    class_token: int | None
    places: Mapping[str, Axes] = field(default_factory=dict, repr=False)
    examples: Any = field(default=1, repr=False)
    free: Mapping[Any, int] = field(default_factory=dict, repr=False)

    @property
    def axes(self) -> dict[str, int]:
        """For the nodes that have one axis of tokens, by name, which one it is."""
        found = {}
        for name, axes in self.places.items():
            own = [i for i, axis in enumerate(axes) for atom in axis if atom.origin == TOKENS]
            if len(own) == 1:
                found[name] = own[0]
        return found

    @property
    def count(self) -> int:
        """How many tokens the map has: the patches, or all tokens of a text.

        Raises:
            InputError: neither was found.
        """
        if self.grid is not None:
            return math.prod(self.grid)
        if self.tokens is None:
            raise InputError(
                "neither patches nor tokens are found in the model: nothing before its blocks is a map of features or "
                "a sequence. Pass grid=(rows, columns)."
            )
        return self.tokens - self.prefix

    def of_blocks(self, method: str) -> tuple[Block, ...]:
        """The blocks.

        Raises:
            InputError: there are none.
        """
        if not self.blocks:
            raise InputError(
                f"{method} needs blocks, and no module path with a number in it (as blocks.0, layers.1) has nodes that "
                f"depend on {self.input!r} and take tokens or a map of features. Pass blocks=[...], module paths."
            )
        return self.blocks

    def of_attentions(self, method: str) -> list[tuple[Attention, ...]]:
        """The attentions of each block that has any.

        Raises:
            InputError: there are none.
        """
        found = [block.attentions for block in self.of_blocks(method) if block.attentions]
        if not found:
            raise InputError(
                f"{method} needs attention, and none of the model's {len(self.blocks)} blocks has an attention node of "
                "all tokens to all tokens. Use a method without attention, such as fullgrad_plus."
            )
        return found
