"""COCO: pictures that show all of some animals, one sample per animal, with the mask of it alone."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from fxgrad.data.sample import Sample, mask_of
from fxgrad.errors import InputError, first_line
from fxgrad.reading import read_image

Mask = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]
LEAST, MOST = 0.05, 0.7
"""Each animal covers more than this share of the picture, and no two cover more than that share of the smaller."""
FINER = 5
"""Polygons are drawn so many times finer, and read at the pixels' centres: Pillow fills their outlines, too."""
IMAGENET = {
    "elephant": 386,  # African elephant
    "zebra": 340,
}
"""COCO's animal -> a class of ImageNet-1k."""


@dataclass(frozen=True)
class _Picture:
    """One picture: its file, and the mask of each animal."""

    path: Path
    masks: Mapping[str, Mask]


class Coco:
    """Pictures that show all of the animals: one sample per picture and animal, whose mask is that animal's.

    The other animals' mask is the sample's `other`, and the samples of a picture are a group.

    Each animal must cover more than a twentieth of the picture, and none may hide another by more than 70 %.

    Args:
        root: the folder with annotations/instances_SPLIT.json and the folder SPLIT of pictures.
        split: train2017 or val2017.
        animals: COCO's names of at least two, joined by +.
        labels: "imagenet", the numbers of ImageNet-1k's classes; or "own": 0, 1, ... in the order of the animals, for
            a model that is given one prompt each.

    Raises:
        InputError: the files are missing or no COCO; an animal that COCO has not, or ImageNet has not; no such picture.

    Source: Lin et al., Microsoft COCO, ECCV 2014, arXiv:1405.0312. Pictures of zebras and elephants as in LibraGrad,
    arXiv:2411.16760.
    """

    multilabel = False

    def __init__(
        self, root: str, split: str = "train2017", animals: str = "zebra+elephant", labels: str = "imagenet"
    ) -> None:
        base, self.animals = Path(root), tuple(animals.split("+"))
        if len(self.animals) < 2:
            raise InputError(f"COCO's animals are two or more, such as zebra+elephant, not {animals!r}.")
        if labels not in ("imagenet", "own"):
            raise InputError(f"labels of COCO are 'imagenet' or 'own', not {labels!r}.")
        self.class_names: Sequence[str] | None = self.animals if labels == "own" else None
        self.pictures = _pictures(base / "annotations" / f"instances_{split}.json", base / split, self.animals)
        self._labels = [_label(a) if labels == "imagenet" else i for i, a in enumerate(self.animals)]
        if not self.pictures:
            raise InputError(f"no picture of COCO {split} in {root} shows {' and '.join(self.animals)} well enough.")

    @property
    def ids(self) -> list[str]:
        """The samples' ids: the picture's number, and the animal."""
        return [f"{p.path.stem}/{animal}" for p in self.pictures for animal in self.animals]

    def __len__(self) -> int:
        return len(self.pictures) * len(self.animals)

    def __getitem__(self, index: int) -> Sample:
        picture, which = self.pictures[index // len(self.animals)], index % len(self.animals)
        animal = self.animals[which]
        others = np.logical_or.reduce([mask for name, mask in picture.masks.items() if name != animal])
        return Sample(
            read_image(picture.path),
            self._labels[which],
            mask_of(picture.masks[animal]),
            f"{picture.path.stem}/{animal}",
            mask_of(others),
            picture.path.stem,
        )


def _label(animal: str) -> int:
    if animal not in IMAGENET:
        raise InputError(
            f"classes of ImageNet-1k are known here for {' and '.join(IMAGENET)}, not for {animal!r}. Use the labels "
            "'own', and a prompt for each animal."
        )
    return IMAGENET[animal]


def _pictures(file: Path, folder: Path, animals: Sequence[str]) -> list[_Picture]:
    """The pictures that show all of the animals, by number."""
    content = _read(file)
    numbers = {c["name"]: c["id"] for c in content["categories"]}
    strangers = [animal for animal in animals if animal not in numbers]
    if strangers:
        raise InputError(f"COCO has no category {strangers[0]!r}; it has {', '.join(sorted(numbers))}.")
    names = {numbers[animal]: animal for animal in animals}
    of: dict[int, dict[str, list[Any]]] = defaultdict(lambda: defaultdict(list))
    for annotation in content["annotations"]:
        if annotation["category_id"] in names:
            of[annotation["image_id"]][names[annotation["category_id"]]].append(annotation["segmentation"])
    found = []
    for image in sorted(content["images"], key=lambda image: image["id"]):
        outlines = of.get(image["id"], {})
        if len(outlines) < len(animals):
            continue
        size = (image["height"], image["width"])
        each = {animal: [_mask(outline, size, file) for outline in outlines[animal]] for animal in animals}
        if _shown(each):
            masks = {animal: np.logical_or.reduce(masks) for animal, masks in each.items()}
            found.append(_Picture(folder / image["file_name"], masks))
    return found


def _read(file: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"COCO's annotations {file} cannot be read: {first_line(error)}.") from error
    missing = [key for key in ("images", "annotations", "categories") if key not in content]
    if missing:
        raise InputError(f"{file} is no COCO file of instances: it has no {', '.join(missing)}.")
    return content


def _shown(each: Mapping[str, Sequence[Mask]]) -> bool:
    """Whether every animal is large enough, and none hides another."""
    whole = {animal: np.logical_or.reduce(masks) for animal, masks in each.items()}
    if min(mask.mean() for mask in whole.values()) <= LEAST:
        return False
    names = list(each)
    pairs = [
        (one, other)
        for i, first in enumerate(names)
        for second in names[i + 1 :]
        for one in (*each[first], whole[first])
        for other in (*each[second], whole[second])
    ]
    return all((one & other).sum() <= MOST * min(one.sum(), other.sum()) for one, other in pairs)


def _mask(outline: Any, size: tuple[int, int], file: Path) -> Mask:
    """The pixels of one instance: of its polygons, [x, y, x, y, ...] each, or of its run lengths."""
    if isinstance(outline, list):
        canvas = Image.new("1", (FINER * size[1], FINER * size[0]))
        for polygon in outline:
            ImageDraw.Draw(canvas).polygon([FINER * place for place in polygon], fill=1)
        return np.asarray(canvas)[FINER // 2 :: FINER, FINER // 2 :: FINER]
    counts = outline["counts"]
    if not isinstance(counts, list):
        raise InputError(f"{file} has compressed run lengths, which COCO's own files have not. Use those.")
    values = np.arange(len(counts)) % 2 == 1
    found: Mask = np.repeat(values, counts).reshape(size, order="F")
    return found
