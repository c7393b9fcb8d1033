"""Jobs for `bench.speed.workers` that fail in every way; it imports next to nothing, so that a process starts fast."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Any


def cases(job: str) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """A job's cases; the job's name says how the second one fails."""
    if job == "unprepared":
        raise ValueError("no model")
    if job == "dies before":
        os._exit(3)
    yield "first", lambda: {"pid": os.getpid()}
    yield "second", {"raises": _raises, "dies": lambda: os._exit(4), "hangs": lambda: time.sleep(60)}[job]
    yield "third", lambda: {"pid": os.getpid()}


def _raises() -> dict[str, Any]:
    raise RuntimeError("out of\nmemory")
