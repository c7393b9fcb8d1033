"""A program in the ops of another format already, which its exporter need not trace once more.

torch.onnx.export lets every program decompose itself, which traces it anew: for an explainer, half of the export. The
trace that made the explainer can decompose as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

from torch import fx
from torch.export import ExportedProgram, default_decompositions

from fxgrad.capture.functional import make_functional
from fxgrad.explainer.decompositions import DECOMPOSITIONS
from fxgrad.graph.nodes import arguments_of
from fxgrad.graph.sizes import sizes_of


class Lowered(ExportedProgram):
    """A program that decomposes itself only where it has an op to decompose."""

    def run_decompositions(self, decomp_table: Any = None, *args: Any, **kwargs: Any) -> ExportedProgram:
        """As that of ExportedProgram, but the program itself where nothing is to be done."""
        if decomp_table is not None and not any(node.target in decomp_table for node in self.graph.nodes):
            return self
        return cast(ExportedProgram, super().run_decompositions(decomp_table, *args, **kwargs))


def lowered(program: ExportedProgram) -> ExportedProgram:
    """The program as a `Lowered` one, if one pass over its nodes makes it functional; changed in place.

    Args:
        program: fresh from `torch.export.export`.

    Example:
        >>> import torch
        >>> program = torch.export.export(torch.nn.ReLU(), (torch.ones(2),))
        >>> own = lowered(program)
        >>> own.run_decompositions({}) is own
        True
        >>> own.run_decompositions({torch.ops.aten.relu.default: lambda x: x.clamp(min=0)}) is own
        False
    """
    if not make_functional(program, lambda op: True):
        return program
    return Lowered(
        program.graph_module,
        program.graph,
        program.graph_signature,
        program.state_dict,
        program.range_constraints,
        program.module_call_graph,
        program.example_inputs,
        program.constants,
        verifiers=program.verifiers,
    )


def onnx_decompositions() -> Mapping[Any, Callable[..., Any]]:
    """ATen op -> what is traced instead for ONNX, which has no op for the gradient of another one.

    Example:
        >>> import torch
        >>> torch.ops.aten.threshold_backward.default in onnx_decompositions()
        True
    """
    known: Any = default_decompositions()
    lacking = {op: own for op, own in known.items() if any(name in str(op) for name in _LACKING)}
    return {**lacking, **DECOMPOSITIONS}


_LACKING = ("_backward", "aten.nan_to_num")


def onnx_fixes_sizes(graph: fx.Graph) -> bool:
    """Whether all sizes but the batch have to be fixed for ONNX: a strided convolution is among the ops.

    Its gradient is a transposed convolution whose padding depends on the size, which ONNX takes as a constant only.

    Args:
        graph: captured.

    Example:
        >>> import fxgrad, torch
        >>> def fixes(stride):
        ...     layer = torch.nn.Conv2d(3, 4, 2, stride=stride).eval()
        ...     return onnx_fixes_sizes(fxgrad.convert(layer, torch.ones(2, 3, 8, 8)).classified.captured.graph)
        >>> fixes(1), fixes(2)
        (False, True)
    """
    return any(
        getattr(node.target, "_opname", "") in _CONVOLUTIONS
        and any(step != 1 for step in arguments_of(node)["stride"])
        and not all(isinstance(size, int) for size in sizes_of(node)[2:])
        for node in graph.nodes
    )


_CONVOLUTIONS = ("conv1d", "conv2d", "conv3d", "convolution")
