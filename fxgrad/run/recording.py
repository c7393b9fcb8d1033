"""One recorded run of a converted program: one forward pass, any number of backward passes."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxgrad import errors
from fxgrad.graph.replay import Interpreter
from fxgrad.module.converted import ConvertedModule
from fxgrad.ops.backward import Pairs
from fxgrad.ops.function import transformed
from fxgrad.run.passes import arriving, at_once, measuring
from fxgrad.run.sources import Offsets, detached, products, reads


class Recorder(Interpreter):
    """Runs a program and keeps the values of its nodes.

    Args:
        program: the program to run.
        keep: names of the nodes whose values to keep; by default all.
        instead: node name -> the value it has in this run, whatever its operands are.
    """

    def __init__(
        self,
        program: fx.GraphModule,
        keep: Collection[str] | None = None,
        instead: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__(program, garbage_collect_values=keep is not None)
        self.keep, self.instead = keep, instead or {}
        self.values: dict[str, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = self.instead[n.name] if n.name in self.instead else super().run_node(n)
        if self.keep is None or n.name in self.keep:
            self.values[n.name] = result
        return result


@dataclass(frozen=True, eq=False)
class Contributions:
    """The results of one forward and one backward pass.

    Attributes:
        outputs: the program's flattened outputs, detached.
        inputs: name of each attributed input (for token ids, of their embedding) -> its value, detached.
        gradients: the same names -> the gradient, shaped as the input; 0 where no cotangent arrives.
        sources: node name -> g * b; the sum of all elements is what the node's constants contribute. Mostly one tensor,
            shaped as the node's output; several if their shapes differ, as for a layer with several biases.
        values: name of each requested node -> its value, detached.
        cotangents: the same names -> the cotangent, shaped as the value; None where none arrives.
    """

    outputs: list[Any]
    inputs: dict[str, Tensor]
    gradients: dict[str, Tensor]
    sources: dict[str, tuple[Tensor, ...]]
    values: dict[str, Any]
    cotangents: dict[str, Any]

    @property
    def parts(self) -> tuple[Any, ...]:
        """What the backward pass gave: gradients, sources and cotangents."""
        return self.gradients, self.sources, self.cotangents

    @property
    def bytes(self) -> int:
        """What `parts` take."""
        return sum(leaf.nbytes for leaf in pytree.tree_leaves(self.parts) if isinstance(leaf, Tensor))


Cotangents = Sequence["Tensor | None"]


def refuse_unbalanced(converted: ConvertedModule, cotangents: Sequence[Any]) -> None:
    """Raise an output's refusal if a cotangent is given for it: `NotBalanceableError` or `NoRuleError`.

    Args:
        converted: what `fxgrad.convert` returned.
        cotangents: one per flattened output; None for an output that takes no part.
    """
    for refusal in converted.classified.refusals:
        if cotangents[refusal.index] is not None:
            raise getattr(errors, refusal.error)(refusal.message)


class Recording:
    """One recorded forward pass of a converted program, for any number of backward passes.

    Args:
        converted: what `fxgrad.convert` returned.
        entries: what `converted.entries` returned: the inputs, then the embedded tokens.
        also: names of further nodes whose values and cotangents to return.
        sources: whether to compute the sources' contributions.
        instead: as for `Recorder`; what is given depends on nothing, so no cotangent passes it.
        several: whether several backward passes follow, which then know how many can go at once.

    Attributes:
        outputs: the program's flattened outputs, detached.

    Example:
        >>> import fxgrad
        >>> x = torch.randn(2, 3)
        >>> run = Recording(fxgrad.convert(torch.nn.GELU().eval(), (x,)), [x])
        >>> run.back([torch.ones(2, 3)]).gradients["input"].shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        converted: ConvertedModule,
        entries: Sequence[Any],
        also: Collection[str] = (),
        sources: bool = True,
        instead: Mapping[str, Tensor] | None = None,
        several: bool = False,
    ) -> None:
        captured = converted.classified.captured
        entries = [v.detach().requires_grad_() if d.attributed else v for v, d in zip(entries, captured.entries)]
        placeholders = captured.entry_nodes
        self.converted, self.also, self.sources = converted, also, sources
        self.names = {n.name: d.name for n, d in zip(placeholders, captured.entries) if d.attributed}
        self.inputs = {n.name: v for n, v in zip(placeholders, entries) if n.name in self.names}
        self.decisions = {n: d for n, d in converted.classified.decisions.items() if sources and d.keeps}
        kept = {*also, *self.decisions, *(reads(converted) if sources else ())}
        leaves = {name: value.detach().requires_grad_() for name, value in (instead or {}).items()}
        recorder = Recorder(converted.program, kept, leaves)
        # The program's own code runs faster than node by node, where no node is looked at; a trace looks at all.
        run = recorder.run if kept or leaves or transformed() else converted.program.forward
        with torch.enable_grad(), measuring(converted) if several else contextlib.nullcontext() as self._widest:
            self._outputs = list(converted.called(run, entries))
        self._recorded = recorder.values
        self.outputs = [detached(v) for v in self._outputs]

    def values(self, names: Collection[str]) -> dict[str, Any]:
        """Name of a node, of those asked for -> its value, detached."""
        return {name: pytree.tree_map(detached, self._recorded[name]) for name in names}

    def back(self, cotangents: Cotangents, *, last: bool = True, record: bool = False) -> Contributions:
        """Run one backward pass: all contributions to <v, f(x)>; see `contributions`.

        Args:
            cotangents: v, one per flattened output, shaped alike; None for an output that takes no part.
            last: whether the recorded values may be freed.
            record: whether autograd records this pass, too. Its gradients can then be differentiated in v, in which
                they are linear; in the inputs they must not be, for what is held would be missing.

        Raises:
            NotBalanceableError, NoRuleError: a cotangent is given for an output that cannot be balanced.
        """
        refuse_unbalanced(self.converted, cotangents)
        wanted = dict.fromkeys([*self.inputs, *self.also, *self.decisions])
        ends = {name: self.inputs.get(name, self._recorded.get(name)) for name in wanted}
        g = arriving(self._outputs, cotangents, ends, keep=not last, record=record)
        values = self.values(self._recorded)
        offsets = Offsets(self.converted, values)
        parts = {name: offsets.of(d, g[name]) for name, d in self.decisions.items() if g[name] is not None}
        if self.sources:
            parts |= _unreached(self.converted, self._outputs, cotangents)
        return Contributions(
            self.outputs,
            {self.names[name]: v.detach() for name, v in self.inputs.items()},
            {self.names[n]: torch.zeros_like(v) if g[n] is None else g[n] for n, v in self.inputs.items()},
            {name: products(pairs) for name, pairs in parts.items() if pairs},
            {name: values[name] for name in self.also},
            {name: g[name] for name in self.also},
        )

    def back_at_once(self, cotangents: Sequence[Cotangents]) -> list[Contributions]:
        """`back` for several cotangents of the same outputs, all in one backward pass, by `torch.vmap`.

        Args:
            cotangents: as for `back`, one list for each; every list has None at the same places.

        Raises:
            RuntimeError: an op has no gradient that vmap can batch.
            NotBalanceableError, NoRuleError: as for `back`.
        """
        given = [i for i, g in enumerate(cotangents[0]) if g is not None]
        first: Any = None

        def back(*stacks: Tensor) -> list[Tensor]:
            nonlocal first
            row: list[Tensor | None] = [None] * len(self._outputs)
            for i, g in zip(given, stacks):
                row[i] = g
            first = self.back(row, last=False)
            return [leaf for leaf in pytree.tree_leaves(first.parts) if leaf is not None]

        stacks = [torch.stack([row[i] for row in cotangents]) for i in given]  # type: ignore[misc]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)  # of ops that go one by one
            found = torch.vmap(back)(*stacks)
        there, spec = pytree.tree_flatten(first.parts)

        def row(at: int) -> Contributions:
            values = iter(found)
            leaves = [None if leaf is None else next(values)[at] for leaf in there]
            gradients, sources, arrived = pytree.tree_unflatten(leaves, spec)
            return Contributions(self.outputs, first.inputs, gradients, sources, first.values, arrived)

        return [row(at) for at in range(len(cotangents))]

    def between(self, name: str, cotangent: Tensor | None, names: Collection[str]) -> dict[str, Any]:
        """A backward pass that starts at a node: name of each other node -> the cotangent that arrives, or None.

        Args:
            name: of the node; it and the others are among those whose values this run has.
            cotangent: of the node's value; None for 0.
            names: of the others.
        """
        return arriving([self._recorded[name]], [cotangent], {n: self._recorded[n] for n in names}, keep=True)

    def fitting(self, count: int, bytes_of_one: int = 0) -> int:
        """How many of `count` cotangents go backward at once: as many as the cache holds, or a quarter of a GPU.

        Args:
            count: how many there are.
            bytes_of_one: what is returned of each.
        """
        widest = None if self._widest is None else max(self._widest[0], bytes_of_one // 2)
        return 1 if widest is None else at_once(count, widest, self._outputs)


def contributions(
    converted: ConvertedModule,
    entries: Sequence[Any],
    cotangents: Cotangents | Callable[[list[Any]], Cotangents],
    *,
    also: Collection[str] = (),
    sources: bool = True,
    instead: Mapping[str, Tensor] | None = None,
) -> Contributions:
    """The contributions of all inputs and constants to <v, f(x)>, from one forward and one backward pass.

    All gradients come from a single call of `torch.autograd.grad`. Nothing branches on a value, so
    `torch.fx.experimental.proxy_tensor.make_fx` can trace this function.

    Args:
        converted: what `fxgrad.convert` returned.
        entries: what `converted.entries` returned: the inputs, then the embedded tokens.
        cotangents: v, one per flattened output, shaped alike; None for an output that takes no part. Or a function from
            the outputs to these.
        also: names of further nodes whose values and cotangents to return.
        sources: whether to compute the sources' contributions.
        instead: node name -> its value in this run, instead of what its operands give.

    Returns:
        The contributions. Inputs times gradients and sources add up to <v, f(x)> if the policy balances.

    Raises:
        InputError: an op fails on these values, or has no gradient at them.
        NotBalanceableError, NoRuleError: a cotangent is given for an output that cannot be balanced.

    Example:
        >>> import fxgrad
        >>> x = torch.randn(2, 3, dtype=torch.float64)
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)).double().eval()
        >>> found = contributions(fxgrad.convert(model, (x,)), [x], [torch.ones(2, 1).double()])
        >>> {name: tuple(part.shape for part in parts) for name, parts in found.sources.items()}
        {'linear': (torch.Size([2, 4]),), 'tanh': (torch.Size([2, 4]),), 'linear_1': (torch.Size([2, 1]),)}
        >>> kept = sum(part.sum() for parts in found.sources.values() for part in parts)
        >>> torch.allclose((x * found.gradients["input"]).sum() + kept, model(x).sum())
        True

    Source: FullGrad, arXiv:1905.00780, eq. 1; LibraGrad, arXiv:2411.16760, section 3.
    """
    run = Recording(converted, entries, also, sources, instead)
    return run.back(cotangents(run.outputs) if callable(cotangents) else cotangents)


def _unreached(converted: ConvertedModule, outputs: list[Any], cotangents: Cotangents) -> dict[str, Pairs]:
    """The pairs (g, b) of outputs that depend on no attributed input: the output itself is the source."""
    nodes = pytree.tree_leaves(converted.program.graph.output_node().args[0])
    captured = converted.classified.captured
    reached = {n.name for n, d in zip(captured.entry_nodes, captured.entries) if d.attributed}
    reached |= set(converted.classified.decisions)
    found: dict[str, Pairs] = {}
    for node, value, g in zip(nodes, outputs, cotangents):
        if g is not None and node.name not in reached:
            found.setdefault(node.name, []).append((g, detached(value)))
    return found
