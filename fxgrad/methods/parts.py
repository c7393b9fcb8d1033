"""The parts of a model that attribution methods use: blocks, attentions, tokens, patches."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fxgrad.errors import InputError
from fxgrad.graph.axes import Axes

Grid = tuple[int, ...]
"""Rows and columns; one number for a signal, three for a volume."""
TOKENS = "tokens"
"""The origin of the tokens' atoms; rows and columns of a map are parts of them."""
NOTHING, INPUTS, BLOCKS, PARTS = "nothing", "inputs", "blocks", "parts"
"""What methods read of a model's run, each more than the one before."""


@dataclass(frozen=True)
class Attention:
    """One attention, A v.

    Attributes:
        node: the node of A v.
        weights: the node of A, (..., rows, columns); None for the fused op, which has q and k instead.
        value: the node of v.
        reads: names of all nodes whose values are needed to compute A and v.
    """

    node: str
    weights: str | None
    value: str
    reads: tuple[str, ...]


@dataclass(frozen=True)
class Block:
    """One repeated part of the model.

    Attributes:
        path: the module's path.
        entry, exit: the nodes of its input and of its output.
        attentions: its attentions of all tokens to all tokens.
        residuals: its residual sums, shaped as the input: (stream, branch, sum) each.
    """

    path: str
    entry: str
    exit: str
    attentions: tuple[Attention, ...]
    residuals: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True)
class Anatomy:
    """The parts of a model, for attribution methods.

    Attributes:
        input: name of the attributed input that everything here depends on.
        batch: the captured size of the axis of examples, such as s77.
        size: height and width of the input picture, or as many sizes as a signal or a volume has; None if the input is
            no such thing.
        blocks: the blocks, in the order of the graph.
        tokens: number of tokens, prefix tokens included; None if no axis of tokens is found.
        prefix: number of tokens before the patches (class token, registers).
        grid: (rows, columns) of the patches, or of as many axes as `size`; None for text and other sequences.
        class_token: index of the token that the output is read from; None: all tokens.
        places: node name -> its axes as atoms, as far as they come from examples and tokens.
        examples: the size of the batch's axis, a symbol if it is free.
        free: free size -> its value, if the inputs are known.
        inputs: name of an input -> its axis of examples. The examples share all other inputs.
        channels: name of an attributed input -> its axes of channels, which its map sums over.
        given: whether the blocks were named by the user.
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
    inputs: Mapping[str, int] = field(default_factory=dict, repr=False)
    channels: Mapping[str, tuple[int, ...]] = field(default_factory=dict, repr=False)
    given: bool = field(default=False, repr=False)

    @property
    def axes(self) -> dict[str, int]:
        """Node name -> index of its axis of tokens, for nodes that have exactly one."""
        found = {}
        for name, axes in self.places.items():
            own = [i for i, axis in enumerate(axes) for atom in axis if atom.origin == TOKENS]
            if len(own) == 1:
                found[name] = own[0]
        return found

    @property
    def count(self) -> int:
        """The number of tokens on the map: the patches, or all tokens of a text.

        Raises:
            InputError: neither was found.
        """
        if self.grid is not None:
            return math.prod(self.grid)
        if self.tokens is None:
            advice = "Pass grid=(rows, columns)." if self.size else "Use a method of the inputs: input_x_gradient."
            raise InputError(
                "neither patches nor tokens are found in the model: nothing before its blocks is a map of features or "
                f"a sequence. {advice}"
            )
        return self.tokens - self.prefix

    def nodes(self, reads: str) -> set[str]:
        """Names of the nodes that methods with these `reads` look at."""
        ends = {name for block in self.blocks for name in (block.entry, block.exit)}
        attentions = [a for block in self.blocks for a in block.attentions]
        inner = {name for a in attentions for name in (a.node, a.value, *a.reads)}
        inner |= {name for block in self.blocks for stream, branch, _ in block.residuals for name in (stream, branch)}
        return {BLOCKS: ends, PARTS: ends | inner}.get(reads, set())

    def of_blocks(self, method: str) -> tuple[Block, ...]:
        """The blocks.

        Raises:
            InputError: there are none.
        """
        if not self.blocks:
            raise InputError(
                f"{method} needs blocks, and no module path with a number in it (as blocks.0, layers.1, layer_1) has "
                f"nodes that depend on {self.input!r} and take tokens or a map of features. Pass blocks=[...], module "
                "paths."
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
