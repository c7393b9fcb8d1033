"""A wrong file is named for what it is, by what `fxgrad run` loads explainers with."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from PIL import Image
from safetensors.torch import save_file

import fxgrad
from fxgrad import ExportError
from fxgrad.explainer.run import OnnxExplainer

LINEAR = torch.nn.Linear(3, 2).eval()


def ordinary(path: Path) -> None:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3]) for name in ("pixels", "scores")]
    graph = helper.make_graph([helper.make_node("Neg", ["pixels"], ["scores"])], "g", values[:1], values[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)


def cut_off(path: Path) -> None:
    ordinary(path)
    path.write_bytes(path.read_bytes()[:-9])


def other_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", "<w/>")


def cut_zip(path: Path) -> None:
    other_zip(path)
    path.write_bytes(path.read_bytes()[:-9])


def program(path: Path) -> None:
    torch.export.save(torch.export.export(LINEAR, (torch.zeros(2, 3),)), path.with_suffix(".pt2"))
    path.with_suffix(".pt2").rename(path)


def explainer(path: Path) -> None:
    x = torch.zeros(2, 3)
    fxgrad.export_explainer(fxgrad.convert(LINEAR, (x,)), (x,), path.with_suffix(".pt2"))
    path.with_suffix(".pt2").rename(path)


def saved(path: Path) -> None:
    fxgrad.save(fxgrad.convert(LINEAR, (torch.zeros(2, 3),)), path.with_suffix(".pt2"))
    path.with_suffix(".pt2").rename(path)


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (ordinary, r"is an ordinary ONNX model, from pixels to scores, without an attribution\. Explainers are made"),
        (cut_off, r"is no ONNX file that onnxruntime can load: it is damaged, ends too early, or has ops"),
        (program, r"it is a program of torch\.export, without an attribution\. fxgrad export MODEL"),
        (
            explainer,
            r"it is an explainer for PyTorch: torch\.export\.load\(path\)\.module\(\) runs it\. For onnxruntime",
        ),
        (saved, r"it is a converted model of fxgrad\.save, without an attribution: fxgrad\.load reads it, and"),
        (lambda p: save_file({"w": torch.zeros(2)}, p), r"it is a \.safetensors file: weights, and no program\."),
        (lambda p: torch.save(LINEAR.state_dict(), p), r"it is a PyTorch checkpoint: weights, and no program\."),
        (
            lambda p: p.with_suffix(".npz").rename(p) if np.savez(p.with_suffix(".npz"), a=1) is None else 0,
            r"NumPy arr",
        ),
        (lambda p: p.write_bytes(b""), r"it is an empty file: its export or its copying was cut off\."),
        (lambda p: p.mkdir(), r"it is a folder\."),
        (lambda p: Image.new("RGB", (2, 2)).save(p, "PNG"), r"it is a picture \(PNG\)\."),
        (lambda p: Image.new("RGB", (2, 2)).save(p, "JPEG"), r"it is a picture \(JPEG\)\."),
        (lambda p: Image.new("RGB", (2, 2)).save(p, "WEBP"), r"it is a picture \(WebP\)\."),
        (
            lambda p: p.write_text("<!DOCTYPE html><title>404"),
            r"it is a page in HTML or XML, such as the error page of",
        ),
        (lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\noid"), r"run git lfs pull\."),
        (lambda p: p.write_text("no"), r"it is a text file\."),
        (other_zip, r"it is a zip archive\."),
        (cut_zip, r"it is a zip archive that ends too early: copy or download it again\."),
        (lambda p: p.write_bytes(bytes(range(200, 256))), r"it is a file of an unknown kind\."),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, write: Callable[[Path], object], said: str) -> None:
    write(tmp_path / "e.onnx")
    with pytest.raises(ExportError, match=said) as refused:
        OnnxExplainer(tmp_path / "e.onnx")
    assert str(refused.value).startswith(f"{tmp_path}/e.onnx is ") and len(str(refused.value)) < 800


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"nowhere\.onnx cannot be read: No such file or directory\."):
        OnnxExplainer(tmp_path / "nowhere.onnx")
