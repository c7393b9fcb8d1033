"""Do the shares of an attribution add up to the target's value, and if they do not, why?"""

from __future__ import annotations

import warnings
from collections import Counter
from typing import Any

import torch
from torch import Tensor

from fxgrad.errors import IncompleteWarning
from fxgrad.graph.nodes import op_name
from fxgrad.graph.places import Place
from fxgrad.methods.attribution import Attribution
from fxgrad.methods.definition import Method
from fxgrad.methods.problem import Problem
from fxgrad.proof.ledger import TOLERANCE, Ledger, LedgerRow

_UNCUT = (
    "every node is balanced, so the method's places do not cut the model: some of the flow does not pass through them. "
    "Pass other blocks=[...] (or layer=...), or use input_x_gradient or fullgrad."
)
_FINEST_FIRST = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def explained(found: Attribution, method: Method, problem: Problem) -> str:
    """Why the shares do not add up, in words; "" if they do, or if there are none.

    What follows from the call (the plain gradient, an op without a rule, too few steps, a target that is no sum, a
    layer that not all flow passes through) is said in the note only. What nobody asked for is a warning too: it names
    the node that is not balanced, or says that all are.

    Args:
        found: the attribution of the problem.
        method: that found it.
        problem: all examples, or one.

    Warns:
        IncompleteWarning: the shares do not add up, and nothing in the call says so.

    Example:
        >>> import fxgrad
        >>> x = torch.ones(1, 3)  # at 1, where GELU is .841 and its slope 1.083
        >>> plain = fxgrad.convert(torch.nn.GELU().eval(), (x,), rules="gradient")
        >>> fxgrad.attribute(plain, (x,), target=1).note.split(":")[0]
        'Not complete by 0.22'
    """
    off = _excess(found, problem)
    if off is None or found.note:
        return found.note
    start = f"Not complete by {off:.2g}: "
    if method.steps:
        return start + _of_steps(found, method, problem)
    own = own_gradients(problem)
    if own:
        return f"{start}under {found.rules}, {own}."
    books = _booked(problem)
    if books is None:
        return f"{start}the target's value is rounding noise of larger ones that cancel, and so are its shares."
    unbalanced = _unbalanced(*books)
    if not unbalanced and (problem.layer is not None or problem.anatomy.given):
        return (
            f"{start}some of the flow does not pass through the {'layer' if problem.layer else 'blocks'} that you name."
        )
    cause = start + (unbalanced or _UNCUT)
    warnings.warn(f"{found.method} of {found.label} is n{cause[1:]}", IncompleteWarning, stacklevel=4)
    return cause


def _of_steps(found: Attribution, method: Method, problem: Problem) -> str:
    """Why an integral along a path does not give the target's value: it needs the derivative of a function."""
    if not problem.converted.classified.balances:
        return f"{method.name} is a sum over points. Pass a larger {method.steps}."
    return (
        f"under {found.rules} the gradient is the derivative of no function, so {method.name} is not complete with any "
        f'{method.steps}. Use input_x_gradient, which is complete in one step, or converted.under("gradient").'
    )


def _excess(found: Attribution, problem: Problem) -> float | None:
    """The largest error of an example, relative to its value and its shares; None if within the tolerance."""
    total, absolute = found.total, found.absolute
    if total is None or absolute is None:
        return None
    scale = torch.maximum(found.output.abs(), absolute)
    error = ((found.output - total).abs() / scale.clamp(min=torch.finfo(scale.dtype).tiny)).double()
    most = float(error.nan_to_num(torch.inf).max())
    return most if most > TOLERANCE[coarsest(found.output, problem)] else None


def coarsest(output: Tensor, problem: Problem) -> torch.dtype:
    """The dtype of least precision among the inputs, the output, and casts in the program."""
    casts = (
        node.kwargs.get("dtype")
        for node in problem.converted.classified.captured.graph.nodes
        if op_name(node) in ("_to_copy", "to")
    )
    tensors = [output, *(entry for entry in problem.entries if isinstance(entry, Tensor))]
    found: list[Any] = [*(tensor.dtype for tensor in tensors), *casts]
    return _FINEST_FIRST[max(_FINEST_FIRST.index(dtype) for dtype in found if dtype in _FINEST_FIRST)]


def own_gradients(problem: Problem) -> str:
    """Which ops have a backward that is not balanced, in words, with their numbers; "" if none has."""
    live = [d for d in problem.converted.classified.decisions.values() if d.live]
    kept = Counter(d.op for d in live if not d.backward.balances(d))
    if not kept:
        return ""
    shown = ", ".join(f"{op} ({count} x)" for op, count in kept.most_common(3))
    shown = f"{shown} and {len(kept) - 3} more" if len(kept) > 3 else shown
    if any(d.backward.divides_layers and not d.backward.balanced for d in live):
        return f"the rules of these ops can lose relevance: {shown}"
    return f"these ops keep their own gradient, which is not balanced: {shown}"


def _booked(problem: Problem) -> tuple[list[LedgerRow], float] | None:
    """(the books of the target's gradient, their tolerance); None if its values are rounding noise."""
    books = Ledger(problem.converted, problem.entries)
    rows, _ = books.close(problem.aim.cotangents, 1.0)
    if books.drowned(float(problem.aim.values.abs().max())):
        return None
    return rows, TOLERANCE[books.coarsest]


def _unbalanced(rows: list[LedgerRow], tolerance: float) -> str:
    """What to say of the node that is least balanced, by the ledger; "" if all are balanced."""
    scale = max((abs(row.inflow) for row in rows), default=1.0) or 1.0
    worst = max(rows, key=lambda row: abs(row.residual), default=None)
    if worst is not None and abs(worst.residual) / scale > tolerance:
        place = Place(worst.module_path, worst.source_line)
        return (
            f"{worst.node} ({worst.op}, {worst.rule}) at {place} is not balanced. fxgrad.check proves node by node; "
            "report it, please."
        )
    return ""
