"""Stage 1, capture: any PyTorch model becomes one functional graph of ATen ops, separate from its state.

`torch.export` traces the model; high-level ops (linear, layer_norm, scaled_dot_product_attention) stay whole. The graph
is *lifted*: parameters and buffers are placeholders like the inputs. So the graph is a pure function, and the module
that runs it owns, moves and copies the state.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from fxgrad.capture.captured import Captured, Input, canonical, input_names, input_of
from fxgrad.capture.guards import without_guards
from fxgrad.capture.program import Arguments, Program
from fxgrad.capture.tidy import detach_without_grad, tidy
from fxgrad.capture.tokens import cut_lookups
from fxgrad.errors import ArtefactError, CaptureError, first_line, one_line
from fxgrad.graph.copies import copied
from fxgrad.graph.nodes import differentiable, placeholders_of
from fxgrad.graph.places import raised_at
from fxgrad.pt2.archive import read
from fxgrad.table.loading import RuleTable, load


def capture(
    model: nn.Module | ExportedProgram | str | Path,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    through_no_grad: bool = False,
    table: RuleTable | None = None,
) -> Captured:
    """Trace a model into a functional graph of ATen ops. The model itself is left untouched.

    Args:
        model: a module in eval mode, an ExportedProgram, or the path of a .pt2 file that
            `torch.export.save` wrote.
        args, kwargs: example inputs; any shapes and dtypes that the model takes. An ExportedProgram
            that has example inputs needs none.
        dynamic_shapes: as for `torch.export.export`. By default the first axis of every tensor is
            dynamic wherever the model's code allows it.
        through_no_grad: also attribute parts that the model computes under its own `torch.no_grad()`, such as a
            frozen backbone. By default their results are constants, as for autograd.
        table: its rows say which composite ops (those that PyTorch composes of others) are kept whole, and which ops
            hand token ids on. By default all composite ops are kept, and the rows are the shipped ones.

    Returns:
        The captured model.

    Raises:
        CaptureError: train mode, integer or quantised weights, example inputs that the model does
            not take, control flow that depends on data, or anything else that torch.export refuses.

    Example:
        >>> captured = capture(nn.Linear(3, 2).eval(), (torch.zeros(4, 3),))
        >>> captured.inputs[0].shape, captured.state
        ((None, 3), ('weight', 'bias'))

    Source: torch.export, https://docs.pytorch.org/docs/stable/export.html
    """
    if isinstance(model, (str, Path)):
        model = _load(model)
    own: nn.Module | None = None
    if isinstance(model, ExportedProgram):
        signature = None
        example = (args, dict(kwargs or {})) if args or kwargs else model.example_inputs
        if example is None:
            raise CaptureError("this ExportedProgram holds no example inputs: pass some as args.")
        program = model
    else:
        _refuse_bad_state(model)
        signature = inspect.signature(model.forward)
        example = pytree.tree_map(_detach, canonical(signature, args, kwargs or {}))
        own, program = model, without_guards(_export(model, example, dynamic_shapes))
        if not through_no_grad:
            detach_without_grad(program.graph)
    functional = _decomposed(program, table.covers if table else lambda op: True)
    return captured_from(functional, signature, example, table or load(), through_no_grad, own)


def _decomposed(program: ExportedProgram, whole: Callable[[Any], bool]) -> ExportedProgram:
    """The program in functional ATen ops; composite ops are decomposed unless `whole` keeps them."""
    pieces: dict[Any, Callable[..., Any]] = {}
    functional: ExportedProgram | None = None
    try:
        with _export_settings(), torch.no_grad():
            while True:
                found = {n.target for n in (functional or program).graph.nodes if _composite(n) and not whole(n.target)}
                if functional and found <= set(pieces):
                    return functional
                pieces |= {op: _composite_kernel(op) for op in found}
                functional = cast(ExportedProgram, (functional or program).run_decompositions(pieces))
                if any(spec.kind is OutputKind.TOKEN for spec in functional.graph_signature.output_specs):
                    return cast(
                        ExportedProgram, program.run_decompositions({})
                    )  # a component has a side effect, such as a factorization's check
    except Exception as error:
        raise CaptureError(f"torch.export cannot decompose the program: {one_line(error)}") from error


def _composite(node: fx.Node) -> bool:
    """Whether the node's op is differentiable and composed of other ops, so that it has their gradient."""
    return (
        isinstance(node.target, torch._ops.OpOverload)
        and differentiable(node)
        and node.target.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd)
    )


def _composite_kernel(op: Any) -> Callable[..., Any]:
    """The kernel that eager PyTorch runs for a composite op; Python decompositions do not promise the same bits."""
    return functools.partial(op._op_dk, torch._C.DispatchKey.CompositeImplicitAutograd)


def _load(path: str | Path) -> ExportedProgram:
    try:
        return read(path).program()
    except ArtefactError as error:
        raise CaptureError(f"{path} is not a program that torch.export.save wrote: {error}") from error


def _refuse_bad_state(model: nn.Module) -> None:
    training = [path or "the model itself" for path, module in model.named_modules() if module.training]
    if training:
        raise CaptureError(
            f"the model is in train mode ({training[0]}; modules in all: {len(training)}), where dropout and batch "
            "statistics make attributions meaningless. Call model.eval() first."
        )
    for path, module in model.named_modules():
        if ".quantized" in type(module).__module__:
            what = f"{path or 'the model'} is a quantised {type(module).__name__}"
            raise CaptureError(f"{what}, and quantised weights have no gradient. Convert the float model.")
    for path, parameter in model.named_parameters():
        if not parameter.is_floating_point() or parameter.is_quantized:
            raise CaptureError(
                f"parameter {path} has dtype {parameter.dtype}: integer and quantised weights have no gradient. "
                "Convert the float model."
            )


def _export(model: nn.Module, example: Arguments, dynamic_shapes: Any) -> ExportedProgram:
    args, kwargs = example
    if dynamic_shapes is None:
        args, kwargs = _spread_batch(args, kwargs)
        # torch.export wants one item per parameter of forward, *args and **kwargs included.
        bound = inspect.signature(model.forward).bind(*args, **kwargs)
        dynamic_shapes = pytree.tree_map(_auto, bound.arguments)
    try:
        # With gradients enabled, so that the parts under the model's own no_grad show.
        with _export_settings(), _LastStates(), torch.enable_grad():
            return torch.export.export(model, args, kwargs, strict=False, dynamic_shapes=dynamic_shapes)
    except Exception as error:
        raise CaptureError(_diagnose(model, example, error)) from error


def _detach(leaf: Any) -> Any:
    return leaf.detach() if isinstance(leaf, Tensor) else leaf


def _auto(leaf: Any) -> Any:
    return {0: torch.export.Dim.AUTO} if isinstance(leaf, Tensor) and leaf.dim() else None


def _spread_batch(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
    """The arguments with a batch of one doubled, since torch.export specializes a size of 1."""
    leaves = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.dim()]
    if any(leaf.shape[0] != 1 for leaf in leaves):
        return args, kwargs

    def double(leaf: Any) -> Any:
        return torch.cat([leaf, leaf]) if isinstance(leaf, Tensor) and leaf.dim() else leaf

    args, kwargs = pytree.tree_map(double, (args, kwargs))
    return args, kwargs


@contextlib.contextmanager
def without_fast_path() -> Iterator[None]:
    """Disable MultiheadAttention's fast path, a fused inference kernel that no rule covers.

    Example:
        >>> with without_fast_path():
        ...     torch.backends.mha.get_fastpath_enabled()
        False
    """
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)


@contextlib.contextmanager
def _export_settings() -> Iterator[None]:
    """Disable the fast path, and silence the tracer.

    It logs tracebacks before it raises (the error says the same), and warns that an RNN's cached list of weights is
    rebuilt.
    """
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    disabled, logger.disabled = logger.disabled, True
    try:
        with without_fast_path(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The tensor attributes? .* assigned during export")
            yield
    finally:
        logger.disabled = disabled


class _LastStates(TorchFunctionMode):
    """Give an LSTM's last states the shape of its first ones; PyTorch 2.11 traces them with one axis too many."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is not torch.lstm or len(args) < 2 or not isinstance(args[1], (list, tuple)):  # or a packed sequence
            return result
        output, *last = result
        return output, *(s if s.dim() == s0.dim() else s.reshape(s0.shape) for s, s0 in zip(last, args[1]))


def _diagnose(model: nn.Module, example: Arguments, error: Exception) -> str:
    """A message about why the export failed: the example inputs, the model's control flow, or something else."""
    args, kwargs = example
    try:
        with torch.no_grad():
            model(*args, **kwargs)
    except Exception as own:
        shapes = ", ".join(
            str(tuple(leaf.shape)) if isinstance(leaf, Tensor) else type(leaf).__name__
            for leaf in pytree.tree_leaves(example)
        )
        return f"the model itself fails on the example inputs ({shapes}): {one_line(own)}"
    line = raised_at(error)
    where = f" at {line}" if line else ""
    if "data-dependent" in str(error).lower() or "DataDependent" in type(error).__name__:
        return (
            f"control flow depends on the data{where}, so the model is not one graph. Replace the branch by "
            f"torch.where, or move it out of forward. torch.export says: {first_line(error)}"
        )
    return f"torch.export cannot trace the model{where}: {one_line(error)}"


def captured_from(
    program: ExportedProgram,
    signature: inspect.Signature | None,
    example: Arguments,
    table: RuleTable,
    through_no_grad: bool = False,
    model: nn.Module | None = None,
) -> Captured:
    """Tidy a functional program, separate its tensors, and cut it after the embeddings of token ids.

    Args:
        program: in functional ATen ops; not changed.
        signature: the signature of the model's forward, or None if unknown.
        example: the example inputs.
        table: its rows say which ops hand token ids on.
        through_no_grad: as for `capture`.
        model: the module whose parameters and buffers to take, in its order; by default the program's.

    Raises:
        CaptureError: the program writes to its state, or has no input that could be attributed.

    Example:
        >>> program = torch.export.export(nn.ReLU(), (torch.zeros(4, 3),)).run_decompositions({})
        >>> captured_from(program, None, program.example_inputs, load()).inputs[0].name
        'args[0]'
    """
    mutated = [spec.target for spec in program.graph_signature.output_specs if spec.kind != OutputKind.USER_OUTPUT]
    if mutated:
        raise CaptureError(
            f"the model writes to its own state or inputs while it runs ({', '.join(map(str, mutated))}): it is not a "
            "function of its inputs. Disable caches and running statistics."
        )
    graph = copied(program.graph)
    placeholders = {node.name: node for node in placeholders_of(graph)}
    tidy(graph)
    names = input_names(signature, example)
    state, inputs = _placeholders(program, placeholders, names)
    ids = [p for p, i in zip(placeholders_of(graph)[len(state) :], inputs) if i.dtype is not None and not i.attributed]
    lookup, found = cut_lookups(graph, ids, table)
    embedded = [input_of(name, placeholder, None) for name, placeholder in found]
    if not any(i.attributed for i in [*inputs, *embedded]):
        raise CaptureError(
            f"no input is a floating-point tensor, nor token ids that an embedding looks up ({', '.join(names)}), so "
            "there is nothing to attribute to. Convert the part of the model that follows such an input."
        )
    parameters, buffers, transient = _tensors(program, model)
    return Captured(
        graph,
        tuple(state),
        parameters,
        buffers,
        transient,
        tuple(inputs),
        tuple(embedded),
        lookup,
        program.call_spec.in_spec,
        program.call_spec.out_spec,
        signature,
        example,
        Program(program.graph, program.graph_signature, program.range_constraints, program.module_call_graph),
        through_no_grad,
    )


def _placeholders(
    program: ExportedProgram, placeholders: Mapping[str, fx.Node], names: Sequence[str]
) -> tuple[list[str], list[Input]]:
    """(paths of the state's tensors, inputs with these names), from the program's placeholders."""
    state: list[str] = []
    inputs: list[Input] = []
    for spec in program.graph_signature.input_specs:
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
            state.append(str(spec.target))
        elif spec.kind is InputKind.USER_INPUT:
            inputs.append(input_of(names[len(inputs)], placeholders[spec.arg.name], spec.arg))
        else:
            raise CaptureError(f"{spec.arg.name} is an input of kind {spec.kind.name}, which fxgrad cannot capture.")
    return state, inputs


def _tensors(
    program: ExportedProgram, model: nn.Module | None
) -> tuple[dict[str, nn.Parameter], dict[str, Tensor], frozenset[str]]:
    """(parameters, buffers and tensor constants, paths of those that a state_dict leaves out)."""
    parameters = {k: v for k, v in program.state_dict.items() if isinstance(v, nn.Parameter)}
    buffers = {k: v for k, v in program.state_dict.items() if k not in parameters}
    constants = {k: v for k, v in program.constants.items() if isinstance(v, Tensor)}
    persistent = set(program.state_dict)
    if model is not None:
        parameters = dict(model.named_parameters(remove_duplicate=False))
        buffers |= dict(model.named_buffers(remove_duplicate=False))
        persistent = set(model.state_dict())
    buffers = constants | buffers
    return parameters, buffers, frozenset(set(buffers) - persistent)
