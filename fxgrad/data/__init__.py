"""Data sets to evaluate on, under one small protocol: samples by number, each (image, label, mask, id).

    from fxgrad.data import collate, open_data

    data = open_data("digits")                                   # or folder:PATH, imagenet-s:PATH, my.module:factory
    batch = collate([data[0], data[1]], loaded.preprocess)       # tensors, masks aligned with the pictures

Anything with `__len__`, `__getitem__`, `class_names` and `multilabel` is a data set. Those of texts give passages, each
(text, label, rationales, id).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

from fxgrad.data.coco import Coco
from fxgrad.data.factory import load_object
from fxgrad.data.hub import Hub, ImageNetHard
from fxgrad.data.ordering import order
from fxgrad.data.sample import Batch, Data, Sample, collate, mask_of
from fxgrad.data.sets import Digits, Files, folder, imagenet, imagenet_s, mura, pet
from fxgrad.data.texts import Passage, Passages, Texts, eraser, rationales
from fxgrad.errors import InputError, one_line

__all__ = [
    "DATA",
    "Batch",
    "Coco",
    "Data",
    "Digits",
    "Files",
    "Hub",
    "ImageNetHard",
    "Passage",
    "Passages",
    "Sample",
    "Texts",
    "collate",
    "mask_of",
    "open_data",
    "order",
]

DATA: dict[str, Callable[..., Data | Texts]] = {
    "coco": Coco,
    "digits": Digits,
    "eraser": eraser,
    "folder": folder,
    "hub": Hub,
    "imagenet": imagenet,
    "imagenet-hard": ImageNetHard,
    "imagenet-s": imagenet_s,
    "mura": mura,
    "pet": pet,
    "rationales": rationales,
}
"""The data sets that `open_data` knows by name; all except digits take a path."""


def open_data(spec: str) -> Data | Texts:
    """Open a data set by name.

    Args:
        spec: NAME or NAME:PATH, such as digits, digits:train, folder:pictures, folder:pictures:masks, imagenet:ROOT,
            imagenet-hard:ROOT, imagenet-s:ROOT, mura:ROOT:train, pet:ROOT:train, coco:ROOT, hub:REPOSITORY:SPLIT; of
            texts, rationales:FILE, eraser:ROOT:SPLIT; or module.path:factory for your own, which is looked for in the
            current directory and on sys.path, and called without arguments.

    Returns:
        The data set; one of pictures reads a picture when its sample is accessed.

    Raises:
        InputError: there is no such data set, or its files are missing.

    Example:
        >>> len(open_data("digits")), open_data("digits").multilabel
        (10000, True)
    """
    name, *paths = spec.split(":")
    if name in DATA:
        takes = inspect.signature(DATA[name]).parameters.values()
        needed = sum(p.default is p.empty for p in takes)
        if not needed <= len(paths) <= len(takes):
            raise InputError(f"{spec!r} should be {':'.join([name, *(p.name.upper() for p in takes)])}.")
        return DATA[name](*paths)
    if len(paths) != 1:
        raise InputError(f"data is {', '.join(sorted(DATA))}, or module.path:factory; {spec!r} is neither.")
    try:
        _, data = load_object(spec, call=True)
    except Exception as error:
        raise InputError(f"{spec} cannot be imported and called with nothing: {one_line(error)}") from error
    missing = [m for m in ("__len__", "__getitem__", "class_names", "multilabel") if not hasattr(data, m)]
    if missing:
        raise InputError(f"{spec} is no data set: what it returned has no {', '.join(missing)}.")
    return data  # type: ignore[no-any-return]
