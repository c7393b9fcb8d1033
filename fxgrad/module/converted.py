"""What `convert` hands back: the rewritten program as a drop-in `torch.nn.Module`."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxgrad.classify.decision import Classified
from fxgrad.classify.walk import classify
from fxgrad.errors import InputError
from fxgrad.module.checkpoint import checkpointed
from fxgrad.module.rewrite import rewrite
from fxgrad.module.unflatten import Root, unflatten
from fxgrad.ops.weights import HELD, NATIVE
from fxgrad.report import Report, report
from fxgrad.table.load import Rules, load


class ConvertedModule(nn.Module):
    """A model whose outputs are the original's, bit for bit, and whose gradients are the policy's.

    It owns parameters and buffers under the original's paths, so state_dict keys are the original's;
    they share memory with the original's until moved or cast, but are objects of their own, with the
    original's `requires_grad`. Attribution needs no parameter's gradient: `requires_grad_(False)` saves
    their cost. What the original calls as one of this class's attributes, such as a layer `embed`, keeps its path in
    the state_dict and among `named_modules()`; the attribute is this class's.

    Bit identity is to the original under `torch.no_grad()` with the same `requires_grad` flags: PyTorch picks
    kernels by them (matmul may fold its batch, attention may leave its fused kernel).

    Attributes:
        classified: the captured program, the rule table, and the decision for every node.
        program: the rewritten graph as a `torch.fx.GraphModule`; its placeholders are the state,
            then the inputs, then the embedded tokens.
        form: how it runs: "flat", or what `checkpointed` and `unflattened` return, called by their names.
        runner: what runs: the program itself, or the program in that form.
        lookup: from the state and the inputs to the embedded tokens; None for a model without token ids.

    Example:
        >>> import fxgrad, torch
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2)).eval()
        >>> x = torch.randn(5, 3, requires_grad=True)
        >>> libra = fxgrad.convert(model, (x,))
        >>> torch.equal(libra(x), model(x)), list(libra.state_dict()) == list(model.state_dict())
        (True, True)
    """

    program: fx.GraphModule
    form: str
    runner: nn.Module
    lookup: fx.GraphModule | None
    _slots: list[tuple[nn.Module | None, str]]

    def __init__(self, classified: Classified) -> None:
        super().__init__()
        # The tensors live in this module from here on: the captured program must not keep a second set.
        captured = classified.captured
        self._compile(replace(classified, captured=captured.with_tensors({}, {})))
        copies: dict[int, nn.Parameter] = {}
        for path, parameter in captured.parameters.items():
            # One copy per tensor, so that tied parameters stay tied.
            copy = copies.setdefault(id(parameter), nn.Parameter(parameter.detach(), parameter.requires_grad))
            self._owner(path)._parameters[path.rpartition(".")[2]] = copy
        for path, buffer in captured.buffers.items():
            owner, name = self._owner(path), path.rpartition(".")[2]
            owner._buffers[name] = buffer.detach()
            if path in captured.transient:
                owner._non_persistent_buffers_set.add(name)
        self._find_state()
        self.eval()

    def _find_state(self) -> None:
        """Look the state's tensors up once, for small models."""
        paths = self.classified.captured.state
        owners = [self._owner(path) for path in paths]
        # Without this module itself, which would then not be freed at once.
        slots = [(None if o is self else o, p.rpartition(".")[2]) for o, p in zip(owners, paths)]
        object.__setattr__(self, "_slots", slots)

    def _compile(self, classified: Classified) -> None:
        """Make the programs that run: no submodules, for they have no state, and the module tree is the original's."""
        self.classified = classified
        program = fx.GraphModule(nn.Module(), rewrite(classified), class_name="FxgradProgram")
        lookup = classified.captured.lookup
        object.__setattr__(self, "program", program)
        object.__setattr__(self, "lookup", lookup and fx.GraphModule(nn.Module(), lookup))
        self._run_as("flat", program)

    def _apply(self, fn: Any, recurse: bool = True) -> ConvertedModule:
        """As any module, by which `.to` and its like move tensors; what the program itself makes follows them."""
        before = [tensor.device for tensor in self._tensors()]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._follow({old: new.device for old, new in zip(before, self._tensors()) if old != new.device})
        return self

    def _follow(self, devices: Mapping[torch.device, torch.device]) -> None:
        """Make masks, positions and the like on other devices from now on."""
        if not devices:
            return
        before, form = self.runner, self.form
        self._compile(replace(self.classified, captured=self.classified.captured.moved(devices)))
        if form == "checkpointed":
            self._run_as(form, checkpointed(self.program))
        elif isinstance(before, Root):
            before.follow(self._unflatten())  # its parts stay, since hooks are on them
            self._run_as(form, before)

    def _run_as(self, form: str, runner: nn.Module) -> None:
        self.form = form
        object.__setattr__(self, "runner", runner)

    def _tensors(self) -> list[Tensor]:
        return [*self.parameters(), *self.buffers()]

    def __deepcopy__(self, memo: dict[int, Any]) -> ConvertedModule:
        other = self.__class__.__new__(self.__class__)
        memo[id(self)] = other
        other.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return other

    def __reduce__(self) -> tuple[Any, ...]:
        """For pickle, which takes a module to other processes: as an artefact, so that no code is pickled."""
        from fxgrad.module.save import pieces

        return pieces(self)

    def _owner(self, path: str) -> nn.Module:
        """The submodule that holds a tensor, made where it is missing.

        By torch's own tables, since its methods refuse a name that this class has for something else, such as `embed`.
        """
        module: nn.Module = self
        for name in path.split(".")[:-1]:
            if name not in module._modules:
                module._modules[name] = nn.Module()
            module = cast(nn.Module, module._modules[name])
        return module

    @property
    def state(self) -> list[Tensor]:
        """The tensors that the program takes ahead of the inputs."""
        found = []
        for owner, name in self._slots:
            holder = self if owner is None else owner
            found.append(holder._parameters.get(name, holder._buffers.get(name)))
        return found  # type: ignore[return-value]

    @property
    def graph(self) -> fx.Graph:
        """The rewritten graph."""
        return self.program.graph

    @property
    def report(self) -> Report:
        """Which op got which rule, and why: printable, a table in notebooks, `.to_json()`."""
        return report(self.classified)

    def under(self, rules: Rules) -> ConvertedModule:
        """The same captured model under another policy, for comparison. Shares the tensors; nothing is exported again.

        Args:
            rules: as for `fxgrad.convert`; only its policy counts, the ops' rows stay as they are.

        Raises:
            NotBalanceableError: the other policy cannot balance the model.
            RuleTableError: the policy's file is malformed.

        Example:
            >>> import fxgrad, torch
            >>> libra = fxgrad.convert(torch.nn.GELU().eval(), (torch.zeros(2, 3),))
            >>> libra.under("gradient").report[0].rule
            'native'
        """
        other = load(rules, self.classified.table.on_unknown)
        table = replace(self.classified.table, name=other.name, policy=other.policy, cite=other.cite)
        return ConvertedModule(classify(self._with_tensors().captured, table))

    def _with_tensors(self) -> Classified:
        """The classified program, with this module's tensors."""
        tensors = (dict(named(remove_duplicate=False)) for named in (self.named_parameters, self.named_buffers))
        return replace(self.classified, captured=self.classified.captured.with_tensors(*tensors))

    def checkpointed(self) -> ConvertedModule:
        """The same module, keeping nothing inside a block for the backward, but running it again there.

        A block is a part whose module path goes up to one number, as blocks.3 or model.layers.3. Less memory, grown
        with the number of blocks and not with what is inside, for about one more forward. Shares the tensors.

        Raises:
            InputError: the model has no numbered blocks.

        Example:
            >>> import fxgrad, torch
            >>> model = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.GELU()) for _ in range(3))).eval()
            >>> x = torch.randn(2, 8, requires_grad=True)
            >>> libra = fxgrad.convert(model, (x,))
            >>> (wanted,) = torch.autograd.grad(libra(x).sum(), x)
            >>> torch.equal(torch.autograd.grad(libra.checkpointed()(x).sum(), x)[0], wanted)
            True

        Source: Chen et al., Training Deep Nets with Sublinear Memory Cost, arXiv:1604.06174.
        """
        other = ConvertedModule(self._with_tensors())
        other._run_as("checkpointed", checkpointed(other.program))
        return other

    def unflattened(self) -> ConvertedModule:
        """The same module, with submodules that are called: hooks on them, by the original's paths, find their layer.

        So captum's layer methods and pytorch-grad-cam run on it as on the original model. A submodule takes what its
        part of the program reads from outside, and returns what is read of it outside: a tensor, or a tuple of several.
        One that does nothing, as dropout, is not there; a second call of a module has @1 behind its path. Shares the
        tensors.

        Example:
            >>> import fxgrad, torch
            >>> model = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2)).eval()
            >>> libra = fxgrad.convert(model, (torch.zeros(2, 3),)).unflattened()
            >>> seen = []
            >>> hook = libra.get_submodule("1").register_forward_hook(lambda *call: seen.append(call[-1]))
            >>> x = torch.randn(2, 3)
            >>> y = libra(x)
            >>> torch.equal(seen[0], model[:2](x))
            True
        """
        other = ConvertedModule(self._with_tensors())
        root = other._unflatten()
        for path, part in root.parts.items():
            owner, name = other._owner(path), path.rpartition(".")[2]
            held = owner._modules.get(name)
            if held is not None:
                part._parameters, part._buffers, part._modules = held._parameters, held._buffers, held._modules
                part._non_persistent_buffers_set = held._non_persistent_buffers_set
            owner._modules[name] = part
        other._find_state()
        other._run_as("unflattened", root)
        return other.eval()

    def _unflatten(self) -> Root:
        """The program as a tree of parts, which do not hang under the model's paths yet."""
        captured = self.classified.captured
        entries = captured.entry_nodes
        inputs = {n.name for n, declared in zip(entries, captured.entries) if declared.attributed}
        return unflatten(self.program, inputs | set(self.classified.decisions))

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

    def entries(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
        """What the program takes after the state: the inputs as a flat list, then the embedded tokens.

        Raises:
            InputError: inputs of another structure, shape or dtype than the captured ones.
        """
        leaves = self.classified.captured.flatten(args, kwargs)
        return leaves + (list(self.lookup(*self.state, *leaves)) if self.lookup else [])

    def run(self, entries: list[Any]) -> Any:
        """What the original model returns, given what `entries` returned."""
        outputs = self.runner(*self.state, *entries)
        return pytree.tree_unflatten(list(outputs), self.classified.captured.out_spec)

    def embed(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Look up the token ids among the inputs: the tensors that get attributed in their stead.

        Args:
            *args, **kwargs: as the original model takes them.

        Returns:
            The module path of each embedding -> its output, (batch, tokens, width), each a leaf that requires a
            gradient. Empty for a model without token ids.

        Raises:
            InputError: inputs of another structure, shape or dtype than the captured ones.

        Example:
            >>> import fxgrad, torch
            >>> model = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 2, bias=False)).eval()
            >>> ids = torch.tensor([[1, 5, 2]])
            >>> libra = fxgrad.convert(model, (ids,))
            >>> tokens = libra.embed(ids)
            >>> libra.forward_from(tokens, ids)[0, 1].backward()
            >>> attribution = {name: (x * x.grad).sum(-1) for name, x in tokens.items()}
            >>> attribution["0"].shape, torch.allclose(attribution["0"].sum(), model(ids)[0, 1])
            (torch.Size([1, 3]), True)
        """
        captured = self.classified.captured
        with torch.no_grad():
            found = self.entries(args, kwargs)[len(captured.inputs) :]
        return {i.name: tokens.detach().requires_grad_() for i, tokens in zip(captured.embedded, found)}

    def forward_from(self, embedded: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        """Run the rewritten program with these embedded tokens instead of those of the ids.

        Args:
            embedded: what `embed` returned, or other tensors of the same shapes.
            *args, **kwargs: as the original model takes them; their token ids are not looked up.

        Returns:
            What the original model returns, in the same structure.

        Raises:
            InputError: other names or shapes than `embed` returns, or inputs that the module does not take.
        """
        captured = self.classified.captured
        names = [i.name for i in captured.embedded]
        if set(embedded) != set(names):
            raise InputError(
                f"embedded tokens are wanted for {', '.join(names) or 'nothing'}, given for "
                f"{', '.join(embedded) or 'nothing'}. Pass what embed() returns."
            )
        for declared in captured.embedded:
            declared.check(embedded[declared.name])
        return self.run(captured.flatten(args, kwargs) + [embedded[name] for name in names])

    def __repr__(self) -> str:
        captured, decisions = self.classified.captured, self.classified.decisions
        rewritten = sum(d.backward not in (NATIVE, HELD) for d in decisions.values())
        inputs = ", ".join(i.name for i in captured.entries if i.attributed)
        return (
            f"ConvertedModule(rules={self.classified.table.name!r}, attributed inputs: {inputs}; "
            f"{len(decisions)} nodes depend on them, {rewritten} rewritten)"
        )
