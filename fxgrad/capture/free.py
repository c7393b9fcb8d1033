"""Which axes of a model's inputs to leave free: all that its code allows.

All axes of all tensors are left to `torch.export`, which finds out what the code allows. Where it cannot export, or the
program would hold for some sizes only, fewer are left.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import sympy
import torch.fx.experimental as symbolic_config
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree

from fxgrad.capture.shapes import sizes_in
from fxgrad.capture.tracing import StoppedError, signature_of, unwrapped
from fxgrad.capture.watch import Watch
from fxgrad.errors import one_line
from fxgrad.graph.nodes import placeholders_of
from fxgrad.graph.places import place_of
from fxgrad.graph.sizes import sizes_of


class _Free(dict[int, Any]):
    """The free axes of one input, told from a dict of inputs."""


def choices(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
    """What to give `torch.export.export` as `dynamic_shapes`, best first: all axes free, the first ones, none.

    Args:
        model: the model to export.
        args, kwargs: its example inputs.

    Example:
        >>> import torch
        >>> choices(nn.ReLU(), (torch.ones(2, 1, 3),), {})[:2]
        [{'input': {0: DimHint(AUTO), 2: DimHint(AUTO)}}, {'input': {0: DimHint(AUTO)}}]
    """
    # torch.export wants one item per parameter of forward, *args and **kwargs included.
    given = signature_of(model).bind(*args, **kwargs).arguments

    def free(axes: int) -> Any:
        def of(leaf: Any) -> _Free | None:
            if not isinstance(leaf, Tensor):
                return None
            return _Free({axis: Dim.AUTO for axis, size in enumerate(leaf.shape[:axes]) if size > 1}) or None

        return pytree.tree_map(of, given)

    found: list[Any] = []
    for axes in (max((leaf.dim() for leaf in pytree.tree_leaves(given) if isinstance(leaf, Tensor)), default=0), 1, 0):
        if (choice := free(axes)) not in found:
            found.append(choice)
    return found


def fewer(shapes: Any) -> list[Any]:
    """These `dynamic_shapes`, then with `Dim.AUTO` at first axes only, then with none: best first.

    Args:
        shapes: as for `torch.export.export`.

    Example:
        >>> for choice in fewer(({0: Dim.AUTO, 1: Dim.AUTO, 2: Dim.DYNAMIC},)):
        ...     print(choice)
        ({0: DimHint(AUTO), 1: DimHint(AUTO), 2: DimHint(DYNAMIC)},)
        ({0: DimHint(AUTO), 1: DimHint(STATIC), 2: DimHint(DYNAMIC)},)
        ({0: DimHint(STATIC), 1: DimHint(STATIC), 2: DimHint(DYNAMIC)},)
    """

    def keeping(axes: Container[int]) -> Any:
        def of(path: Sequence[Any], hint: Any) -> Any:
            # The last step to a hint is the axis, in a dict of axes or a list of them.
            step = path[-1] if path else None
            axis = getattr(step, "key", getattr(step, "idx", None))
            return hint if hint != Dim.AUTO or axis in axes else Dim.STATIC

        return pytree.tree_map_with_path(of, shapes)

    found = [shapes]
    for choice in (keeping({0}), keeping(())):
        if choice != found[-1]:
            found.append(choice)
    return found


def first_that_exports(
    options: Sequence[Any],
    export: Callable[[Any], ExportedProgram],
    watch: Watch,
    hopeless: Callable[[Exception], bool] = lambda error: False,
) -> ExportedProgram:
    """The program for the best of these `dynamic_shapes` that can be exported and checked.

    Args:
        options: `dynamic_shapes`, best first.
        export: exports with one of them.
        watch: is told why the first one is not the one.
        hopeless: says of an error that fewer free sizes would not help.

    Raises:
        Exception: what exporting for the last one raised.
    """

    def attempt(choice: Any) -> ExportedProgram | None:
        with oblivious() if choice is options[0] else nullcontext():
            program = export(choice)
            for needs in (_pinned, _cut):
                if found := needs(program, watch):
                    watch.fixed |= found
                    program = export(without(choice, watch.fixed))
                    sizes_in(program)
        if cut := cut_batch(program):
            watch.refuse(cut_by(next(iter(cut.values()))))
            return None
        return program

    return _first(options[:-1], attempt, watch, hopeless) or export(options[-1])


def as_chosen(
    shapes: Any, export: Callable[[Any], ExportedProgram], watch: Watch, hopeless: Callable[[Exception], bool]
) -> ExportedProgram:
    """The program for the user's own `dynamic_shapes`; `Dim.AUTO` is free where it can be, as by default.

    Args:
        shapes: as for `torch.export.export`. A size that they name, bound or call dynamic is never fixed.
        export, watch, hopeless: as for `first_that_exports`. Fewer are tried only where the model's own code failed.

    Raises:
        Exception: what exporting raised, in the end with no size at `Dim.AUTO`.
    """

    def of_shapes(error: Exception) -> bool:
        return not isinstance(error, StoppedError) or hopeless(error)

    *options, last = fewer(shapes)
    return _first(options, export, watch, of_shapes) or export(last)


def _first(
    options: Sequence[Any],
    attempt: Callable[[Any], ExportedProgram | None],
    watch: Watch,
    hopeless: Callable[[Exception], bool],
) -> ExportedProgram | None:
    for choice in options:
        try:
            if program := attempt(choice):
                return program
        except Exception as error:
            if hopeless(error):
                raise
            # With fewer free sizes it may work, and else the last error says why.
            watch.refuse(f"torch.export, which cannot leave it free ({one_line(unwrapped(error))})")
    return None


def _pinned(program: ExportedProgram, watch: Watch) -> dict[tuple[int, int], str]:
    """The sizes for which the program holds only where they are the example's -> the line that needs them."""
    shapes = [tuple(getattr(leaf, "shape", ())) for leaf in pytree.tree_leaves(program.example_inputs)]
    return sizes_in(program, watch).pinned(shapes)


def _cut(program: ExportedProgram, watch: Watch) -> dict[tuple[int, int], str]:
    """The sizes, except the batch's, on which it depends what a tensor is cut into -> the line that does."""
    return places_of(_inputs_of(program), {symbol: cut_by(line) for symbol, line in cut_batch(program).items()})


def _inputs_of(program: ExportedProgram) -> list[fx.Node]:
    entries = {s.arg.name for s in program.graph_signature.input_specs if s.kind is InputKind.USER_INPUT}
    return [node for node in placeholders_of(program.graph) if node.name in entries]


def cut_by(line: str) -> str:
    """What fixed a size that a line cuts by."""
    return f"a number in {line}, which fits this size alone"


def without(choice: Any, places: Container[tuple[int, int]]) -> Any:
    """These `dynamic_shapes` with each of some (index of an input, axis) fixed."""
    leaves, spec = pytree.tree_flatten(choice, is_leaf=lambda leaf: isinstance(leaf, _Free))
    kept = [
        _Free({axis: hint for axis, hint in leaf.items() if (at, axis) not in places}) or None if leaf else leaf
        for at, leaf in enumerate(leaves)
    ]
    return pytree.tree_unflatten(kept, spec)


def places_of(inputs: Sequence[fx.Node], lines: Mapping[Any, str]) -> dict[tuple[int, int], str]:
    """Where the inputs have free sizes: (index of an input, axis) -> the line that came with the symbol in its size.

    Example:
        >>> import torch
        >>> free = ({0: Dim.AUTO, 1: Dim.AUTO},)
        >>> graph = torch.export.export(nn.ReLU(), (torch.ones(3, 4),), dynamic_shapes=free).graph
        >>> node = placeholders_of(graph)[0]
        >>> places_of([node], {sizes_of(node)[1]: "net.py:7: x[:, 4:]"})
        {(0, 1): 'net.py:7: x[:, 4:]'}
    """
    return {
        (at, axis): next(lines[symbol] for symbol in size.free_symbols if symbol in lines)
        for at, node in enumerate(inputs)
        for axis, size in enumerate(sizes_of(node))
        if isinstance(size, sympy.Expr) and size.free_symbols & set(lines)
    }


def cut_batch(program: ExportedProgram) -> dict[Any, str]:
    """The free sizes by which a line cuts a tensor into pieces of a number, such as `x.view(-1, 400)` -> the line.

    None stands for the sizes of several batches.

    If other sizes than the batch are free, it is known for one size only that each piece belongs to one example.

    Example:
        >>> import torch
        >>> class Flat(nn.Module):
        ...     def forward(self, x):
        ...         return x.view(-1, 12)
        >>> program = torch.export.export(Flat(), (torch.ones(2, 6, 4),), dynamic_shapes=({0: Dim.AUTO, 1: Dim.AUTO},))
        >>> list(cut_batch(program).values())  # the line, where the code is in a file
        ['aten.view.default']
    """
    shapes = [sizes_of(node) for node in _inputs_of(program)]
    batches: set[Any] = {symbol for shape in shapes if shape for symbol in getattr(shape[0], "free_symbols", ())}
    found: dict[Any, str] = {}
    for node in program.graph.nodes:
        for size in sizes_of(node):
            parts = sympy.preorder_traversal(size) if isinstance(size, sympy.Expr) else ()
            for part in (part for part in parts if type(part).__name__ == "FloorDiv"):
                if len(part.free_symbols) > 1 and part.free_symbols & batches:
                    line = place_of(node).source_line or str(node.target)
                    found |= {symbol: line for symbol in part.free_symbols - batches or {None} if symbol not in found}
    return found


def oblivious() -> AbstractContextManager[Any]:
    """Have torch trace as if sizes of 1 were not special, so that only the model's own code tells them apart.

    torch.onnx traces like this. It also makes fewer guards.

    Example:
        >>> import torch
        >>> with oblivious():
        ...     program = torch.export.export(nn.ReLU(), (torch.ones(1),), dynamic_shapes=({0: Dim.AUTO},))
        >>> [str(s) for s in next(iter(program.graph.nodes)).meta["val"].shape][0].startswith("s")
        True
    """
    config = getattr(symbolic_config, "_config", None)
    known = hasattr(config, "backed_size_oblivious") and hasattr(config, "patch")
    return config.patch(backed_size_oblivious=True) if config is not None and known else nullcontext()
