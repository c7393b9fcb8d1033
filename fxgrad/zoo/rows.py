"""The measurements, one row per model, in a CSV file that runs append to."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from fxgrad.errors import InputError
from fxgrad.writing import writing

_INTEGERS = {"parameters", "nodes", "peak_mb"}
_SECONDS = {"capture_s", "pass_s", "seconds"}
_ERRORS = {"completeness_error", "plain_error"}
FAILS, RANDOM = "OwnForwardFails", "OwnForwardRandom"
"""What the reasons of models start with that do not run themselves, or differ from call to call."""


def bar(precision: str) -> float:
    """The largest relative completeness error that passes: 1e-10, or 1e-6 if the model itself computes in float32.

    Args:
        precision: as in `Row`.

    Example:
        >>> bar("float64"), bar("float32")
        (1e-10, 1e-06)
    """
    return 1e-6 if precision == "float32" else 1e-10


@dataclass(frozen=True)
class Row:
    """One model, measured in float64; None or "" for steps that were not reached.

    Attributes:
        model, family: as in its `Case`.
        parameters: number of parameters of the measured model.
        reduced: how the model was made smaller, in words.
        input: sizes of one example, such as 3x224x224.
        batches: the batch sizes at which the forward was compared; errors are measured at the first.
        precision: the lowest in the graph: float32 if the model itself casts its float64 down.
        nodes: number of nodes of the captured graph.
        capture_s, pass_s: seconds for torch.export, and for classifying and rewriting.
        forward_identical: whether outputs equal the original's, bit for bit, at every batch size.
        completeness_error, plain_error: relative, under libragrad and under the plain gradient.
        worst_node: the least balanced node, with its own error and place.
        kinds: number of nodes of each kind.
        reason: why there is no result: the error's name and its first lines.
        seconds, peak_mb: total time and peak memory in MB, the plain gradient included.
        versions: versions of torch and of the model's package.
    """

    model: str
    family: str
    parameters: int | None = None
    reduced: str = ""
    input: str = ""
    batches: str = ""
    precision: str = ""
    nodes: int | None = None
    capture_s: float | None = None
    pass_s: float | None = None
    forward_identical: bool | None = None
    completeness_error: float | None = None
    plain_error: float | None = None
    worst_node: str = ""
    kinds: str = ""
    reason: str = ""
    seconds: float | None = None
    peak_mb: int | None = None
    versions: str = ""

    @property
    def passed(self) -> bool:
        """Converted, the same forward, and complete.

        Example:
            >>> Row("m", "f", forward_identical=True, completeness_error=1e-14).passed
            True
        """
        error = self.completeness_error
        return not self.reason and self.forward_identical is True and error is not None and error <= bar(self.precision)

    @property
    def counted(self) -> bool:
        """Whether the row says anything about the pass: the model itself runs and is deterministic.

        Example:
            >>> Row("m", "f", reason="OwnForwardFails: TypeError: no").counted
            False
        """
        return not self.reason.startswith((f"{FAILS}:", f"{RANDOM}:"))

    @property
    def cause(self) -> str:
        """Why it did not pass, without details of the single model; "" if it passed.

        Example:
            >>> Row("m", "f", reason="NoRuleError: 1 op(s) have no rule: | aten.i0 has no row (2 x) | at x").cause
            'NoRuleError: aten.i0 has no row'
        """
        if self.reason:
            kind, _, rest = self.reason.partition(": ")
            parts = [part for part in rest.split(" | ") if re.match(r"\w+\.\w+\S* ", part)]
            ops = dict.fromkeys(re.sub(r" (\(\d+ x\)$|at .*)", "", part) for part in parts)
            return f"{kind}: {'; '.join(ops) or rest.split(' | ')[0]}"
        if not self.forward_identical:
            return "the forward differs"
        inside = f", {self.precision} inside" if self.precision not in ("", "float64") else ""
        return "" if self.passed else f"not complete{inside}, worst at {' '.join(self.worst_node.split()[1:3])}"


COLUMNS = [f.name for f in fields(Row)]


def read(path: Path) -> list[Row]:
    """The rows of a file; empty if there is no file. Removes an incomplete last line from the file.

    Raises:
        InputError: the file is no such table, or has the columns of another version.

    Example:
        >>> read(Path("does-not-exist.csv"))
        []
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error
    whole = data[: data.rfind(b"\n") + 1]
    lines = list(csv.reader(whole.decode("utf-8", "replace").splitlines()))
    header = ",".join(COLUMNS).encode()
    if lines[:1] != [COLUMNS] if whole else not header.startswith(data):
        raise InputError(f"{path} is not a table of the zoo's, or an older one's: move it away and run again.")
    if whole != data:
        path.write_bytes(whole)
    bad = [i for i, line in enumerate(lines, 1) if len(line) != len(COLUMNS)]
    if bad:
        raise InputError(f"line {bad[0]} of {path} has {len(lines[bad[0] - 1])} columns, not {len(COLUMNS)}: mend it.")
    return [Row(**{name: _parse(name, cell) for name, cell in zip(COLUMNS, line)}) for line in lines[1:]]


def append(path: Path, rows: Sequence[Row]) -> None:
    """Append rows to a file, which is created if missing.

    Raises:
        InputError: the file cannot be written.
    """
    with writing(path, folder=True), path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        if file.tell() == 0:
            writer.writerow(COLUMNS)
        writer.writerows([_print(name, getattr(row, name)) for name in COLUMNS] for row in rows)


def rewrite(path: Path, rows: Sequence[Row]) -> None:
    """Replace a file by these rows, atomically.

    Raises:
        InputError: the file cannot be written.
    """
    beside = path.with_name(path.name + ".new")
    beside.unlink(missing_ok=True)
    append(beside, rows)
    beside.replace(path)


def _print(name: str, value: Any) -> str:
    if value is None:
        return ""
    if name in _ERRORS:
        return f"{value:.2e}"
    if name in _SECONDS:
        return f"{value:.1f}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return " ".join(str(value).split())


def _parse(name: str, cell: str) -> Any:
    if name == "forward_identical":
        return {"yes": True, "no": False}.get(cell)
    if name in _INTEGERS:
        return int(cell) if cell else None
    if name in _SECONDS | _ERRORS:
        return float(cell) if cell else None
    return cell
