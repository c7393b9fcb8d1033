"""What a file is that was taken for an explainer: by its content, whatever its ending."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

from fxgrad.errors import ExportError

_STARTS = {
    b"\x89PNG": "a picture (PNG)",
    b"\xff\xd8\xff": "a picture (JPEG)",
    b"GIF8": "a picture (GIF)",
    b"II*\0": "a picture (TIFF)",
    b"MM\0*": "a picture (TIFF)",
    b"%PDF": "a PDF",
    b"\x93NUMPY": "a NumPy array (.npy)",
    b"\x89HDF": "an HDF5 file, such as Keras's weights",
    b"GGUF": "a GGUF file: weights for llama.cpp",
    b"\x1f\x8b": "compressed by gzip",
    b"\x80\x02": "a pickle, such as a PyTorch checkpoint",
    b"\x80\x04": "a pickle, such as a scikit-learn model",
    b"version https://git-lfs": "the pointer of a Git LFS file, not the file: run git lfs pull",
    b"<": "a page in HTML or XML, such as the error page of a failed download",
    b"PK": "a zip archive that ends too early: copy or download it again",
}
"""First bytes -> what the file is."""
_MEMBERS = {
    "extra/explainer.json": "an explainer for PyTorch: torch.export.load(path).module() runs it. "
    "For onnxruntime, export to a path that ends in .onnx",
    "data/aotinductor/": "a program compiled by AOTInductor: torch._inductor.aoti_load_package runs it. "
    "For onnxruntime, export to a path that ends in .onnx",
    "extra/fxgrad/manifest.json": "a converted model of fxgrad.save, without an attribution: fxgrad.load reads it, and "
    "fxgrad.export_explainer writes its explainer",
    "models/model.json": "a program of torch.export, without an attribution",
    "data.pkl": "a PyTorch checkpoint: weights, and no program",
    ".npy": "NumPy arrays (.npz)",
}
"""Part of a member's name in a zip archive -> what the archive is."""
_ONNX = b"\x08"
"""An ONNX file starts with the tag of its format's version."""


def described(path: str | Path) -> str:
    """What a file is, in words; "" if it may be ONNX.

    Raises:
        ExportError: there is no such file, or it cannot be read.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "explainer.onnx"
        >>> _ = file.write_bytes(b"\\x89PNG and so on")
        >>> described(file)
        'a picture (PNG)'
    """
    try:
        with open(path, "rb") as opened:
            start = opened.read(512)
    except IsADirectoryError:
        return "a folder"
    except OSError as error:
        raise ExportError(f"{path} cannot be read: {error.strerror}.") from error
    if not start:
        return "an empty file: its export or its copying was cut off"
    if zipfile.is_zipfile(path):
        return _archive(path)
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "a picture (WebP)"
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < os.path.getsize(path):
        return "a .safetensors file: weights, and no program"
    found = next((what for first, what in _STARTS.items() if start.lstrip().startswith(first)), "")
    if found or start.startswith(_ONNX):
        return found
    return "a text file" if _is_text(start) else "a file of an unknown kind"


def refuse_other(path: str | Path) -> None:
    """Raise `ExportError` if a file is no ONNX file: what it is, and where an explainer comes from."""
    if found := described(path):
        raise ExportError(
            f"{path} is no explainer in ONNX; it is {found}. fxgrad export MODEL -o explainer.onnx writes one."
        )


def _archive(path: str | Path) -> str:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    return next((what for part, what in _MEMBERS.items() if any(part in name for name in names)), "a zip archive")


def _is_text(start: bytes) -> bool:
    try:
        return start.decode("utf-8").isprintable() or not set(start) & set(range(9))
    except UnicodeDecodeError:
        return False
