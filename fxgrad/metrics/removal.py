"""Remove parts of a picture from a model's input: drop tokens, or replace pixels by a baseline.

A removal maps the parts to keep to the logits. Dropping works for transformers: the part after the patch embedding runs
on fewer tokens, each with its own position. It runs the captured graph, cut at the value that has the tokens, so no
model needs code of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import networkx as nx
import torch
from torch import Tensor, fx, nn
from torch.export import Dim
from torch.nn import functional as F

from fxgrad.capture.export import capture
from fxgrad.classify.walk import classify
from fxgrad.errors import InputError, one_line
from fxgrad.graph.copies import prune
from fxgrad.graph.replay import Interpreter
from fxgrad.kinds import Kind
from fxgrad.module.converted import ConvertedModule
from fxgrad.ops.swapped import SDPA

Grid = tuple[int, int]
"""Rows and columns of parts that a picture is divided into."""

_SHAPERS = {torch.ops.aten.view.default, torch.ops.aten.reshape.default, torch.ops.aten._unsafe_view.default}
_EXPAND = torch.ops.aten.expand.default
_SIZE = torch.ops.aten.sym_size.int


class Removal(Protocol):
    """A model that runs on some parts of its input.

    Attributes:
        grid: (rows, columns) of the parts, which are numbered in row-major order.
        name: how the parts are removed, in words.
    """

    @property
    def grid(self) -> Grid: ...
    @property
    def name(self) -> str: ...

    def prepare(self, x: Tensor) -> tuple[Tensor, ...]:
        """From pictures x, (batch, C, H, W), to all tensors computed once per picture, (batch, ...)."""
        ...

    def __call__(self, prepared: tuple[Tensor, ...], keep: Tensor) -> Tensor:
        """Logits (batch, classes) of prepared pictures with only the parts `keep`, int64 (batch, kept)."""
        ...


class Replacing:
    """Removal by a baseline: pixels of removed parts become 0, or those of the blurred picture.

    Args:
        model: from pictures (batch, C, H, W) to logits (batch, classes).
        grid: (rows, columns) of the parts; (H, W) removes single pixels.
        baseline: "zero", which is the mean colour of a normalized input, or "blur".

    Raises:
        InputError: no such baseline; or, when called, a picture that the grid does not divide evenly.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 1, bias=False))
        >>> _ = nn.init.ones_(model[1].weight)
        >>> removal = Replacing(model, (2, 2))
        >>> removal(removal.prepare(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])), torch.tensor([[0, 3]])).tolist()
        [[5.0]]

    Source: Petsiuk et al., RISE, BMVC 2018, arXiv:1806.07421, section 4.3, for the blurred picture.
    """

    def __init__(self, model: Callable[[Tensor], Tensor], grid: Grid, baseline: str = "zero") -> None:
        if baseline not in ("zero", "blur"):
            raise InputError(f"there is no baseline {baseline!r}: use 'zero' or 'blur'.")
        self.model, self.grid, self.baseline = model, grid, baseline
        self.name = "set to zero" if baseline == "zero" else "replaced by the blurred picture"

    def prepare(self, x: Tensor) -> tuple[Tensor, ...]:
        if x.shape[-2] % self.grid[0] or x.shape[-1] % self.grid[1]:
            raise InputError(f"a picture of {x.shape[-2]} x {x.shape[-1]} pixels has no even grid of {self.grid}.")
        return x, torch.zeros_like(x) if self.baseline == "zero" else blurred(x)

    @torch.no_grad()
    def __call__(self, prepared: tuple[Tensor, ...], keep: Tensor) -> Tensor:
        x, baseline = prepared
        kept = x.new_zeros(len(x), math.prod(self.grid), dtype=torch.bool).scatter_(1, keep, True)
        return self.model(torch.where(on_pixels(kept, self.grid, x), x, baseline))


class Dropping:
    """Removal of tokens: the blocks run without them, as if the picture had never had them.

    Prefix tokens (class token, registers) are kept. A token keeps the values of its position, such as rotary
    embeddings and attention biases.

    Args:
        converted: a converted model of pictures; only its captured program is used, so the policy does not matter.
        grid: (rows, columns) of its patches.

    Raises:
        InputError: the model cannot run on fewer tokens: it has no attention, mixes tokens by weights of a fixed
            size, or its tokens are not exactly the grid's patches.

    Example:
        >>> import fxgrad, timm
        >>> model = timm.create_model("test_vit", img_size=32).eval()
        >>> x = torch.randn(2, 3, 32, 32)
        >>> removal = Dropping(fxgrad.convert(model, (x,)), (2, 2))
        >>> tokens = removal.prepare(x)
        >>> removal(tokens, torch.tensor([[0], [3]])).shape, tokens[0].shape
        (torch.Size([2, 1000]), torch.Size([2, 5, 64]))
    """

    name = "dropped"

    def __init__(self, converted: ConvertedModule, grid: Grid) -> None:
        captured = converted.classified.captured
        if len(captured.inputs) != 1 or captured.embedded or captured.inputs[0].shape is None:
            raise InputError("tokens can be dropped from models of one picture only: this one has other inputs.")
        converted = _of_one_size(converted)
        captured = converted.classified.captured
        self.converted, self.grid = converted, grid
        graph = captured.graph
        cut = _cut(converted, math.prod(grid))
        self.prefix = int(cut.meta["val"].shape[1]) - math.prod(grid)
        self._head = fx.GraphModule(nn.Module(), _until(graph, cut))
        self._tail = fx.GraphModule(nn.Module(), _from(graph, cut))
        self._refuse_if_wrong(captured.example[0][0])

    @torch.no_grad()
    def prepare(self, x: Tensor) -> tuple[Tensor, ...]:
        return (self._head(*self.converted.state, *self.converted.entries((x,), {})),)

    @torch.no_grad()
    def __call__(self, prepared: tuple[Tensor, ...], keep: Tensor) -> Tensor:
        (tokens,) = prepared
        ahead = torch.arange(self.prefix, device=keep.device).expand(len(keep), -1)
        everything = torch.cat([ahead, keep.sort(dim=1).values + self.prefix], dim=1)
        try:
            return _Fewer(self._tail, everything, self.prefix, tokens.shape[1]).logits(self.converted.state, tokens)
        except (RuntimeError, IndexError) as error:
            raise InputError(f"the model cannot run on fewer tokens: {one_line(error)}") from error

    def _refuse_if_wrong(self, example: Tensor) -> None:
        """Check: with nothing dropped, the same logits; with half dropped, the dropped pixels do not matter."""
        generator = torch.Generator().manual_seed(0)
        like = next(t for t in self.converted.state if t.is_floating_point())
        x = example.to(like.device, like.dtype if example.is_floating_point() else example.dtype)
        order = torch.stack([torch.randperm(math.prod(self.grid), generator=generator) for _ in x]).to(x.device)
        with torch.no_grad():
            whole = self.converted(x)
        if not isinstance(whole, Tensor) or whole.ndim != 2:
            raise InputError("tokens can be dropped from models that return logits (batch, classes) only.")
        tolerance = 100 * torch.finfo(whole.dtype).eps * max(1.0, float(whole.abs().max()))

        def differ(one: Tensor, other: Tensor) -> bool:
            return not float((one - other).abs().max()) <= tolerance

        if differ(self(self.prepare(x), order), whole):
            raise InputError("the model without any token dropped does not compute what it computed before.")
        keep = order[:, : max(1, order.shape[1] // 2)]
        kept = torch.zeros_like(order, dtype=torch.bool).scatter_(1, keep, True)
        other = torch.where(on_pixels(kept, self.grid, x), x, torch.randn(x.shape, generator=generator).to(x))
        if differ(self(self.prepare(x), keep), self(self.prepare(other), keep)):
            raise InputError(
                "the pixels under dropped tokens still matter: tokens overlap, or are not numbered row by row."
            )


def blurred(x: Tensor, sigma: float | None = None) -> Tensor:
    """Pictures after a Gaussian blur.

    Args:
        x: (batch, C, H, W), floating point.
        sigma: standard deviation in pixels; by default a twentieth of the longer side, and at least 1.

    Returns:
        The blurred pictures, same shape and dtype. Border pixels are replicated.

    Example:
        >>> blurred(torch.full((1, 1, 8, 8), 2.0)).allclose(torch.tensor(2.0))
        True
    """
    sigma = sigma or max(1.0, max(x.shape[-2:]) / 20)
    radius = math.ceil(3 * sigma)
    taps = torch.arange(-radius, radius + 1, dtype=torch.float32, device=x.device).div(sigma).square().mul(-0.5).exp()
    taps = (taps / taps.sum()).to(x.dtype).expand(x.shape[1], 1, 1, -1)
    padded = F.pad(x, (radius, radius, radius, radius), mode="replicate")
    return F.conv2d(F.conv2d(padded, taps, groups=x.shape[1]), taps.transpose(2, 3), groups=x.shape[1])


def on_pixels(kept: Tensor, grid: Grid, x: Tensor) -> Tensor:
    """From a mask of parts (batch, parts) to a mask of the pixels of x, (batch, 1, H, W)."""
    mask = kept.view(len(kept), 1, *grid)
    return mask.repeat_interleave(x.shape[-2] // grid[0], 2).repeat_interleave(x.shape[-1] // grid[1], 3)


def _is_tensor(node: fx.Node) -> bool:
    """Whether the node's value is a tensor or has tensors, so that it is no size."""
    return isinstance(node.meta.get("val"), (Tensor, list, tuple))


def _of_one_size(converted: ConvertedModule) -> ConvertedModule:
    """The module for pictures of the example's size, so that all sizes but the batch's are numbers."""
    captured = converted.with_tensors().captured
    if None not in (captured.inputs[0].shape or ())[1:]:
        return converted
    state, constants = captured.persistent
    program = captured.program.filled(state, constants, captured.example)
    x = captured.example[0][0]
    pictures = x if len(x) > 1 else torch.cat([x, x])  # torch.export takes a size of 1 for a constant
    module = program.module(check_guards=False)
    for part in module.modules():
        part.training = False  # torch.export's modules have no eval()
    fixed = capture(module, (pictures,), dynamic_shapes=({0: Dim.AUTO},))
    return ConvertedModule(classify(fixed, converted.classified.table))


def _cut(converted: ConvertedModule, patches: int) -> fx.Node:
    """The last node before the attention that has an axis of tokens and lies on all paths from the input."""
    captured, decisions = converted.classified.captured, converted.classified.decisions
    nodes = list(captured.graph.nodes)
    attention = [i for i, n in enumerate(nodes) if n.name in decisions and decisions[n.name].kind is Kind.ATTENTION]
    if not attention:
        raise InputError("the model cannot run on fewer tokens: it has no attention.")
    source = captured.entry_nodes[0]
    flow = nx.DiGraph(
        (n, user) for n in nodes if _is_tensor(n) for user in n.users if user.op == "output" or _is_tensor(user)
    )
    dominators: dict[fx.Node, fx.Node] = nx.immediate_dominators(flow, source) if source in flow else {}
    node = dominators.get(nodes[-1], source)
    while node is not source:
        shape = list(getattr(node.meta["val"], "shape", ()))
        if nodes.index(node) < attention[0] and len(shape) == 3 and isinstance(shape[1], int) and shape[1] >= patches:
            return node
        node = dominators[node]
    raise InputError(f"the model cannot run on fewer tokens: no value ahead of its attention holds {patches} of them.")


def _until(graph: fx.Graph, cut: fx.Node) -> fx.Graph:
    head, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in graph.nodes:
        copies[node] = head.node_copy(node, copies.__getitem__)
        if node is cut:
            break
    head.output(copies[cut])
    prune(head)
    # Placeholders that only the rest of the graph uses stay arguments.
    return head


def _from(graph: fx.Graph, cut: fx.Node) -> fx.Graph:
    """The graph after the cut; its placeholders are the state, then the tokens."""
    tail, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    placeholders = [n for n in graph.nodes if n.op == "placeholder"]
    for node in placeholders[:-1]:
        copies[node] = tail.node_copy(node)
    tokens = copies[cut] = tail.placeholder("tokens")
    tokens.meta = dict(cut.meta)
    for node in graph.nodes:
        if node in copies or node is placeholders[-1]:
            continue
        if node.target is _SIZE and node.args == (placeholders[-1], 0):
            copies[node] = tail.call_function(_SIZE, (tokens, 0))
            copies[node].meta = dict(node.meta)
        elif all(operand in copies for operand in node.all_input_nodes):
            copies[node] = tail.node_copy(node, copies.__getitem__)
    prune(tail)
    return tail


class _Fewer(Interpreter):
    """Runs a graph that was captured for all tokens on fewer; recorded shapes are replaced by the present ones.

    An axis of tokens is one whose present size differs from the captured one. If a constant has such an axis, each
    picture gets the constant's values for its own tokens.
    """

    def __init__(self, tail: fx.GraphModule, keep: Tensor, prefix: int, count: int) -> None:
        super().__init__(tail, garbage_collect_values=True)
        patches = keep[:, prefix:] - prefix
        self.entries = {count: keep, count - prefix: patches}
        self.follows: set[fx.Node] = set()

    def logits(self, state: Iterable[Tensor], tokens: Tensor) -> Tensor:
        keep = self.entries[tokens.shape[1]]
        some = tokens.gather(1, keep[:, :, None].expand(-1, -1, tokens.shape[2]))
        output: Tensor = self.run(*state, some)[0]
        return output

    def run_node(self, n: fx.Node) -> Any:
        if n.target == "tokens" or (_is_tensor(n) and self.follows.intersection(n.all_input_nodes)):
            self.follows.add(n)
        if n.op != "call_function" or n not in self.follows:
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        op: Any = n.target
        if op in _SHAPERS or op is _EXPAND:
            args = (args[0], self._sizes(n, args[0], list(args[1])), *args[2:])
        elif op is SDPA and len(args) > 3 and args[3] is not None and n.args[3] not in self.follows:
            args = (*args[:3], self._mask(n, args[0], args[1], args[3]), *args[4:])
        elif torch.Tag.pointwise in getattr(op, "tags", ()):
            args = self._aligned(n, args)
        return op(*args, **kwargs)

    def _sizes(self, n: fx.Node, x: Tensor, sizes: list[int]) -> list[int]:
        """The recorded sizes, with the present number of tokens."""
        before = _captured(n.args[0], x)
        for axis, (was, size) in enumerate(zip(before, x.shape)):
            if was == size:
                continue
            if n.target is _EXPAND:
                sizes[axis + len(sizes) - x.ndim] = size
                continue
            whole = [s if s != -1 else -math.prod(before) // math.prod(sizes) for s in sizes]
            places = [i for i, s in enumerate(whole) if s == was and math.prod(whole[:i]) == math.prod(before[:axis])]
            if not places:
                raise RuntimeError(f"{n.name} reshapes {before} to {whole}, which takes the tokens apart")
            sizes[places[0]] = size
        return sizes

    def _mask(self, n: fx.Node, query: Tensor, key: Tensor, mask: Tensor) -> Tensor:
        was = [*_captured(n.args[0], query)[:-1], _captured(n.args[1], key)[-2]]
        return self._entries(mask, was, [*query.shape[:-1], key.shape[-2]])

    def _aligned(self, n: fx.Node, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The operands of a pointwise op; constants are reduced to the kept tokens."""
        moving = [(_captured(a, v), list(v.shape)) for a, v in zip(n.args, args) if a in self.follows]
        was, now = max(moving, key=lambda shapes: len(shapes[0]))
        return tuple(
            self._entries(v, was, now) if isinstance(v, Tensor) and a not in self.follows else v
            for a, v in zip(n.args, args)
        )

    def _entries(self, constant: Tensor, was: list[int], now: list[int]) -> Tensor:
        """A constant that fits the captured shape `was`, reduced to fit the present shape `now`, (batch, ...)."""
        rank = len(was)
        for axis in range(1, rank):
            own = axis - rank + constant.ndim
            if was[axis] == now[axis] or own < 0 or constant.shape[own] == 1:
                continue
            if constant.shape[own] not in self.entries:
                raise RuntimeError(f"a constant has {constant.shape[own]} entries for {was[axis]} tokens")
            keep = self.entries[constant.shape[own]]
            full = constant[(None,) * (rank - constant.ndim)]
            full = full.expand(len(keep), *full.shape[1:])
            sizes = [keep.shape[1] if d == axis else size for d, size in enumerate(full.shape)]
            index = keep.view([len(keep) if d == 0 else -1 if d == axis else 1 for d in range(rank)])
            constant = full.gather(axis, index.expand(sizes))
        return constant


def _captured(node: Any, present: Tensor) -> list[int]:
    """The captured shape, with the present batch."""
    return [size if isinstance(size, int) else now for size, now in zip(node.meta["val"].shape, present.shape)]
