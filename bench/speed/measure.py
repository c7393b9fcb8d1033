"""How the speed benchmark measures: time in turns, memory by the allocator, bytes kept for the backward.

A quiet machine is not to be had, so that everything that is compared runs in one process, in turns, and ratios are
taken within one round: noise that lasts longer than a round hits all alike.
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import fxgrad

Run = Callable[[], Any]
"""One measured call."""


def processor_seconds(run: Run, times: int = 1) -> float:
    """Processor seconds of some calls, which mean something where others share the cores.

    Example:
        >>> processor_seconds(lambda: sum(range(9))) >= 0
        True
    """
    start = time.process_time()
    for _ in range(times):
        run()
    return time.process_time() - start


@dataclass
class Turns:
    """Several calls, timed in turns.

    Attributes:
        runs: name -> call. The last one is what pytest-benchmark times itself.
        sparse: names of those that run in one round of `every` only, because they are slow and no bar hangs on them.
        device: "cpu" or "cuda", where a call has ended when the device has.
        times: name -> seconds per round; None where it was left out.

    Example:
        >>> turns = Turns({"none": lambda: None, "sum": lambda: sum(range(9))})
        >>> turns.interleave(rounds=3)
        >>> {name: len(seconds) for name, seconds in turns.times.items()}
        {'none': 3, 'sum': 3}
    """

    runs: dict[str, Run]
    sparse: frozenset[str] = frozenset()
    device: str = "cpu"
    every: int = 3
    times: dict[str, list[float | None]] = field(default_factory=dict)
    _round: int = 0

    @property
    def target(self) -> str:
        return list(self.runs)[-1]

    def timed(self, name: str) -> float:
        """Seconds of one call."""
        synchronize(self.device)
        start = time.perf_counter()
        self.runs[name]()
        synchronize(self.device)
        return time.perf_counter() - start

    def others(self) -> None:
        """One round of all but the last, from another one on each time."""
        gc.collect()  # now, and not inside what is timed
        names = list(self.runs)[:-1]
        shift = self._round % len(names) if names else 0
        for name in names[shift:] + names[:shift]:
            left_out = name in self.sparse and self._round % self.every
            self.times.setdefault(name, []).append(None if left_out else self.timed(name))
        self._round += 1

    def interleave(self, rounds: int, benchmark: Any = None) -> None:
        """Time everything in turns. Whoever calls this has called everything once, to compare results.

        Args:
            rounds: how many.
            benchmark: pytest-benchmark's fixture, which times the last call; without one it is timed here.
        """
        self.times, self._round = {}, 0

        def target() -> None:
            self.runs[self.target]()
            synchronize(self.device)

        if benchmark is None:
            durations: list[float | None] = []
            for _ in range(rounds):
                self.others()
                durations.append(self.timed(self.target))
            self.times[self.target] = durations
            return
        benchmark.pedantic(target, setup=self.others, rounds=rounds)
        self.times[self.target] = list(benchmark.stats.stats.data)


def synchronize(device: str) -> None:
    """Wait until the device has done what it was told."""
    if device == "cuda":
        torch.cuda.synchronize()


def peak_bytes(run: Run, device: str = "cpu") -> int:
    """The most that a call holds beyond what was there before it, by PyTorch's own allocator.

    Args:
        run: the call; what it returns is let go. What the first call makes and keeps counts, too.
        device: "cpu" or "cuda".

    Example:
        >>> peak_bytes(lambda: torch.zeros(1000).add(1).sum()) // 1000
        8
    """
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    kineto: Any = profiled.profiler
    events = [e for e in kineto.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def saved_bytes(run: Run, leave_out: Sequence[Tensor] = ()) -> int:
    """What a recorded forward keeps for its backward, every storage once.

    Args:
        run: a forward and its backward.
        leave_out: tensors that are there anyway, such as inputs and parameters.

    Returns:
        Bytes of the storages that autograd saves, whole, also where it saves a view of one.

    Example:
        >>> x = torch.zeros(10, requires_grad=True)
        >>> saved_bytes(lambda: torch.autograd.grad(x.exp().exp().sum(), x))
        80
    """
    there = {t.untyped_storage().data_ptr() for t in leave_out}
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        # Nothing that is saved is freed before the last one is, so that no address is used twice.
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in there:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(storages.values())


@dataclass(frozen=True)
class Conversion:
    """What one conversion took.

    Attributes:
        export: seconds of torch.export and its decomposition.
        beyond: seconds of everything else, which is fxgrad's.
        nodes: of the captured graph.
    """

    export: float
    beyond: float
    nodes: int


def conversion(model: torch.nn.Module, x: Tensor) -> Conversion:
    """Convert a model, and take the time of torch.export out of the whole by a clock inside.

    Args:
        model: in eval mode.
        x: its input.

    Returns:
        The two times. If fxgrad decomposes more than once, only the first counts as torch.export's.

    Example:
        >>> conversion(torch.nn.GELU().eval(), torch.zeros(2, 3)).nodes
        3
    """
    inside: dict[str, float] = {}

    @contextlib.contextmanager
    def clocked(owner: Any, name: str) -> Iterator[None]:
        original = getattr(owner, name)

        def clock(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return original(*args, **kwargs)
            finally:
                inside.setdefault(name, time.perf_counter() - start)

        with mock.patch.object(owner, name, clock):
            yield

    gc.collect()
    with clocked(torch.export, "export"), clocked(torch.export.ExportedProgram, "run_decompositions"):
        start = time.perf_counter()
        converted = fxgrad.convert(model, (x,))
        whole = time.perf_counter() - start
    export = sum(inside.values())
    return Conversion(export, whole - export, len(converted.classified.captured.graph.nodes))
