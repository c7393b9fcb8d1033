"""Find the blocks, attentions, tokens and patches of a model in its classified graph.

Nothing here knows any model by name. Blocks are repeated modules, attentions are nodes of that kind, the grid of
patches is the shape of the feature map that becomes tokens, and prefix tokens come from a `cat`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import fx

from fxgrad.classify.decision import Classified, Decision
from fxgrad.classify.liveness import handed_on, passed_by
from fxgrad.classify.moves import word_of
from fxgrad.errors import InputError
from fxgrad.graph.axes import Atom, Axis
from fxgrad.graph.follow import follow
from fxgrad.graph.nodes import arguments_of, op_name
from fxgrad.graph.siblings import Siblings
from fxgrad.graph.sizes import free_sizes, known, sizes_of
from fxgrad.kinds import Kind, Role
from fxgrad.methods.maps import channels_given, channels_read, is_map, spatial_axes
from fxgrad.methods.parts import TOKENS, Anatomy, Attention, Block, Grid
from fxgrad.ops.swapped import SDPA
from fxgrad.run.examples import Examples, examples_of, tracked
from fxgrad.run.rows import rows_apart

GRAPH = "graph"
"""The channels that the graph reads as such."""


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
        classified: what `fxgrad.classify.classify` returned; an attribute of converted modules.
        input: name of the attributed input to follow; by default the first.
        blocks: module paths of the blocks; by default items of lists of modules, and modules of one type that their
            parent numbers, such as layer_0 and layer_1; the outermost of these.
        grid, prefix, class_token: override what is found in the graph; see `Anatomy`.

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
    captured = classified.captured
    values = captured.flatten(*captured.example) if captured.example else ()
    return Search(classified, input, values).anatomy(blocks, grid, prefix, class_token)


class Search:
    """The search for one attributed input of a graph.

    Args:
        classified: what `fxgrad.classify.classify` returned.
        input: the input's name; by default the first.
        values: values of the inputs and embedded tokens, which determine the free sizes; without them, these are -1.

    Attributes:
        by_elements: whether what was found depends on the elements of the values, and not only on their shapes.

    Raises:
        InputError: there is no such input.
    """

    def __init__(self, classified: Classified, input: str | None, values: Sequence[Any] = ()) -> None:
        captured = classified.captured
        placeholders = captured.entry_nodes
        self.named = dict(zip(captured.entry_names, placeholders))
        self.attributed = {d.name: self.named[d.name] for d in captured.entries if d.attributed}
        if input is not None and input not in self.attributed:
            raise InputError(f"there is no attributed input {input!r}; there is {', '.join(self.attributed)}.")
        self.name = input or next(iter(self.attributed))
        self.source = self.attributed[self.name]
        self.order = {n: i for i, n in enumerate(captured.graph.nodes)}
        self.classified, self.decisions = classified, classified.decisions
        self.values, self.free = values, free_sizes(placeholders, values)
        self.first, self.by_elements = 0, False
        self.nodes = self.after(self.source)
        self.reached = {self.source, *self.nodes}

    def after(self, source: fx.Node) -> list[fx.Node]:
        """The nodes that depend on an input, in the order of the graph."""
        reached, nodes = {source}, []
        for node in self.order:
            if node.name in self.decisions and any(n in reached for n in node.all_input_nodes):
                reached.add(node)
                nodes.append(node)
        return nodes

    def anatomy(
        self,
        paths: Sequence[str] | None = None,
        grid: Grid | None = None,
        prefix: int | None = None,
        class_token: int | None = None,
        channels: Any = GRAPH,
    ) -> Anatomy:
        found = list(self.blocks(paths))
        stream = self.stream(found)
        tracks = tracked(self.classified, self.seeds(found, self.tokens(stream)))
        examples = self.examples(tracks)
        axes = {name: examples.inputs[n.name] for name, n in self.named.items() if n.name in examples.inputs}
        if axes.get(self.name, self.first) != self.first:  # the axis of tokens depends on that of the examples
            self.first = axes[self.name]
            return self.anatomy(paths, grid, prefix, class_token, channels)
        chosen = self.channels(axes, channels)
        size = self.extent(axes.get(self.name), chosen[self.name])
        tokens, ahead = self.tokens(stream), 0
        if stream is not None and tokens is not None:
            if size is not None and grid is None:
                grid = self.grid(stream, tokens, size)
            if grid is not None:
                ahead = self.ahead(stream, tokens, math.prod(grid)) if prefix is None else prefix
        elif stream is not None and grid is None:
            grid = tuple(self.sizes(stream)[axis] for axis in spatial_axes(stream))
        if grid is not None and tokens is not None and math.prod(grid) + ahead > tokens:
            raise InputError(
                f"a grid of {' x '.join(map(str, grid))} patches behind {ahead} other tokens does not fit the {tokens} "
                "tokens of the model's blocks. Pass another grid=(rows, columns) or prefix=number."
            )
        if class_token is not None and tokens is not None and not -tokens <= class_token < tokens:
            raise InputError(f"there is no token {class_token}: the model's blocks have {tokens}.")
        found = [self.with_parts(block, tokens) for block in found]
        if class_token is None and found and tokens is not None:
            class_token = self.read_from(found[-1], tokens)
        return Anatomy(
            *(self.name, str(examples.size), size, tuple(found), tokens, ahead, grid, class_token),
            *(examples.places, examples.size, self.free, axes, chosen, paths is not None),
        )

    def examples(self, tracks: Mapping[fx.Node, Any]) -> Examples:
        """Where the examples are, by the axes; else by the elements, if the inputs are known."""
        found = examples_of(self.classified, tracks, self.source, self.free)
        if (found.inputs and found.followed) or not self.values:
            return found
        self.by_elements = True
        rows = rows_apart(self.classified, self.values, self.free)
        if rows is None or (found.inputs and self.source.name in rows[1]):
            return found
        count, inputs = rows if self.source.name in rows[1] else (1, [])
        return replace(found, size=count, inputs=dict.fromkeys(inputs, 0))

    def tokens(self, stream: fx.Node | None) -> int | None:
        """The number of tokens in the stream; None if it is a map of features."""
        sequence = stream is not None and len(self.sizes(stream)) == 3 and not is_map(stream)
        return self.sizes(stream)[self.sequence_axis(stream)] if stream is not None and sequence else None

    def channels(self, examples: Mapping[str, int], given: Any) -> dict[str, tuple[int, ...]]:
        """The axes of channels of every attributed input: given, else those that the graph reads as such."""
        ranks = {name: (len(self.sizes(node)), examples.get(name)) for name, node in self.attributed.items()}
        found = {} if given == GRAPH else channels_given(given, ranks, self.name)
        embedded = {declared.name for declared in self.classified.captured.embedded}
        for name, node in self.attributed.items():
            if name in found:
                continue
            if name in embedded:
                found[name] = (ranks[name][0] - 1,)
            else:
                found[name] = channels_read(node, self.after(node), examples.get(name), self.followed)
        return found

    def followed(self, nodes: Sequence[fx.Node], seeds: Mapping[fx.Node, Any]) -> Mapping[fx.Node, Any]:
        return follow(nodes, lambda node: word_of(node, self.decisions), seeds)

    def extent(self, examples: int | None, channels: tuple[int, ...]) -> Grid | None:
        """The sizes of the input as a picture, a signal or a volume; None if it is a sequence or a row of numbers."""
        shape = self.sizes(self.source)
        if self.name in {declared.name for declared in self.classified.captured.embedded}:
            return None
        found = tuple(size for i, size in enumerate(shape) if i != examples and i not in channels)
        return found if channels and (len(found) > 1 or (len(found) == 1 and is_map(self.source))) else None

    def sizes(self, node: fx.Node) -> tuple[int, ...]:
        """Sizes of a node's value, -1 if unknown; for a tuple, those of its first tensor; () if there is no tensor."""
        return tuple(known(size, self.free) for size in sizes_of(node))

    def sequence_axis(self, node: fx.Node) -> int:
        """The axis of the tokens in a value with three axes: right after the axis of the examples, or before it."""
        batch = sizes_of(self.source)[self.first]
        first, second, _ = sizes_of(node)
        return 0 if (self.first or not isinstance(batch, int)) and second == batch != first else 1

    def seeds(self, blocks: list[Block], tokens: int | None) -> dict[fx.Node, list[Axis | None]]:
        """The known axes of tokens: in input sequences, feature maps, and blocks' inputs."""
        entries = {block.entry for block in blocks} | {self.source.name}
        found: dict[fx.Node, list[Axis | None]] = {}
        for node in self.reached:
            shape = sizes_of(node)
            if is_map(node):
                found[node] = [None, None, *_rows(shape[2:])]
            elif len(shape) == 3 and node.name in entries:
                axis = self.sequence_axis(node)
                if self.sizes(node)[axis] == tokens:
                    found[node] = [(Atom(TOKENS, 0, size),) if i == axis else None for i, size in enumerate(shape)]
        return found

    def blocks(self, paths: Sequence[str] | None) -> Iterable[Block]:
        """The blocks that take tokens or a feature map."""
        members = self.repeated() if paths is None else self.below(paths)
        empty = [path for path, nodes in members.items() if not nodes]
        if empty:
            raise InputError(f"no node of the program that depends on {self.name!r} is in the block {empty[0]!r}.")
        for path, nodes in members.items():
            inside = set(nodes)
            outside = [n for node in nodes for n in node.all_input_nodes if n not in inside and n in self.reached]
            entries = [n for n in outside if len(self.sizes(n)) in (3, 4, 5) and self.carries(n)]
            exits = [n for n in nodes if any(user not in inside and user.op != "output" for user in n.users)]
            exits += [n for n in nodes if any(user.op == "output" for user in n.users)]
            if entries and exits:
                yield Block(path, entries[0].name, exits[-1].name, (), ())

    def below(self, paths: Sequence[str]) -> dict[str, list[fx.Node]]:
        """Module path -> its nodes."""
        members: dict[str, list[fx.Node]] = {path: [] for path in paths}
        for node in self.nodes:
            path = self.decisions[node.name].place.module_path
            if label := next((p for p in paths if path == p or path.startswith(p + ".")), ""):
                members[label].append(node)
        return members

    def repeated(self) -> dict[str, list[fx.Node]]:
        """Path of a repeated module -> its nodes; where only its name is numbered, all data must pass through it."""
        siblings, refused = Siblings(self.nodes), set[str]()
        while True:
            members: dict[str, list[fx.Node]] = {}
            for node in self.nodes:
                if label := siblings.of(self.decisions[node.name].place.module_path, refused):
                    members.setdefault(label, []).append(node)
            passed = {path for path in siblings.named(members) if self.bypassed(members[path])}
            if not passed:
                return members
            refused |= passed

    def bypassed(self, nodes: Sequence[fx.Node]) -> bool:
        """Whether an output gets data of the input that does not pass through some nodes."""
        outputs = [n.name for n in self.classified.captured.graph.output_node().all_input_nodes]
        return self.source.name in passed_by(outputs, {n.name for n in nodes}, handed_on(self.decisions))

    def carries(self, node: fx.Node) -> bool:
        decision = self.decisions.get(node.name)
        return decision is None or decision.role is Role.CARRIER

    def stream(self, blocks: list[Block]) -> fx.Node | None:
        """The node whose shape gives the tokens: a block's input, the input sequence, or the last feature map."""
        named = {n.name: n for n in self.reached}
        entries = [named[b.entry] for b in blocks]
        sequences = [n for n in (*entries, self.source) if len(self.sizes(n)) == 3 and not is_map(n)]
        if sequences:
            return sequences[0]
        if entries:
            return entries[-1] if entries[-1] is not self.source else None
        maps = (n for n in reversed(self.nodes) if is_map(n) and self.carries(n))
        return next((n for n in maps if any(self.sizes(n)[axis] != 1 for axis in spatial_axes(n))), None)

    def with_parts(self, block: Block, tokens: int | None) -> Block:
        """The block with its attentions and residual sums."""
        label = block.path
        inside = [n for n in self.nodes if f"{self.decisions[n.name].place.module_path}.".startswith(f"{label}.")]
        attentions = [a for n in inside if (a := attention_of(n, self.decisions[n.name], self.decisions))]
        named = {n.name: n for n in self.reached}
        reading = [a for a in attentions if a.value in named]  # else from one input to another
        whole = [a for a in reading if self.rows(named[a.node]) == tokens == self.rows(named[a.value])]
        shape = self.sizes(named[block.entry])
        sums = [n for n in inside if n.target.__name__ == "add.Tensor" and self.sizes(n) == shape]  # type: ignore[union-attr]
        residuals = []
        for node in sums:
            operands = [n for n in node.all_input_nodes if n in self.reached and self.sizes(n) == shape]
            if len(operands) == 2:  # the stream is the earlier operand
                stream, branch = sorted(operands, key=self.order.__getitem__)
                residuals.append((stream.name, branch.name, node.name))
        return Block(label, block.entry, block.exit, tuple(whole), tuple(residuals))

    def rows(self, node: fx.Node) -> int:
        shape = self.sizes(node)
        return shape[-2] if len(shape) > 1 else 0

    def before(self, node: fx.Node) -> list[fx.Node]:
        return [n for n in self.nodes if self.order[n] <= self.order[node]]

    def grid(self, stream: fx.Node, tokens: int, size: Grid) -> Grid | None:
        """The grid of the convolution's feature map with most of the tokens, or of the only fitting square patches."""
        maps = [self.sizes(n)[2:] for n in self.before(stream) if op_name(n) == f"conv{len(size)}d"]
        fitting = [m for m in maps if tokens / 2 < math.prod(m) <= tokens]
        if fitting:
            return max(reversed(fitting), key=math.prod)
        if len(size) != 2:
            return None
        sides = [p for p in range(1, min(size) + 1) if size[0] % p == size[1] % p == 0]
        exact = [(size[0] // p, size[1] // p) for p in sides if size[0] * size[1] == tokens * p * p]
        return exact[0] if exact else None

    def ahead(self, stream: fx.Node, tokens: int, patches: int) -> int:
        """The number of prefix tokens."""
        offsets = []
        for node in self.before(stream):
            if (
                op_name(node) in ("cat", "concat")
                and len(self.sizes(node)) == 3
                and arguments_of(node)["dim"] in (1, -2)
            ):
                parts: Any = node.args[0]
                data = next(i for i, part in enumerate(parts) if part in self.reached)
                offsets.append(sum(self.sizes(part)[1] for part in parts[:data]))
        return sum(offsets) if offsets else tokens - patches

    def read_from(self, last: Block, tokens: int) -> int | None:
        """Index of the single token that is read after the last block, or None."""
        start = next(i for n, i in self.order.items() if n.name == last.exit)
        for node in self.nodes:
            if self.order[node] < start or not node.all_input_nodes:
                continue
            shape = self.sizes(node.all_input_nodes[0])
            if len(shape) == 3 and shape[1] == tokens and op_name(node) in ("select", "slice"):
                arguments = arguments_of(node)
                if arguments["dim"] in (1, -2):
                    if op_name(node) == "select":
                        return int(arguments["index"]) % tokens
                    if self.sizes(node)[1] == 1:
                        return int(arguments["start"] or 0) % tokens
        return None


def _rows(sizes: Sequence[Any]) -> list[Axis]:
    """The tokens of a map, row by row: the part of them that each axis is."""
    return [(Atom(TOKENS, 0, size, math.prod(sizes[i + 1 :])),) for i, size in enumerate(sizes)]


def attention_of(node: fx.Node, decision: Decision, decisions: Any) -> Attention | None:
    """The `Attention` of a node that is the fused op, or softmax weights times values; None for other nodes."""
    if decision.kind is not Kind.ATTENTION:
        return None
    reads = tuple(n.name for n in node.all_input_nodes)
    if node.target is SDPA:
        return Attention(node.name, None, str(node.args[2]), reads)
    weights, values = (str(operand) for operand in (*node.args, "", "")[:2])
    known = weights in decisions and decisions[weights].role is Role.PURE_GATE
    return Attention(node.name, weights, values, reads) if known and op_name(node) in ("matmul", "bmm") else None
