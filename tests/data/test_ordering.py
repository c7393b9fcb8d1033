"""Which samples are taken: shuffles, lists of ids, and modes of pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fxgrad.data import Sample, order
from fxgrad.errors import InputError


class Letters:
    class_names = None
    multilabel = False

    def __len__(self) -> int:
        return 26

    def __getitem__(self, index: int) -> Sample:
        return Sample(Image.new("L" if index % 3 == 0 else "RGB", (2, 2)), 0, None, chr(97 + index))


def test_numpy_s_shuffle_is_that_of_datasets() -> None:
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"n": list(range(26))})
    assert order(Letters(), shuffle="numpy", seed=43) == rows.shuffle(seed=43)["n"][:]
    assert order(Letters(), 5, shuffle="numpy", seed=43) == rows.shuffle(seed=43)["n"][:5]


def test_numpy_s_shuffle_is_that_of_a_list_of_names() -> None:
    names = [chr(97 + i) for i in range(26)]
    shuffled = np.random.default_rng(seed=42).permutation(names).tolist()
    assert [names[i] for i in order(Letters(), shuffle="numpy", seed=42)] == shuffled


def test_only_pictures_of_a_mode_make_room_for_the_next() -> None:
    assert order(Letters(), 4, shuffle="none", mode="RGB") == [1, 2, 4, 5]


def test_a_list_of_ids_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("c\n\n b \na\n")
    assert order(Letters(), ids=tmp_path / "ids.txt", seed=7) == [2, 1, 0]
    assert order(Letters(), 2, ids=str(tmp_path / "ids.txt")) == [2, 1]


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("z\nA\n", {}, r"ids.txt lists 'A', and the data set has no such sample. One id per line, such as 'a'"),
        ("\n", {}, r"ids.txt lists no ids. One id per line"),
        (None, {}, r"the list of ids .*ids.txt cannot be read"),
        ("a", {"shuffle": "torchvision"}, "shuffle is torch, numpy, none, not 'torchvision'"),
    ],
)
def test_what_is_refused(content: str | None, options: dict[str, Any], message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "ids.txt").write_text(content)
    with pytest.raises(InputError, match=message):
        order(Letters(), ids=tmp_path / "ids.txt", **options)
