"""What a target is once one token of one value is replaced: the captured program, run again from there.

Nothing of a policy has a part in this: the program is the one that was captured, before any rewriting. Many tokens go
at once, as a batch of copies of the example, of which each has another token replaced; where the program takes no
batches, or the copies do not give what the example gives, tokens go one by one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxgrad.errors import InputError
from fxgrad.flows.tokens import Tokens
from fxgrad.graph.axes import Within
from fxgrad.graph.nodes import descendants
from fxgrad.graph.replay import Interpreter
from fxgrad.methods.aim import near, outputs_of, part_of
from fxgrad.methods.alone import ways
from fxgrad.methods.placing import within
from fxgrad.methods.problem import Problem
from fxgrad.run.passes import at_once
from fxgrad.run.recording import Recorder

ALIKE = 1000
"""By how many roundings, relative to the largest, the outputs of a copy in a batch may differ from the example's."""


class Effects:
    """The effects of replacing tokens, in one example.

    Args:
        problem: the model, the example, and the target.
        values: name of each node whose tokens are replaced -> its value in the example.
        most: the largest number of tokens of one of them.
    """

    def __init__(self, problem: Problem, values: Mapping[str, Tensor], most: int) -> None:
        self.problem, self.nodes = problem, [*values]
        captured = problem.converted.classified.captured
        self._program = fx.GraphModule(nn.Module(), captured.graph)
        self._outputs = outputs_of(problem.converted.classified, problem.anatomy)
        self._behind = {name: {n.name for n in descendants(problem.nodes[name])} for name in self.nodes}
        widest = max((value.nbytes for value in values.values()), default=0)
        self._copy(self._fitting(most, widest))

    def of(self, name: str, tokens: Tokens, other: Tensor) -> Tensor:
        """How much the target changes by another value of each token alone: (tokens,).

        Args:
            name: of the node.
            tokens: of its value.
            other: the value that has the others' tokens, (its shape).
        """
        count, labels = len(tokens.about), tokens.labels
        values = (self._replaced(name, labels, other, first) for first in range(0, count, self.copies))
        found = [self._scores(self._from(name, value)) for value in values]
        return torch.cat([scores - self._before for scores in found])[:count]

    def _fitting(self, most: int, widest: int) -> int:
        """How many copies there are at once."""
        parts, problem = self.problem.anatomy, self.problem
        placed = all(within(problem.nodes[name], parts) is not None for name in self.nodes)
        if not parts.inputs or isinstance(parts.examples, int) or not placed:
            return 1
        return at_once(most, widest, self.problem.aim.outputs)

    def _copy(self, copies: int) -> None:
        """Run the program on copies of the example, and keep what is read behind the nodes; on one, if they differ."""
        problem = self.problem
        captured = problem.converted.classified.captured
        for axes in ways(captured, problem.entries, problem.anatomy.inputs, 1) if copies > 1 else ():
            try:
                outputs = self._run(copies, axes)
            except InputError:  # what some input is like decides, so that copies of others do not fit it
                continue
            if self._alike(outputs):
                break
        else:
            outputs = self._run(1, {})
        self._before = self._scores(outputs)

    def _run(self, copies: int, axes: Mapping[str, int]) -> list[Any]:
        """The program's outputs for copies of the example, with these axes of examples; values are kept."""
        problem, self.copies = self.problem, copies
        self._entries = [
            value.repeat_interleave(copies, axes[name]) if name in axes else value
            for name, value in zip(problem.inputs, problem.entries)
        ]
        recorder = Recorder(self._program, set(self.nodes).union(*map(self._reads, self.nodes)))
        with torch.no_grad():
            outputs = problem.converted.called(recorder.run, self._entries)
        self._values = recorder.values
        return list(outputs)

    def _alike(self, outputs: Sequence[Any]) -> bool:
        """Whether each copy has a row in the outputs that the target reads, and it is the example's."""
        aim = self.problem.aim
        read = [i for i, g in enumerate(aim.cotangents) if g is not None]
        if not all(self._outputs[i].found(outputs[i], self.copies) for i in read):
            return False
        rows = [self._row(outputs, copy) for copy in range(self.copies)]
        return all(near(row[i], aim.outputs[i], ALIKE * torch.finfo(row[i].dtype).eps) for row in rows for i in read)

    def _reads(self, name: str) -> set[str]:
        """Names of the nodes whose values are read behind a node, and that do not depend on it."""
        behind = self._behind[name]
        users = (node for node in self.problem.nodes.values() if node.name in behind and node.name != name)
        return {operand.name for node in users for operand in node.all_input_nodes} - behind

    def _replaced(self, name: str, labels: Tensor, other: Tensor, first: int) -> Tensor:
        """The node's value, of which copy i has the other's token `first` + i."""
        value = self._values[name]
        chosen = torch.arange(first, first + self.copies, device=labels.device)
        if self.copies == 1:
            return torch.where(labels == chosen, other, value)
        place = within(self.problem.nodes[name], self.problem.anatomy)
        assert place is not None
        copies = _opened(value, place, self.copies)
        here = _opened(labels, place, 1) == chosen.view([-1 if i == place.axis + 1 else 1 for i in range(copies.dim())])
        return torch.where(here, _opened(other, place, 1), copies).flatten(place.axis, place.axis + 2)

    def _from(self, name: str, value: Tensor) -> list[Any]:
        """The program's outputs with a value in the place of the node's."""
        given = {n: self._values[n] for n in self._reads(name)}
        rest = _Rest(self._program, self._behind[name], {**given, name: value})
        with torch.no_grad():
            found: list[Any] = self.problem.converted.called(rest.outputs, self._entries)
        return found

    def _scores(self, outputs: Sequence[Any]) -> Tensor:
        """The target's value of each copy, (copies,)."""
        spec, target = self.problem.converted.classified.captured.out_spec, self.problem.aim.target
        with torch.no_grad():
            rows = (self._row(outputs, i) for i in range(self.copies))
            return torch.cat([target.score(pytree.tree_unflatten(row, spec)) for row in rows])

    def _row(self, outputs: Sequence[Any], copy: int) -> list[Any]:
        """The flattened outputs of one copy."""
        if self.copies == 1:
            return list(outputs)
        found = []
        for value, output in zip(outputs, self._outputs):
            for place in output.found(value, self.copies) if isinstance(value, Tensor) else ():
                value = part_of(value, place, self.copies, copy)
            found.append(value)
        return found


class _Rest(Interpreter):
    """Runs those nodes of a program that lie behind a node.

    Args:
        program: the program.
        behind: names of these nodes.
        values: name of that node, and of all others that they read -> value.
    """

    def __init__(self, program: fx.GraphModule, behind: Collection[str], values: Mapping[str, Any]) -> None:
        super().__init__(program)
        self.behind = behind
        self.given = {node: values[node.name] for node in program.graph.nodes if node.name in values}

    def outputs(self, *inputs: Any) -> list[Any]:
        """The program's flattened outputs."""
        return list(self.run(*inputs, initial_env=dict(self.given)))

    def run_node(self, n: fx.Node) -> Any:
        return super().run_node(n) if n.name in self.behind else None


def _opened(value: Tensor, place: Within, copies: int) -> Tensor:
    """The value with an axis of its own for the copies, behind `place.axis`, which keeps what lies ahead of them."""
    shape = value.shape
    return value.reshape(*shape[: place.axis], place.ahead, copies, place.behind, *shape[place.axis + 1 :])
