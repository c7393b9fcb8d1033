"""Where a model has its blocks, attentions, tokens and patches, read off the classified graph by a pure function.

Nothing here knows any model by name. Blocks are numbered module paths, attentions are nodes of that kind, the grid of
patches is the shape of the feature map that becomes tokens, and tokens ahead of them come from a `cat`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from fxgrad.classify.decision import Classified, Decision
from fxgrad.errors import InputError
from fxgrad.graph.nodes import arguments_of, tensors_of
from fxgrad.graph.places import block_of
from fxgrad.kinds import Kind, Role
from fxgrad.methods.axes import BATCH, COLUMNS, OTHER, ROWS, TOKENS, token_axes
from fxgrad.ops.attention import SDPA

Grid = tuple[int, int]
"""Rows and columns."""
CONVOLUTIONS = (
    *("conv", "batch_norm", "native_batch_norm", "_native_batch_norm", "group_norm"),
    *("max_pool", "avg_pool", "adaptive_avg_pool"),
)
"""Ops, by the beginnings of their names, whose operand has its channels ahead of rows and columns."""
_NEAR = 12
"""How many nodes of one shape to look through for one that tells where the channels are."""


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
        axes: for the nodes that have an axis of tokens, by name, which one it is.
    """

    input: str
    batch: str
    size: Grid | None
    blocks: tuple[Block, ...]
    tokens: int | None
    prefix: int
    grid: Grid | None
    class_token: int | None
    axes: Mapping[str, int] = field(default_factory=dict, repr=False)

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


def anatomy(
    classified: Classified,
    *,
    input: str | None = None,
    blocks: Sequence[str] | None = None,
    grid: Grid | None = None,
    prefix: int | None = None,
    class_token: int | None = None,
) -> Anatomy:
    """Find a model's blocks, attentions, tokens and patches.

    Args:
        classified: what `fxgrad.classify.classify` returned; a converted module has it.
        input: name of the attributed input to look at; by default the first.
        blocks: module paths of the blocks; by default all paths up to their first number.
        grid, prefix, class_token: where the graph does not tell, or tells otherwise; see `Anatomy`.

    Returns:
        The anatomy.

    Raises:
        InputError: no such input or block, or a grid that does not fit the number of tokens.

    Example:
        >>> import fxgrad, timm, torch
        >>> vit = timm.create_model("test_vit").eval()
        >>> found = anatomy(fxgrad.convert(vit, (torch.zeros(1, 3, 160, 160),)).classified)
        >>> [block.path for block in found.blocks], found.grid, found.prefix, found.class_token
        (['blocks.0', 'blocks.1', 'blocks.2', 'blocks.3', 'blocks.4', 'blocks.5'], (10, 10), 1, 0)
    """
    return _Search(classified, input).anatomy(blocks, grid, prefix, class_token)


class _Search:
    """One walk over a graph, for one of its attributed inputs."""

    def __init__(self, classified: Classified, input: str | None) -> None:
        captured = classified.captured
        placeholders = captured.entry_nodes
        named = {d.name: n for d, n in zip(captured.entries, placeholders) if d.attributed}
        if input is not None and input not in named:
            raise InputError(f"there is no attributed input {input!r}; there is {', '.join(named)}.")
        self.name = input or next(iter(named))
        self.source = named[self.name]
        self.order = {n: i for i, n in enumerate(captured.graph.nodes)}
        self.decisions = classified.decisions
        self.nodes: list[fx.Node] = []
        reached = {self.source}
        for node in captured.graph.nodes:
            if node.name in self.decisions and any(n in reached for n in node.all_input_nodes):
                reached.add(node)
                self.nodes.append(node)
        self.reached = reached

    def anatomy(
        self, paths: Sequence[str] | None, grid: Grid | None, prefix: int | None, class_token: int | None
    ) -> Anatomy:
        shape = sizes(self.source)
        size = (shape[2], shape[3]) if len(shape) == 4 else None
        found = list(self.blocks(paths))
        stream = self.stream(found)
        tokens, ahead = None, 0
        if stream is not None and len(sizes(stream)) == 3:
            tokens = sizes(stream)[1]
            if size is not None and grid is None:
                grid = self.grid(stream, tokens, size)
            if grid is not None:
                ahead = self.ahead(stream, tokens, math.prod(grid)) if prefix is None else prefix
        elif stream is not None and grid is None:
            rows = spatial_axes(stream)[0]
            grid = (sizes(stream)[rows], sizes(stream)[rows + 1])
        if grid is not None and tokens is not None and math.prod(grid) + ahead > tokens:
            raise InputError(
                f"a grid of {grid[0]} x {grid[1]} patches behind {ahead} other tokens does not fit the {tokens} tokens "
                "of the model's blocks. Pass another grid=(rows, columns) or prefix=number."
            )
        found = [self.with_parts(block, tokens) for block in found]
        if class_token is None and found and tokens is not None:
            class_token = self.read_from(found[-1], tokens)
        batch = str(shape_of(self.source)[0]) if shape else "1"
        axes = token_axes(self.nodes, self.seeds(found, tokens), "" if batch.isdecimal() else batch)
        return Anatomy(self.name, batch, size, tuple(found), tokens, ahead, grid, class_token, axes)

    def seeds(self, blocks: list[Block], tokens: int | None) -> dict[fx.Node, tuple[str, ...]]:
        """Where the axis of tokens is known: of sequences that go in, maps of features, and blocks' inputs."""
        entries = {block.entry for block in blocks}
        found: dict[fx.Node, tuple[str, ...]] = {}
        for node in self.reached:
            shape = sizes(node)
            if len(shape) == 3 and shape[1] == tokens and (node.op == "placeholder" or node.name in entries):
                found[node] = (BATCH, TOKENS, OTHER)
            elif is_map(node):
                found[node] = (BATCH, OTHER, ROWS, COLUMNS)
            elif node.op == "placeholder":
                found[node] = (BATCH, *[OTHER] * (len(shape) - 1))
        return found

    def blocks(self, paths: Sequence[str] | None) -> Iterable[Block]:
        """The blocks that take tokens or a map of features."""
        members: dict[str, list[fx.Node]] = {path: [] for path in paths or ()}
        for node in self.nodes:
            path = self.decisions[node.name].place.module_path
            if paths is None:
                label = block_of(path)
            else:
                label = next((p for p in paths if path == p or path.startswith(p + ".")), "")
            if label:
                members.setdefault(label, []).append(node)
        empty = [path for path, nodes in members.items() if not nodes]
        if empty:
            raise InputError(f"no node of the program that depends on {self.name!r} is in the block {empty[0]!r}.")
        for path, nodes in members.items():
            inside = set(nodes)
            outside = [n for node in nodes for n in node.all_input_nodes if n not in inside and n in self.reached]
            entries = [n for n in outside if len(sizes(n)) in (3, 4) and self.carries(n)]
            exits = [n for n in nodes if any(user not in inside and user.op != "output" for user in n.users)]
            exits += [n for n in nodes if any(user.op == "output" for user in n.users)]
            if entries and exits:
                yield Block(path, entries[0].name, exits[-1].name, (), ())

    def carries(self, node: fx.Node) -> bool:
        decision = self.decisions.get(node.name)
        return decision is None or decision.role is Role.CARRIER

    def stream(self, blocks: list[Block]) -> fx.Node | None:
        """The node whose shape tells the tokens: a block's input, or the sequence that goes in."""
        named = {n.name: n for n in self.reached}
        entries = [named[b.entry] for b in blocks]
        sequences = [n for n in entries if len(sizes(n)) == 3]
        if sequences:
            return sequences[0]
        if len(sizes(self.source)) == 3:
            return self.source
        return entries[-1] if entries and entries[-1] is not self.source else None

    def with_parts(self, block: Block, tokens: int | None) -> Block:
        """The block with its attentions and residual sums."""
        label = block.path
        inside = [n for n in self.nodes if f"{self.decisions[n.name].place.module_path}.".startswith(f"{label}.")]
        attentions = [a for n in inside if (a := attention_of(n, self.decisions[n.name], self.decisions))]
        named = {n.name: n for n in self.reached}
        whole = [a for a in attentions if _rows(named[a.node]) == tokens == _rows(named[a.value])]
        shape = sizes(named[block.entry])
        sums = [n for n in inside if n.target.__name__ == "add.Tensor" and sizes(n) == shape]  # type: ignore[union-attr]
        residuals = []
        for node in sums:
            operands = [n for n in node.all_input_nodes if n in self.reached and sizes(n) == shape]
            if len(operands) == 2:  # the stream is what was there first
                stream, branch = sorted(operands, key=self.order.__getitem__)
                residuals.append((stream.name, branch.name, node.name))
        return Block(label, block.entry, block.exit, tuple(whole), tuple(residuals))

    def before(self, node: fx.Node) -> list[fx.Node]:
        return [n for n in self.nodes if self.order[n] <= self.order[node]]

    def grid(self, stream: fx.Node, tokens: int, size: Grid) -> Grid | None:
        """The feature map of a convolution that has most of the tokens, or the only square patches that make them."""
        maps = [sizes(n)[2:] for n in self.before(stream) if _name(n).startswith("conv2d")]
        fitting = [m for m in maps if tokens / 2 < math.prod(m) <= tokens]
        if fitting:
            return max(reversed(fitting), key=math.prod)  # type: ignore[return-value]
        sides = [p for p in range(1, min(size) + 1) if size[0] % p == size[1] % p == 0]
        exact = [(size[0] // p, size[1] // p) for p in sides if size[0] * size[1] == tokens * p * p]
        return exact[0] if exact else None

    def ahead(self, stream: fx.Node, tokens: int, patches: int) -> int:
        """How many tokens are put ahead of the patches."""
        offsets = []
        for node in self.before(stream):
            if _name(node) in ("cat", "concat") and len(sizes(node)) == 3 and arguments_of(node)["dim"] in (1, -2):
                parts: Any = node.args[0]
                data = next(i for i, part in enumerate(parts) if part in self.reached)
                offsets.append(sum(sizes(part)[1] for part in parts[:data]))
        return sum(offsets) if offsets else tokens - patches

    def read_from(self, last: Block, tokens: int) -> int | None:
        """The one token that is taken out after the last block."""
        start = next(i for n, i in self.order.items() if n.name == last.exit)
        for node in self.nodes:
            if self.order[node] < start or not node.all_input_nodes:
                continue
            shape = sizes(node.all_input_nodes[0])
            if len(shape) == 3 and shape[1] == tokens and _name(node) in ("select", "slice"):
                arguments = arguments_of(node)
                if arguments["dim"] in (1, -2):
                    if _name(node) == "select":
                        return int(arguments["index"]) % tokens
                    if sizes(node)[1] == 1:
                        return int(arguments["start"] or 0) % tokens
        return None


def attention_of(node: fx.Node, decision: Decision, decisions: Any) -> Attention | None:
    """The attention that a node is: the fused op, or softmax weights times values; None for other nodes."""
    if decision.kind is not Kind.ATTENTION:
        return None
    reads = tuple(n.name for n in node.all_input_nodes)
    if node.target is SDPA:
        return Attention(node.name, None, str(node.args[2]), reads)
    weights, values = (str(operand) for operand in (*node.args, "", "")[:2])
    known = weights in decisions and decisions[weights].role is Role.PURE_GATE
    return Attention(node.name, weights, values, reads) if known and _name(node) in ("matmul", "bmm") else None


def sizes(node: fx.Node) -> tuple[int, ...]:
    """Sizes of a node's value; -1 where dynamic, and () for what is no tensor (of a tuple, its first's)."""
    return tuple(s if isinstance(s, int) else -1 for s in shape_of(node))


def shape_of(node: fx.Node) -> tuple[Any, ...]:
    """Shape of a node's value as it was captured, dynamic sizes as symbols; of a tuple, its first tensor's."""
    tensors = tensors_of(node)
    return tuple(tensors[0].shape) if tensors else ()


def is_map(node: fx.Node) -> bool:
    """Whether a value of four axes is a map of features with its channels ahead, (batch, channels, rows, columns)."""
    shape = sizes(node)
    if len(shape) != 4:
        return False
    seen, pending = {node}, [node]
    while pending and len(seen) < _NEAR:
        current = pending.pop(0)
        if _name(current).startswith(CONVOLUTIONS) or any(_name(u).startswith(CONVOLUTIONS) for u in current.users):
            return True
        if _name(current) in ("linear", "layer_norm") or any(
            _name(u) in ("linear", "layer_norm") for u in current.users
        ):
            return False
        near = [n for n in (*current.users, *current.all_input_nodes) if n not in seen and sizes(n) == shape]
        seen.update(near)
        pending += near
    return False


def spatial_axes(node: fx.Node) -> tuple[int, int]:
    """Which axes of a value with four axes are rows and columns."""
    return (2, 3) if is_map(node) else (1, 2)


def _name(node: fx.Node) -> str:
    """A node's op without namespace and overload."""
    return str(getattr(getattr(node.target, "overloadpacket", None), "__name__", ""))


def _rows(node: fx.Node) -> int:
    shape = sizes(node)
    return shape[-2] if len(shape) > 1 else 0
