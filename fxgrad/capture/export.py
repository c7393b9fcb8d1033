"""Stage 1, capture: any PyTorch model becomes one functional graph of ATen ops, separate from its state.

`torch.export` traces the model; high-level ops (linear, layer_norm, scaled_dot_product_attention) stay whole. The graph
is *lifted*: parameters and buffers are placeholders like the inputs. So the graph is a pure function, and the module
that runs it owns, moves and copies the state.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils import _pytree as pytree

from fxgrad.capture.admission import call_of, other_file, refuse_bad_model
from fxgrad.capture.alone import for_one
from fxgrad.capture.captured import Captured, Input, canonical, input_names, input_of, no_attributed_input
from fxgrad.capture.checks import NotSupportedError
from fxgrad.capture.decompose import decomposed
from fxgrad.capture.free import choices, places_of, without
from fxgrad.capture.functional import make_functional
from fxgrad.capture.guards import assert_plainly
from fxgrad.capture.higher_order import close_programs
from fxgrad.capture.layouts import write_by_copies
from fxgrad.capture.objects import explicit_shapes, opened, plainly_called, spared, with_tensors
from fxgrad.capture.pieces import take_apart
from fxgrad.capture.program import Arguments, Program
from fxgrad.capture.quantised import in_parts, refuse_integers, without_gradients
from fxgrad.capture.shapes import sizes_in
from fxgrad.capture.tidy import detach_without_grad, tidy
from fxgrad.capture.tokens import cut_lookups
from fxgrad.capture.trace import OnRandom, trace
from fxgrad.capture.tracing import signature_of
from fxgrad.capture.watch import Watch
from fxgrad.errors import ArtefactError, CaptureError, InputError
from fxgrad.graph.copies import copied, draws
from fxgrad.graph.nodes import placeholders_of
from fxgrad.graph.places import place_of
from fxgrad.pt2.archive import read
from fxgrad.table.loading import RuleTable, load

_LOG = logging.getLogger(__name__)


def capture(
    model: nn.Module | ExportedProgram | str | Path,
    args: tuple[Any, ...] | Tensor = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    through_no_grad: bool = False,
    on_random: OnRandom = "error",
    table: RuleTable | None = None,
    fixed: Mapping[tuple[int, int], str] | None = None,
    eager: bool = False,
) -> Captured:
    """Trace a model into a functional graph of ATen ops. The model itself is left untouched.

    Args:
        model: a module in eval mode, an ExportedProgram, or the path of a .pt2 file that
            `torch.export.save` wrote.
        args, kwargs: example inputs; any shapes and dtypes that the model takes. A tensor in the place of args is
            the only one. An ExportedProgram that has example inputs needs none.
        dynamic_shapes: as for `torch.export.export`; `Dim.AUTO` is free where it can be. By default all sizes are free
            that the model's code leaves free; what it assumes of them becomes checks of the inputs.
        through_no_grad: also attribute parts that the model computes under its own `torch.no_grad()`, such as a
            frozen backbone. By default their results are constants, as for autograd.
        on_random: "error" refuses a model that draws random numbers; "freeze" draws them once, for the example, and
            keeps them as constants, with the sizes of the example.
        table: its rows say which composite ops (those that PyTorch composes of others) are kept whole, and which ops
            hand token ids on. By default all composite ops are kept, and the rows are the shipped ones.
        fixed: (index of an input, axis) not to be left free by default -> the line that needs the example's size.
        eager: tell the model's code that it is not exported, whatever it asks.

    Returns:
        The captured model.

    Raises:
        CaptureError: train mode, TorchScript, quantised activations, example inputs that the model does
            not take, control flow that depends on data, or anything else that torch.export refuses.
        InputError: the example does not fit the model's forward, or its dtype the weights.

    Example:
        >>> captured = capture(nn.Linear(3, 2).eval(), (torch.zeros(4, 3),))
        >>> captured.inputs[0].shape, captured.state
        ((None, 3), ('weight', 'bias'))

    Source: torch.export, https://docs.pytorch.org/docs/stable/export.html
    """
    if isinstance(model, (str, Path)):
        model = program_of(model)
    options = _Options(through_no_grad, on_random, table, eager)
    if isinstance(model, ExportedProgram):
        example = call_of(args, kwargs)
        example = example if any(example) else model.example_inputs
        if example is None:
            raise CaptureError("this ExportedProgram holds no example inputs: pass some as args.")
        return _captured(_functional(model, example, options, fresh=False), example, Watch(), options)
    refuse_bad_model(model)
    signature = signature_of(model)
    example = spared(with_tensors(canonical(signature, args, kwargs), Tensor.detach))
    _refuse_sparse(opened(example))
    return _of_module(model, example, explicit_shapes(signature, dynamic_shapes), fixed or {}, options)


@dataclass(frozen=True)
class _Options:
    """The arguments of `capture` that hold for every attempt."""

    through_no_grad: bool
    on_random: OnRandom
    table: RuleTable | None
    eager: bool

    def whole(self, op: Any) -> bool:
        """Whether a composite op is kept."""
        return self.table is None or self.table.covers(op)


def _of_module(
    model: nn.Module, example: Arguments, shapes: Any, fixed: Mapping[tuple[int, int], str], options: _Options
) -> Captured:
    """A captured module; of one that writes to its inputs, that it works on copies."""
    for on_copies in (False, True):
        own, watch = plainly_called(model, example, on_copies=on_copies), Watch(fixed)
        program, drawn = trace(own, opened(example), shapes, options.on_random, watch, options.eager)
        functional = _functional(program, example, options, fresh=True)
        if not functional.graph_signature.user_inputs_to_mutate:
            break
    captured = _captured(functional, example, watch, options, own, signature_of(model))
    captured = for_one(replace(captured, draws=drawn), own, opened(example))
    try:
        captured.check(pytree.tree_leaves(opened(example)))
    except InputError:  # the model treats a batch of one, which was doubled, in another way
        return _of_module(model, example, without(choices(own, *opened(example))[0], watch.fixed), fixed, options)
    return captured


def _functional(program: ExportedProgram, example: Arguments, options: _Options, fresh: bool) -> ExportedProgram:
    """The program in functional ATen ops; a fresh one is changed in place."""
    if not fresh:
        return decomposed(program, options.whole)
    _LOG.info("making %d nodes functional", len(program.graph.nodes))
    without_gradients(program.state_dict)
    write_by_copies(program.graph)
    assert_plainly(program.graph)
    if not options.through_no_grad:
        detach_without_grad(program.graph)
    # A second trace makes ops of the casts of autocast, and takes tensors of tensor classes apart.
    again = _autocast(program, example) or any(hasattr(t, "__tensor_flatten__") for t in program.state_dict.values())
    if not again and make_functional(program, options.whole):
        return program
    return decomposed(program, options.whole)


def _captured(
    program: ExportedProgram,
    example: Arguments,
    watch: Watch,
    options: _Options,
    own: nn.Module | None = None,
    signature: inspect.Signature | None = None,
) -> Captured:
    """What is captured of a functional program, with what is known of its inputs' sizes."""
    captured = captured_from(program, signature, example, options.table or load(), options.through_no_grad, own)
    _refuse_draws(captured.graph, options.on_random)
    try:
        return replace(sizes_in(program, watch).of(captured), autocast=_autocast(program, example))
    except NotSupportedError as error:
        said = f"a branch of the model depends on sizes in a way that cannot be checked: {error}"
        raise CaptureError(said) from error


def _autocast(program: ExportedProgram, example: Arguments) -> tuple[str, ...]:
    """The types of the tensors' devices whose autocast is on."""
    leaves = [*program.state_dict.values(), *program.constants.values(), *pytree.tree_leaves(example)]
    devices = sorted({leaf.device.type for leaf in leaves if isinstance(leaf, Tensor)})
    return tuple(d for d in devices if torch.amp.is_autocast_available(d) and torch.is_autocast_enabled(d))


def _refuse_sparse(example: Any) -> None:
    """Raise `CaptureError` if an example input is no dense tensor."""
    for leaf in pytree.tree_leaves(example):
        if isinstance(leaf, Tensor) and leaf.layout is not torch.strided:
            raise CaptureError(
                f"an example input of shape {tuple(leaf.shape)} is sparse ({leaf.layout}), and no rule says how a "
                "gradient passes there. Convert the model with its dense form, value.to_dense()."
            )


def _refuse_draws(graph: fx.Graph, on_random: OnRandom) -> None:
    """Raise `CaptureError` if random numbers reach an output."""
    reached = {graph.output_node()}
    for node in reversed(graph.nodes):
        if node in reached:
            reached.update(node.all_input_nodes)
    drawn = [node for node in graph.nodes if node in reached and draws(node)]
    if drawn:
        way = 'Pass on_random="freeze" to convert, which draws them once and keeps them, or m'
        way = "These cannot be drawn ahead: m" if on_random == "freeze" else way
        raise CaptureError(
            f"the model draws random numbers, so that it gives another answer each time ({len(drawn)} draws; first "
            f"{drawn[0].target} at {place_of(drawn[0])}). {way}ake the model deterministic in eval mode."
        )


def program_of(path: str | Path) -> ExportedProgram:
    """The program of a .pt2 file that `torch.export.save` wrote, read without running anything in it.

    Raises:
        CaptureError: the file is something else.
    """
    try:
        return read(path).program()
    except ArtefactError as error:
        if known := other_file(path):
            raise CaptureError(f"{path} is {known}") from error
        raise CaptureError(f"{path} is not a program that torch.export.save wrote: {error}") from error


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
            "function of its inputs. Disable caches and running statistics; of an input, write to a clone."
        )
    graph = copied(program.graph)
    close_programs(graph, program.graph_module)
    placeholders = {node.name: node for node in placeholders_of(graph)}
    tidy(graph)
    names = input_names(signature, opened(example))
    state, inputs = _placeholders(program, placeholders, names)
    ids = [p for p, i in zip(placeholders_of(graph)[len(state) :], inputs) if i.dtype is not None and not i.attributed]
    lookup, found = cut_lookups(graph, ids, table)
    unsettled = take_apart(graph, table)
    embedded = [input_of(name, placeholder, None) for name, placeholder in found]
    if not any(i.attributed for i in [*inputs, *embedded]):
        raise CaptureError(no_attributed_input(inputs))
    if table.on_unknown == "error":
        attributed = zip(placeholders_of(graph)[len(state) :], [*inputs, *embedded])
        refuse_integers(graph, [node for node, entry in attributed if entry.attributed])
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
        unsettled=places_of(placeholders_of(graph)[len(state) :][: len(inputs)], unsettled),
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
        parameters = in_parts(model.named_parameters(remove_duplicate=False), program.state_dict)
        buffers |= in_parts(model.named_buffers(remove_duplicate=False), program.state_dict)
    buffers = constants | buffers
    return parameters, buffers, frozenset(set(buffers) - persistent)
