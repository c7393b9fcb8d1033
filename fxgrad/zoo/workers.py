"""Worker processes that measure cases; the parent kills a worker whose case takes too much time or memory.

The parent watches resident memory. A limit on the address space would not work, since torch maps many times the memory
that it uses.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import signal
import threading
import time
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnContext
from pathlib import Path

import psutil

from fxgrad.errors import InputError
from fxgrad.zoo.case import Case
from fxgrad.zoo.rows import Row

_START = 300
"""Seconds that a worker has to import torch and the case's modules."""


class Worker:
    """A process, and the case that it works on.

    Args:
        log: file for its output; its last lines say where it crashed.
        timeout: seconds for one case.
        memory: resident bytes at which it is killed.
        threads: number of torch's threads; 0 for torch's default.
    """

    def __init__(self, log: Path, *, timeout: float, memory: float, threads: int) -> None:
        context: SpawnContext = multiprocessing.get_context("spawn")  # a fork would inherit locks of torch's threads
        self.log, self.timeout, self.memory = log, timeout, memory
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, log, threads), daemon=True)
        self.process.start()
        theirs.close()
        self.case: Case | None = None
        self.ready, self.peak, self.since = False, 0, time.monotonic()

    def give(self, case: Case) -> None:
        """Start on a case.

        Raises:
            InputError: the case cannot be sent to another process.
        """
        self.case, self.peak, self.since = case, 0, time.monotonic()
        try:
            self.connection.send(case)
        except OSError:
            pass  # the process is dead: `look` reports it
        except Exception as error:
            raise InputError(
                f"{case.name} cannot be sent to a worker process ({error}): its `build` must be a function at the "
                "top of a module, or a partial of one."
            ) from error

    def look(self) -> Row | None:
        """The row of the case, or None while it runs. A worker that had to be killed is no longer `usable`."""
        assert self.case is not None
        resident = self.resident()
        self.peak = max(self.peak, resident)
        seconds = time.monotonic() - self.since
        try:
            if self.connection.poll():
                row = self.connection.recv()
                if row is not None:
                    self.case = None
                    return _with_peak(row, self.peak)
                self.ready, self.since = True, time.monotonic()  # the case's time starts after the process has started
                return None
        except (EOFError, OSError):
            self.process.join(10)
        if not self.process.is_alive():
            return self._lost(f"Crashed: {_how(self.process.exitcode)}{_last_words(self.log)}", seconds)
        if resident > self.memory:
            return self._lost(f"OutOfMemory: {resident / 1e9:.1f} GB, the limit is {self.memory / 1e9:.1f} GB", seconds)
        if seconds > (self.timeout if self.ready else _START):
            return self._lost(f"TimedOut: not done after {seconds:.0f} s", seconds)
        return None

    def _lost(self, reason: str, seconds: float) -> Row:
        self.stop()
        case, self.case = self.case, None
        assert case is not None
        return _with_peak(Row(case.name, case.family, reason=reason, seconds=seconds), self.peak)

    @property
    def usable(self) -> bool:
        """Whether it can take another case: it is alive, and earlier cases left enough memory."""
        return self.process.is_alive() and self.resident() < self.memory / 3

    def resident(self) -> int:
        """Its resident memory in bytes; 0 after it ended."""
        try:
            return int(psutil.Process(self.process.pid).memory_info().rss)
        except psutil.Error:
            return 0

    def stop(self) -> None:
        """End the process: kill it if it works on a case, else let it finish."""
        self.connection.close()
        if not self.case:
            self.process.join(5)
        self.process.kill()
        self.process.join()


def _serve(connection: Connection, log: Path, threads: int) -> None:
    """The worker's loop: receive a case, send its row, until the connection closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    faulthandler.enable()
    threading.Thread(target=_end_with_parent, daemon=True).start()

    import torch

    from fxgrad.zoo.measure import measure

    if threads:
        torch.set_num_threads(threads)
    connection.send(None)
    while True:
        try:
            case = connection.recv()
        except EOFError:
            return
        connection.send(measure(case))


def _end_with_parent() -> None:
    """End this process when its parent dies, since a killed parent cannot end its workers."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _with_peak(row: Row, peak: int) -> Row:
    return replace(row, peak_mb=peak // 2**20)


def _how(exit_code: int | None) -> str:
    if exit_code is None or exit_code >= 0:
        return f"the process ended with exit code {exit_code}"
    note = ", by the system's own limit on memory perhaps" if -exit_code == signal.SIGKILL else ""
    return f"{signal.Signals(-exit_code).name}{note}"


def _last_words(log: Path) -> str:
    """The place of the crash by faulthandler, else the log's last line."""
    try:
        lines = log.read_text("utf-8", "replace").splitlines()
    except OSError:
        return ""
    starts = [i + 1 for i, line in enumerate(lines[:-1]) if "most recent call first" in line]
    written = [line.strip() for line in (lines[starts[-1] :][:1] if starts else lines[-1:])]
    return f": {written[0]}" if written else ""
