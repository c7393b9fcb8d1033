"""What torch.export writes of guards: those beside a program are dropped, those in its graph are made plain."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.fx.experimental import symbolic_shapes

CAST: Any = getattr(symbolic_shapes, "cast_symbool_to_symint_guardless", None)
"""Makes a number of a bool; None where this torch has no such function."""
_ASSERTIONS = (torch.ops.aten._assert_async.default, torch.ops.aten._assert_async.msg)
_ITEMS = (torch.ops.aten.item.default, torch.ops.aten._local_scalar_dense.default)


def without_guards(program: ExportedProgram) -> ExportedProgram:
    """The same program, changed in place: its guards on sizes are dropped.

    torch runs them as code when it decomposes the program. That fails where the model's forward takes **kwargs, since
    the code names these inputs as they are in no graph. `capture/checks.py` keeps what must hold of sizes.

    Args:
        program: a fresh one, not the user's.

    Example:
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
        number = _equal_to_one(node)
        if isinstance(number, fx.Node) and number.target is CAST:
            node.replace_all_uses_with(number.args[0])
            graph.erase_node(node)
            if not number.users:
                graph.erase_node(number)


def asserted(node: fx.Node) -> fx.Node | None:
    """The tensor, of one bool, that the model asserts to hold; None if the node asserts something else, as of a size.

    Args:
        node: of a program; `torch._check(condition.item())` is an assertion that a number made of it is 1.

    Example:
        >>> class Positive(torch.nn.Module):
        ...     def forward(self, x):
        ...         torch._check((x > 0).all().item())
        ...         return x
        >>> graph = torch.export.export(Positive(), (torch.ones(2),)).graph
        >>> [str(found) for node in graph.nodes if (found := asserted(node))]
        ['all_1']
    """
    found: Any = node.args[0] if node.args else None
    if node.target in _ASSERTIONS and isinstance(found, fx.Node):
        return found
    if node.target is not torch.ops.aten._assert_scalar.default:
        return None
    found = _equal_to_one(found) or found
    if isinstance(found, fx.Node) and (
        found.target is CAST or (found.target is torch.sym_ite and found.args[1:] == (1, 0))
    ):
        found = found.args[0]
    if not isinstance(found, fx.Node) or found.target not in _ITEMS:
        return None
    (tensor,) = found.all_input_nodes
    return tensor if tensor.meta["val"].dtype is torch.bool else None


def _equal_to_one(node: Any) -> Any:
    """The x of a node `x == 1`; None for another."""
    compared = isinstance(node, fx.Node) and node.target is operator.eq and node.args[1:] == (1,)
    return node.args[0] if compared else None
