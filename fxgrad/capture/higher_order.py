"""Programs within the program: flex_attention, scan, map and their like, opened to the ops that they run.

An op of higher order has an eager kernel, a Python function that calls the parts it was given. Traced once more, this
function leaves the plain ops that eager PyTorch would run, so the values are the same bit for bit. A kernel that
decides by data (cond, while_loop) cannot be traced unless what it looks at is a constant: that is control flow. It
stays one op, which runs, and has no gradient.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._guards import detect_fake_mode
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import is_concrete_int
from torch.overrides import TorchFunctionMode

from fxgrad.graph.nodes import placeholders_of
from fxgrad.graph.places import place_of

_DENSE = torch._C.DispatchKey.CompositeExplicitAutograd
_REQUIRES_GRAD = Tensor.requires_grad.__get__  # type: ignore[attr-defined]
_DATA = Tensor.data.__get__  # type: ignore[attr-defined]
aten = torch.ops.aten


class AsWithoutGrad(TorchFunctionMode):
    """Answer, where a traced model asks whether a result requires a gradient, as it does under `torch.no_grad()`.

    The trace runs with gradients on, but what is captured is the forward without: some ops, such as flex_attention on a
    CPU, refuse to run if their operands require gradients, and the model would turn to other code. What a model takes
    by `.data`, which the tracer loses, it gets by `.detach()`: the same memory, and no gradient either.
    """

    def __torch_function__(
        self, func: Any, classes: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func == _REQUIRES_GRAD and not args[0].is_leaf:
            return False
        if func == _DATA:
            return args[0].detach()
        return func(*args, **(kwargs or {}))


def open_programs(program: ExportedProgram) -> bool:
    """Replace, in place, each op of higher order by the ops that its eager kernel runs; says whether there was one.

    What cannot be opened stays: control flow that depends on data.

    Args:
        program: in functional ATen ops, from `run_decompositions`.

    Example:
        >>> from torch._higher_order_ops.map import map as each
        >>> class Rows(torch.nn.Module):
        ...     def forward(self, x):
        ...         return each(lambda row: row.sin(), x)
        >>> program = torch.export.export(Rows(), (torch.ones(2, 3),)).run_decompositions({})
        >>> open_programs(program)
        True
        >>> [str(n.target) for n in program.graph.nodes].count("aten.sin.default")
        2
    """
    module, opened = program.graph_module, False
    if not any(eager_kernel(node.target) for node in module.graph.nodes):
        return False
    known = _known(program)
    for node in list(module.graph.nodes):
        if (kernel := eager_kernel(node.target)) is None:
            continue
        operands = [n for n in node.all_input_nodes if n.op != "get_attr" and n not in known]
        with contextlib.suppress(Exception):  # whatever a kernel raises that cannot run without data
            body = _traced(kernel, node, operands, known, module)
            _insert(module.graph, node, body, operands)
            opened = True
    for node in reversed(module.graph.nodes):
        if node.op == "get_attr" and not node.users:
            module.graph.erase_node(node)
    module.recompile()
    return opened


class Closed:
    """A call of a higher-order op that stays closed, with its parts. It runs as in eager PyTorch, and records nothing.

    Args:
        op: the op.
        parts: position among its arguments -> a program that it calls.

    Example:
        >>> yes, no = (fx.symbolic_trace(lambda x: (x + 1,)), fx.symbolic_trace(lambda x: (x - 1,)))
        >>> Closed(torch.ops.higher_order.cond, {1: yes, 2: no})(torch.tensor(False), (torch.zeros(1),))
        (tensor([-1.]),)
    """

    def __init__(self, op: Any, parts: Mapping[int, Any]) -> None:
        self.op, self.parts = op, dict(parts)
        # The code that fx generates uses these names.
        self.__name__, self.__module__ = f"closed_{op}", __name__

    def __str__(self) -> str:
        return str(self.op)

    def __call__(self, *args: Any) -> Any:
        rest = iter(args)
        given = [self.parts[at] if at in self.parts else next(rest) for at in range(len(args) + len(self.parts))]
        with torch.no_grad():
            return (eager_kernel(self.op) or self.op)(*given)


def close_programs(graph: fx.Graph, module: nn.Module) -> None:
    """Let each call of an op of higher order in a graph own the parts that it calls.

    Args:
        graph: a copy of the module's graph; changed in place.
        module: has the parts.
    """
    for node in list(graph.nodes):
        if not isinstance(node.target, torch._ops.HigherOrderOperator) or node.kwargs:
            continue
        parts = {at: a for at, a in enumerate(node.args) if isinstance(a, fx.Node) and a.op == "get_attr"}
        if parts:
            node.target = Closed(node.target, {at: getattr(module, str(part.target)) for at, part in parts.items()})
            node.args = tuple(arg for at, arg in enumerate(node.args) if at not in parts)
    for node in reversed(graph.nodes):
        if node.op == "get_attr" and not node.users:
            graph.erase_node(node)


def closed_call(graph: fx.Graph) -> str:
    """The first call in a graph that stayed closed, such as "cond at the model itself, ..."; "" if there is none."""
    node = next((n for n in graph.nodes if isinstance(n.target, Closed)), None)
    return f"{node.target} at {place_of(node)}" if node else ""


def eager_kernel(op: Any) -> Callable[..., Any] | None:
    """The Python function that runs an op of higher order, in eager PyTorch; None for other ops.

    Example:
        >>> eager_kernel(torch.ops.higher_order.cond)(True, torch.sin, torch.cos, (torch.zeros(1),))
        tensor([0.])
    """
    if not isinstance(op, torch._ops.HigherOrderOperator):
        return None
    kernels: dict[Any, Callable[..., Any]] = getattr(op, "py_kernels", {})
    return _OWN.get(str(op), kernels.get(_DENSE))


def _cond(predicate: Any, yes: Callable[..., Any], no: Callable[..., Any], operands: Sequence[Any]) -> Any:
    return (yes if predicate else no)(*operands)


def _scan(step: Callable[..., Any], carry: Sequence[Any], items: Sequence[Tensor], more: Sequence[Any] = ()) -> Any:
    rows = []
    for index in range(len(items[0])):
        results = step(*carry, *(item[index] for item in items), *more)
        carry, row = results[: len(carry)], results[len(carry) :]
        rows.append(row)
    return [*carry, *(torch.stack(column) for column in zip(*rows))]


_OWN: dict[str, Callable[..., Any]] = {
    "cond": _cond,
    "scan": _scan,
    "invoke_subgraph": lambda part, _name, *operands: part(*operands),
    "strict_mode": lambda part, operands: part(*operands),
}
"""The same as PyTorch's kernels of these ops, which refuse to be traced."""


def _known(program: ExportedProgram) -> dict[fx.Node, Tensor]:
    """The values of one element that are computed from constants alone, such as a loop's first index."""
    constants = {
        spec.arg.name: program.constants[spec.target]
        for spec in program.graph_signature.input_specs
        if spec.kind is InputKind.CONSTANT_TENSOR
    }
    known: dict[fx.Node, Tensor] = {}
    for node in program.graph.nodes:
        value = node.meta.get("val")
        if not isinstance(value, Tensor) or not is_concrete_int(value.numel()) or value.numel() != 1:
            continue
        if node.op == "placeholder" and node.name in constants:
            known[node] = constants[node.name]
        elif _computes(node) and set(node.all_input_nodes) <= set(known):
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), known.__getitem__)
            known[node] = node.target(*args, **kwargs)
    return known


def _computes(node: fx.Node) -> bool:
    """Whether a node calls an op that gives the same each time."""
    op = node.target
    return isinstance(op, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded not in op.tags


def _traced(
    kernel: Callable[..., Any],
    node: fx.Node,
    operands: list[fx.Node],
    known: Mapping[fx.Node, Tensor],
    module: fx.GraphModule,
) -> fx.GraphModule:
    """The ops that a kernel runs, as a graph of the operands; constants are made in it, so that it can look at them."""

    def run(*values: Any) -> Any:
        given = dict(zip(operands, values))

        def value(n: fx.Node) -> Any:
            if n in known:
                return torch.tensor(known[n].tolist(), dtype=known[n].dtype, device=known[n].device)
            return given[n] if n in given else getattr(module, str(n.target))

        args, kwargs = fx.node.map_arg((node.args, node.kwargs), value)
        return kernel(*args, **kwargs)

    values = [n.meta["val"] for n in operands]
    with contextlib.ExitStack() as stack:
        stack.enter_context(detect_fake_mode(values) or contextlib.nullcontext())
        stack.enter_context(torch.no_grad())
        for device in {v.device.type for v in values if isinstance(v, Tensor)}:
            # What a caller's autocast casts is in the graph already.
            stack.enter_context(torch.autocast(device, enabled=False))
        return make_fx(functionalize(run))(*values)


def _insert(graph: fx.Graph, node: fx.Node, body: fx.GraphModule, operands: list[fx.Node]) -> None:
    """Put a traced body into the place of a node, whose users are the items of its result."""
    body.graph.eliminate_dead_code()
    copies = dict(zip(placeholders_of(body.graph), operands))
    with graph.inserting_before(node):
        for part in body.graph.nodes:
            if part.op == "get_attr":
                copies[part] = _number(graph, getattr(body, str(part.target)))
            elif part.op == "call_function":
                copies[part] = graph.node_copy(part, copies.__getitem__)
            if part.op in ("get_attr", "call_function"):
                copies[part].meta = {**node.meta, "val": part.meta.get("val")}
    results = body.graph.output_node().args[0]
    for item in list(node.users):
        result = copies[results[item.args[1]]]  # type: ignore[index]
        item.replace_all_uses_with(result)
        graph.erase_node(item)
        if result.op == "call_function":
            result.name = item.name  # the program's outputs are known by their names
    graph.erase_node(node)


def _number(graph: fx.Graph, value: Tensor) -> fx.Node:
    """A node that makes a constant of one element."""
    number = getattr(value, "constant", None)
    number = value if number is None else number
    options: dict[str, Any] = {"dtype": value.dtype, "device": value.device}
    return graph.call_function(aten.full.default, (list(value.shape), number.item()), options)
