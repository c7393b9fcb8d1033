"""Notes what torch guards while a model is traced, and which lines of the model it guards for."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import sympy
import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import is_concrete_int
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from fxgrad.errors import CaptureError
from fxgrad.graph.places import called_from, line_of, of_library
from fxgrad.graph.sizes import size_of

TORCH = os.path.dirname(torch.__file__)
INSIDE = (*(os.path.join(TORCH, start) for start in ("_", "fx/")), os.path.join(TORCH, "nn", "modules", "module.py"))
"""Files in which torch computes shapes and strides."""
STRIDES = r"contiguous|channels_last|strides|view_helper|should_swap|^ge$"
"""Functions of torch in which sizes decide about strides."""

Place = tuple[int, int]
"""(index of an input, axis)."""


LARGEST = 100
"""How many parts a size may be computed of: each step in windows doubles them, and with them the time of a trace."""


class Watch(TorchFunctionMode):
    """Notes which line of the user's code called the op inside which torch guarded a size.

    Attributes:
        bounded: whether to stop a trace in which a size becomes too intricate.
        lines: index of a guard -> `file:line: code`.
        because: place of a size that was free where a refused trace began -> the line that fixed it there, or else why
            the trace was refused.
        fixed: place of a size not to be left free -> the line that needs the example's.
    """

    def __init__(self, fixed: Mapping[Place, str] | None = None) -> None:
        super().__init__()
        self.bounded = False
        self._simple: set[sympy.Basic] = set()
        self._environment: Any = None
        self._given: dict[Place, sympy.Symbol] = {}
        self.lines: dict[int, str] = {}
        self.because: dict[Place, str] = {}
        self.fixed: dict[Place, str] = dict(fixed or {})

    def begin(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Note the sizes of the inputs that a trace begins with, and forget an earlier trace."""
        self._environment, self.lines, self._given = None, {}, {}
        for at, leaf in enumerate(pytree.tree_leaves((args, kwargs))):
            shape: Sequence[Any] = leaf.shape if isinstance(leaf, Tensor) else ()
            for axis, size in enumerate(shape):
                if not is_concrete_int(size) and isinstance(size_of(size), sympy.Symbol):
                    self._given[at, axis] = size_of(size)
                    self._environment = getattr(size.node, "shape_env", None)

    def refuse(self, reason: str) -> None:
        """Note why the sizes of this trace cannot all be free; those that it had fixed have reasons of their own."""
        known = Guards(self._environment, self)
        for place, symbol in self._given.items():
            own = known.line_for(symbol) if known.now(symbol).is_number else ""
            if own or place not in self.because:
                self.because[place] = own or reason

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        guards = getattr(self._environment, "guards", ())
        before = len(guards)
        result = func(*args, **(kwargs or {}))
        if len(guards) > before:
            self.lines |= dict.fromkeys(range(before, len(guards)), called_from())
        if self.bounded and self._environment is not None and not torch.compiler.is_dynamo_compiling():
            self._bound(result)
        return result

    def _bound(self, result: Any) -> None:
        """Raise `CaptureError` if a size of a result is computed of more than `LARGEST` parts."""
        with torch._C.DisableTorchFunction():
            tensors = [r for r in (result if isinstance(result, (list, tuple)) else (result,)) if isinstance(r, Tensor)]
            sizes = [getattr(getattr(size, "node", None), "_expr", None) for tensor in tensors for size in tensor.shape]
        for size in sizes:
            if not isinstance(size, sympy.Basic) or size in self._simple:
                continue
            if len(list(itertools.islice(sympy.preorder_traversal(size), LARGEST + 1))) > LARGEST:
                raise CaptureError(f"a size at {called_from()} is computed of more than {LARGEST} parts")
            self._simple.add(size)

    def line(self, guards: Sequence[Any], at: int) -> str:
        """The line that needs a guard: of the user's code if known, else of torch's; or ""."""
        file, number = _origin(guards[at])
        own = line_of(file, number) if file and not inside(guards[at]) else ""
        if own and not file.startswith(TORCH):
            return own
        return (self.lines.get(at) if guards is getattr(self._environment, "guards", None) else None) or own


class Guards:
    """The guards of one trace.

    Args:
        environment: torch's, of a size; None has no guards.
        watch: was on while the model was traced.
    """

    def __init__(self, environment: Any, watch: Watch) -> None:
        self.watch = watch
        self.guards: Sequence[Any] = getattr(environment, "guards", ())
        self.replaced: Mapping[Any, Any] = getattr(environment, "replacements", {})

    def line_for(self, size: Any) -> str:
        """The line that made a size what it is: that of the first guard of it, one with a number if there is one."""
        symbols = set(size.free_symbols)
        while (
            more := {s for old, new in self.replaced.items() for s in _pair(old, new) if _pair(old, new) & symbols}
            - symbols
        ):
            symbols |= more
        touching = [at for at, guard in enumerate(self.guards) if guard.expr.free_symbols & symbols]
        equal = [at for at in touching if type(self.guards[at].expr).__name__ == "Equality"]
        numbers = [at for at in equal if any(part.is_number for part in self.guards[at].expr.args)]
        best = next(iter(numbers or equal or touching), None)
        return "" if best is None else self.watch.line(self.guards, best)

    def now(self, condition: Any) -> Any:
        """A guard with all replacements that tracing found."""
        for _ in range(len(self.replaced) + 1):
            new = condition.xreplace(self.replaced)
            if new == condition:
                break
            condition = new
        return condition


def _pair(old: Any, new: Any) -> set[Any]:
    return {old, *getattr(new, "free_symbols", ())}


def _origin(guard: Any) -> tuple[str, int]:
    """(file, line) of the Python code that made a guard; ("", 0) where this torch does not tell."""
    location = _location(guard)
    return getattr(location, "filename", ""), getattr(location, "lineno", 0)


def _location(guard: Any) -> Any:
    """The frame that made a guard; None where this torch does not tell."""
    return getattr(getattr(guard, "sloc", None), "framework_loc", None)


def inside(guard: Any) -> bool:
    """Whether a computation of shapes and strides made a guard, in torch or here, not a branch of a model or layer."""
    file = _origin(guard)[0]
    return file.startswith(INSIDE) or (of_library(file) and not file.startswith(TORCH))


def of_layout(guard: Any, condition: Any) -> bool:
    """Whether a condition decides about strides only, not about values: it was met where torch compares strides.

    Or it tells unequal sizes, or empty tensors, apart; "a == 1 or a == b" is followed by "a == b" where it matters.
    """
    kind = type(condition).__name__
    if re.search(STRIDES, getattr(_location(guard), "name", "")) or kind in ("Unequality", "Or"):
        return True
    numbers = [int(part) for part in condition.args if part.is_Integer]
    return kind in ("StrictLessThan", "StrictGreaterThan") and bool(numbers) and numbers[0] <= 1
