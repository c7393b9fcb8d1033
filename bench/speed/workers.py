"""Measurements in processes of their own: what fails, hangs or breaks the GPU is recorded, and the rest goes on.

A GPU's error is sticky: after an illegal access every call of the process fails. So a worker ends after one, and a
fresh one takes the job up behind the case that failed.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

Case = tuple[str, Callable[[], dict[str, Any]]]
"""A name, unique in its job, and what measures it."""
Cases = Callable[[str], Iterator[Case]]
"""Name of a job -> its cases, one after another; what they share is made on the way. A function of a module."""
Put = Callable[[str, dict[str, Any]], None]
"""Takes a row: its name, and what was measured, or "error" or "skipped" with the reason."""


@dataclass(frozen=True)
class Job:
    """Cases that share something, a converted model, say.

    Attributes:
        name: of the job; rows are named "job: case".
        least: seconds that must be left for it to begin.
        most: seconds that one case may take, what it shares included.
    """

    name: str
    least: float = 20
    most: float = 60


@dataclass(frozen=True)
class Stage:
    """Jobs, and how many of them run at a time: 1 where time is measured."""

    jobs: Sequence[Job]
    workers: int = 1


def supervise(stages: Sequence[Stage], cases: Cases, seconds: float, put: Put) -> None:
    """Run all jobs that fit, the first ones first.

    Args:
        stages: one after another.
        cases: what the jobs are made of; it is called in the workers.
        seconds: the budget. What is running when it ends is killed.
        put: takes every row as it comes, one at a time.

    Example:
        >>> rows = {}
        >>> supervise([Stage([Job("a", least=9)])], counting, seconds=1, put=rows.__setitem__)
        >>> rows
        {'a': {'skipped': '1 s were left, and it takes 9'}}
    """
    deadline = time.monotonic() + seconds
    lock = threading.Lock()

    def locked(name: str, row: dict[str, Any]) -> None:
        with lock:
            put(name, row)

    first = _Worker(cases)
    try:
        for stage in stages:
            waiting: SimpleQueue[Job] = SimpleQueue()
            for job in stage.jobs:
                waiting.put(job)
            others = [_Worker(cases) for _ in range(min(stage.workers, len(stage.jobs)) - 1)]
            threads = [threading.Thread(target=_drain, args=(w, waiting, deadline, locked)) for w in (first, *others)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            for worker in others:
                worker.stop()
    finally:
        first.stop()


def counting(name: str) -> Iterator[Case]:
    """Two cases that measure next to nothing.

    Example:
        >>> [measure() for _, measure in counting("a")]
        [{'value': 0}, {'value': 1}]
    """
    yield from ((str(i), partial(dict, value=i)) for i in range(2))


def _drain(worker: _Worker, waiting: SimpleQueue[Job], deadline: float, put: Put) -> None:
    while True:
        try:
            job = waiting.get_nowait()
        except Empty:
            return
        left = deadline - time.monotonic()
        if left < job.least:
            put(job.name, {"skipped": f"{max(left, 0):.0f} s were left, and it takes {job.least:.0f}"})
            continue
        done: set[str] = set()
        while not worker.finishes(job, done, deadline, put):
            if time.monotonic() >= deadline:
                break


class _Worker:
    """A process that measures cases; a new one after a failure."""

    def __init__(self, cases: Cases) -> None:
        self.cases = cases
        self.process: Any = None
        self.connection: Any = None
        self.busy = False

    def finishes(self, job: Job, done: set[str], deadline: float, put: Put) -> bool:
        """Whether the job came to its end; False where a case broke the process, and others may be left."""
        if self.process is None:
            context = multiprocessing.get_context("spawn")
            self.connection, end = context.Pipe()
            self.process = context.Process(target=_work, args=(end, self.cases), daemon=True)
            self.process.start()
            end.close()
        self.busy = True
        self.connection.send((job.name, frozenset(done)))
        current, begun = job.name, len(done)
        while True:
            limit = max(min(job.most, deadline - time.monotonic()), 0)
            try:
                sort, name, value = self.connection.recv() if self.connection.poll(limit) else ("late", current, None)
            except (EOFError, ConnectionResetError):
                self.process.join(5)
                sort, name, value = "broken", current, f"its process ended with code {self.process.exitcode}"
            if sort == "begins":
                current = name
                done.add(name)
            elif sort == "row":
                put(name, value)
            elif sort == "ends":
                if value:
                    put(job.name, {"error": value})
                self.busy = False
                return True
            else:
                put(name, {"error": value or f"no answer within {limit:.0f} s"})
                self.stop()
                return len(done) == begun  # what broke before any case began would break again

    def stop(self) -> None:
        """End the process, gently if it waits for a job."""
        if self.process is not None:
            with contextlib.suppress(OSError):
                self.connection.send(None)
                self.process.join(0 if self.busy else 20)
            self.process.kill()
            self.process.join()
            self.connection.close()
        self.process = None


def _work(connection: Any, cases: Cases) -> None:
    """The worker's side: take jobs, send rows."""
    while True:
        try:
            told = connection.recv()
        except EOFError:
            return
        if told is None:
            return
        job, done = told
        failed = ""
        try:
            for case, measure in cases(job):
                name = f"{job}: {case}"
                if name in done:
                    continue
                connection.send(("begins", name, None))
                start = time.perf_counter()
                try:
                    row = measure()
                except Exception as error:  # whatever it is, that is the finding
                    row = {"error": _said(error)}
                    if _broken():
                        connection.send(("broken", name, row["error"]))
                        return
                connection.send(("row", name, {**row, "took": round(time.perf_counter() - start, 2)}))
        except Exception as error:
            failed = _said(error)
        connection.send(("ends", job, failed))


def _said(error: Exception) -> str:
    """The error in one line, with the innermost place."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]} ({where.filename.rpartition('/')[2]}:{where.lineno})"


def _broken() -> bool:
    """Whether the GPU takes no more calls of this process."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False
