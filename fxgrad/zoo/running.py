"""Run cases in sequence or in parallel, and store a row for each."""

from __future__ import annotations

import itertools
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from multiprocessing import connection
from pathlib import Path

from fxgrad.errors import InputError
from fxgrad.zoo import rows as table
from fxgrad.zoo.case import Case
from fxgrad.zoo.rows import Row
from fxgrad.zoo.workers import Worker

_LOOK = 0.1
"""Seconds between checks of the workers' memory; a worker writes at most about a gigabyte in that time."""

Watch = Callable[[Row | None, Sequence[str]], None]
"""Called with a new row, or None when a case starts, and the names of the running cases."""


def run(
    cases: Sequence[Case],
    csv: str | Path,
    *,
    jobs: int = 1,
    timeout: float = 600,
    memory: float = 8,
    retry: bool = False,
    watch: Watch = lambda row, busy: None,
) -> list[Row]:
    """Measure cases in worker processes; a crash, a hang or a lack of memory costs one row only.

    Args:
        cases: the cases to measure; those with a row in the file are not run again.
        csv: the file that rows are appended to.
        jobs: number of processes; with several, each has one thread.
        timeout: seconds for one case.
        memory: GB of resident memory for one case.
        retry: run cases again whose row in the file did not pass.
        watch: see `Watch`.

    Returns:
        One row per case, in their order: the file's, or a new one.

    Raises:
        InputError: the file is no such table, or cannot be written; two cases of one name; a case that cannot be sent
            to another process.

    Example:
        >>> run([], "does-not-exist.csv")
        []
    """
    path = Path(csv)
    names = [case.name for case in cases]
    if len(set(names)) < len(names):
        raise InputError(f"{min(n for n in names if names.count(n) > 1)} is asked for twice.")
    known = {row.model: row for row in table.read(path)}
    if retry:
        again = {name for name in names if name in known and not known[name].passed}
        if again:
            known = {name: row for name, row in known.items() if name not in again}
            table.rewrite(path, list(known.values()))
    queue = [case for case in cases if case.name not in known]
    workers: list[Worker] = []
    number = itertools.count()
    with tempfile.TemporaryDirectory() as logs:

        def hire() -> Worker:
            log = Path(logs) / f"{next(number)}.log"
            return Worker(log, timeout=timeout, memory=memory * 1e9, threads=int(jobs > 1))

        try:
            while queue or any(w.case for w in workers):
                _staff(workers, queue, jobs, hire, watch)
                connection.wait([w.connection for w in workers] + [w.process.sentinel for w in workers], _LOOK)
                for worker in workers:
                    row = worker.look() if worker.case else None
                    if row:
                        known[row.model] = row
                        table.append(path, [row])
                        watch(row, [w.case.name for w in workers if w.case])
        finally:
            for worker in workers:
                worker.stop()
    return [known[name] for name in names]


def _staff(workers: list[Worker], queue: list[Case], jobs: int, hire: Callable[[], Worker], watch: Watch) -> None:
    """Give every idle worker a case, and replace workers that are no longer usable."""
    for worker in [w for w in workers if not w.case and not w.usable]:
        worker.stop()
        workers.remove(worker)
    while queue and len(workers) < jobs:
        workers.append(hire())
        workers[-1].give(queue.pop(0))
        watch(None, [w.case.name for w in workers if w.case])
    for worker in workers:
        if queue and not worker.case:
            worker.give(queue.pop(0))
            watch(None, [w.case.name for w in workers if w.case])


def summary(rows: Sequence[Row]) -> str:
    """As text: how many models passed, and why the others failed, the most frequent cause first.

    Example:
        >>> good = Row("a", "f", forward_identical=True, completeness_error=0.0)
        >>> print(summary([good, Row("b", "f", reason="E: x")]))
        1 of 2 models pass
        1 x E: x
            b
    """
    causes: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row.cause:
            causes[row.cause].append(row)
    counted = [row for row in rows if row.counted]
    lines = [f"{sum(row.passed for row in counted)} of {len(counted)} models pass"]
    if len(counted) < len(rows):
        lines += [f"not counted: {len(rows) - len(counted)} that fail themselves or are random"]
    for cause, failed in sorted(causes.items(), key=lambda item: -len(item[1])):
        shown = ", ".join(row.model for row in failed[:8])
        lines += [f"{len(failed)} x {cause}", f"    {shown}{', ...' if len(failed) > 8 else ''}"]
    return "\n".join(lines)
