"""Trace a module by torch.export: for all inputs where its code allows it, else for those that decide as the example.

Attempts go from the most general program to the most special one; the first that succeeds counts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from fxgrad.capture.admission import refuse_other_dtype
from fxgrad.capture.captured import input_names
from fxgrad.capture.decisions import Decisions, OtherReadingError, Reading
from fxgrad.capture.free import as_chosen, choices, first_that_exports, without
from fxgrad.capture.guards import without_guards
from fxgrad.capture.higher_order import AsWithoutGrad
from fxgrad.capture.program import Arguments
from fxgrad.capture.quantised import quantising, readable
from fxgrad.capture.tracing import (
    LastStates,
    OwnGradMode,
    around,
    as_eager,
    outcome,
    settings,
    signature_of,
    staying,
    under,
    unwrapped,
    with_builtins,
)
from fxgrad.capture.watch import Watch
from fxgrad.errors import CaptureError, FxgradError, first_line, one_line
from fxgrad.graph.places import raised_at

OnRandom = Literal["error", "freeze"]
"""What to do with a model that draws random numbers: refuse it, or draw once and keep the numbers."""
_NONE: Mapping[str, Any] = {}
_READ = torch.ops.aten._local_scalar_dense.default
"""What code of Python's reads a tensor's value by."""
_LOG = logging.getLogger(__name__)


def trace(
    model: nn.Module,
    example: Arguments,
    dynamic_shapes: Any = None,
    on_random: OnRandom = "error",
    watch: Watch | None = None,
    eager: bool = False,
) -> tuple[ExportedProgram, tuple[Reading, ...]]:
    """Trace a model with gradients enabled, so that the parts under its own `torch.no_grad()` show.

    Args:
        model: in eval mode; not changed.
        example: (args, kwargs), without gradients.
        dynamic_shapes: as for `torch.export.export`; None leaves all sizes free that can be.
        on_random: "freeze" draws the model's random numbers once.
        watch: notes what fixed a size, and says which not to leave free.
        eager: tell the model's code that it is not exported, whatever it asks.

    Returns:
        (the program, the numbers drawn).

    Raises:
        CaptureError: nothing can trace it; the message says what is in the way, and where.

    Example:
        >>> class Flagged(nn.Module):
        ...     def forward(self, x, flag):
        ...         return x + 1 if flag else x
        >>> program, _ = trace(Flagged().eval(), ((torch.ones(2), torch.tensor(True)), {}))
        >>> [str(node.target) for node in program.graph.nodes if node.op == "call_function"][-2:]
        ['aten._assert_async.msg', 'aten.add.Tensor']
    """
    watch = watch or Watch()
    watch.bounded = dynamic_shapes is None  # then fewer sizes may be free
    fixed = dict(watch.fixed)
    draws = tuple(_recorded(model, example, Decisions(reads=False, draws=True))) if on_random == "freeze" else ()
    spread = example if draws or dynamic_shapes is not None else _spread(example)
    traced = partial(_traced, model, example, dynamic_shapes, draws, watch, eager)
    try:
        return traced(spread)
    except CaptureError:
        if spread is example or _runs(model, spread):
            raise
    _LOG.info("the model takes a batch of one only: tracing again for that")
    watch.fixed, watch.because = fixed, {}
    return traced(example)


def _traced(
    model: nn.Module,
    example: Arguments,
    dynamic_shapes: Any,
    draws: tuple[Reading, ...],
    watch: Watch,
    eager: bool,
    spread: Arguments,
) -> tuple[ExportedProgram, tuple[Reading, ...]]:
    """(the program, the numbers drawn), traced with the spread example, or where it decides otherwise, the example."""

    def attempt(
        example: Arguments, known: Sequence[Reading], reads: bool, own: Mapping[str, Any] = _NONE
    ) -> ExportedProgram:
        def export(shapes: Any) -> ExportedProgram:
            modes = (Decisions(known, reads=reads, draws=bool(draws)),) if known else ()
            return _exported(model, example, shapes, watch, modes, eager, own)

        def hopeless(error: Exception) -> bool:
            return not reads and _about_data(error)

        if dynamic_shapes is not None:
            return as_chosen(dynamic_shapes, export, watch, hopeless)
        free = [without(choice, watch.fixed) for choice in choices(model, *example)]
        return first_that_exports(free, export, watch, hopeless)

    try:
        return attempt(spread, draws, reads=False), draws
    except Exception as error:
        first = error
    known = _recorded(model, example, Decisions(draws=bool(draws)))
    if not known and not _about_data(first):
        raise CaptureError(_diagnose(model, example, first)) from first
    # A model that reads nothing may fail for a size that torch.export cannot compute of free ones: fewer may do.
    if draws:
        draws = tuple(reading for reading in known if isinstance(reading.value, Tensor))
    elif not _same(known, _recorded(model, spread, Decisions())):
        spread = example
    # torch.export makes an op of a `max` of a tensor and a number, where Python's own reads which one is larger.
    for own in (_NONE, {"max": max, "min": min}):
        try:
            return attempt(spread, known, True, own), draws
        except Exception as error:
            last = error
        if not isinstance(unwrapped(last), OtherReadingError):
            break
        watch.because = {}
    raise CaptureError(_diagnose(model, example, last)) from last


def outputs_of(model: nn.Module, example: Arguments, draws: Sequence[Reading] = ()) -> Any:
    """What the model itself returns, without gradients, with these random numbers.

    Example:
        >>> outputs_of(nn.ReLU(), ((torch.tensor([-1.0, 2.0]),), {}))
        tensor([0., 2.])
    """
    args, kwargs = example
    with settings(), torch.no_grad():
        return outcome(_within(Decisions(draws, reads=False, draws=True), model) if draws else model, args, kwargs)


def _recorded(model: nn.Module, example: Arguments, recorder: Decisions) -> list[Reading]:
    """What the model reads and draws; nothing if it fails on the example, which the diagnosis then says."""
    args, kwargs = example
    try:
        with settings(), torch.no_grad():
            outcome(_within(recorder, model), args, kwargs)
    except Exception:
        return []
    return recorder.readings


def _within(mode: Decisions, model: nn.Module) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        with mode:
            return model(*args, **kwargs)

    return run


def _same(first: Sequence[Reading], second: Sequence[Reading]) -> bool:
    """Whether both are the same numbers."""
    numbers = all(isinstance(reading.value, (bool, int, float)) for reading in first)
    return numbers and list(first) == list(second)


def _exported(
    model: nn.Module,
    example: Arguments,
    dynamic_shapes: Any,
    watch: Watch,
    modes: Sequence[TorchFunctionMode],
    eager: bool,
    own: Mapping[str, Any],
) -> ExportedProgram:
    args, kwargs = example
    _LOG.info("tracing the model" + (" for this example's decisions" if modes else ""))

    def begin(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        watch.begin(args, kwargs)
        with as_eager() if eager else nullcontext(), with_builtins(own):
            return forward(*args, **kwargs)

    with settings(), readable(model, args, kwargs), staying(model), torch.enable_grad():
        traced = around(under(model, LastStates(), OwnGradMode(), AsWithoutGrad(), watch, *modes), begin)
        return without_guards(torch.export.export(traced, args, kwargs, strict=False, dynamic_shapes=dynamic_shapes))


def _spread(example: Arguments) -> Arguments:
    """The arguments with a batch of one doubled, since torch.export specializes a size of 1."""
    leaves = [leaf for leaf in pytree.tree_leaves(example) if isinstance(leaf, Tensor) and leaf.dim()]
    if any(leaf.shape[0] != 1 for leaf in leaves):
        return example

    def double(leaf: Any) -> Any:
        return torch.cat([leaf, leaf]) if isinstance(leaf, Tensor) and leaf.dim() else leaf

    args, kwargs = pytree.tree_map(double, example)
    return args, kwargs


def _runs(model: nn.Module, example: Arguments) -> bool:
    """Whether the model takes an example."""
    try:
        outputs_of(model, example)
    except Exception:
        return False
    return True


def _diagnose(model: nn.Module, example: Arguments, error: Exception) -> str:
    """A message about why the export failed: the example inputs, the model's control flow, or something else."""
    try:
        outputs_of(model, example)
    except FxgradError as own:
        return str(own)
    except Exception as own:
        leaves, spec = pytree.tree_flatten(example)

        def run(values: list[Any]) -> None:
            outputs_of(model, pytree.tree_unflatten(values, spec))

        names = input_names(signature_of(model), example)
        refuse_other_dtype(list(zip(names, leaves)), [*model.parameters(), *model.buffers()], run, own)
        shapes = ", ".join(
            str(tuple(leaf.shape)) if isinstance(leaf, Tensor) else type(leaf).__name__
            for leaf in pytree.tree_leaves(example)
        )
        return f"the model itself fails on the example inputs ({shapes}): {one_line(own)}"
    error = unwrapped(error)
    if isinstance(error, CaptureError):
        return str(error)
    if sizes := _about_shapes(error):
        return (
            f"dynamic_shapes does not fit the model or the example: {sizes}. Pass torch.export.Dim.AUTO for these, "
            "or no dynamic_shapes: then each size is free that can be, and the report says what fixed the others."
        )
    line = raised_at(error)
    where = f" at {line}" if line else ""
    if _about_data(error) and getattr(error, "func", _READ) is _READ:  # else an op needs the value, and no branch
        return (
            f"control flow depends on the data{where}, so the model is not one graph. Replace the branch by "
            f"torch.where, or move it out of forward. torch.export says: {first_line(error)}"
        )
    if said := quantising(error):
        return f"torch.export cannot trace the model{where}: {said}"
    said = one_line(error).rstrip(". ")
    return (
        f"torch.export cannot trace the model{where}: {said}. Write {'this' if line else 'that'} in other tensor "
        "operations, or convert a submodule that does without it."
    )


def _about_shapes(error: Exception) -> str:
    """What torch.export says of sizes that it was told to leave free; "" if this is another failure."""
    if type(error).__name__ == "ConstraintViolationError":
        return first_line(error).rstrip(".")
    if "Constraints violated" not in first_line(error):
        return ""
    details = [line.strip(" -").partition(". If you")[0] for line in str(error).splitlines() if line.startswith("  - ")]
    return "; ".join(details[:3]) or first_line(error)


def _about_data(error: Exception) -> bool:
    """Whether an export failed because the model's code needs the value of a tensor."""
    return "data-dependent" in str(error).lower() or "DataDependent" in type(unwrapped(error)).__name__
