"""COCO in a tiny folder laid out as published: which pictures, labels and masks are found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fxgrad.data import open_data
from fxgrad.errors import InputError

CATEGORIES = [{"id": 22, "name": "elephant"}, {"id": 24, "name": "zebra"}, {"id": 25, "name": "giraffe"}]
HEIGHT, WIDTH = 20, 40


def box(left: int, top: int, right: int, bottom: int) -> list[list[int]]:
    """A polygon around these columns and rows, the last ones included."""
    return [[left, top, right + 1, top, right + 1, bottom + 1, left, bottom + 1]]


def runs(mask: Any) -> dict[str, Any]:
    """A mask as COCO's run lengths: column by column, first of zeros."""
    counts, value, length = [], False, 0
    for pixel in np.asarray(mask, bool).flatten(order="F"):
        if pixel != value:
            counts.append(length)
            value, length = pixel, 0
        length += 1
    return {"counts": [*counts, length], "size": list(np.asarray(mask).shape)}


def coco(root: Path, *pictures: dict[int, list[Any]]) -> Path:
    """A folder with one picture for each dict of category -> outlines."""
    (root / "annotations").mkdir(parents=True)
    (root / "train2017").mkdir()
    content: dict[str, list[Any]] = {"images": [], "annotations": [], "categories": CATEGORIES}
    for number, outlines in enumerate(pictures, 1):
        file = f"{number:012d}.jpg"
        Image.new("RGB", (WIDTH, HEIGHT), (number, 0, 0)).save(root / "train2017" / file)
        content["images"].append({"id": number, "file_name": file, "height": HEIGHT, "width": WIDTH})
        for category, each in outlines.items():
            for outline in each:
                annotation = {"image_id": number, "category_id": category, "segmentation": outline}
                content["annotations"].append({**annotation, "iscrowd": int(isinstance(outline, dict))})
    content["images"].reverse()
    (root / "annotations" / "instances_train2017.json").write_text(json.dumps(content))
    return root


def mask_of(sample: Any) -> Any:
    return np.asarray(sample.mask) > 127


def test_a_sample_for_each_animal_with_its_own_mask(tmp_path: Path) -> None:
    crowd = np.zeros((HEIGHT, WIDTH), bool)
    crowd[10:18, 30:38] = True
    both = {22: [box(0, 0, 9, 19)], 24: [box(20, 0, 24, 9), runs(crowd)]}
    data = open_data(f"coco:{coco(tmp_path, {24: [box(0, 0, 30, 19)]}, both, {25: [box(0, 0, 9, 9)], **both})}")
    assert len(data) == 4 and data.class_names is None and not data.multilabel
    samples = [data[i] for i in range(4)]
    assert [(s.id, s.label) for s in samples] == [
        ("000000000002/zebra", 340),
        ("000000000002/elephant", 386),
        ("000000000003/zebra", 340),
        ("000000000003/elephant", 386),
    ]
    assert data.ids == [s.id for s in samples]  # type: ignore[attr-defined]
    elephant, zebra = np.zeros((HEIGHT, WIDTH), bool), crowd.copy()
    elephant[:, :10] = True
    zebra[:10, 20:25] = True
    assert np.array_equal(mask_of(samples[0]), zebra) and np.array_equal(mask_of(samples[1]), elephant)
    assert samples[0].image.size == (WIDTH, HEIGHT)
    for own, beside in ((0, 1), (1, 0)):
        assert np.array_equal(np.asarray(samples[own].other) > 127, mask_of(samples[beside]))
    assert [s.group for s in samples] == ["000000000002"] * 2 + ["000000000003"] * 2


def test_animals_that_are_too_small_or_hidden_do_not_count(tmp_path: Path) -> None:
    large = box(0, 0, 15, 19)
    small = {22: [large], 24: [box(20, 0, 24, 7)]}  # exactly 5 %
    enough = {22: [large], 24: [box(20, 0, 24, 8)]}
    hidden = {22: [large], 24: [box(2, 0, 16, 19)]}  # 14 of its 15 columns
    beside = {22: [large], 24: [box(8, 0, 27, 19)]}  # 8 of 16
    data = open_data(f"coco:{coco(tmp_path, small, enough, hidden, beside)}")
    assert [data[i].id for i in range(len(data))] == [
        f"{n:012d}/{animal}" for n in (2, 4) for animal in ("zebra", "elephant")
    ]


def test_labels_of_ones_own_are_the_animals_numbers(tmp_path: Path) -> None:
    root = coco(tmp_path, {22: [box(0, 0, 9, 19)], 25: [box(20, 0, 30, 19)]})
    data = open_data(f"coco:{root}:train2017:giraffe+elephant:own")
    assert data.class_names == ("giraffe", "elephant") and [data[i].label for i in (0, 1)] == [0, 1]


def test_what_is_refused(tmp_path: Path) -> None:
    root = coco(tmp_path / "a", {22: [box(0, 0, 9, 19)], 24: [{"counts": "0Sc1", "size": [HEIGHT, WIDTH]}]})
    cases = {
        f"coco:{root}": "has compressed run lengths, which COCO's own files have not",
        f"coco:{root}:val2017": r"COCO's annotations .*instances_val2017.json cannot be read",
        f"coco:{root}:train2017:unicorn+zebra": "COCO has no category 'unicorn'; it has elephant, giraffe, zebra",
        f"coco:{root}:train2017:giraffe+zebra": "classes of ImageNet-1k are known here for elephant and zebra, not for",
        f"coco:{root}:train2017:giraffe+zebra:own": "no picture of COCO train2017 in .* shows giraffe and zebra well",
        f"coco:{root}:train2017:zebra": "COCO's animals are two or more, such as zebra.elephant, not 'zebra'",
        f"coco:{root}:train2017:zebra+elephant:numbers": "labels of COCO are 'imagenet' or 'own', not 'numbers'",
    }
    for spec, message in cases.items():
        with pytest.raises(InputError, match=message):
            open_data(spec)
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_train2017.json").write_text("{}")
    with pytest.raises(InputError, match="is no COCO file of instances: it has no images, annotations, categories"):
        open_data(f"coco:{tmp_path}")
