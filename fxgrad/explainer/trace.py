"""Forward and attribution as one program of plain ATen ops, its parameters named as the model's.

make_fx runs the converted program and `torch.autograd.grad` over it on tensors without data and writes down what
happens, so that of fxgrad's ops, of autograd and of the policy nothing is left but arithmetic. torch.export takes
that graph again, with the model's parameters and with the axes that the model was captured with free.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim, ExportedProgram
from torch.fx import traceback as fx_traceback
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext, is_concrete_int
from torch.utils import _pytree as pytree

from fxgrad.capture import without_fast_path
from fxgrad.errors import ExportError, one_line
from fxgrad.explainer.attention import PlainAttention
from fxgrad.explainer.settings import Settings
from fxgrad.lookup import placeholders_of
from fxgrad.module import ConvertedModule


@dataclass(frozen=True)
class Traced:
    """An explainer as a program.

    Attributes:
        program: takes the model's tensor inputs and `target`, by name; its parameters have the model's paths.
        graph: the same as it was traced, whose forward nodes know the place in the model that they come from.
        inputs, outputs: names, in order.
        axes: for every input, axis -> name, where its size is free.
    """

    program: ExportedProgram
    graph: fx.Graph
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    axes: Mapping[str, Mapping[int, str]]


def trace(converted: ConvertedModule, leaves: Sequence[Any], settings: Settings) -> Traced:
    """Trace forward and attribution into one program.

    Args:
        converted: what `fxgrad.convert` returned.
        leaves: its inputs, flattened; only sizes and dtypes count.
        settings: what the explainer is to compute.

    Returns:
        The program, with every axis free that the model was captured with free.

    Raises:
        ExportError: the model's outputs hold no logits, or tracing failed.
    """
    captured = converted.classified.captured
    tensors = {_name(i.name): v.detach() for i, v in zip(captured.inputs, leaves) if i.dtype is not None}
    sizes = _Sizes(converted, tensors)
    examples = {name: sizes.example(name, tensor) for name, tensor in tensors.items()}
    batch, axis = sizes.batch(examples)
    rank = _logits_of(converted, settings).dim() - 1
    shape = [n for n in (batch, settings.targets, rank if rank > 1 else None) if n is not None]
    examples["target"] = torch.zeros(shape, dtype=torch.long)
    axes = {**sizes.names, "target": {0: axis} if axis else {}}

    names: list[str] = []

    def explain(state: list[Tensor], inputs: list[Tensor]) -> list[Tensor]:
        outputs = _explain(converted, settings, state, inputs)
        names[:] = list(outputs)
        return list(outputs.values())

    try:
        graph = _traced(explain, converted.state, examples, axes)
        program = _exported(graph, converted, examples, axes)
    except ExportError:
        raise
    except Exception as error:
        raise ExportError(f"forward and attribution cannot be traced into one graph: {one_line(error)}") from error
    return Traced(program, graph.graph, tuple(examples), tuple(names), axes)


def _name(name: str) -> str:
    """An input's name as an identifier."""
    return re.sub(r"\W+", "_", name).strip("_")


class _Sizes:
    """Which axes are free, what they are called, and a size to trace each with."""

    def __init__(self, converted: ConvertedModule, tensors: Mapping[str, Tensor]) -> None:
        captured = converted.classified.captured
        places = placeholders_of(captured.graph)[len(captured.state) :]
        shapes = [p.meta["val"].shape for p, i in zip(places, captured.inputs) if i.dtype is not None]
        self.names: dict[str, dict[int, str]] = {name: {} for name in tensors}
        self.sizes: dict[str, int] = {}
        called: dict[str, str] = {}
        for (name, tensor), shape in zip(tensors.items(), shapes):
            for axis, size in enumerate(shape):
                if is_concrete_int(size):
                    continue
                wanted = "batch" if axis == 0 else "sequence" if not tensor.is_floating_point() else f"{name}_{axis}"
                while wanted in self.sizes and str(size) not in called:
                    wanted += "_"
                own = called.setdefault(str(size), wanted)
                self.names[name][axis] = own
                self.sizes.setdefault(own, tensor.shape[axis])
        taken = {0, 1}
        for own, size in self.sizes.items():  # equal sizes would be taken for one, and a size of 1 for a constant
            while size in taken:
                size += 1
            taken.add(size)
            self.sizes[own] = size

    def example(self, name: str, tensor: Tensor) -> Tensor:
        """Zeros like the input, but of the sizes to trace with."""
        shape = [self.sizes[self.names[name][d]] if d in self.names[name] else s for d, s in enumerate(tensor.shape)]
        return torch.zeros(shape, dtype=tensor.dtype, device=tensor.device)

    def batch(self, examples: Mapping[str, Tensor]) -> tuple[int, str | None]:
        """The size of the batch, and its name where it is free."""
        for name, example in examples.items():
            if example.dim():
                return example.shape[0], self.names[name].get(0)
        return 1, None


def _logits_of(converted: ConvertedModule, settings: Settings) -> Tensor:
    """The logits among the captured outputs, as a tensor without data."""
    output = converted.classified.captured.graph.output_node()
    return _select(converted, [getattr(n, "meta", {}).get("val") for n in output.args[0]], settings.output)  # type: ignore[union-attr]


def _select(converted: ConvertedModule, outputs: Sequence[Any], wanted: str | None) -> Tensor:
    """The output that is called as wanted; by default the only one, or that called logits."""
    tree = pytree.tree_unflatten(list(outputs), converted.classified.captured.out_spec)
    named = {
        re.sub(r"[\[\]'.]+", ".", pytree.keystr(path)).strip(".") or "output": leaf
        for path, leaf in pytree.tree_flatten_with_path(tree)[0]
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.dim() > 1
    }
    if wanted is None:
        wanted = next(iter(named)) if len(named) == 1 else "logits"
    if wanted not in named:
        raise ExportError(
            f"the model has no output {wanted!r} of floating dtype, shaped (batch, classes) or with more axes; it has "
            f"{', '.join(named) or 'none'}. Name the one to explain: output=..."
        )
    return named[wanted]


def _explain(
    converted: ConvertedModule, settings: Settings, state: list[Tensor], inputs: list[Tensor]
) -> dict[str, Tensor]:
    """What is traced: name of each output -> its value."""
    captured = converted.classified.captured
    *given, target = inputs
    values = iter(given)
    entries: list[Any] = [i.constant if i.dtype is None else next(values) for i in captured.inputs]
    if converted.lookup:
        entries += converted.lookup(*state, *entries)
    entries = [v.detach().requires_grad_() if i.attributed else v for i, v in zip(captured.entries, entries)]
    attributed = {i: v for i, v in zip(captured.entries, entries) if i.attributed}
    with torch.enable_grad():
        outputs = PlainAttention(converted.program).run(*state, *entries)
        logits = _select(converted, outputs, settings.output)
    picked = [target] if settings.targets is None else target.unbind(1)
    parts: dict[str, list[Tensor]] = {}
    for own in picked:
        cotangent = _one_hot(own, logits)
        gradients = torch.autograd.grad(
            logits, list(attributed.values()), cotangent, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        for (declared, value), gradient in zip(attributed.items(), gradients):
            name = "attribution" if len(attributed) == 1 else f"attribution_{_name(declared.name)}"
            tokens = declared in captured.embedded
            parts.setdefault(name, []).append(settings.attribution(value.detach(), gradient, tokens=tokens))
    found = {name: part[0] if settings.targets is None else torch.stack(part, 1) for name, part in parts.items()}
    return {"logits": logits.detach(), **found}


def _one_hot(target: Tensor, logits: Tensor) -> Tensor:
    """1 at the target, in the logits' shape; by scatter, which refuses what is out of range."""
    target = target if logits.dim() > 2 else target.unsqueeze(-1)
    total = logits.new_ones(logits.shape[0])
    for axis, size in enumerate(logits.shape[1:]):
        hot = logits.new_zeros(target.shape[0], size).scatter(-1, target[:, axis : axis + 1], 1.0)
        total = total.unsqueeze(-1) * hot.reshape(-1, *[1] * axis, size)
    return total


def _traced(
    explain: Callable[..., list[Tensor]],
    state: Sequence[Tensor],
    examples: Mapping[str, Tensor],
    axes: Mapping[str, Mapping[int, str]],
) -> fx.GraphModule:
    """The graph of a function of the state and the inputs, the free axes symbols."""
    mode = FakeTensorMode(shape_env=ShapeEnv())

    def fake(name: str, tensor: Tensor) -> Tensor:
        sizes = [DimDynamic.DUCK if axis in axes[name] else DimDynamic.STATIC for axis in range(tensor.dim())]
        context = StatelessSymbolicContext(dynamic_sizes=sizes)
        return mode.from_tensor(tensor, symbolic_context=context, source=ConstantSource(name))

    tensors = [mode.from_tensor(tensor.detach(), static_shapes=True) for tensor in state]
    inputs = [fake(name, tensor) for name, tensor in examples.items()]
    with without_fast_path(), mode, fx_traceback.preserve_node_meta():
        return make_fx(explain, tracing_mode="real")(tensors, inputs)


def _exported(
    graph: fx.GraphModule,
    converted: ConvertedModule,
    examples: Mapping[str, Tensor],
    axes: Mapping[str, Mapping[int, str]],
) -> ExportedProgram:
    """The graph as an exported program, with inputs and parameters by name."""
    dims = {name: Dim(name) for name in {own for named in axes.values() for own in named.values()}}
    shapes = {name: {axis: dims[own] for axis, own in axes[name].items()} for name in examples}
    module = _with_names(graph.graph, converted, list(examples))
    with torch.no_grad():
        program = torch.export.export(module, tuple(examples.values()), strict=False, dynamic_shapes=shapes)
        return program.run_decompositions({})


def _with_names(graph: fx.Graph, converted: ConvertedModule, inputs: Sequence[str]) -> fx.GraphModule:
    """The traced graph as a module that owns what it looks at of the model's state, each tensor once."""
    root, named, copies = nn.Module(), fx.Graph(), dict[fx.Node, fx.Node]()
    paths = converted.classified.captured.state
    placeholders = placeholders_of(graph)
    for node, name in zip(placeholders[len(paths) :], inputs):
        copies[node] = named.placeholder(name)
    owned: dict[int, fx.Node] = {}
    for node, path, tensor in zip(placeholders, paths, converted.state):
        if node.users and id(tensor) not in owned:
            _register(root, path, tensor)
            owned[id(tensor)] = named.get_attr(path)
        if node.users:
            copies[node] = owned[id(tensor)]
    for node in graph.nodes:
        if node not in copies and node.op != "placeholder":
            copies[node] = named.node_copy(node, copies.__getitem__)
    for name, tensor in graph.owning_module.named_buffers():  # type: ignore[union-attr]
        _register(root, name, tensor)  # a constant that tracing met
    return fx.GraphModule(root, named, class_name="Explainer").eval()


def _register(root: nn.Module, path: str, tensor: Tensor) -> None:
    *parents, name = path.split(".")
    owner = root
    for parent in parents:
        if parent not in owner._modules:
            owner.add_module(parent, nn.Module())
        owner = owner.get_submodule(parent)
    if isinstance(tensor, nn.Parameter):
        owner.register_parameter(name, nn.Parameter(tensor.detach(), requires_grad=False))
    else:
        owner.register_buffer(name, tensor.detach())
