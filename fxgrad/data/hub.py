"""Data sets of pictures with a label, as the hub has them: a repository's parquet files, read by `datasets`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fxgrad.data.importing import needed
from fxgrad.data.sample import Sample
from fxgrad.errors import InputError


class Hub:
    """One split of a data set with the columns `image` and `label`. Of several labels, the first counts.

    Args:
        source: a folder with the repository's parquet files, or the repository's name on the hub, such as
            timm/oxford-iiit-pet.
        split: train, validation, test, or what the repository calls it.

    Raises:
        InputError: `datasets` finds no such data set, or it lacks one of the columns.

    Source: `datasets.load_dataset`.
    """

    multilabel = False

    def __init__(self, source: str, split: str) -> None:
        datasets = needed("datasets", "data")
        try:
            self._rows: Any = datasets.load_dataset(source, split=split)
        except Exception as error:
            raise InputError(f"datasets finds no split {split!r} of {source}: {error}") from error
        missing = [name for name in ("image", "label") if name not in self._rows.column_names]
        if missing:
            raise InputError(f"{source} has no column {missing[0]!r}, but {', '.join(self._rows.column_names)}.")
        self.class_names: Sequence[str] | None = getattr(self._rows.features["label"], "names", None)

    @property
    def ids(self) -> list[str]:
        """The samples' ids: their numbers in the repository."""
        return [str(index) for index in range(len(self))]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample:
        row = self._rows[index]
        label = row["label"]
        return Sample(row["image"], int(label[0] if isinstance(label, list) else label), None, str(index))


class ImageNetHard(Hub):
    """ImageNet-Hard: pictures that most models get wrong. Of several labels, the first counts.

    Args:
        source: a folder with the parquet files of the repository, or the repository's name on the hub,
            taesiri/imagenet-hard.

    Raises:
        InputError: `datasets` finds no such data set.

    Source: Taesiri et al., NeurIPS 2023, arXiv:2304.05538.
    """

    def __init__(self, source: str) -> None:
        super().__init__(source, "validation")
