"""Make a graph of torch.export functional in one pass over its nodes, where it nearly is so already.

`ExportedProgram.run_decompositions` traces the whole program twice, which takes longer than the export. Most programs
need little of it: some ops do nothing in eval mode, and some write to a tensor that nothing else reads any more.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import TensorArgument
from torch.multiprocessing.reductions import StorageWeakRef

from fxgrad.graph.nodes import added, arguments_of, differentiable

aten = torch.ops.aten
_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd
_DROPOUTS = tuple(
    getattr(aten, f"{name}dropout{end}").default for name in ("", "alpha_", "feature_") for end in ("", "_")
)
_CASTS = tuple(getattr(aten.to, name) for name in ("device", "dtype", "other", "dtype_layout"))
_HANDLED = (*_DROPOUTS, *_CASTS, aten.contiguous.default, aten.lift_fresh_copy.default, aten.detach_.default)


def make_functional(program: ExportedProgram, whole: Callable[[Any], bool]) -> bool:
    """Make a program's graph functional, in place, if one pass over its nodes can do that.

    Args:
        program: fresh from `torch.export.export`, with its nodes' metadata.
        whole: says which composite ops are to stay.

    Returns:
        Whether it is functional now; if not, it is unchanged, and `run_decompositions` is what it needs.

    Example:
        >>> class Net(torch.nn.Module):
        ...     def forward(self, x):
        ...         return torch.dropout((x + 1).relu_(), 0.5, False)
        >>> program = torch.export.export(Net(), (torch.ones(2, 3),))
        >>> make_functional(program, lambda op: True)
        True
        >>> [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
        ['aten.add.Tensor', 'aten.relu.default']
    """
    graph = program.graph
    order = {node: i for i, node in enumerate(graph.nodes)}
    if not all(_is_write(node) or _stays(node, whole) for node in order) or (writes := _writes(order, whole)) is None:
        return False
    for node in list(graph.nodes):
        if node in writes:
            _write(node, writes[node], order)
        elif node.op == "call_function":
            _lower(graph, node)
    for value, spec in zip(graph.output_node().args[0], program.graph_signature.output_specs):
        if isinstance(value, fx.Node) and isinstance(spec.arg, TensorArgument):
            spec.arg.name = value.name
    program.graph_module.recompile()
    return True


def _stays(node: fx.Node, whole: Callable[[Any], bool]) -> bool:
    """Whether a node is functional, or `_lower` makes it so."""
    op = node.target
    if node.op in ("placeholder", "output"):
        return True
    if node.op != "call_function" or isinstance(op, torch._ops.HigherOrderOperator):
        return False
    if not isinstance(op, torch._ops.OpOverload):
        return op is operator.getitem or not isinstance(node.meta.get("val"), Tensor)  # else arithmetic of sizes
    if op in _HANDLED:
        return op not in _DROPOUTS or not arguments_of(node)["train"]
    if op is aten.batch_norm.default:
        return not arguments_of(node)["training"]
    return not composite(node) or whole(op)


def composite(node: fx.Node) -> bool:
    """Whether a node's op is differentiable and composed of other ops, so that it has their gradient.

    Example:
        >>> graph = torch.export.export(torch.nn.Linear(2, 3), (torch.ones(1, 2),)).graph
        >>> [composite(node) for node in graph.nodes][-2:]
        [True, False]
    """
    op = node.target
    return isinstance(op, torch._ops.OpOverload) and differentiable(node) and op.has_kernel_for_dispatch_key(_COMPOSITE)


def _lower(graph: fx.Graph, node: fx.Node) -> None:
    """Replace an op by what it comes to in eval mode."""
    source = node.all_input_nodes[0] if node.all_input_nodes else None
    if node.target in _DROPOUTS or (node.target in _CASTS + (aten.contiguous.default,) and _shared(node, source)):
        assert source is not None
        node.replace_all_uses_with(source)
        graph.erase_node(node)
    elif node.target in _CASTS:
        assert source is not None
        before, after = source.meta["val"], node.meta["val"]
        changed = {
            key: getattr(after, key) for key in ("dtype", "device") if getattr(before, key) != getattr(after, key)
        }
        if (format := arguments_of(node).get("memory_format")) is not None:
            changed["memory_format"] = format
        node.target, node.args, node.kwargs = aten._to_copy.default, (source,), changed
    elif node.target is aten.contiguous.default:
        format = arguments_of(node)["memory_format"]
        node.target, node.kwargs = aten.clone.default, {"memory_format": format}
    elif node.target is aten.lift_fresh_copy.default:
        node.target = aten.clone.default
    elif node.target is aten.batch_norm.default:
        _lower_batch_norm(graph, node)


def _lower_batch_norm(graph: fx.Graph, node: fx.Node) -> None:
    given = arguments_of(node)
    names = ("input", "weight", "bias", "running_mean", "running_var", "momentum", "eps")
    normalize = aten._native_batch_norm_legit_no_training.default
    with graph.inserting_before(node):
        made = added(graph, node, normalize, *(given[name] for name in names))
        value = graph.call_function(operator.getitem, (made, 0))
    value.meta = dict(node.meta)
    node.replace_all_uses_with(value)
    graph.erase_node(node)


def _writes(order: Mapping[fx.Node, int], whole: Callable[[Any], bool]) -> dict[fx.Node, Any] | None:
    """Node that writes to its first operand -> the op that does not; None if one cannot be replaced.

    It can be if nothing reads the memory by another way afterwards: neither another view of it, nor the model's state
    or its caller.
    """
    if not any(map(_is_write, order)):
        return {}
    sharing: dict[int, list[fx.Node]] = {}
    same: dict[fx.Node, fx.Node] = {}  # what an op that writes returns is the tensor to which it writes
    found: dict[fx.Node, Any] = {}
    for node in order:
        if (memory := _memory(node)) is not None:
            sharing.setdefault(memory, []).append(node)
        if not _is_write(node):
            continue
        own, op = node.args[0] if node.args else None, _without_writing(node.target, whole)
        if not isinstance(own, fx.Node) or op is None or memory is None or _memory(own) != memory or not _fits(node):
            return None
        same[node] = same.get(own, own)
        if node.target is not aten.detach_.default and any(
            other.op == "placeholder" or (same.get(other, other) is not same[node] and _read_after(other, node, order))
            for other in sharing[memory]
        ):
            return None
        found[node] = op
    return found


def _is_write(node: fx.Node) -> bool:
    op = node.target
    return isinstance(op, torch._ops.OpOverload) and op._schema.is_mutable and op not in _DROPOUTS


def _read_after(node: fx.Node, moment: fx.Node, order: Mapping[fx.Node, int]) -> bool:
    return any(order[user] > order[moment] for user in node.users)


def _write(node: fx.Node, op: Any, order: Mapping[fx.Node, int]) -> None:
    """Let a node compute a new tensor, and all later readers of the old one take it."""
    node.target = op
    own: Any = node.args[0]
    own.replace_all_uses_with(node, delete_user_cb=lambda user: order.get(user, -1) > order[node])


def _without_writing(op: Any, whole: Callable[[Any], bool]) -> Any:
    """The overload that returns what this one writes; None if there is none."""
    name = op._schema.name.removeprefix("aten::")
    packet = getattr(aten, name[:-1], None) if name.endswith("_") and not name.endswith("__") else None
    overloads = [getattr(packet, overload) for overload in packet.overloads()] if packet is not None else []
    found = next((other for other in overloads if _takes(other) == _takes(op)), None)  # pow_.Scalar: pow.Tensor_Scalar
    if found is None:
        return None
    return found if whole(found) or not found.has_kernel_for_dispatch_key(_COMPOSITE) else None


def _takes(op: Any) -> list[tuple[str, str]]:
    return [(argument.name, str(argument.type)) for argument in op._schema.arguments]


def _fits(node: fx.Node) -> bool:
    """Whether the op without writing has a result of the same dtype."""
    own, *others = (n.meta["val"] for n in node.all_input_nodes)
    return all(torch.promote_types(own.dtype, v.dtype) == own.dtype for v in others if isinstance(v, Tensor))


def _memory(node: fx.Node) -> int | None:
    """A number for the memory that a node's value has; views of one tensor have the same."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or value.layout is not torch.strided:
        return None
    return int(StorageWeakRef(value.untyped_storage()).cdata)  # type: ignore[no-untyped-call]


def _shared(node: fx.Node, source: fx.Node | None) -> bool:
    """Whether a node's value is its operand itself."""
    return source is not None and _memory(node) == _memory(source)
