"""Data sets in tiny folders laid out as published: which pictures, labels and masks are found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fxgrad.data import Sample, collate, open_data, order
from fxgrad.data.models import load_model
from fxgrad.demo import canvas
from fxgrad.errors import InputError

LEFT = np.zeros((20, 30), bool)
LEFT[:, :10] = True


def picture(path: Path, grey: int = 128) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (30, 20), (grey,) * 3).save(path)
    return path


def paint(path: Path, pixels: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path)


def mask_of(sample: Sample) -> np.ndarray[Any, Any]:
    assert sample.mask is not None
    return np.asarray(sample.mask) > 127


def test_digits_are_the_demos_canvases() -> None:
    data = open_data("digits:train")
    for index in (4, 5):
        truth, sample = canvas(index, "train"), data[index]
        assert sample.label == truth.labels[index % 2] and sample.id == f"train/{index}"
        assert np.array_equal(mask_of(sample), truth.masks[index % 2])
        assert np.abs(np.asarray(sample.image) / 255 - truth.image[0]).max() <= 0.5 / 255 + 1e-6
    assert data.multilabel and data.class_names and data.class_names[3] == "three"


def test_a_folder_of_classes_with_masks_for_some(tmp_path: Path) -> None:
    for name in ("dog/b.png", "dog/a.jpg", "cat/c.webp"):
        picture(tmp_path / "pictures" / name)
    (tmp_path / "pictures" / "dog" / "notes.txt").write_text("no picture")
    paint(tmp_path / "masks" / "dog" / "a.png", LEFT * 255)
    data = open_data(f"folder:{tmp_path / 'pictures'}:{tmp_path / 'masks'}")
    assert [(data[i].id, data[i].label) for i in range(len(data))] == [
        ("cat/c.webp", 0),
        ("dog/a.jpg", 1),
        ("dog/b.png", 1),
    ]
    assert data.class_names == ["cat", "dog"] and not data.multilabel
    assert np.array_equal(mask_of(data[1]), LEFT) and data[2].mask is None


def test_imagenet_labels_hold_where_only_some_classes_are_there(tmp_path: Path) -> None:
    picture(tmp_path / "val" / "n01443537" / "ILSVRC2012_val_00000236.JPEG")  # goldfish
    picture(tmp_path / "val" / "n15075141" / "ILSVRC2012_val_00001234.JPEG")  # toilet tissue
    data = open_data(f"imagenet:{tmp_path}")
    assert [(data[i].label, data[i].mask) for i in range(2)] == [(1, None), (999, None)]
    assert data[0].id == "val/n01443537/ILSVRC2012_val_00000236.JPEG"
    picture(tmp_path / "val" / "n1" / "x.JPEG")
    with pytest.raises(InputError, match="n1 is not named like a class of ImageNet-1k, such as n01440764"):
        open_data(f"imagenet:{tmp_path}")


def test_imagenet_s_masks_are_the_pixels_of_the_own_class(tmp_path: Path) -> None:
    names = [f"n{n:08d}" for n in range(1, 300)]
    for folder in ["n01440764", "n01443537", *names]:  # enough classes that the green channel is used
        (tmp_path / "validation" / folder).mkdir(parents=True, exist_ok=True)
    number = 301  # n01443537 is the last one
    colours = np.zeros((20, 30, 3))
    colours[:] = (1000 % 256, 1000 // 256, 0)  # to be ignored
    colours[:, :10] = (number % 256, number // 256, 0)
    colours[:, 20:] = (number % 256, 0, 0)  # another class
    picture(tmp_path / "validation" / "n01443537" / "ILSVRC2012_val_00000236.JPEG")
    paint(tmp_path / "validation-segmentation" / "n01443537" / "ILSVRC2012_val_00000236.png", colours)
    data = open_data(f"imagenet-s:{tmp_path}")
    assert len(data) == 1 and data[0].label == 1
    assert np.array_equal(mask_of(data[0]), LEFT)
    picture(tmp_path / "validation" / "n01440764" / "ILSVRC2012_val_00000300.JPEG")
    paint(tmp_path / "validation-segmentation" / "n01440764" / "ILSVRC2012_val_00000300.png", colours)
    orders = [open_data(f"imagenet-s:{tmp_path}{order}") for order in ("", ":names")]
    assert [[data[i].label for i in range(2)] for data in orders] == [[0, 1], [1, 0]]


def test_mura_studies_have_the_labels(tmp_path: Path) -> None:
    for study in ("XR_WRIST/patient11185/study1_positive", "XR_ELBOW/patient11186/study1_negative"):
        picture(tmp_path / "valid" / study / "image1.png")
    (tmp_path / "valid" / "XR_ELBOW" / "patient11186" / "study1_negative" / "._image1.png").write_bytes(
        b"a Mac was here"
    )
    data = open_data(f"mura:{tmp_path}")
    assert [(data[i].label, data[i].id.split("/")[1]) for i in range(len(data))] == [(0, "XR_ELBOW"), (1, "XR_WRIST")]
    assert data.class_names == ("normal", "abnormal")
    picture(tmp_path / "train" / "XR_HAND" / "patient00001" / "study1_positive" / "image3.png")
    train = open_data(f"mura:{tmp_path}:train")
    assert [train[i].id for i in range(len(train))] == ["train/XR_HAND/patient00001/study1_positive/image3.png"]


def test_pets_are_torchvisions_with_the_animal_as_the_mask(tmp_path: Path) -> None:
    base = tmp_path / "oxford-iiit-pet"
    lines = ["Abyssinian_2 1 1 1", "yorkshire_terrier_9 37 2 25"]
    (base / "annotations").mkdir(parents=True)
    (base / "annotations" / "test.txt").write_text("\n".join(lines) + "\n")
    for name in ("Abyssinian_2", "yorkshire_terrier_9"):
        picture(base / "images" / f"{name}.jpg")
        trimap = np.where(LEFT, 1, 2)
        trimap[:, 10] = 3  # the border
        paint(base / "annotations" / "trimaps" / f"{name}.png", trimap)
    data = open_data(f"pet:{tmp_path}")
    assert [data[i].label for i in range(len(data))] == [0, 36]
    assert np.array_equal(mask_of(data[1]), LEFT)
    (base / "annotations" / "trainval.txt").write_text(lines[1] + "\n")
    train = open_data(f"pet:{tmp_path}:train")
    assert len(train) == 1 and train[0].label == 36 and np.array_equal(mask_of(train[0]), LEFT)
    with pytest.raises(InputError, match="does not hold Oxford-IIIT Pet, as torchvision lays it out"):
        open_data(f"pet:{tmp_path / 'elsewhere'}")


def test_imagenet_hard_is_read_by_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = {
        "image": [Image.new("RGB", (30, 20)), Image.new("RGB", (30, 20))],
        "label": [[207, 208], [3]],
        "origin": ["imagenet_a", "objectnet"],
        "english_label": [["golden retriever", "Labrador retriever"], ["tiger shark"]],
    }
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.Sequence(datasets.Value("int64")),
            "origin": datasets.Value("string"),
            "english_label": datasets.Sequence(datasets.Value("string")),
        }
    )
    (tmp_path / "data").mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(
        tmp_path / "data" / "validation-00000-of-00001.parquet"
    )
    data = open_data(f"imagenet-hard:{tmp_path}")
    assert [(data[i].label, data[i].image.size, data[i].id) for i in range(2)] == [
        (207, (30, 20), "0"),
        (3, (30, 20), "1"),
    ]


def test_any_repository_of_labelled_pictures_is_read_by_datasets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows: dict[str, Any] = {"image": [Image.new("RGB", (30, 20)), Image.new("L", (3, 2))], "label": [1, 0]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    for name in ("pets", "others"):
        (tmp_path / name).mkdir()
        stored = datasets.Dataset.from_dict(rows, features=features)
        stored = stored if name == "pets" else stored.rename_column("label", "breed")
        stored.to_parquet(tmp_path / name / "train-00000-of-00001.parquet")
    data = open_data(f"hub:{tmp_path / 'pets'}:train")
    assert [(data[i].label, data[i].image.size, data[i].id) for i in range(2)] == [(1, (30, 20), "0"), (0, (3, 2), "1")]
    assert data.class_names == ["cat", "dog"] and order(data, mode="RGB", shuffle="none") == [0]
    with pytest.raises(InputError, match=r"datasets finds no split 'test' of .*pets"):
        open_data(f"hub:{tmp_path / 'pets'}:test")
    with pytest.raises(InputError, match="others has no column 'label', but image, breed"):
        open_data(f"hub:{tmp_path / 'others'}:train")


def test_masks_go_through_the_pictures_own_preprocessing() -> None:
    loaded = load_model("timm:test_vit")
    pixels = np.zeros((200, 300, 3), np.uint8)
    pixels[50:120, 100:180] = 255
    image = Image.fromarray(pixels)
    batch = collate([Sample(image, 0, image.convert("L"), "a"), Sample(image, 1, None, "b")], loaded.preprocess)
    bright = loaded.preprocess.invert(batch.x[:1]).mean(0) > 0.5
    assert torch.equal(batch.masks[0], bright) and 0 < bright.sum() < bright.numel() and not batch.masks[1].any()
    with pytest.raises(InputError, match=r"c: the mask is \(1, 1\) pixels large, the picture \(300, 200\)"):
        collate([Sample(image, 0, Image.new("L", (1, 1)), "c")], loaded.preprocess)
    with pytest.raises(InputError, match="there are no samples"):
        collate([], loaded.preprocess)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("digits:valid", "the digits have the splits train, heldout, fit, validation, not 'valid'"),
        ("digits:train:gold", "the digits are drawn in grey or in colours, not in 'gold'"),
        ("mura", "'mura' should be mura:ROOT"),
        ("mura:nowhere:test", "MURA has the splits valid and train, not 'test'"),
        ("pet:nowhere:valid", "Oxford-IIIT Pet has the splits test and train, not 'valid'"),
        ("imagenet-s:nowhere:sizes", "ImageNet-S is in the order of folders or of names, not of 'sizes'"),
        ("folder:a:b:c", "'folder:a:b:c' should be folder:ROOT:MASKS"),
        ("nonsense", r"data is coco, digits, eraser, folder, .*, or module.path:factory; 'nonsense' is neither"),
        ("mura:nowhere", "there are no pictures in nowhere where this data set has them: see docs/evaluate.md"),
        ("no.such.module:data", "no.such.module:data cannot be imported and called with nothing: ModuleNotFoundError"),
        ("builtins:dict", "builtins:dict is no data set: what it returned has no class_names, multilabel"),
    ],
)
def test_what_is_no_data_set(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_data(spec)
