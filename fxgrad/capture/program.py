"""A captured program without tensors: the converted module owns them, and gives them back for saving."""

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
    """An ExportedProgram without its tensors; `filled` makes an ExportedProgram again.

    Attributes:
        graph: functional ATen graph from torch.export, neither tidied nor cut.
        signature: the meaning of its placeholders and outputs.
        ranges: the ranges of the dynamic sizes.
        calls: the modules, and the structure of inputs and outputs.
    """

    graph: fx.Graph
    signature: ExportGraphSignature
    ranges: Mapping[Any, Any]
    calls: Sequence[ModuleCallEntry]

    def filled(
        self, state: Mapping[str, Tensor], constants: Mapping[str, Tensor], example: Arguments | None
    ) -> ExportedProgram:
        """The program with these parameters and persistent buffers (`state`), and these other tensors.

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
            copied(self.graph),  # the constructor changes its graph
            copy.deepcopy(self.signature),
            dict(state),
            dict(self.ranges),
            list(self.calls),
            example,
            dict(constants),
        )
