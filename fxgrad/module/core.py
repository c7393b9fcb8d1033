"""The core of a converted module: the program, its tensors, and how it is called."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxgrad.capture.admission import refuse_other_dtype
from fxgrad.classify.decision import Classified
from fxgrad.errors import FxgradError, InputError, MissingError, one_line
from fxgrad.graph.replay import failure
from fxgrad.module.checkpoint import checkpointed
from fxgrad.module.rewrite import rewrite
from fxgrad.module.unflatten import Root, unflatten
from fxgrad.ops.once import once

Self = TypeVar("Self", bound="Core")
_FORWARD_MODE = "balanced ops have no forward-mode derivative: use reverse mode, such as torch.func.jacrev."
_TABLES = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")


def as_function(runner: Any) -> Callable[..., Any]:
    """A runner's forward: a failed call of a GraphModule prints its code to stderr."""
    return runner.forward if isinstance(runner, fx.GraphModule) else runner


def compiled(runner: nn.Module, options: Mapping[str, Any]) -> Callable[..., Any]:
    """A runner by `torch.compile`."""
    return torch.compile(as_function(runner), **options)


class Core(nn.Module):
    """Runs a rewritten program as a drop-in `torch.nn.Module`; base class of `ConvertedModule`.

    Args:
        classified: the captured program with its tensors, the rule table, and the decision for every node.
        graph: the result of `rewrite`; by default it is computed here.
    """

    classified: Classified
    program: fx.GraphModule
    form: str
    runner: nn.Module
    lookup: fx.GraphModule | None
    _slots: list[tuple[nn.Module | None, str]]
    _attributed: set[int]
    _options: Mapping[str, Any] | None = None
    _compiled: Callable[..., Any] | None = None

    def __init__(self, classified: Classified, graph: fx.Graph | None = None) -> None:
        super().__init__()
        # The tensors live in this module from here on: the captured program must not keep a second set.
        captured = classified.captured
        self._compile(replace(classified, captured=captured.with_tensors({}, {})), graph)
        copies: dict[int, nn.Parameter] = {}
        for path, parameter in captured.parameters.items():
            # One copy per tensor, so that tied parameters stay tied.
            copy = copies.setdefault(id(parameter), nn.Parameter(parameter.detach(), parameter.requires_grad))
            self.owner(path)._parameters[path.rpartition(".")[2]] = copy
        for path, buffer in captured.buffers.items():
            owner, name = self.owner(path), path.rpartition(".")[2]
            owner._buffers[name] = buffer.detach()
            if path in captured.transient:
                owner._non_persistent_buffers_set.add(name)
        self.find_state()
        self.eval()

    def find_state(self) -> None:
        """Look up once where the state's tensors are, since lookups cost time in small models."""
        paths = self.classified.captured.state
        owners = [self.owner(path) for path in paths]
        # None stands for this module: a reference to itself would delay its release until garbage collection.
        slots = [(None if o is self else o, p.rpartition(".")[2]) for o, p in zip(owners, paths)]
        object.__setattr__(self, "_slots", slots)

    def _compile(self, classified: Classified, graph: fx.Graph | None = None) -> None:
        """Make the programs that run; no submodules, since they have no state and the module tree is the original's."""
        self.classified = classified
        program = fx.GraphModule(nn.Module(), graph or rewrite(classified), class_name="FxgradProgram")
        entries = classified.captured.entries if classified.balances else ()
        self._attributed = {i for i, entry in enumerate(entries) if entry.attributed}
        lookup = classified.captured.lookup
        self.derived: dict[Any, Any] = {}  # what is found out of this program once, by those who do
        object.__setattr__(self, "program", program)
        object.__setattr__(self, "lookup", lookup and fx.GraphModule(nn.Module(), lookup))
        self.run_as("flat", program)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            raise MissingError(
                f"{type(self).__name__!r} object has no attribute {name!r}: of the model, it has what forward "
                "computes, the parameters and the buffers. Ask the model itself for other things, such as generate."
            ) from None

    def _apply(self, fn: Any, recurse: bool = True) -> Core:
        """As for any module (`.to`, `.cuda`); tensors that the program itself creates follow to the new device."""
        before = [tensor.device for tensor in self._tensors()]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._follow({old: new.device for old, new in zip(before, self._tensors()) if old != new.device})
        return self

    def _follow(self, devices: Mapping[torch.device, torch.device]) -> None:
        """From now on, create masks, positions and the like on other devices."""
        if not devices:
            return
        before, form = self.runner, self.form
        self._compile(replace(self.classified, captured=self.classified.captured.moved(devices)))
        runner = self.runner_of(form)
        if isinstance(before, Root) and isinstance(runner, Root):
            before.follow(runner)  # keep its parts, since they have the hooks
            runner = before
        self.run_as(form, runner)

    def runner_of(self, form: str) -> nn.Module:
        """The runner of a form: the program itself, split between its blocks, or as a tree of parts."""
        if form == "checkpointed":
            return checkpointed(self.program)
        if form == "unflattened":
            captured = self.classified.captured
            inputs = {n.name for n, declared in zip(captured.entry_nodes, captured.entries) if declared.attributed}
            embedded = {n.name: e.name for n, e in zip(captured.entry_nodes[len(captured.inputs) :], captured.embedded)}
            return unflatten(self.program, inputs | set(self.classified.decisions), embedded)
        return self.program

    def run_as(self, form: str, runner: nn.Module) -> None:
        """From now on, run with `runner`."""
        self.form = form
        object.__setattr__(self, "runner", runner)
        self._compiled = None if self._options is None else compiled(runner, self._options)

    def compile(self, **options: Any) -> None:
        """Compile the program in place, as `torch.nn.Module.compile` does; calls and `fxgrad.vjp` then run it compiled.

        What is compiled is this module's own program, in one graph, so that any number of converted modules can be
        compiled, and a failed check of an input says what it says without. A batch of another size compiles once more,
        for all sizes. Compiled code rounds otherwise than eager mode, so that outputs are no longer the original's bit
        for bit. `fxgrad.attribute` and `fxgrad.check` look at values inside the program: they run it uncompiled.

        Args:
            **options: of `torch.compile`, such as `mode` and `dynamic`; `fullgraph` is True unless given.

        Raises:
            FxgradError: when called, if what `torch.compile` makes cannot run.

        Example:
            >>> import fxgrad, torch
            >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.GELU(), torch.nn.Linear(4, 2)).eval()
            >>> x = torch.randn(5, 3, requires_grad=True)
            >>> libra = fxgrad.convert(model, (x,))
            >>> wanted = torch.autograd.grad(libra(x).sum(), x)[0]
            >>> libra.compile(backend="aot_eager")
            >>> torch.allclose(torch.autograd.grad(libra(x).sum(), x)[0], wanted, atol=1e-6)
            True
        """
        self._options = {"fullgraph": True, **options}
        self._compiled = compiled(self.runner, self._options)

    def _tensors(self) -> list[Tensor]:
        return [*self.parameters(), *self.buffers()]

    def with_tensors(self) -> Classified:
        """The classified program, with this module's tensors."""
        tensors = (dict(named(remove_duplicate=False)) for named in (self.named_parameters, self.named_buffers))
        return replace(self.classified, captured=self.classified.captured.with_tensors(*tensors))

    def __copy__(self: Self) -> Self:
        """A shallow copy: the same tensors and submodules, but its own attributes."""
        other = self.__class__.__new__(self.__class__)
        other.__dict__.update(self.__dict__)
        other.__dict__.update({name: copy.copy(self.__dict__[name]) for name in _TABLES})
        return other

    def __deepcopy__(self: Self, memo: dict[int, Any]) -> Self:
        other = self.__class__.__new__(self.__class__)
        memo[id(self)] = other
        other.__dict__.update(copy.deepcopy({**self.__dict__, "derived": {}}, memo))
        return other

    def owner(self, path: str) -> nn.Module:
        """The submodule that has the tensor with this path, created if missing.

        Uses torch's own dicts, since its methods refuse names of this class's attributes, such as `embed`.
        """
        module: nn.Module = self
        for name in path.split(".")[:-1]:
            if name not in module._modules:
                module._modules[name] = nn.Module()
            module = cast(nn.Module, module._modules[name])
        return module

    @property
    def state(self) -> list[Tensor]:
        """The tensors that the program takes before the inputs."""
        found = []
        for owner, name in self._slots:
            holder = self if owner is None else owner
            tensor = holder._parameters.get(name)
            found.append(holder._buffers.get(name) if tensor is None else tensor)
        return found  # type: ignore[return-value]

    @property
    def graph(self) -> fx.Graph:
        """The rewritten graph."""
        return self.program.graph

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the rewritten program.

        Args:
            *args, **kwargs: as the original model takes them.

        Returns:
            What the original model returns, in the same structure.

        Raises:
            InputError: inputs of another structure, shape or dtype than the captured ones.
        """
        return self.run(self.entries(args, kwargs))

    def entries(self, args: tuple[Any, ...] | Tensor, kwargs: Mapping[str, Any] | None) -> list[Any]:
        """The program's inputs after the state: the model's inputs as a flat list, then the embedded tokens.

        Raises:
            InputError: inputs of another structure, shape or dtype than the captured ones.
        """
        leaves = self.classified.captured.flatten(args, kwargs)
        return leaves + (list(self.called(self.lookup, leaves)) if self.lookup else [])

    def run(self, entries: list[Any]) -> Any:
        """Run the program on the result of `entries`; returns what the original model returns.

        Raises:
            InputError: an op fails on these inputs, or they have another dtype than the weights.
        """
        outputs = self.called(self.runner, entries)
        return pytree.tree_unflatten(list(outputs), self.classified.captured.out_spec)

    def called(self, runner: Any, entries: list[Any]) -> Any:
        """What a part of the program returns; an error of an op names the op and its place."""
        if self.classified.captured.autocast:
            with self.classified.captured.once_cast():
                return self._called(runner, entries)
        return self._called(runner, entries)

    def _called(self, runner: Any, entries: list[Any]) -> Any:
        if torch.compiler.is_compiling():
            return runner(*self.state, *entries)
        function, guarded = as_function(runner), self._attributed if runner is self.runner else set()
        if runner is self.runner and self._compiled is not None:
            function, guarded = self._compiled, set()  # compiled code has no second derivatives anyway
        try:
            return function(*self.state, *(once(e) if i in guarded else e for i, e in enumerate(entries)))
        except (FxgradError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            if isinstance(error, NotImplementedError) and "jvp" in str(error):
                raise InputError(_FORWARD_MODE) from error
            part = self.lookup if runner is self.lookup else self.program
            if part is self.program:
                self.refuse_other_dtype(entries, error)
            if function is self._compiled:
                self._refuse_compiled(entries, error)
            raise InputError(failure(part, [*self.state, *entries], error)) from error

    def _refuse_compiled(self, entries: list[Any], error: Exception) -> None:
        """Raise `FxgradError` if the program fails on these entries only because it is compiled."""
        try:
            with torch.no_grad():
                self.program.forward(*self.state, *entries)
        except Exception:
            return
        raise FxgradError(
            f"what torch.compile makes of the program fails: {one_line(error)}. Uncompiled it runs: convert the model "
            'again, or try other options, such as compile(fullgraph=False) or compile(backend="aot_eager").'
        ) from error

    @property
    def is_compiled(self) -> bool:
        """Whether calls run compiled code; see `compile`."""
        return self._compiled is not None

    def refuse_other_dtype(self, entries: list[Any], error: BaseException) -> None:
        """Raise `InputError` if `error`, raised on these entries, comes of inputs of another dtype than the weights."""
        names = [entry.name for entry in self.classified.captured.entries]
        refuse_other_dtype(
            list(zip(names, entries)), self._tensors(), lambda values: self.program(*self.state, *values), error
        )
