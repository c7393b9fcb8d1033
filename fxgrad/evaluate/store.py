"""Where results are kept: a folder of SQLite files, one per process, whose union is the result.

A row is one number: (model, policy, method, image, metric) -> value. A process writes to its own file only, a unit of
work in one transaction; so whatever is killed leaves whole units behind, and files from several machines are merged by
copying them into one folder.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fxgrad.errors import InputError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS results (
    model TEXT, policy TEXT, method TEXT, image TEXT, metric TEXT, value REAL,
    PRIMARY KEY (model, policy, method, image, metric)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS done (
    model TEXT, policy TEXT, method TEXT, start INTEGER, stop INTEGER,
    PRIMARY KEY (model, policy, method, start, stop)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS refused (
    model TEXT, policy TEXT, method TEXT, reason TEXT, PRIMARY KEY (model, policy, method)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
"""

Key = tuple[str, str, str]
"""Model, policy, method."""
Done = tuple[str, str, str, int, int]
"""Model, policy, method, and the pictures from start to stop."""


@dataclass(frozen=True)
class Results:
    """Everything that the files of a folder hold together.

    Attributes:
        values: (model, policy, method) -> metric -> image -> value.
        refused: (model, policy, method) -> why the method cannot be used there.
        facts: what was noted about models, and the settings.
        done: the units of work that are there.
    """

    values: Mapping[Key, Mapping[str, Mapping[str, float]]]
    refused: Mapping[Key, str]
    facts: Mapping[str, Any]
    done: frozenset[Done]


class Store:
    """One process's file in the folder.

    Args:
        folder: made where it is missing.
        shard: number of the process.

    Raises:
        InputError: the folder cannot be written to.

    Example:
        >>> import tempfile
        >>> store = Store(tempfile.mkdtemp())
        >>> store.add("m", "gradient", {"saliency": {"iou": [0.5, 1.0]}}, ["a", "b"], 0, 2)
        >>> read(store.folder).values["m", "gradient", "saliency"]["iou"]
        {'a': 0.5, 'b': 1.0}
    """

    def __init__(self, folder: str | Path, shard: int = 0) -> None:
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file = sqlite3.connect(self.folder / f"shard-{shard}.sqlite", timeout=60)
            self._file.executescript(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise InputError(f"{folder} cannot hold results: {error}") from error

    def add(
        self,
        model: str,
        policy: str,
        measured: Mapping[str, Mapping[str, Iterable[float]]],
        images: list[str],
        start: int,
        stop: int,
    ) -> None:
        """Write one unit of work, all of it or nothing.

        Args:
            model, policy: whose.
            measured: method -> metric -> one value per image; NaN is kept as no value.
            images: ids.
            start, stop: which pictures of the plan they are.
        """
        with self._file:
            for method, metrics in measured.items():
                for metric, values in metrics.items():
                    rows = [(model, policy, method, i, metric, v) for i, v in zip(images, values)]
                    self._file.executemany("INSERT OR REPLACE INTO results VALUES (?, ?, ?, ?, ?, ?)", rows)
                self._file.execute(
                    "INSERT OR REPLACE INTO done VALUES (?, ?, ?, ?, ?)", (model, policy, method, start, stop)
                )

    def refuse(self, model: str, policy: str, method: str, reason: str) -> None:
        """Note that a method cannot be used."""
        with self._file:
            self._file.execute("INSERT OR REPLACE INTO refused VALUES (?, ?, ?, ?)", (model, policy, method, reason))

    def note(self, name: str, value: Any) -> None:
        """Note a fact, and refuse to go on where the folder holds another.

        Raises:
            InputError: the fact is noted otherwise.
        """
        known = read(self.folder, facts_only=True).facts
        if name in known and known[name] != value:
            raise InputError(
                f"{self.folder} holds results of another run: {name} was {known[name]!r} and is now {value!r}. "
                "Use another --store, or delete that folder."
            )
        if name not in known:
            with self._file:
                self._file.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, json.dumps(value)))

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


def read(folder: str | Path, *, facts_only: bool = False) -> Results:
    """The union of a folder's files; where two hold the same row, the first file's counts.

    Args:
        folder: of `Store`.
        facts_only: leave the values out.

    Raises:
        InputError: there is no such folder, or a file in it is not a store's.

    Example:
        >>> import tempfile
        >>> read(tempfile.mkdtemp()).values
        {}
    """
    if not Path(folder).is_dir():
        raise InputError(f"there are no results in {folder}: run `fxgrad evaluate MODEL --store {folder}` first.")
    values: dict[Key, dict[str, dict[str, float]]] = {}
    refused: dict[Key, str] = {}
    facts: dict[str, Any] = {}
    done: set[Done] = set()
    for path in sorted(Path(folder).glob("*.sqlite")):
        for row in _rows(path, "facts"):
            facts.setdefault(row[0], json.loads(row[1]))
        if facts_only:
            continue
        done.update(_rows(path, "done"))
        for *key, reason in _rows(path, "refused"):
            refused.setdefault((key[0], key[1], key[2]), reason)
        for model, policy, method, image, metric, value in _rows(path, "results"):
            column = values.setdefault((model, policy, method), {}).setdefault(metric, {})
            column.setdefault(image, float("nan") if value is None else value)
    return Results(values, refused, facts, frozenset(done))


def _rows(path: Path, table: str) -> Iterator[tuple[Any, ...]]:
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=60)) as file:
            yield from file.execute(f"SELECT * FROM {table}")
    except sqlite3.Error as error:
        raise InputError(f"{path} is not a file of results: {error}. Move it away.") from error
