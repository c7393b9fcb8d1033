"""Make a program functional by torch's own decomposition, and take apart the composite ops that no row covers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, cast

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind

from fxgrad.capture.free import oblivious
from fxgrad.capture.functional import composite
from fxgrad.capture.higher_order import open_programs
from fxgrad.capture.tracing import settings
from fxgrad.errors import CaptureError, one_line


def decomposed(program: ExportedProgram, whole: Callable[[Any], bool]) -> ExportedProgram:
    """The program in functional ATen ops.

    Args:
        program: not changed.
        whole: says which composite ops are kept; the others are decomposed.

    Raises:
        CaptureError: torch.export fails.

    Example:
        >>> program = torch.export.export(torch.nn.Linear(3, 2), (torch.ones(1, 3),))
        >>> [str(n.target) for n in decomposed(program, lambda op: True).graph.nodes if n.op == "call_function"]
        ['aten.linear.default']
    """
    pieces: dict[Any, Callable[..., Any]] = {}
    functional: ExportedProgram | None = None
    try:
        with settings(), oblivious(), torch.no_grad():
            while True:
                found = {n.target for n in (functional or program).graph.nodes if composite(n) and not whole(n.target)}
                if functional and found <= set(pieces):
                    return functional
                pieces |= {op: _kernel(op) for op in found}
                functional = cast(ExportedProgram, (functional or program).run_decompositions(pieces))
                open_programs(functional)
                if any(spec.kind is OutputKind.TOKEN for spec in functional.graph_signature.output_specs):
                    # A component has a side effect, such as a factorization's check.
                    return cast(ExportedProgram, program.run_decompositions({}))
    except Exception as error:
        raise CaptureError(f"torch.export cannot decompose the program: {one_line(error)}") from error


def _kernel(op: Any) -> Callable[..., Any]:
    """The kernel that eager PyTorch runs for a composite op; Python decompositions do not promise the same bits."""
    return functools.partial(op._op_dk, torch._C.DispatchKey.CompositeImplicitAutograd)
