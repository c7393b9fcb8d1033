"""Results as one compressed file: every number of every picture, from which every interval can be computed again.

It is a zip archive of .npy arrays, which `numpy.load` reads without pickle. Run number 0, 1 ... has

    0/values   float32 (rows, pictures)        0/images   names of the pictures
    0/rows     int32 (columns,), row of each   0/groups   group of each picture
    0/keys     model, policy, method, metric   0/refused  model, policy, method, reason
    0/facts    the settings and the like, as JSON

Columns of equal numbers, such as those of policies that give a model the same backwards, share a row. Numbers keep 16
significant bits, about five digits: more would be a third larger, and no mean of pictures shows them.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fxgrad.errors import InputError
from fxgrad.evaluate.store import Results
from fxgrad.writing import writing

Floats = NDArray[np.float32]
_PARTS = ("facts", "images", "groups", "keys", "rows", "values", "refused")
_EPOCH = (1980, 1, 1, 0, 0, 0)


class Column(Mapping[str, float]):
    """One metric of one method: image -> value; a view of a row."""

    def __init__(self, places: Mapping[str, int], row: Floats) -> None:
        self._places, self._row = places, row

    def __getitem__(self, image: str) -> float:
        return float(self._row[self._places[image]])

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def write_values(runs: Sequence[Results], path: str | Path) -> None:
    """Write the values of some runs; the same runs give the same bytes.

    Args:
        runs: results of `evaluate`.
        path: the file, .npz.

    Raises:
        InputError: the path does not end in .npz, or cannot be written.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "values.npz")
        >>> values = {("m", "gradient", "saliency"): {"iou": {"a": 0.25, "b": 1.0}}}
        >>> write_values([Results(values, {}, {}, frozenset())], path)
        >>> dict(read_values(path)[0].values["m", "gradient", "saliency"]["iou"])
        {'a': 0.25, 'b': 1.0}
    """
    if Path(path).suffix != ".npz":
        raise InputError(f"{path}: the values go to an .npz file.")
    with writing(path, folder=True), zipfile.ZipFile(path, "w") as archive:
        for number, run in enumerate(runs):
            for name, array in _arrays(run).items():
                # A fixed date, so that the same values are the same file.
                entry = zipfile.ZipInfo(f"{number}/{name}.npy", _EPOCH)
                entry.compress_type = zipfile.ZIP_LZMA
                with archive.open(entry, "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, array, allow_pickle=False)


def read_values(path: str | Path) -> list[Results]:
    """The runs in a file of values, their numbers rounded to five digits.

    Raises:
        InputError: there is no such file, or it is not one of `write_values`.
    """
    try:
        with np.load(path, allow_pickle=False) as found:
            count = len({name.partition("/")[0] for name in found.files})
            return [_results({part: found[f"{number}/{part}"] for part in _PARTS}) for number in range(count)]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{path} is no file of values, as `fxgrad evaluate --values FILE.npz` writes it: {error}"
        ) from error


def _arrays(run: Results) -> dict[str, NDArray[Any]]:
    columns = [((*key, metric), column) for key, metrics in run.values.items() for metric, column in metrics.items()]
    images = sorted({image for _, column in columns for image in column})
    rows: dict[bytes, int] = {}
    numbers: list[int] = []
    for _, column in columns:
        row = _rounded(np.array([column.get(image, np.nan) for image in images], np.float32))
        numbers.append(rows.setdefault(row.tobytes(), len(rows)))
    found = {
        "facts": np.array(json.dumps(run.facts, sort_keys=True)),
        "images": np.array(images, str),
        "groups": np.array([run.groups.get(image, image) for image in images], str),
        "keys": np.array([key for key, _ in columns], str).reshape(-1, 4),
        "rows": np.array(numbers, np.int32),
        "values": np.frombuffer(b"".join(rows), np.float32).reshape(len(rows), len(images)),
        "refused": np.array([(*key, reason) for key, reason in run.refused.items()], str).reshape(-1, 4),
    }
    return {name: found[name] for name in _PARTS}


def _rounded(values: Floats) -> Floats:
    """To the nearest number whose last 8 of 24 significant bits are 0; NaN and infinity stay."""
    bits = values.view(np.uint32)
    nearest: Floats = ((bits + np.uint32(1 << 7)) & np.uint32(0xFFFFFF00)).view(np.float32)
    return np.where(np.isfinite(values), nearest, values)


def _results(parts: Mapping[str, NDArray[Any]]) -> Results:
    images = [str(image) for image in parts["images"]]
    places = {image: place for place, image in enumerate(images)}
    values: dict[tuple[str, str, str], dict[str, Mapping[str, float]]] = {}
    for (model, policy, method, metric), row in zip(parts["keys"].tolist(), parts["rows"].tolist()):
        values.setdefault((model, policy, method), {})[metric] = Column(places, parts["values"][row])
    refused = {(model, policy, method): reason for model, policy, method, reason in parts["refused"].tolist()}
    groups = {image: str(group) for image, group in zip(images, parts["groups"]) if image != group}
    return Results(values, refused, json.loads(str(parts["facts"])), frozenset(), groups)
