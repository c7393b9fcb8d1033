"""The storage of results: a folder of SQLite files, one per process; their union is the result.

A record is one number: (model, policy, method, image, metric) -> value. A process writes to its own file only, one unit
of work per transaction. So a killed process leaves whole units, and files from several machines are merged by copying
them into one folder.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
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
CREATE TABLE IF NOT EXISTS groups (image TEXT PRIMARY KEY, name TEXT) WITHOUT ROWID;
"""

Key = tuple[str, str, str]
"""Model, policy, method."""
Done = tuple[str, str, str, int, int]
"""Model, policy, method, and the pictures from start to stop."""


@dataclass(frozen=True)
class Results:
    """The content of all files of a folder.

    Attributes:
        values: (model, policy, method) -> metric -> image -> value.
        refused: (model, policy, method) -> why the method cannot be used.
        facts: the settings, and facts about models.
        done: the stored units of work.
        groups: image -> its group, for images that are no group of their own.
    """

    values: Mapping[Key, Mapping[str, Mapping[str, float]]]
    refused: Mapping[Key, str]
    facts: Mapping[str, Any]
    done: frozenset[Done]
    groups: Mapping[str, str] = field(default_factory=dict)


class Store:
    """One process's file in the folder.

    Args:
        folder: its path; created if missing.
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
            path = self.folder / f"shard-{shard}.sqlite"
            if not path.exists():
                _make(path)
            self._file = sqlite3.connect(path, timeout=60)
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
        groups: Iterable[str] = (),
    ) -> None:
        """Write one unit of work, all of it or nothing.

        Args:
            model, policy: the model and policy that were measured.
            measured: method -> metric -> one value per image; NaN is stored as no value.
            images: ids of the pictures.
            start, stop: indices of the pictures in the plan.
            groups: group of each picture; by default each is one of its own.
        """
        with self._file:
            apart = [(image, group) for image, group in zip(images, groups) if image != group]
            self._file.executemany("INSERT OR REPLACE INTO groups VALUES (?, ?)", apart)
            for method, metrics in measured.items():
                for metric, values in metrics.items():
                    rows = [(model, policy, method, i, metric, v) for i, v in zip(images, values)]
                    self._file.executemany("INSERT OR REPLACE INTO results VALUES (?, ?, ?, ?, ?, ?)", rows)
                self._file.execute(
                    "INSERT OR REPLACE INTO done VALUES (?, ?, ?, ?, ?)", (model, policy, method, start, stop)
                )

    def refuse(self, model: str, policy: str, method: str, reason: str) -> None:
        """Store that a method cannot be used, and why."""
        with self._file:
            self._file.execute("INSERT OR REPLACE INTO refused VALUES (?, ?, ?, ?)", (model, policy, method, reason))

    def note(self, name: str, value: Any) -> None:
        """Store a fact.

        Raises:
            InputError: the folder has another value for it.
        """
        known = read(self.folder, facts_only=True).facts
        if name in known and known[name] != value:
            before, now = _differing(known[name], value)
            raise InputError(
                f"{self.folder} holds results of another run: {name} was {before!r} and is now {now!r}. "
                "Use another --store, or delete that folder."
            )
        if name not in known:
            with self._file:
                self._file.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, json.dumps(value)))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _make(path: Path) -> None:
    """Make a file with empty tables, which appears whole: another process may read the folder meanwhile."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.unlink(missing_ok=True)
    with closing(sqlite3.connect(beside)) as file:
        file.executescript(_SCHEMA)
    os.replace(beside, path)


def read(folder: str | Path, *, facts_only: bool = False) -> Results:
    """The union of a folder's files; of equal keys, the first file's record counts.

    Args:
        folder: the folder of a `Store`.
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
    groups: dict[str, str] = {}
    for path in sorted(Path(folder).glob("*.sqlite")):
        for row in _rows(path, "facts"):
            facts.setdefault(row[0], json.loads(row[1]))
        if facts_only:
            continue
        done.update(_rows(path, "done"))
        groups.update(_rows(path, "groups"))
        for *key, reason in _rows(path, "refused"):
            refused.setdefault((key[0], key[1], key[2]), reason)
        for model, policy, method, image, metric, value in _rows(path, "results"):
            column = values.setdefault((model, policy, method), {}).setdefault(metric, {})
            column.setdefault(image, float("nan") if value is None else value)
    return Results(values, refused, facts, frozenset(done), groups)


def _rows(path: Path, table: str) -> Iterator[tuple[Any, ...]]:
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=60)) as file:
            # Files of older versions have no groups.
            if file.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (table,)).fetchone() or table != "groups":
                yield from file.execute(f"SELECT * FROM {table}")
    except sqlite3.Error as error:
        raise InputError(f"{path} is not a file of results: {error}. Move it away.") from error


def _differing(before: Any, now: Any) -> tuple[Any, Any]:
    """Two values; of two dicts, the entries that differ alone."""
    if not isinstance(before, dict) or not isinstance(now, dict):
        return before, now
    missing = object()
    keys = [key for key in {**before, **now} if before.get(key, missing) != now.get(key, missing)]
    return {k: before[k] for k in keys if k in before}, {k: now[k] for k in keys if k in now}
