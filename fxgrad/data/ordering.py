"""Which samples of a data set, and in which order: by a shuffle, by a list of ids, by the form of the picture."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from fxgrad.data.sample import Data, Sample
from fxgrad.data.texts import Passage, Texts
from fxgrad.errors import InputError

SHUFFLES: dict[str, Callable[[int, int], Sequence[int]]] = {
    "torch": lambda size, seed: torch.randperm(size, generator=torch.Generator().manual_seed(seed)).tolist(),
    "numpy": lambda size, seed: np.random.default_rng(seed).permutation(size).tolist(),
    "none": lambda size, seed: range(size),
}
"""Size and seed -> an order. "numpy" is that of `datasets.Dataset.shuffle(seed=...)`."""


def order(
    data: Data | Texts,
    count: int | None = None,
    *,
    seed: int = 0,
    shuffle: str = "torch",
    ids: str | Path | None = None,
    mode: str | None = None,
) -> list[int]:
    """Indices of the samples to take.

    Args:
        data: the data set.
        count: how many; None for all.
        seed: of the shuffle.
        shuffle: "torch", "numpy" or "none", the data set's own order.
        ids: a file with one sample's id per line. It takes these, in the file's order; nothing is shuffled.
        mode: take only pictures of this mode of Pillow's, such as "RGB"; the others make room for the next.

    Raises:
        InputError: there is no such shuffle, the file cannot be read, or it names a sample that there is not; or a mode
            of texts.

    Example:
        >>> from fxgrad.data import open_data
        >>> order(open_data("digits"), 3), order(open_data("digits"), 3, shuffle="none")
        ([6044, 2890, 9399], [0, 1, 2])
    """
    if shuffle not in SHUFFLES:
        raise InputError(f"shuffle is {', '.join(SHUFFLES)}, not {shuffle!r}.")
    found: Iterable[int] = SHUFFLES[shuffle](len(data), seed) if ids is None else _listed(data, Path(ids))
    if mode is not None:
        found = (index for index in found if _picture(data[index]).image.mode == mode)
    return list(islice(found, count))


def _picture(sample: Sample | Passage) -> Sample:
    if isinstance(sample, Passage):
        raise InputError("a mode is one of pictures, and these are texts. Leave it out.")
    return sample


def _listed(data: Data | Texts, path: Path) -> list[int]:
    """The indices of the samples that a file lists."""
    try:
        wanted = [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the list of ids {path} cannot be read: {error}.") from error
    names = getattr(data, "ids", None) or [data[index].id for index in range(len(data))]
    numbers = {name: index for index, name in enumerate(names)}
    missing = [name for name in wanted if name not in numbers]
    if missing or not wanted:
        what = f"{missing[0]!r}, and the data set has no such sample" if missing else "no ids"
        raise InputError(f"{path} lists {what}. One id per line, such as {next(iter(numbers))!r}.")
    return [numbers[name] for name in wanted]
