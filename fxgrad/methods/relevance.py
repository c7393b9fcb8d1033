"""`fxgrad.trace`: the relevance h * g of every value in a model, from one forward and one backward pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx

from fxgrad.classify.decision import Decision
from fxgrad.errors import InputError, closest
from fxgrad.graph.places import calls_of
from fxgrad.methods.definition import Map, Method
from fxgrad.methods.names import Names
from fxgrad.methods.parts import NOTHING
from fxgrad.methods.targets import Target
from fxgrad.methods.together import Asked, Together
from fxgrad.module.converted import ConvertedModule
from fxgrad.run.sources import wide


@dataclass(frozen=True, eq=False)
class Trace(Mapping[str, Tensor]):
    """What `trace` returns: name of a value -> its relevance, elementwise.

    A name is that of an attributed input, of a node of the program, or a module path, which stands for the module's
    output. Iteration gives inputs and nodes, in the order of the program.

    Attributes:
        relevance: name of an input or node -> h * g, shaped as the value.
        modules: module path -> the node of its output; f@1 is the second call of f.
        output: the target's values, (batch,).
        rules: the policy's name.
    """

    relevance: Mapping[str, Tensor] = field(repr=False)
    modules: Mapping[str, str] = field(repr=False)
    output: Tensor
    rules: str

    def __getitem__(self, name: str) -> Tensor:
        return self.relevance[self.modules.get(name, name)]

    def __iter__(self) -> Iterator[str]:
        return iter(self.relevance)

    def __len__(self) -> int:
        return len(self.relevance)

    def module(self, path: str) -> Tensor:
        """The relevance of a module's output.

        Args:
            path: the module's path, as blocks.3; of a second call, with @1 behind it.

        Raises:
            InputError: no relevance reaches the output of such a module, or it was not asked for.
        """
        if path not in self.modules:
            raise InputError(_unknown(path, self.modules))
        return self[path]

    @cached_property
    def sums(self) -> dict[str, float]:
        """Module path -> the sum of its output's relevance, over all examples."""
        return {path: float(self[path].sum()) for path in self.modules}


def trace(
    converted: ConvertedModule,
    args: tuple[Any, ...] | Tensor = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    target: Target,
    where: Sequence[str] | None = None,
    class_names: Names | None = None,
) -> Trace:
    """The relevance h * g of every value h of a model, with g its cotangent: what LRP calls layer-wise relevance.

    Under a policy that balances, the values of any cut through the model and the sources behind it add up to the
    target's value. It takes one forward and one backward pass, and as much memory as all values that it returns, twice.

    Args:
        converted: what `fxgrad.convert` returned.
        args, kwargs: inputs, as for calling the module.
        target: as for `fxgrad.attribute`, but not a list.
        where: inputs, nodes or module paths, as they name values in a `Trace`; only these are kept. By default all are.
        class_names: for targets by name, as for `fxgrad.attribute`.

    Returns:
        The relevance by name, each tensor shaped as its value; of half precision, in float32. Values that no cotangent
        reaches are left out, such as attention weights that are held.

    Raises:
        InputError: there is no such target, or `where` names a value that no cotangent reaches.
        NotBalanceableError, NoRuleError: the target reads an output that cannot be balanced.

    Example:
        >>> import fxgrad
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.GELU(), nn.Linear(4, 2, bias=False)).eval()
        >>> x = torch.randn(1, 3)
        >>> found = trace(fxgrad.convert(model, (x,)), (x,), target=1)
        >>> found.module("1").shape, list(found)
        (torch.Size([1, 4]), ['input', 'linear', 'gelu', 'linear_1'])
        >>> all(torch.allclose(found[name].sum(), model(x)[0, 1], atol=1e-6) for name in found)
        True

    Source: Bach et al., PLOS ONE 2015, doi.org/10.1371/journal.pone.0130140, eq. 2, for layer-wise relevance.
    """
    if isinstance(target, list):
        raise InputError("a trace has one target, not a list of them. Call fxgrad.trace for each.")
    problem = Together(converted, args, kwargs, [Asked(Method("trace", Map, reads=NOTHING))], 1).problem(
        target, class_names
    )
    live = {name: d for name, d in converted.classified.decisions.items() if d.live}
    tensors = [name for name in live if isinstance(problem.nodes[name].meta["val"], Tensor)]
    modules = outputs_of_modules(problem.nodes.values(), {name: live[name] for name in tensors})
    inputs = dict.fromkeys(problem.attributed)
    wanted = [*inputs, *tensors]
    if where is not None:
        wanted = _chosen(where, wanted, modules)
    found = problem.run([name for name in wanted if name not in inputs])
    relevance = {}
    for name in wanted:
        h, g = (found.inputs, found.gradients) if name in inputs else (found.values, found.cotangents)
        if g[name] is not None:
            relevance[name] = torch.where(g[name] == 0, 0, wide(g[name]) * h[name]).detach()
        elif where is not None:
            raise InputError(f"no cotangent of {problem.aim.target.label} reaches {name!r}. Leave it out of `where`.")
    reached = {path: name for path, name in modules.items() if name in relevance}
    return Trace(relevance, reached, problem.aim.values.detach(), converted.classified.table.name)


def outputs_of_modules(nodes: Iterable[fx.Node], decisions: Mapping[str, Decision]) -> dict[str, str]:
    """Path of every module call -> the node of its output: the last of its nodes that is used outside of it.

    Args:
        nodes: in the order of the graph.
        decisions: of the nodes that count.
    """
    inside: dict[str, list[fx.Node]] = {}
    for node, calls in calls_of(nodes):
        for call in calls if node.name in decisions else ():
            inside.setdefault(call, []).append(node)
    found: dict[str, str] = {}
    for call, own in inside.items():
        names = {node.name for node in own}
        leaving = [node.name for node in own if any(user.name not in names for user in node.users)]
        found |= {call: leaving[-1]} if call and leaving else {}
    return found


def _chosen(where: Sequence[str], known: Sequence[str], modules: Mapping[str, str]) -> list[str]:
    """The names of the values that are asked for, in the order of the program."""
    if isinstance(where, str):
        raise InputError(f"`where` is several names. Pass where=[{where!r}].")
    names = {modules.get(name, name) for name in where}
    if unknown := [name for name in where if modules.get(name, name) not in known]:
        raise InputError(_unknown(unknown[0], [*modules, *known]))
    return [name for name in known if name in names]


def _unknown(name: str, known: Iterable[str]) -> str:
    return f"no relevance reaches a module or value {name!r}. Close to it: {closest(name, known)}."
