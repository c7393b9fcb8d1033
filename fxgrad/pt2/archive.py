"""A .pt2 file, read without trust: its members checked, its tensors as plain bytes, its program vetted.

`torch.export.load` unpickles, evaluates expressions and imports names as a file tells it to, so it never gets a user's
file. Every member is read once, into memory. Tensors are made from their bytes here. The program is checked word by
word (`vet.py`) and written anew from the checked parts only; torch gets this new file, with empty tensors.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from fxgrad.errors import ArtefactError, one_line
from fxgrad.pt2.vet import expect, vetted

PROGRAM, EXAMPLE = "models/model.json", "data/sample_inputs/model.pt"
CONFIGS = {
    "weights": "data/weights/model_weights_config.json",
    "constants": "data/constants/model_constants_config.json",
}
_PLAIN = re.compile(
    r"archive_format|archive_version|byteorder|version|\.data/(version|serialization_id)|\.format_version"
    r"|\.storage_alignment|models/model\.json|data/sample_inputs/model\.pt|data/(weights/weight|constants/tensor)_\d+"
    r"|data/(weights/model_weights|constants/model_constants)_config\.json|extra/[\w.-]+(/[\w.-]+)*",
    re.ASCII,
)
_TENSOR = re.compile(r"data/(weights/weight|constants/tensor)_\d+", re.ASCII)
# torch's numbers for dtypes in this format; quantised and 4-bit dtypes are not supported.
_NUMBERED = {
    1: "uint8 int8 int16 int32 int64 float16 float32 float64 complex32 complex64 complex128 bool bfloat16",
    28: "uint16 float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz float8_e8m0fnu uint32 uint64",
}
_DTYPES = {number: name for first, names in _NUMBERED.items() for number, name in enumerate(names.split(), first)}
_STRIDED = 7


@dataclass(frozen=True)
class Archive:
    """The members of a .pt2 file, in memory.

    Attributes:
        origin: the file's name, for messages.
        members: name, without the archive's prefix -> content.
    """

    origin: str
    members: dict[str, bytearray]

    def digests(self) -> dict[str, str]:
        """Member -> SHA-256 of its content, in hexadecimal digits."""
        return {name: hashlib.sha256(content).hexdigest() for name, content in self.members.items()}

    def json(self, name: str) -> Any:
        """The parsed content of a JSON member.

        Raises:
            ArtefactError: there is no such member, or it is not JSON.
        """
        if name not in self.members:
            raise ArtefactError(f"{self.origin} has no {name}. Write it again.")
        try:
            return json.loads(self.members[name])
        except (ValueError, RecursionError) as error:
            raise ArtefactError(f"{self.origin}: {name} is not JSON ({one_line(error)}). Write it again.") from error

    def program(self) -> ExportedProgram:
        """The vetted program, with the file's tensors on the CPU; removes the tensors' members from memory.

        Raises:
            ArtefactError: something is not as torch.export.save writes it, or cannot be read safely.
        """
        with self._blamed():
            graph = vetted(self.json(PROGRAM))
            tensors = {kind: self._tensors(kind) for kind in CONFIGS}
            example = self._example()
            with _quiet():
                program = torch.export.load(io.BytesIO(self._skeleton(graph, tensors)))
            program.state_dict.update(tensors["weights"])
            program.constants.update(tensors["constants"])
            spec = program.call_spec.in_spec
            if example is not None:
                _check_example(spec, example)
                program.example_inputs = example
            return program

    @contextmanager
    def _blamed(self) -> Iterator[None]:
        """Turn every error into an `ArtefactError` about this file."""
        try:
            yield
        except ArtefactError as error:
            raise error if str(error).startswith(self.origin) else ArtefactError(f"{self.origin}: {error}") from error
        except (Exception, RecursionError) as error:
            raise ArtefactError(
                f"{self.origin}: the program cannot be read ({one_line(error)}). It is damaged, or another version of "
                f"PyTorch than this {torch.__version__} wrote it."
            ) from error

    def _example(self) -> Any:
        content = self.members.get(EXAMPLE)
        if not content:
            return None
        try:
            with _quiet():
                return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except Exception as error:
            raise ArtefactError(
                f"the example inputs ({EXAMPLE}) hold more than tensors and plain data, so reading them could run "
                "code. If you trust the file, read it with torch.export.load and convert what that returns."
            ) from error

    def _tensors(self, kind: str) -> dict[str, Tensor]:
        """Name -> tensor, of the parameters and buffers or of the constants; shared storages stay shared."""
        config = expect(dict, self.json(CONFIGS[kind]).get("config"), CONFIGS[kind])
        storages: dict[str, Tensor] = {}
        made: dict[str, Tensor] = {}
        tied: dict[str, Tensor] = {}
        for name, entry in config.items():
            file, meta = expect(str, entry["path_name"], name), entry["tensor_meta"]
            if entry["use_pickle"] or meta is None or not (file in storages or f"data/{kind}/{file}" in self.members):
                raise ArtefactError(
                    f"{name} is not stored as plain numbers but in {file}, which cannot be read safely."
                )
            if file not in storages:
                storages[file] = _storage(self.members.pop(f"data/{kind}/{file}"))
            key = json.dumps([file, entry], sort_keys=True)
            made[name] = tied.setdefault(key, _tensor(name, storages[file], meta, bool(entry["is_param"])))
        return made

    def _skeleton(self, graph: Any, tensors: Mapping[str, Mapping[str, Tensor]]) -> bytes:
        """The bytes of an archive for torch: the vetted program and empty tensors only."""
        meta = {"dtype": 1, "sizes": [{"as_int": 0}], "strides": [{"as_int": 1}], "storage_offset": {"as_int": 0}}
        meta |= {"requires_grad": False, "device": {"type": "cpu", "index": None}, "layout": _STRIDED}
        entry = {"use_pickle": False, "tensor_meta": meta}
        files = {"weights": "weight_0", "constants": "tensor_0"}
        contents: dict[str, Any] = {
            name: bytes(self.members.get(name, b"")) for name in ("archive_version", "byteorder")
        }
        contents |= {"archive_format": b"pt2", ".data/version": b"6\n", PROGRAM: json.dumps(graph), EXAMPLE: b""}
        for kind, named in tensors.items():
            config = {
                n: entry | {"path_name": files[kind], "is_param": isinstance(t, nn.Parameter)} for n, t in named.items()
            }
            # One byte, which no tensor shows: torch 2.11 logs a warning where there is none.
            contents |= {CONFIGS[kind]: json.dumps({"config": config}), f"data/{kind}/{files[kind]}": b"\0"}
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, content in contents.items():
                archive.writestr(f"archive/{name}", content)
        return buffer.getvalue()


def read(path: str | Path) -> Archive:
    """Read a .pt2 file's members into memory, each once. Nothing is interpreted yet.

    Args:
        path: path of a file that `torch.export.save` or `fxgrad.save` wrote.

    Returns:
        The archive.

    Raises:
        ArtefactError: there is no such file, it is no zip archive, it is damaged, or it has forbidden members:
            compiled code, custom objects, names that lead out of the archive.

    Example:
        >>> import tempfile
        >>> program = torch.export.export(nn.Linear(3, 2), (torch.zeros(4, 3),))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.export.save(program, f"{folder}/linear.pt2")
        ...     archive = read(f"{folder}/linear.pt2")
        >>> sorted(archive.program().state_dict)
        ['bias', 'weight']
    """
    try:
        with open(path, "rb") as file:
            return read_from(file, str(path))
    except OSError as error:
        raise ArtefactError(f"{path} cannot be read: {error.strerror or one_line(error)}.") from error


def read_from(file: IO[bytes], origin: str, tensors: bool = True) -> Archive:
    """Like `read`, for an open file, with or without the tensors' values. `origin` is its name, for messages."""
    try:
        with zipfile.ZipFile(file) as archive:
            size = file.seek(0, io.SEEK_END)
            listed = [(n, i) for n, i in _listed(origin, archive, size) if tensors or not _TENSOR.fullmatch(n)]
            return Archive(origin, {name: _content(archive, info) for name, info in listed})
    except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, NotImplementedError, ValueError, RuntimeError) as error:
        raise ArtefactError(
            f"{origin} is damaged or no .pt2 file ({one_line(error)}). Write it again, or copy it again from where it "
            "came from."
        ) from error


def digests_of(file: IO[bytes]) -> dict[str, str]:
    """Like `Archive.digests`, for an open file that need not fit into memory.

    Example:
        >>> buffer = io.BytesIO()
        >>> torch.export.save(torch.export.export(nn.Linear(3, 2), (torch.zeros(4, 3),)), buffer)
        >>> digests_of(buffer) == read_from(buffer, "buffer").digests()
        True
    """
    found = {}
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            digest = hashlib.sha256()
            for piece in _pieces(archive, info):
                digest.update(piece)
            found[info.filename.partition("/")[2]] = digest.hexdigest()
    return found


def _listed(origin: str, archive: zipfile.ZipFile, size: int) -> Iterator[tuple[str, zipfile.ZipInfo]]:
    """(name without the archive's prefix, zip record) of every member; reads none of them."""

    def refuse(name: str, why: str) -> ArtefactError:
        return ArtefactError(f"{origin}: the member {name!r} {why}. The file is damaged or hostile: do not use it.")

    members = archive.infolist()
    roots = {info.filename.partition("/")[0] for info in members}
    if sum(info.file_size for info in members) > size:
        raise ArtefactError(f"{origin}: its members say that they are larger than the file. It is damaged or hostile.")
    seen = set()
    for info in members:
        name = info.filename.partition("/")[2]
        if info.filename.startswith("/") or "\\" in info.filename or ".." in info.filename.split("/"):
            raise refuse(info.filename, "has a name that leads out of the archive")
        if len(roots) > 1 or not info.filename.isascii():
            raise refuse(info.filename, "is not in the archive's one folder")
        if name.casefold() in seen:
            raise refuse(info.filename, "is there twice")
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise refuse(info.filename, "is compressed or encrypted, which torch.export.save never does")
        if name.startswith("data/aotinductor/") or name.endswith((".so", ".cubin")):
            raise refuse(info.filename, "is compiled code")
        if not _PLAIN.fullmatch(name):
            raise refuse(info.filename, "is nothing that belongs into an exported program without pickled objects")
        seen.add(name.casefold())
        yield name, info
    if archive.comment or not {"archive_format", PROGRAM} <= seen:
        raise ArtefactError(f"{origin} is a zip archive, but no exported program. fxgrad reads what fxgrad.save wrote.")


def _pieces(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Iterator[bytes]:
    with archive.open(info) as member:
        while piece := member.read(1 << 24):  # the last read compares the checksum
            yield piece


def _content(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytearray:
    content = bytearray()
    for piece in _pieces(archive, info):
        content += piece
    if len(content) != info.file_size:
        raise EOFError(f"{info.filename} ends early")
    return content


def _storage(content: bytearray) -> Tensor:
    # Copied, since PyTorch aligns its own memory, and rounding in kernels depends on alignment.
    return torch.frombuffer(content, dtype=torch.uint8).clone() if content else torch.empty(0, dtype=torch.uint8)


def _tensor(name: str, storage: Tensor, meta: Mapping[str, Any], parameter: bool) -> Tensor:
    if meta["layout"] != _STRIDED or meta["dtype"] not in _DTYPES:
        raise ArtefactError(f"{name} is sparse or quantised, or of a dtype that fxgrad does not know.")
    size, stride = ([expect(int, n["as_int"], name) for n in meta[key]] for key in ("sizes", "strides"))
    dtype = getattr(torch, _DTYPES[meta["dtype"]])
    place = torch.device(expect(str, meta["device"]["type"], name), meta["device"]["index"])
    with torch.no_grad():
        tensor = storage.view(dtype).as_strided(size, stride, expect(int, meta["storage_offset"]["as_int"], name))
    if parameter:
        return nn.Parameter(tensor.to(place), bool(meta["requires_grad"]))
    return tensor.to(place)


def _check_example(spec: pytree.TreeSpec, example: Any) -> None:
    """Compare the example with the spec. It walks along the spec, so a small pickle of many references is no risk."""
    leaves = spec.flatten_up_to(example)
    strange = [leaf for leaf in leaves if not isinstance(leaf, (Tensor, int, float, str, type(None)))]
    if strange:
        raise ArtefactError(f"an example input is a {type(strange[0]).__name__}, where a tensor or a number should be.")


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what torch logs and warns before an exception; the error says the same."""
    loggers = [logging.getLogger(name) for name in ("torch.export", "torch._export.serde.serialize")]
    before = [logger.disabled for logger in loggers]
    try:
        for logger in loggers:
            logger.disabled = True
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, disabled in zip(loggers, before):
            logger.disabled = disabled
