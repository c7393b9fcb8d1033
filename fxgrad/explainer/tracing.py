"""Forward and attribution as one program of plain ATen ops, its parameters named as the model's.

make_fx runs the converted program and `torch.autograd.grad` on fake tensors and records all ops. The recorded graph has
plain arithmetic instead of fxgrad's ops, autograd and the policy. torch.export exports this graph, with the model's
parameters and with the axes that were captured as dynamic.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.fx import traceback as fx_traceback
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import is_concrete_int

from fxgrad.capture.higher_order import closed_call
from fxgrad.capture.tracing import without_fast_path
from fxgrad.errors import ExportError, FxgradError, one_line
from fxgrad.explainer.compute import Explanation, identifier
from fxgrad.explainer.merge import merge
from fxgrad.explainer.plain import with_plain_ops
from fxgrad.explainer.settings import OF_BLOCKS, Settings
from fxgrad.explainer.simplify import simplify
from fxgrad.graph.nodes import placeholders_of
from fxgrad.graph.places import Place, place_of
from fxgrad.graph.sizes import sizes_of
from fxgrad.module.converted import ConvertedModule

FARTHEST = 4096
"""How far from the example's size another one is looked for, such as the next multiple of a patch's side."""
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Traced:
    """An explainer as a program.

    Attributes:
        program: takes the model's tensor inputs and `target`, by name; its parameters have the model's paths.
        places: name of each node of the graph before torch.export -> its place in the model.
        inputs, outputs: names, in order.
        axes: input -> axis -> name, for dynamic axes.
        fixed: input -> axis -> size, for axes that are free in the model, but not in its attribution.
    """

    program: ExportedProgram
    places: Mapping[str, Place]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    axes: Mapping[str, Mapping[int, str]]
    fixed: Mapping[str, Mapping[int, int]]


def trace(
    policies: Mapping[str, ConvertedModule],
    leaves: Sequence[Any],
    settings: Settings,
    decompositions: Mapping[Any, Callable[..., Any]] | None = None,
    *,
    batch_only: bool = False,
) -> Traced:
    """Trace forward and attribution into one program.

    Args:
        policies: name -> the same converted module under a policy. Where there are several, the outputs of each but
            the logits have its name at the end.
        leaves: its flattened inputs; only sizes and dtypes matter.
        settings: what the explainer computes.
        decompositions: ATen op -> a function with the same signature to trace instead.
        batch_only: whether to fix every axis but the batch's.

    Returns:
        The program. Every axis is dynamic that was captured as dynamic, unless torch fixes it in the attribution.

    Raises:
        ExportError: no output is logits, or tracing failed.
    """
    converted = next(iter(policies.values()))
    if call := closed_call(converted.graph):
        raise ExportError(f"{call} decides by data which program to run, so forward and attribution are not one graph.")
    sizes = _Sizes(converted, leaves)
    if batch_only or settings.method in OF_BLOCKS:
        sizes.fix(sizes.free_lengths())
    explained = {name: Explanation(with_plain_ops(own), settings, leaves) for name, own in policies.items()}
    while True:
        try:
            traced, lost = _attempt(converted, explained, sizes, decompositions or {})
            if not lost:
                return traced
            error: Exception | None = None
        except FxgradError:
            raise
        except Exception as failed:
            said = r"(?:You marked|Not all values of) (\w+) (?:as dynamic but your code specialized|=)"
            lost, error = set(re.findall(said, str(failed))), failed
            if not lost and not sizes.free_lengths():
                said = f"forward and attribution cannot be traced into one graph: {one_line(failed)}"
                raise ExportError(said) from failed
        if sizes.batch_name in lost:
            raise ExportError(
                f"the size of {sizes.batch_name} is free in the model, but torch {torch.__version__} does not keep it "
                "free in its attribution. Convert the model with that size fixed: dynamic_shapes of fxgrad.convert."
            ) from error
        sizes.fix(lost or sizes.free_lengths())


def _attempt(
    converted: ConvertedModule,
    explained: Mapping[str, Explanation],
    sizes: _Sizes,
    decompositions: Mapping[Any, Callable[..., Any]],
) -> tuple[Traced, set[str]]:
    """The traced explainer, for these free sizes, and the names of those that torch took for constants."""
    first = next(iter(explained.values()))
    settings, rank = first.settings, first.rank
    examples = {name: sizes.example(name, tensor) for name, tensor in sizes.tensors.items()}
    batch, axis = sizes.batch(examples)
    shape = [n for n in (batch, settings.targets, rank if rank > 1 else None) if n is not None]
    examples["target"] = torch.zeros(shape, dtype=torch.long)
    axes = {**sizes.names, "target": {0: axis} if axis else {}}
    names: list[str] = []
    _LOG.info("tracing the attribution")

    def explain(state: list[Tensor], inputs: list[Tensor]) -> list[Tensor]:
        given = {f"converted.{path}": t for path, t in zip(converted.classified.captured.state, state)}
        outputs: dict[str, Tensor] = {}
        for policy, explanation in explained.items():
            for name, value in torch.func.functional_call(explanation, given, (inputs,), tie_weights=False).items():
                own = name if name == "logits" or len(explained) == 1 else f"{name}_{policy}"
                outputs.setdefault(own, value)
        names[:] = list(outputs)
        return list(outputs.values())

    graph, echo = _traced(explain, converted.state, examples, axes, decompositions)
    _LOG.info("simplifying %d nodes", len(graph.graph.nodes))
    simplify(graph.graph)
    merge(graph.graph)
    _LOG.info("exporting %d nodes", len(graph.graph.nodes))
    program, places = _exported(graph, converted, examples, axes)
    traced = Traced(program, places, tuple(examples), tuple(names), axes, sizes.fixed)
    return traced, sizes.lost(echo) | sizes.lost(program)


class _Sizes:
    """The dynamic axes: their names, and a size to trace each with.

    Attributes:
        tensors: input -> its example.
        names: input -> axis -> name, for dynamic axes.
        fixed: input -> axis -> size, for axes that had to be fixed.
    """

    def __init__(self, converted: ConvertedModule, leaves: Sequence[Any]) -> None:
        self.captured = converted.classified.captured
        self.leaves = leaves
        inputs = [(at, identifier(i.name)) for at, i in enumerate(self.captured.inputs) if i.dtype is not None]
        self.tensors: dict[str, Tensor] = {name: leaves[at].detach() for at, name in inputs}
        self.names: dict[str, dict[int, str]] = {name: {} for name in self.tensors}
        self.fixed: dict[str, dict[int, int]] = {}
        self.places: dict[str, list[tuple[int, int]]] = {}
        called: dict[str, str] = {}
        for at, name in inputs:
            tensor = self.tensors[name]
            for axis, size in enumerate(self.captured.entry_nodes[at].meta["val"].shape):
                if is_concrete_int(size):
                    continue
                wanted = "batch" if axis == 0 else "sequence" if not tensor.is_floating_point() else f"{name}_{axis}"
                while wanted in self.places and str(size) not in called:
                    wanted += "_"
                own = self.names[name][axis] = called.setdefault(str(size), wanted)
                self.places.setdefault(own, []).append((at, axis))
        self.batch_name = next((named.get(0) for name, named in self.names.items() if self.tensors[name].dim()), None)
        self.sizes: dict[str, int] = {}
        self._choose()

    def _choose(self) -> None:
        """Choose a size for every name. Tracing takes equal sizes for the same axis, and small sizes for constants."""
        self.sizes = {}
        fixed = {size for node in self.captured.graph.nodes for size in sizes_of(node) if isinstance(size, int)}
        taken = {0, 1, 2, 3, 4, *fixed, *(size for tensor in self.tensors.values() for size in tensor.shape[1:])}
        for own, ((at, axis), *_) in self.places.items():
            start = self.leaves[at].shape[axis]
            candidates = [*range(start, start + FARTHEST), *range(start, 4, -1)]
            found = next((n for n in candidates if n not in taken and self._fits({**self.sizes, own: n})), None)
            if found is None:
                self.fix({own})
                return
            taken.add(found)
            self.sizes[own] = found

    def _fits(self, sizes: Mapping[str, int]) -> bool:
        """Whether the program holds for these sizes, and the examples' for the other axes."""
        shapes = [list(leaf.shape) if isinstance(leaf, Tensor) else [] for leaf in self.leaves]
        for own, size in sizes.items():
            for at, axis in self.places[own]:
                shapes[at][axis] = size
        return all(check.fits(shapes) for check in self.captured.checks)

    def free_lengths(self) -> set[str]:
        """The names of the dynamic axes other than the batch."""
        return set(self.places) - {self.batch_name}

    def fix(self, names: set[str]) -> None:
        """Keep these axes as they are in the examples."""
        for own in names & set(self.places):
            del self.places[own]
            for name, named in self.names.items():
                for axis in [axis for axis, other in named.items() if other == own]:
                    del named[axis]
                    self.fixed.setdefault(name, {})[axis] = self.tensors[name].shape[axis]
        self._choose()

    def lost(self, program: ExportedProgram) -> set[str]:
        """The names of the dynamic axes that are none in a program."""
        nodes = {node.name: node for node in placeholders_of(program.graph)}
        inputs = [nodes[name] for name in program.graph_signature.user_inputs if name in nodes]
        return {
            own
            for node, named in zip(inputs, self.names.values())
            for axis, own in named.items()
            if is_concrete_int(node.meta["val"].shape[axis])
        }

    def example(self, name: str, tensor: Tensor) -> Tensor:
        """Zeros like the input, with the sizes to trace with."""
        shape = [self.sizes[self.names[name][d]] if d in self.names[name] else s for d, s in enumerate(tensor.shape)]
        return torch.zeros(shape, dtype=tensor.dtype, device=tensor.device)

    def batch(self, examples: Mapping[str, Tensor]) -> tuple[int, str | None]:
        """(size of the batch, its name or None if it is not dynamic)."""
        for name, example in examples.items():
            if example.dim():
                return example.shape[0], self.names[name].get(0)
        return 1, None


def _traced(
    explain: Callable[..., list[Tensor]],
    state: Sequence[Tensor],
    examples: Mapping[str, Tensor],
    axes: Mapping[str, Mapping[int, str]],
    decompositions: Mapping[Any, Callable[..., Any]],
) -> tuple[fx.GraphModule, ExportedProgram]:
    """The graph of a function of the state and the inputs, with symbols for dynamic sizes; a program of these sizes."""
    # torch.export makes fake tensors with symbolic sizes. Symbolic tracing uses these, and decomposes ops in Python
    # that would specialize sizes in C++.
    program = torch.export.export(_Echo(), tuple(examples.values()), strict=False, dynamic_shapes=(_shapes(axes),))
    inputs = [node.meta["val"] for node in placeholders_of(program.graph)]
    mode = inputs[0].fake_mode
    tensors = [mode.from_tensor(tensor.detach(), static_shapes=True) for tensor in state]
    with without_fast_path(), mode, fx_traceback.preserve_node_meta():
        return make_fx(explain, dict(decompositions), tracing_mode="symbolic")(tensors, inputs), program


class _Echo(nn.Module):
    def forward(self, *inputs: Tensor) -> list[Tensor]:
        return [x.clone() for x in inputs]


def _shapes(axes: Mapping[str, Mapping[int, str]]) -> tuple[dict[int, Any], ...]:
    """The dynamic axes in the form of torch.export's `dynamic_shapes`; axes of one name have one size."""
    dims = {name: Dim(name) for name in {own for named in axes.values() for own in named.values()}}
    return tuple({axis: dims[own] for axis, own in named.items()} for named in axes.values())


def _exported(
    graph: fx.GraphModule,
    converted: ConvertedModule,
    examples: Mapping[str, Tensor],
    axes: Mapping[str, Mapping[int, str]],
) -> tuple[ExportedProgram, dict[str, Place]]:
    """(exported program with named inputs and parameters, node name -> place)."""
    module = _with_names(graph.graph, converted, list(examples))
    with torch.no_grad():
        free = tuple(dict.fromkeys(named, Dim.AUTO) for named in axes.values())
        program = torch.export.export(module, tuple(examples.values()), strict=False, dynamic_shapes=free)
    return program, {node.name: _origin(node) for node in module.graph.nodes if node.op == "call_function"}


def _origin(node: fx.Node) -> Place:
    """The place of a traced node; for a node of the backward pass, that of the nearest forward node that it uses."""
    seen, queue = set[fx.Node](), [node]
    for current in queue:
        if current.meta.get("stack_trace") and current.meta.get("nn_module_stack"):
            return place_of(current)
        queue += [n for n in current.all_input_nodes if n not in seen]
        seen.update(current.all_input_nodes)
    return place_of(node)


def _with_names(graph: fx.Graph, converted: ConvertedModule, inputs: Sequence[str]) -> fx.GraphModule:
    """The traced graph as a module that owns the parameters and buffers it uses, tied ones once."""
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
        _register(root, name, tensor)  # a constant found by tracing
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
