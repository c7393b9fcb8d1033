"""A captured program that waits for tensors: the module owns them, and the program gets them back when it is saved."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn
from torch.export import ExportedProgram, ExportGraphSignature, ModuleCallEntry

from fxgrad.graph.copies import copied

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Program:
    """What is left of an ExportedProgram without its tensors: enough to make one again, of any tensors.

    Attributes:
        graph: functional ATen graph as torch.export leaves it, not yet tidied nor cut.
        signature: what its placeholders and outputs are.
        ranges: what is known about the dynamic sizes.
        calls: the modules, and the structure of inputs and outputs.
    """

    graph: fx.Graph
    signature: ExportGraphSignature
    ranges: Mapping[Any, Any]
    calls: Sequence[ModuleCallEntry]

    def filled(
        self, state: Mapping[str, Tensor], constants: Mapping[str, Tensor], example: Arguments | None
    ) -> ExportedProgram:
        """The program with these parameters and persistent buffers, and these other tensors.

        Example:
            >>> import torch
            >>> from fxgrad.capture.export import capture
            >>> model = nn.Linear(3, 2).eval()
            >>> captured = capture(model, (torch.zeros(4, 3),))
            >>> program = captured.program.filled(captured.parameters, captured.buffers, captured.example)
            >>> torch.equal(program.module()(torch.ones(2, 3)), model(torch.ones(2, 3)))
            True
        """
        return ExportedProgram(
            nn.Module(),
            copied(self.graph),  # which the constructor changes
            copy.deepcopy(self.signature),
            dict(state),
            dict(self.ranges),
            list(self.calls),
            example,
            dict(constants),
        )
