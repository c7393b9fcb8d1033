"""The speed benchmark's JSON: made small enough to keep, and read."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PLAIN, FXGRAD, FORWARD = "plain autograd", "fxgrad", "forward only"
BY_HAND = ("swapped modules", "swapped modules, tuned", "full backward hooks")
SAME = "same gradient"
CALLS, LOOP, VJP = "fxgrad, K calls", "fxgrad, 1 forward, K backwards", "fxgrad.vjp"
"""Of many targets; there the plain one is one forward and K backwards."""
BAR, BAR_1024, BAR_4096 = "ViT-B/16, batch 8", "ViT-B/16, batch 8, 1,024 tokens", "ViT-B/16, batch 1, 4,096 tokens"
BAR_TARGETS = "10 targets, ViT-B/16, batch 8"
CONVERSION = "conversion, ViT-B/16"
BOUND = 1e-4
"""Largest difference of two gradients, over the largest number in them, that counts as rounding in float32."""
STATISTICS = ("median", "min", "max", "rounds")


@dataclass(frozen=True)
class Spread:
    """A median, and what it lies between."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Row:
    """What one test of the benchmark has left: its name, and its `extra_info` (see `bench.speed.test_speed`)."""

    name: str
    info: Mapping[str, Any]

    def __getitem__(self, key: str) -> Any:
        return self.info[key]

    @property
    def times(self) -> Mapping[str, list[float | None]]:
        """Series -> seconds per round."""
        times: Mapping[str, list[float | None]] = self.info.get("times", {})
        return times

    def time(self, series: str) -> Spread:
        """Seconds of a series.

        Raises:
            KeyError: there is no such series.
        """
        return Spread.of([t for t in self.times[series] if t is not None])

    def ratio(self, series: str, to: str) -> Spread | None:
        """A series over another, round by round; None where the row lacks one of them.

        Example:
            >>> Row("r", {"times": {"a": [2.0, 6.0, None], "b": [1.0, 2.0, 2.0]}}).ratio("a", "b")
            Spread(median=2.5, low=2.0, high=3.0)
        """
        if series not in self.times or to not in self.times:
            return None
        pairs = zip(self.times[series], self.times[to])
        return Spread.of([a / b for a, b in pairs if a is not None and b is not None])

    def quotient(self, figure: str, series: str = FXGRAD, to: str = PLAIN) -> float | None:
        """The same of a figure that is measured once: "peak" or "saved" bytes."""
        found = self.info.get(figure, {})
        return found[series] / found[to] if series in found and found.get(to) else None

    @property
    def over_floor(self) -> Spread | None:
        """Measured (forward + backward) / forward, over the same in multiply-adds."""
        measured, floor = self.ratio(FXGRAD, FORWARD), self.info.get("floor")
        if measured is None or not floor:
            return None
        return Spread(measured.median / floor, measured.low / floor, measured.high / floor)

    def rivals(self) -> list[str]:
        """The timed series that compute the gradient that fxgrad computes, by hand or by another toolkit."""
        same = [name for name, verdict in self.info.get("verdicts", {}).items() if verdict == SAME]
        return [name for name in same if name in self.times and not name.startswith((FXGRAD, "lxt"))]


@dataclass(frozen=True)
class Results:
    """All rows, and where they were measured.

    Attributes:
        machine: what `machine_info` of the JSON says.
        when: date and time.
        rows: by name.
    """

    machine: Mapping[str, Any]
    when: str
    rows: Mapping[str, Row]

    def axis(self, name: str) -> list[Row]:
        """The rows of an axis, in order of size, or as they were measured."""
        found = [row for row in self.rows.values() if row.info.get("axis") == name]
        return sorted(found, key=lambda row: row["size"])


def read(path: Path) -> Results:
    """Read the benchmark's JSON.

    Args:
        path: as pytest-benchmark wrote it, trimmed or not.

    Raises:
        OSError: there is no such file.
        KeyError: it is something else.
    """
    found = json.loads(path.read_text("utf-8"))
    rows = {b["extra_info"]["name"]: b["extra_info"] for b in found["benchmarks"]}
    return Results(found["machine_info"], found["datetime"], {name: Row(name, info) for name, info in rows.items()})


def trim(output: dict[str, Any]) -> None:
    """Drop, in place, what pytest-benchmark adds that says nothing more: raw data, which `times` has, and serials.

    Args:
        output: pytest-benchmark's JSON.

    Example:
        >>> output = {"machine_info": {"node": "x", "cpu": {"flags": ["fpu"], "count": 2}}, "commit_info": {"id": 1},
        ...           "benchmarks": [{"fullname": "a::b", "stats": {"data": [1.0], "median": 1.0}, "extra_info": {}}]}
        >>> trim(output)
        >>> output["machine_info"], output["benchmarks"][0]["stats"]
        ({'cpu': {'count': 2}}, {'median': 1.0})
    """
    machine = output["machine_info"]
    for key in ("node", "python_build", "python_compiler", "release"):
        machine.pop(key, None)
    machine["cpu"] = {k: v for k, v in machine.get("cpu", {}).items() if k in ("brand_raw", "count", "arch")}
    output.pop("commit_info", None)
    for benchmark in output["benchmarks"]:
        benchmark["stats"] = {k: v for k, v in benchmark.get("stats", {}).items() if k in STATISTICS}
        for key in [k for k in benchmark if k not in ("fullname", "stats", "extra_info")]:
            del benchmark[key]


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The exponent p of values ~ sizes^p, by least squares on logarithms.

    Args:
        sizes, values: positive, at least two different sizes.

    Raises:
        ValueError: all sizes are the same.

    Example:
        >>> round(exponent([1, 2, 4, 8], [3, 12, 48, 192]), 6)
        2.0
    """
    x, y = [math.log(s) for s in sizes], [math.log(v) for v in values]
    if len(set(x)) < 2:
        raise ValueError("an exponent wants at least two sizes")
    mean_x, mean_y = statistics.fmean(x), statistics.fmean(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y)) / sum((a - mean_x) ** 2 for a in x)
