"""Methods of blocks and layers: those of `fxgrad.attribute`, on the values of one run that is traced."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fxgrad.errors import ExportError
from fxgrad.explainer.settings import Settings
from fxgrad.methods.aim import Aim
from fxgrad.methods.definition import Method
from fxgrad.methods.entry import known
from fxgrad.methods.placing import within
from fxgrad.methods.problem import Problem
from fxgrad.methods.scoring import Scored
from fxgrad.methods.search import Search
from fxgrad.module.converted import ConvertedModule
from fxgrad.run.recording import Contributions


@dataclass(frozen=True, eq=False)
class OneRun(Problem):
    """A problem that was run already: whatever a method asks for, a trace has one forward and one backward pass.

    Attributes:
        found: the run, with the values of all nodes.
        examples: number of examples, which stays free.
    """

    found: Contributions | None = None
    examples: Any = 1

    @property
    def batch(self) -> Any:
        return self.examples

    def run(self, also: Collection[str] = (), sources: bool = False) -> Contributions:
        assert self.found is not None
        return self.found

    def values(self, names: Collection[str]) -> dict[str, Any]:
        return self.run().values


class Solver:
    """A method, prepared for a model: what it is of, and where the tokens are.

    Args:
        converted: what `fxgrad.convert` returned.
        settings: the method, its layer, and what overrides the graph's anatomy.
        leaves: the flattened inputs, whose sizes all axes have, except for the batch's.

    Attributes:
        anatomy: the model's anatomy; the size of the batch stays free.

    Raises:
        ExportError: the constants' contributions cannot be split into the batch's examples.
        InputError: as for `fxgrad.attribute`: the model lacks what the method needs.
    """

    def __init__(self, converted: ConvertedModule, settings: Settings, leaves: Sequence[Any]) -> None:
        self.converted, self.settings = converted, settings
        self.method: Method = known(settings.method)
        with torch.no_grad():
            looked = converted.called(converted.lookup, list(leaves)) if converted.lookup else ()
        entries, given = [*leaves, *looked], dict(settings.anatomy)
        found = Search(converted.classified, given.pop("input", None), entries).anatomy(
            *(given.get(name) for name in ("blocks", "grid", "prefix", "class_token"))
        )
        batch = getattr(found.examples, "free_symbols", ())
        self.anatomy = replace(found, free={size: n for size, n in found.free.items() if size not in batch})
        if self.method.shares and not isinstance(found.examples, int):
            self._refuse_mixed()

    @property
    def reads(self) -> set[str]:
        """Names of all nodes whose values a method may ask for."""
        captured = self.converted.classified.captured
        inputs = {n.name for n, entry in zip(captured.entry_nodes, captured.entries) if entry.attributed}
        return inputs | {node.name for node in self.converted.graph.nodes if node.op == "call_function"}

    def __call__(
        self, entries: list[Any], found: Contributions, cotangents: list[Tensor | None], y: Tensor, row: Any
    ) -> tuple[Tensor, Tensor | None]:
        """The map, and the sum of all shares.

        Args:
            entries: the program's inputs.
            found: its run, with the values and cotangents of `reads`.
            cotangents: of the outputs.
            y: the target's value, (batch,).
            row: index of the token that the target is read from, (batch,), or None.

        Returns:
            (map of the patches (batch, rows, columns) or of the tokens (batch, tokens), sums of all shares divided by
            their copies (batch,); None if the method's numbers are no shares).
        """
        aim = Aim(Scored("the target", lambda outputs: y, row=row), 1, y, found.outputs, cotangents, [], {})
        settings, batch = self.settings, y.shape[0]
        problem = OneRun(
            self.converted, entries, aim, self.anatomy, settings.layer, found=found, examples=batch
        ).on_layer()
        problem.refuse_several(self.method.name)
        map = self.method.function(problem)
        tokens = map.tokens
        assert tokens is not None, "a method of blocks maps tokens"
        patches = tokens[:, problem.anatomy.prefix :]
        if problem.anatomy.grid is not None:
            patches = patches.reshape(batch, *problem.anatomy.grid)
        if map.apart is None:
            return patches, None
        parts: Mapping[str, Tensor] = map.maps
        shares = [tokens, *(part for name, part in parts.items() if name != problem.anatomy.input)]
        return patches, sum((part.reshape(batch, -1).sum(1) for part in shares), map.apart) / map.copies

    def _refuse_mixed(self) -> None:
        nodes = {node.name: node for node in self.converted.classified.captured.graph.nodes}
        for decision in self.converted.classified.decisions.values():
            lost = decision.keeps and within(nodes[decision.node], self.anatomy) is None
            if lost or (decision.keeps and decision.backward.sums_the_batch):
                raise ExportError(
                    f"{self.method.name} counts what the constants of {decision.op} at {decision.place} contribute, "
                    "which cannot be told apart by items of the batch. Export a method that counts none, such as "
                    "genatt or input_x_gradient with completeness=False."
                )
