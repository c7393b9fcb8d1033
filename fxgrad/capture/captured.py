"""A model as a pure function of its state and its inputs: what capture returns."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.symbolic_shapes import is_concrete_int
from torch.utils import _pytree as pytree

from fxgrad.capture.admission import call_of
from fxgrad.capture.checks import Check
from fxgrad.capture.decisions import Reading
from fxgrad.capture.objects import opened
from fxgrad.capture.program import Arguments, Program
from fxgrad.errors import InputError
from fxgrad.graph.copies import moved
from fxgrad.graph.nodes import placeholders_of


@dataclass(frozen=True)
class Input:
    """One leaf of the model's inputs, in flattened order; or the output of an embedding of token ids.

    Attributes:
        name: as in the model's signature; for an embedding, its module path.
        shape: sizes, None where dynamic; None for an input that is not a tensor.
        dtype: the example's dtype; None for an input that is not a tensor.
        constant: the captured value of an input that is not a tensor.
        fixed: axis that could not be left free -> what fixed it: a line of the model's code, or "" if unknown.
    """

    name: str
    shape: tuple[int | None, ...] | None
    dtype: torch.dtype | None
    constant: Any = None
    fixed: Mapping[int, str] = field(default_factory=dict)

    @property
    def attributed(self) -> bool:
        """Whether it gets an attribution: true for tensors of floating dtype."""
        return self.dtype is not None and self.dtype.is_floating_point

    @property
    def sizes(self) -> str:
        """The shape as text, with "any" for a free size."""
        return ", ".join("any" if size is None else str(size) for size in self.shape or ())

    def check(self, value: Any) -> None:
        """Raise `InputError` if `value` cannot stand for this input."""
        if self.dtype is None or self.shape is None:
            if not isinstance(value, Tensor) and value == self.constant:
                return
            raise InputError(
                f"input {self.name!r} was captured as the constant {self.constant!r} and cannot become "
                f"{value!r}. Convert the model again with that value among the example inputs."
            )
        wanted = self.sizes
        if not isinstance(value, Tensor):
            raise InputError(f"input {self.name!r} must be a tensor of shape ({wanted}), not {type(value).__name__}.")
        fits = len(value.shape) == len(self.shape) and all(
            want is None or size == want for size, want in zip(value.shape, self.shape)
        )
        if not fits:
            raise InputError(self._other_shape(tuple(value.shape), wanted))
        if value.layout is not torch.strided:
            raise InputError(f"input {self.name!r} is {value.layout}; rules hold for dense tensors. Pass .to_dense().")
        if value.is_floating_point() != self.dtype.is_floating_point:
            raise InputError(f"input {self.name!r} is {value.dtype}, but the model was captured for {self.dtype}.")

    def why_fixed(self, axis: int) -> str:
        """A sentence that says what fixed an axis that could not be left free."""
        return f"Axis {axis} is fixed at {(self.shape or ())[axis]} by {self.fixed[axis] or 'torch.export'}."

    def _other_shape(self, shape: tuple[int, ...], wanted: str) -> str:
        what = f"input {self.name!r} has shape {shape}, but the model was captured for ({wanted})."
        own = self.shape or ()
        differ = [axis for axis, (size, want) in enumerate(zip(shape, own)) if want is not None and size != want]
        known = len(shape) == len(own) and all(axis in self.fixed for axis in differ)
        why = [self.why_fixed(axis) for axis in differ] if known else []
        also = "" if known else ", or pass dynamic_shapes to fxgrad.convert"
        return " ".join([what, *why, f"Convert it again with an example of that shape{also}, if the model takes it."])


@dataclass(frozen=True)
class Captured:
    """A model as a pure function of its state and its inputs.

    Attributes:
        graph: functional ATen graph; placeholders are the state, the inputs, the embedded tokens.
        state: for every leading placeholder, the path of its tensor in the model.
        parameters: path -> parameter, for all of the model's parameters, used or not.
        buffers: path -> tensor, for all buffers and tensor constants.
        transient: paths of buffers that the model's state_dict leaves out.
        inputs: the flattened inputs.
        embedded: the outputs of the embeddings of token ids, which are attributed instead of the ids.
        lookup: graph from the state and the inputs to the embedded tokens; None where there are none.
        in_spec, out_spec: structure of (args, kwargs) and of the outputs.
        signature: the signature of the model's forward; None for an ExportedProgram.
        example: the example inputs.
        program: the captured program before it was tidied and cut.
        through_no_grad: whether parts under the model's own `torch.no_grad()` are attributed.
        draws: the random numbers that were drawn once, which the graph has as constants; lost where it is saved.
        checks: what must hold of the inputs' free sizes.
        unsettled: (index of an input, axis) of a free size -> a line that cuts a joined tensor, where this size would
            tell which of the parts is cut out.
        autocast: types of devices whose autocast was on around the model: its casts are in the graph.
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
    draws: tuple[Reading, ...] = field(default=(), repr=False)
    checks: tuple[Check, ...] = ()
    unsettled: Mapping[tuple[int, int], str] = field(default_factory=dict)
    autocast: tuple[str, ...] = ()

    @property
    def entries(self) -> tuple[Input, ...]:
        """The graph's inputs after the state: the model's inputs, then the embedded tokens."""
        return self.inputs + self.embedded

    @property
    def entry_names(self) -> list[str]:
        """The entries' names, each once: token ids may have the same as the embedding that looks them up."""
        attributed = {entry.name for entry in self.entries if entry.attributed}
        return [f"{e.name} (ids)" if e.name in attributed and not e.attributed else e.name for e in self.entries]

    @property
    def entry_nodes(self) -> list[fx.Node]:
        """The placeholders of the entries, in order."""
        return placeholders_of(self.graph)[len(self.state) :]

    def once_cast(self) -> AbstractContextManager[Any]:
        """Within this, the graph runs with the casts that it has: autocast would cast again what stays as it is."""
        stack = ExitStack()
        for device in self.autocast:
            stack.enter_context(torch.autocast(device, enabled=False))
        return stack

    @property
    def output_names(self) -> list[str]:
        """The names of the flattened outputs, such as `output['logits']`; "the output" of a model with only one."""
        count = self.out_spec.num_leaves
        paths = pytree.tree_flatten_with_path(pytree.tree_unflatten(list(range(count)), self.out_spec))[0]
        return [f"output{pytree.keystr(path)}" if count > 1 else "the output" for path, _ in paths]

    @property
    def persistent(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """(tensors of the state_dict, other tensors), both path -> tensor."""
        kept = {k: v for k, v in self.buffers.items() if k not in self.transient}
        return {**self.parameters, **kept}, {k: v for k, v in self.buffers.items() if k in self.transient}

    def with_tensors(self, parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor]) -> Captured:
        """A copy with these parameters and buffers."""
        return replace(self, parameters=parameters, buffers=buffers)

    def moved(self, devices: Mapping[torch.device, torch.device]) -> Captured:
        """A copy whose graph creates tensors on other devices; parameters and buffers stay where they are."""
        lookup = None if self.lookup is None else moved(self.lookup, devices)
        return replace(self, graph=moved(self.graph, devices), lookup=lookup)

    def flatten(self, args: tuple[Any, ...] | Tensor, kwargs: Mapping[str, Any] | None) -> list[Any]:
        """The inputs as a flat list, checked against the captured ones.

        Raises:
            InputError: structure, shapes or dtypes differ from the captured ones.
        """
        call = canonical(self.signature, args, kwargs)
        leaves, spec = pytree.tree_flatten(call)
        if spec != self.in_spec:
            call = opened(call)
            leaves, spec = pytree.tree_flatten(call)
        if spec != self.in_spec:
            captured = _few([i.name for i in self.inputs])
            given = _few(input_names(self.signature, call))
            raise InputError(
                f"the model was captured with the inputs ({captured}), these are ({given}). "
                "Convert it again with an example like them."
            )
        self.check(leaves)
        return leaves

    def check(self, leaves: list[Any]) -> None:
        """Raise `InputError` if the flattened inputs are others than the captured ones."""
        for declared, value in zip(self.inputs, leaves):
            declared.check(value)
        self._check_sizes(leaves)

    def about_sizes(self) -> list[str]:
        """Sentences about the inputs' sizes: the shapes, what fixed a size, and what must hold of the others."""
        tensors = [i for i in self.inputs if i.shape is not None]
        lines = [" ".join([f"{i.name}: ({i.sizes}).", *map(i.why_fixed, i.fixed)]) for i in tensors]
        names = [i.name for i in self.inputs]
        lines += [f"Only where {c.text(names)}{f', because of {c.line}' if c.line else ''}." for c in self.checks]
        return lines

    def _check_sizes(self, leaves: list[Any]) -> None:
        """Raise `InputError` if the flattened inputs have sizes for which the program does not hold."""
        shapes = [tuple(leaf.shape) if isinstance(leaf, Tensor) else () for leaf in leaves] if self.checks else []
        for check in self.checks:
            if not check.fits(shapes):
                names = [i.name for i in self.inputs]
                given = ", ".join(
                    f"{names[at]} {shapes[at]}" for at in dict.fromkeys(at for at, _ in check.sizes.values())
                )
                because = f", because of {check.line}" if check.line else ""
                raise InputError(
                    f"the captured program holds only where {check.text(names)}{because}. These inputs do not fit: "
                    f"{given}. Convert the model again with an example of these sizes, if it takes them."
                )


def _few(names: list[str]) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def canonical(signature: inspect.Signature | None, args: Any, kwargs: Any) -> Arguments:
    """The call in canonical form: positional arguments wherever the signature allows them."""
    args, kwargs = call_of(args, kwargs)
    if signature is None:
        return args, kwargs
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise InputError(f"the model's forward{signature} does not take these inputs: {error}.") from error
    return bound.args, bound.kwargs


def input_names(signature: inspect.Signature | None, example: Arguments) -> list[str]:
    """A readable name for every input leaf: the name of forward's parameter, and the path inside it."""
    args, kwargs = example
    parameters = list(signature.parameters) if signature else []
    roots = [parameters[i] if i < len(parameters) else f"args[{i}]" for i in range(len(args))] + list(kwargs)
    return [
        root + pytree.keystr(path)
        for root, value in zip(roots, [*args, *kwargs.values()])
        for path, _ in pytree.tree_flatten_with_path(value)[0]
    ]


def input_of(name: str, placeholder: fx.Node, argument: Any) -> Input:
    value = placeholder.meta.get("val")
    if isinstance(value, Tensor):
        # A size that tracing specialized to a number is a constant, even if it was requested as dynamic.
        return Input(name, tuple(int(s) if is_concrete_int(s) else None for s in value.shape), value.dtype)
    return Input(name, None, None, getattr(argument, "value", value))


def no_attributed_input(inputs: Sequence[Input]) -> str:
    """The message about a model none of whose inputs could be attributed."""
    message = (
        f"no input is a floating-point tensor, nor token ids that an embedding looks up "
        f"({', '.join(i.name for i in inputs)}), so there is nothing to attribute to. "
    )
    if name := next((i.name for i in inputs if i.dtype is not None and i.dtype.is_complex), None):
        return (
            f"{message}{name} is complex, and attributions are of real numbers: convert a module that takes "
            f"torch.view_as_real({name}), and calls this one with torch.view_as_complex of it."
        )
    return message + "Convert the part of the model that follows such an input."
