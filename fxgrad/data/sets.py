"""Data sets by their published layouts: the files, their labels and their masks."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fxgrad.data.importing import needed
from fxgrad.data.sample import Sample, mask_of
from fxgrad.errors import InputError
from fxgrad.reading import open_image, read_image

_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}


class Digits:
    """The demo's canvases, one per sample. The label is the first digit of an even canvas, the second of an odd one.

    So no canvas counts twice. Samples whose digits are of one scan, drawn elsewhere, form a group.

    Args:
        split: "heldout" or "train".
        ink: "grey", or "colours" for models that read coloured canvases.

    Raises:
        InputError: there is no such split or ink.

    Example:
        >>> digits = Digits()
        >>> digits[7].label, digits[7].image.size, digits[7].id
        (9, (48, 48), 'heldout/7')

    Source: `fxgrad.demo.canvas`, the function; the scans are scikit-learn's `load_digits`.
    """

    multilabel = True

    def __init__(self, split: str = "heldout", ink: str = "grey") -> None:
        demo = needed("fxgrad.demo", "demo")
        if split not in demo.SPLITS:
            raise InputError(f"the digits have the splits {', '.join(demo.SPLITS)}, not {split!r}.")
        if ink not in ("grey", "colours"):
            raise InputError(f"the digits are drawn in grey or in colours, not in {ink!r}.")
        self.class_names: Sequence[str] = demo.CLASS_NAMES
        self._canvas = functools.partial(demo.canvas, colours=True) if ink == "colours" else demo.canvas
        self.split = split

    def __len__(self) -> int:
        return 10_000  # any number would do: canvases are drawn on access

    def __getitem__(self, index: int) -> Sample:
        canvas, which = self._canvas(index, self.split), index % 2
        pixels = np.round(canvas.image * 255).astype(np.uint8).transpose(1, 2, 0)
        return Sample(
            Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels),
            canvas.labels[which],
            mask_of(canvas.masks[which]),
            f"{self.split}/{index}",
            mask_of(canvas.masks[1 - which]),
            f"scan {canvas.scans[which]}",
        )


class Files:
    """Pictures in files, each with a label and perhaps a mask.

    Args:
        root: the folder that the samples' ids are relative to.
        files: (path, label) pairs, in order.
        class_names: one per label.
        mask: path of a picture -> its mask, bool (H, W), or None if it has none.

    Raises:
        InputError: there are no files; or, on access, a file cannot be read.
    """

    multilabel = False

    def __init__(
        self,
        root: Path,
        files: Sequence[tuple[Path, int]],
        class_names: Sequence[str] | None,
        mask: Callable[[Path], Any] = lambda path: None,
    ) -> None:
        if not files:
            raise InputError(f"there are no pictures in {root} where this data set has them: see docs/evaluate.md.")
        self.root, self.files, self.class_names, self._mask = root, files, class_names, mask

    @property
    def ids(self) -> list[str]:
        """The samples' ids: their paths from the root."""
        return [path.relative_to(self.root).as_posix() for path, _ in self.files]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:
        path, label = self.files[index]
        mask = self._mask(path)
        return Sample(
            read_image(path), label, None if mask is None else mask_of(mask), path.relative_to(self.root).as_posix()
        )


def folder(root: str, masks: str | None = None) -> Files:
    """A folder with one subfolder per class; classes are numbered by name.

    Args:
        root: the folder with CLASS/PICTURE.
        masks: a folder with CLASS/PICTURE.png for some or all pictures; pixels brighter than half are the object.

    Raises:
        InputError: there are no such folders or pictures.

    Source: the layout of `torchvision.datasets.ImageFolder`.
    """
    base, files = Path(root), _by_class(Path(root))
    names = sorted({path.parent.name for path in files})

    def mask(path: Path) -> Any:
        file = Path(masks or "", path.relative_to(base)).with_suffix(".png")
        return np.asarray(open_image(file).convert("L")) > 127 if masks and file.exists() else None

    return Files(base, [(path, names.index(path.parent.name)) for path in files], names, mask)


def imagenet(root: str) -> Files:
    """The validation set of ImageNet-1k: val/n01440764/ILSVRC2012_val_00000293.JPEG.

    Labels are those of the 1,000 classes, even if some folders are missing.

    Raises:
        InputError: there are no such folders, or a folder is no class of ImageNet-1k.

    Source: Russakovsky et al., IJCV 2015; the layout of `torchvision.datasets.ImageNet`.
    """
    return _imagenet(Path(root), "val")


def imagenet_s(root: str, order: str = "folders") -> Files:
    """The validation set of ImageNet-S (50, 300 or 919 classes), with masks.

    The picture validation/n01440764/ILSVRC2012_val_00000293.JPEG has its mask as a .png under validation-segmentation:
    red + 256 * green is the number of the object's class in the subset, from 1 on. Labels are those of the 1,000
    classes of ImageNet-1k.

    Args:
        root: the folder with validation and validation-segmentation.
        order: "folders", class by class; or "names", by the pictures' own names, which shuffles start from.

    Raises:
        InputError: as for `imagenet`; or there is no such order.

    Source: Gao et al., Large-scale Unsupervised Semantic Segmentation, TPAMI 2022, arXiv:2106.03149.
    """
    if order not in ("folders", "names"):
        raise InputError(f"ImageNet-S is in the order of folders or of names, not of {order!r}.")
    base = Path(root)
    numbers = {name: number for number, name in enumerate(sorted(p.name for p in (base / "validation").glob("n*")), 1)}

    def mask(path: Path) -> Any:
        file = base / "validation-segmentation" / path.parent.name / f"{path.stem}.png"
        red, green = np.moveaxis(np.asarray(open_image(file).convert("RGB")).astype(int), 2, 0)[:2]
        return red + 256 * green == numbers[path.parent.name]

    found = _imagenet(base, "validation", mask)
    files = sorted(found.files, key=lambda file: file[0].stem) if order == "names" else found.files
    return Files(base, files, None, mask)


def mura(root: str, split: str = "valid") -> Files:
    """One split of MURA: radiographs, normal (0) or abnormal (1). Root is the folder MURA-v1.1.

    valid/XR_WRIST/patient11185/study1_positive/image1.png; the study's folder has the label.

    Args:
        root: the folder.
        split: valid or train.

    Raises:
        InputError: there are no such files, or there is no such split.

    Source: Rajpurkar et al., MIDL 2018, arXiv:1712.06957.
    """
    if split not in ("valid", "train"):
        raise InputError(f"MURA has the splits valid and train, not {split!r}.")
    base = Path(root)
    found = sorted(base.glob(f"{split}/XR_*/patient*/study*_*/*.png"))
    files = [(p, int(p.parent.name.endswith("_positive"))) for p in found if not p.name.startswith("._")]
    return Files(base, files, ("normal", "abnormal"))


def pet(root: str, split: str = "test") -> Files:
    """One split of Oxford-IIIT Pet: 37 breeds, the animal as the mask. Root is the folder with oxford-iiit-pet.

    Args:
        root: the folder.
        split: test, or train, which its list of files calls trainval.

    Raises:
        InputError: torchvision does not find the data set there, or there is no such split.

    Source: Parkhi et al., CVPR 2012; `torchvision.datasets.OxfordIIITPet`. In a trimap, 1 is the animal; its border, 3,
    is left out.
    """
    lists = {"test": "test", "train": "trainval"}
    if split not in lists:
        raise InputError(f"Oxford-IIIT Pet has the splits {' and '.join(lists)}, not {split!r}.")
    pets = needed("torchvision.datasets", "timm").OxfordIIITPet
    try:
        found = pets(root, split=lists[split], target_types="category")
    except (RuntimeError, OSError) as error:
        raise InputError(f"{root} does not hold Oxford-IIIT Pet, as torchvision lays it out: {error}") from error
    trimaps = Path(root) / "oxford-iiit-pet" / "annotations" / "trimaps"
    files = [(Path(image), int(label)) for image, label in zip(found._images, found._labels)]
    return Files(
        Path(root), files, found.classes, lambda path: np.asarray(open_image(trimaps / f"{path.stem}.png")) == 1
    )


def _by_class(root: Path) -> list[Path]:
    return sorted(p for p in root.glob("*/*") if p.suffix.lower() in _SUFFIXES)


def _imagenet(root: Path, split: str, mask: Callable[[Path], Any] = lambda path: None) -> Files:
    names: list[str] = needed("timm.data", "timm").ImageNetInfo("imagenet-1k").label_names()
    labels: Mapping[str, int] = {name: index for index, name in enumerate(names)}
    files = _by_class(root / split)
    strangers = sorted({p.parent.name for p in files} - set(labels))
    if strangers:
        raise InputError(f"{root / split / strangers[0]} is not named like a class of ImageNet-1k, such as n01440764.")
    return Files(root, [(p, labels[p.parent.name]) for p in files], None, mask)
