"""Record what a model's Python code reads from its tensors, and repeat it while the model is traced.

`if mask.any()` and `int(lengths.max())` need numbers, which a traced tensor does not have. The example has them: one
run of the model records every such reading, in order. The tracer then repeats it, and each reading leaves a check in
the graph, so that other inputs, for which the model would do something else, are refused and never answered wrongly.
Random numbers are recorded and repeated in the same way, but need no check.
"""

from __future__ import annotations

import linecache
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from fxgrad.capture import packed
from fxgrad.capture.distinct import UNIQUE, distinct
from fxgrad.capture.numbers import is_whole, with_numbers
from fxgrad.errors import CaptureError
from fxgrad.graph.decided import MARK
from fxgrad.graph.places import of_library, short


class Reading(NamedTuple):
    """One reading or draw: the function that was called, the value that it found, and the source line."""

    name: str
    value: Any
    line: str


class OtherReadingError(CaptureError):
    """The traced model reads what it did not read where it ran."""


class Decisions(TorchFunctionMode):
    """Record readings and draws, or repeat recorded ones.

    Args:
        known: what to repeat, in order; None records into `readings`.
        reads: whether readings of data count; else they are left to the tracer.
        draws: whether draws of random numbers count; else each run draws anew.

    Raises:
        OtherReadingError: the traced model reads otherwise than it did before.

    Example:
        >>> recorded = Decisions()
        >>> with recorded:
        ...     _ = bool(torch.ones(2).sum() > 1)
        >>> recorded.readings[0].name, recorded.readings[0].value
        ('__bool__', True)
    """

    def __init__(self, known: Sequence[Reading] | None = None, *, reads: bool = True, draws: bool = False) -> None:
        super().__init__()
        self.reads, self.draws = reads, draws
        self.readings: list[Reading] = []
        self.known = None if known is None else list(known)

    def __torch_function__(
        self, func: Any, classes: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if self.draws and func in _DRAWS:
            return self.draw(func.__name__, lambda: func(*args, **kwargs))
        if self.draws and func in _FILLS:
            return args[0].copy_(self.draw(func.__name__, lambda: func(args[0].detach().clone(), *args[1:], **kwargs)))
        if self.draws and func in _DROPOUTS:
            return self.dropout(*args, **kwargs)
        return self.looked(func, args, kwargs) if self.reads else func(*args, **kwargs)

    def looked(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """A function's result; what it reads from the data is recorded or repeated."""
        if func is Tensor.tolist:
            return self.listed(args[0])
        if func in _READS and not kwargs:
            return self.read(func.__name__, args[0], lambda: func(*args))
        if func in _PACKED:
            return self.packed(func, *args, **kwargs)
        if func in (torch.equal, Tensor.equal, torch.allclose, Tensor.allclose):
            return self.read(func.__name__, _alike(func, *args, **kwargs), lambda: func(*args, **kwargs))
        if func in _COUNTS or (func in (torch.where, Tensor.where) and len(args) + len(kwargs) == 1):
            found = self.nonzero(args[0])
            return found if func not in _TUPLES and not kwargs.get("as_tuple") else found.unbind(1)
        if func in (torch.masked_select, Tensor.masked_select):
            values, mask = torch.broadcast_tensors(*args, *kwargs.values())  # type: ignore[no-untyped-call]
            return values[self.nonzero(mask).unbind(1)]
        if func in UNIQUE and kwargs["dim"] is None:
            asked = {name: kwargs[f"return_{name}"] for name in ("inverse", "counts")}
            return distinct(func, self.nonzero, *args, **asked)
        if func in (Tensor.__getitem__, Tensor.__setitem__):
            return func(args[0], self.index(args[1]), *args[2:])
        args, kwargs = with_numbers(func, args, kwargs, self.integer)
        if func is functional.one_hot and (args[1] if len(args) > 1 else kwargs.get("num_classes", -1)) == -1:
            return func(args[0], self.integer(args[0].max()) + 1)
        if func in (torch.repeat_interleave, Tensor.repeat_interleave) and "output_size" not in kwargs:
            repeats = args[1] if len(args) > 1 else kwargs.get("repeats")
            if isinstance(repeats, Tensor):
                kwargs["output_size"] = self.integer(repeats.sum())
        return func(*args, **kwargs)

    def read(self, name: str, tensor: Tensor, function: Callable[[], Any]) -> Any:
        """What a function reads from a tensor: found now, or as recorded, with a check in the graph."""
        line = _line()
        if self.known is None:
            value = function()
            self.readings.append(Reading(name, value, line))
            return value
        reading = self.next(name, line)
        if reading is None:
            raise OtherReadingError(
                f"the model reads its data at {line} while it is traced, but not where it runs. Code that asks whether "
                "it is being compiled or exported does that; make forward the same in both."
            )
        torch._assert_async(_agrees(tensor.detach(), reading.value), MARK + _message(reading))
        return reading.value

    def next(self, name: str, line: str) -> Reading | None:
        """The next known reading of this name, at this line if there is one; those before it are left out.

        torch.export traces some of Python's decisions as ops: the larger one of a tensor and a number, say.
        """
        assert self.known is not None
        here = (at for at, reading in enumerate(self.known) if (reading.name, reading.line) == (name, line))
        at = next(here, 0)
        self.known = self.known[at:]
        return self.known.pop(0) if self.known and self.known[0].name == name else None

    def listed(self, tensor: Tensor) -> Any:
        """A tensor as nested lists, number by number, as a traced tensor gives it."""
        return [self.listed(part) for part in tensor] if tensor.dim() else self.read("item", tensor, tensor.item)

    def packed(self, func: Any, data: Tensor, sizes: Any, *rest: Any) -> Any:
        """A function of packed sequences, whose lengths are read from the data."""
        if not isinstance(sizes, Tensor):  # a recurrent layer of a padded sequence: its sizes are states
            return func(data, sizes, *rest)
        known = self.listed(sizes)
        if self.known is None:
            return func(data, sizes, *rest)
        if func is torch._pack_padded_sequence:
            return packed.pack(data, known, *rest)
        if func is torch._pad_packed_sequence:
            return packed.pad(data, known, *rest)
        states, weights, biases, layers, _, _, bidirectional = rest
        states = tuple(states) if isinstance(states, (tuple, list)) else (states,)
        return packed.recurrent(func.__name__, data, known, states, weights, biases, layers, bidirectional)

    def draw(self, name: str, function: Callable[[], Tensor]) -> Tensor:
        """Random numbers: drawn now, or as recorded."""
        if self.known is None:
            self.readings.append(Reading(name, function().detach(), _line()))
            return cast(Tensor, self.readings[-1].value).clone()
        reading = self.next(name, _line())
        if reading is None:
            raise CaptureError(
                f"the model draws random numbers at {_line()} while it is traced, but not where it runs. Make forward "
                "the same in both."
            )
        return cast(Tensor, reading.value).clone()

    def dropout(self, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        """Dropout as a product with a mask that is drawn."""
        if not training or p == 0:
            return input
        mask = self.draw("dropout", lambda: torch.empty_like(input).bernoulli_(1 - p).div_(1 - p))
        return input.mul_(mask) if inplace else input * mask

    def integer(self, tensor: Tensor) -> int:
        value: int = self.read("__index__", tensor, tensor.__index__)
        return value

    def nonzero(self, mask: Tensor) -> Tensor:
        """The indices of elements that are not 0, (n, axes), where n is read from the data."""
        return torch.nonzero_static(mask, size=self.integer(mask.count_nonzero()))

    def index(self, index: Any) -> Any:
        """An index without masks, whose number of elements is read from the data, and with numbers in slices."""
        parts = index if isinstance(index, tuple) else (index,)
        if not any(_mask(p) or is_whole(p) or isinstance(p, slice) for p in parts):
            return index
        found: list[Any] = []
        for part in parts:
            if isinstance(part, slice):
                ends = (part.start, part.stop, part.step)
                found.append(slice(*(self.integer(e) if isinstance(e, Tensor) else e for e in ends)))
            elif _mask(part):
                found += self.nonzero(part).unbind(1)
            else:
                found.append(self.integer(part) if is_whole(part) else part)
        return tuple(found)


_READS = {
    *(Tensor.item, Tensor.numpy, Tensor.__array__, torch.is_nonzero, Tensor.is_nonzero),
    *(Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.__index__, Tensor.__complex__),
}
_DRAWS = {
    *(torch.rand, torch.randn, torch.randint, torch.randperm, torch.rand_like, torch.randn_like, torch.randint_like),
    *(torch.normal, torch.bernoulli, Tensor.bernoulli, torch.multinomial, Tensor.multinomial, torch.poisson),
}
_FILLS = {
    *(Tensor.normal_, Tensor.uniform_, Tensor.bernoulli_, Tensor.exponential_, Tensor.random_, Tensor.cauchy_),
    *(Tensor.log_normal_, Tensor.geometric_),
}
_DROPOUTS = {torch.dropout, functional.dropout}
_PACKED = {
    *(torch._pack_padded_sequence, torch._pad_packed_sequence),
    *(torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu),
}
_COUNTS = {torch.nonzero, Tensor.nonzero, torch.argwhere, Tensor.argwhere}
_TUPLES = {torch.where, Tensor.where}


def _mask(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.dtype in (torch.bool, torch.uint8) and leaf.dim() > 0


def _alike(func: Any, a: Tensor, b: Tensor, *tolerances: Any, **options: Any) -> Tensor:
    """One bool: what `torch.equal` or `torch.allclose` reads."""
    if func in (torch.equal, Tensor.equal):
        return (a == b).all() if a.shape == b.shape else torch.zeros((), dtype=torch.bool)
    return torch.isclose(a, b, *tolerances, **options).all()


def _agrees(tensor: Tensor, value: Any) -> Tensor:
    """One bool: whether a tensor holds a value that was read from it."""
    if isinstance(value, bool):
        return ((tensor != 0) == value).all()
    if isinstance(value, (int, float, complex)):
        return (tensor == value).all() if value == value else tensor.isnan().all()
    wanted = torch.as_tensor(value, dtype=tensor.dtype, device=tensor.device)
    same = tensor == wanted
    return (same | (tensor.isnan() & wanted.isnan()) if tensor.is_floating_point() else same).all()


def _message(reading: Reading) -> str:
    value = " ".join(str(reading.value).split())
    value = value if len(value) <= 60 else f"{value[:57]}..."
    return (
        f"the model reads its data at {reading.line}. It found {value} for the example that it was converted with, and "
        "finds something else for these inputs, so the captured graph is not the model's for them. Convert it again "
        "with an example like them."
    )


def _line() -> str:
    """`file:line: code` of the innermost frame outside of torch and fxgrad."""
    for frame in _frames():
        file, number = frame.f_code.co_filename, frame.f_lineno
        if not of_library(file):
            return f"{short(file)}:{number}: {linecache.getline(file, number).strip()}"
    return "an unknown line"


def _frames() -> Iterator[Any]:
    frame = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back  # type: ignore[assignment]
