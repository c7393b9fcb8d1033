"""What torch.export writes of guards: those beside a program are dropped, those in its graph are made plain."""

from __future__ import annotations

import operator
from typing import Any

from torch import fx
from torch.export import ExportedProgram
from torch.fx.experimental import symbolic_shapes

CAST: Any = getattr(symbolic_shapes, "cast_symbool_to_symint_guardless", None)
"""Makes a number of a bool; None where this torch has no such function."""


def without_guards(program: ExportedProgram) -> ExportedProgram:
    """The same program, changed in place: its guards on sizes are dropped.

    torch runs them as code when it decomposes the program. That fails where the model's forward takes **kwargs, since
    the code names these inputs as they are in no graph. `capture/checks.py` keeps what must hold of sizes.

    Args:
        program: a fresh one, not the user's.

    Example:
        >>> import torch
        >>> program = torch.export.export(torch.nn.GELU(), (torch.ones(2, 3),))
        >>> without_guards(program) is program
        True
    """
    if hasattr(program, "_guards_code"):
        program._guards_code = []
    return program


def assert_plainly(graph: fx.Graph) -> None:
    """Let an assertion of a bool b take b itself, where torch wrote `int(b) == 1`; the graph is changed in place.

    PyTorch 2.11 cannot trace this cast again, when it decomposes the program.

    Args:
        graph: of a fresh program.

    Example:
        >>> import torch
        >>> graph = fx.Graph()
        >>> holds = graph.placeholder("holds")
        >>> number = graph.call_function(CAST, (holds,))
        >>> equal = graph.call_function(operator.eq, (number, 1))
        >>> _ = graph.call_function(torch.ops.aten._assert_scalar.default, (equal, "no"))
        >>> assert_plainly(graph)
        >>> [str(node) for node in graph.nodes]
        ['holds', '_assert_scalar_default']
    """
    for node in list(graph.nodes):
        number = node.args[0] if node.target is operator.eq and node.args[1:] == (1,) else None
        if isinstance(number, fx.Node) and number.target is CAST:
            node.replace_all_uses_with(number.args[0])
            graph.erase_node(node)
            if not number.users:
                graph.erase_node(number)
