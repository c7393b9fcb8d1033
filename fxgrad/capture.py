"""Stage 1, capture: any PyTorch model becomes one functional graph of ATen ops, with its state apart.

`torch.export` traces the model; high-level ops (linear, layer_norm, scaled_dot_product_attention)
stay whole. The graph is *lifted*: parameters and buffers are placeholders like the inputs, so
that the graph is a pure function and the state can be owned, moved and copied by whoever runs it.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx.experimental.symbolic_shapes import is_concrete_int
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from fxgrad.archive import read
from fxgrad.errors import ArtefactError, CaptureError, InputError, first_line, one_line
from fxgrad.lookup import cut_lookups, differentiable, placeholders_of
from fxgrad.places import raised_at
from fxgrad.program import Arguments, Program
from fxgrad.tidy import copied, detach_without_grad, moved, tidy


@dataclass(frozen=True)
class Input:
    """One leaf of the model's inputs, in flattened order; or the output of an embedding, where token ids go in.

    Attributes:
        name: as in the model's signature; an embedding's is its module path.
        shape: sizes, None where dynamic; None for an input that is not a tensor.
        dtype: of the example; None for an input that is not a tensor.
        constant: the value that was captured, for an input that is not a tensor.
    """

    name: str
    shape: tuple[int | None, ...] | None
    dtype: torch.dtype | None
    constant: Any = None

    @property
    def attributed(self) -> bool:
        """Whether it gets an attribution: tensors of floating dtype do."""
        return self.dtype is not None and self.dtype.is_floating_point

    def check(self, value: Any) -> None:
        """Raise `InputError` if `value` cannot stand for this input."""
        if self.dtype is None or self.shape is None:
            if not isinstance(value, Tensor) and value == self.constant:
                return
            raise InputError(
                f"input {self.name!r} was captured as the constant {self.constant!r} and cannot become "
                f"{value!r}. Convert the model again with that value among the example inputs."
            )
        wanted = ", ".join("any" if size is None else str(size) for size in self.shape)
        if not isinstance(value, Tensor):
            raise InputError(f"input {self.name!r} must be a tensor of shape ({wanted}), not {type(value).__name__}.")
        fits = len(value.shape) == len(self.shape) and all(
            want is None or size == want for size, want in zip(value.shape, self.shape)
        )
        if not fits:
            raise InputError(
                f"input {self.name!r} has shape {tuple(value.shape)}, but the model was captured for ({wanted}). "
                "Convert it again with an example of that shape, or pass dynamic_shapes to fxgrad.convert."
            )
        if value.is_floating_point() != self.dtype.is_floating_point:
            raise InputError(f"input {self.name!r} is {value.dtype}, but the model was captured for {self.dtype}.")


@dataclass(frozen=True)
class Captured:
    """A model as a pure function of its state and its inputs.

    Attributes:
        graph: functional ATen graph; placeholders are the state, the inputs, the embedded tokens.
        state: for every leading placeholder, the path of its tensor in the model.
        parameters: all parameters of the model by path, used or not.
        buffers: all buffers by path, and tensor constants.
        transient: paths of buffers that the model's state_dict leaves out.
        inputs: the flattened inputs.
        embedded: the outputs of the embeddings that integer inputs (token ids) are looked up in: attributed in
            their stead.
        lookup: graph from the state and the inputs to the embedded tokens; None where there are none.
        in_spec, out_spec: structure of (args, kwargs) and of the outputs.
        signature: of the model's forward, or None where the model was an ExportedProgram.
        example: the example inputs.
        program: what was captured, before it was tidied and cut.
        through_no_grad: whether what the model computes under its own `torch.no_grad()` is part of it.
    """

    graph: fx.Graph
    state: tuple[str, ...]
    parameters: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]
    transient: frozenset[str]
    inputs: tuple[Input, ...]
    embedded: tuple[Input, ...]
    lookup: fx.Graph | None
    in_spec: pytree.TreeSpec
    out_spec: pytree.TreeSpec
    signature: inspect.Signature | None
    example: Arguments = field(repr=False)
    program: Program = field(repr=False)
    through_no_grad: bool

    @property
    def entries(self) -> tuple[Input, ...]:
        """What the graph takes after the state: the inputs, then the embedded tokens."""
        return self.inputs + self.embedded

    @property
    def persistent(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The tensors that belong into a state_dict, and those that do not."""
        kept = {k: v for k, v in self.buffers.items() if k not in self.transient}
        return {**self.parameters, **kept}, {k: v for k, v in self.buffers.items() if k in self.transient}

    def with_tensors(self, parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor]) -> Captured:
        """The same, with these parameters and buffers."""
        return replace(self, parameters=parameters, buffers=buffers)

    def moved(self, devices: Mapping[torch.device, torch.device]) -> Captured:
        """The same, with other devices for what the model makes itself; the tensors stay where they are."""
        lookup = None if self.lookup is None else moved(self.lookup, devices)
        return replace(self, graph=moved(self.graph, devices), lookup=lookup)

    def flatten(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
        """The inputs as a flat list, checked against the captured ones.

        Raises:
            InputError: another structure, shape or dtype than the model was captured for.
        """
        call = _canonical(self.signature, args, kwargs)
        leaves, spec = pytree.tree_flatten(call)
        if spec != self.in_spec:
            captured = ", ".join(i.name for i in self.inputs)
            given = ", ".join(_input_names(self.signature, call))
            raise InputError(
                f"the model was captured with the inputs ({captured}), these are ({given}). "
                "Convert it again with an example like them."
            )
        for declared, value in zip(self.inputs, leaves):
            declared.check(value)
        return leaves


def capture(
    model: nn.Module | ExportedProgram | str | Path,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    through_no_grad: bool = False,
    whole: Callable[[Any], bool] | None = None,
) -> Captured:
    """Trace a model into a functional graph of ATen ops. The model itself is left untouched.

    Args:
        model: a module in eval mode, an ExportedProgram, or the path of a .pt2 file that
            `torch.export.save` wrote.
        args, kwargs: example inputs; any shapes and dtypes that the model takes. An ExportedProgram
            that has example inputs needs none.
        dynamic_shapes: as for `torch.export.export`. By default the first axis of every tensor is
            dynamic wherever the model's code allows it.
        through_no_grad: take what the model computes under its own `torch.no_grad()`, such as a frozen backbone,
            for a part like any other, and not for a constant, which it is to autograd.
        whole: says of an `OpOverload` that PyTorch itself composes of others whether to keep it whole; the
            rest become what they are composed of. By default all are kept.

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
        example = pytree.tree_map(_detach, _canonical(signature, args, kwargs or {}))
        own, program = model, _export(model, example, dynamic_shapes)
        if not through_no_grad:
            detach_without_grad(program.graph)
    functional = _decomposed(program, whole or (lambda op: True))
    return captured_from(functional, signature, example, through_no_grad, own)


def _decomposed(program: ExportedProgram, whole: Callable[[Any], bool]) -> ExportedProgram:
    """The program in functional ATen ops, without the composite ones that are not to be kept whole."""
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
                    )  # a piece has a side effect, as a factorization's check
    except Exception as error:
        raise CaptureError(f"torch.export cannot decompose the program: {one_line(error)}") from error


def _composite(node: fx.Node) -> bool:
    """Whether PyTorch makes a differentiable op of other ops, so that it has their gradient."""
    return (
        isinstance(node.target, torch._ops.OpOverload)
        and differentiable(node)
        and node.target.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd)
    )


def _composite_kernel(op: Any) -> Callable[..., Any]:
    """What eager PyTorch runs for a composite op. Hence the same bits; Python decompositions do not promise them."""
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


def _canonical(signature: inspect.Signature | None, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Arguments:
    """The same call, always spelled alike: positional wherever the signature allows it."""
    if signature is None:
        return tuple(args), dict(kwargs)
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise InputError(f"the model's forward{signature} does not take these inputs: {error}.") from error
    return bound.args, bound.kwargs


def _export(model: nn.Module, example: Arguments, dynamic_shapes: Any) -> ExportedProgram:
    args, kwargs = example
    if dynamic_shapes is None:
        args, kwargs = _spread_batch(args, kwargs)
        # One entry per parameter of forward, *args and **kwargs included, is what torch.export wants.
        bound = inspect.signature(model.forward).bind(*args, **kwargs)
        dynamic_shapes = pytree.tree_map(_auto, bound.arguments)
    try:
        # With gradients, so that the parts that the model itself runs without are seen.
        with _export_settings(), _LastStates(), torch.enable_grad():
            return torch.export.export(model, args, kwargs, strict=False, dynamic_shapes=dynamic_shapes)
    except Exception as error:
        raise CaptureError(_diagnose(model, example, error)) from error


def _detach(leaf: Any) -> Any:
    return leaf.detach() if isinstance(leaf, Tensor) else leaf


def _auto(leaf: Any) -> Any:
    return {0: torch.export.Dim.AUTO} if isinstance(leaf, Tensor) and leaf.dim() else None


def _spread_batch(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
    """A batch of one, doubled: torch.export takes a size of 1 for a constant."""
    leaves = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.dim()]
    if any(leaf.shape[0] != 1 for leaf in leaves):
        return args, kwargs

    def double(leaf: Any) -> Any:
        return torch.cat([leaf, leaf]) if isinstance(leaf, Tensor) and leaf.dim() else leaf

    args, kwargs = pytree.tree_map(double, (args, kwargs))
    return args, kwargs


@contextlib.contextmanager
def without_fast_path() -> Iterator[None]:
    """Without MultiheadAttention's fast path, a fused inference kernel that no rule can look into.

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
    """Without the fast path, and without what the tracer says beside.

    That is the tracebacks that it logs ahead of an exception (the error tells it all), and its warning that
    an RNN's cached list of weights is rebuilt.
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
    """Gives an LSTM's last states the shape of its first ones; PyTorch 2.11 traces them with an axis too many."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is not torch.lstm or len(args) < 2 or not isinstance(args[1], (list, tuple)):  # or a packed sequence
            return result
        output, *last = result
        return output, *(s if s.dim() == s0.dim() else s.reshape(s0.shape) for s, s0 in zip(last, args[1]))


def _diagnose(model: nn.Module, example: Arguments, error: Exception) -> str:
    """Say whose fault a failed export is: the example's, the model's control flow, or neither."""
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
    through_no_grad: bool = False,
    model: nn.Module | None = None,
) -> Captured:
    """Tidy a functional program, take its tensors apart, and cut it behind the embeddings of token ids.

    Args:
        program: in functional ATen ops; it stays as it is.
        signature: of the model's forward, or None where nobody knows it.
        example: the example inputs.
        through_no_grad: as for `capture`.
        model: whose parameters and buffers are meant, in its order; by default the program's.

    Raises:
        CaptureError: the program writes to its state, or has no input that could be attributed.

    Example:
        >>> program = torch.export.export(nn.ReLU(), (torch.zeros(4, 3),)).run_decompositions({})
        >>> captured_from(program, None, program.example_inputs).inputs[0].name
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
    state: list[str] = []
    inputs: list[Input] = []
    names = _input_names(signature, example)
    for spec in program.graph_signature.input_specs:
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
            state.append(str(spec.target))
        elif spec.kind is InputKind.USER_INPUT:
            inputs.append(_input(names[len(inputs)], placeholders[spec.arg.name], spec.arg))
        else:
            raise CaptureError(f"{spec.arg.name} is an input of kind {spec.kind.name}, which fxgrad cannot capture.")
    ids = [p for p, i in zip(placeholders_of(graph)[len(state) :], inputs) if i.dtype is not None and not i.attributed]
    lookup, found = cut_lookups(graph, ids)
    embedded = [_input(name, placeholder, None) for name, placeholder in found]
    if not any(i.attributed for i in [*inputs, *embedded]):
        raise CaptureError(
            f"no input is a floating-point tensor, nor token ids that an embedding looks up ({', '.join(names)}), so "
            "there is nothing to attribute to. Convert the part of the model that follows such an input."
        )
    parameters = {k: v for k, v in program.state_dict.items() if isinstance(v, nn.Parameter)}
    buffers = {k: v for k, v in program.state_dict.items() if k not in parameters}
    constants = {k: v for k, v in program.constants.items() if isinstance(v, Tensor)}
    if model is not None:
        parameters = dict(model.named_parameters(remove_duplicate=False))
        buffers |= dict(model.named_buffers(remove_duplicate=False))
    persistent = set(program.state_dict if model is None else model.state_dict())
    buffers = constants | buffers
    return Captured(
        graph,
        tuple(state),
        parameters,
        buffers,
        frozenset(set(buffers) - persistent),
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


def _input_names(signature: inspect.Signature | None, example: Arguments) -> list[str]:
    """A readable name for every input leaf: the parameter's, with the path inside it."""
    args, kwargs = example
    parameters = list(signature.parameters) if signature else []
    roots = [parameters[i] if i < len(parameters) else f"args[{i}]" for i in range(len(args))] + list(kwargs)
    return [
        root + pytree.keystr(path)
        for root, value in zip(roots, [*args, *kwargs.values()])
        for path, _ in pytree.tree_flatten_with_path(value)[0]
    ]


def _input(name: str, placeholder: fx.Node, argument: Any) -> Input:
    value = placeholder.meta.get("val")
    if isinstance(value, Tensor):
        # A size that tracing found to be one number, whatever was asked for, is a constant.
        return Input(name, tuple(int(s) if is_concrete_int(s) else None for s in value.shape), value.dtype)
    return Input(name, None, None, getattr(argument, "value", value))
