"""Save and load a converted module: torch.export's own .pt2 file, with rule table and manifest as extra files.

The file has the plain captured program with its tensors, and the rule table. Loading applies the pass again. So the
file has no code, `torch.export.load` can read the plain model from it, and results of `fxgrad.check` stay valid.
"""

from __future__ import annotations

import contextlib
import copyreg
import inspect
import io
import json
import os
import secrets
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor, nn
from torch.export.passes import move_to_device_pass
from torch.utils import _pytree as pytree

from fxgrad.capture.captured import Captured, Input
from fxgrad.capture.export import captured_from
from fxgrad.capture.higher_order import closed_call
from fxgrad.capture.objects import opened
from fxgrad.capture.shapes import Sizes
from fxgrad.classify.walk import classify
from fxgrad.errors import ArtefactError, FxgradError, one_line
from fxgrad.installed import version
from fxgrad.module.converted import ConvertedModule
from fxgrad.module.forms import FORMS
from fxgrad.pt2.archive import Archive, digests_of, read, read_from
from fxgrad.pt2.vet import expect, is_name, vetted
from fxgrad.table.data import from_data, own_twins, to_data
from fxgrad.table.row import Twins

FORMAT = 1
"""Version of the extra files. A higher number comes from a newer fxgrad."""
RULES, MANIFEST = "fxgrad/rules.json", "fxgrad/manifest.json"


def save(converted: ConvertedModule, path: str | Path) -> None:
    """Write a converted module to a .pt2 file, for `load`; `torch.export.load` reads the plain model from it.

    The file has the captured program with the module's present tensors and the example inputs, all on the CPU, the
    rule table with your rows, and a manifest with digests of all members. Your own twins are saved by name only. The
    file is replaced atomically: the old file at `path` stays until the new one is complete.

    Args:
        converted: what `fxgrad.convert` returned.
        path: path of the file to write; should end in .pt2.

    Returns:
        Nothing.

    Raises:
        ArtefactError: the file cannot be written, or the model cannot be saved without pickled code: its inputs or
            outputs have types that pytree cannot name, its ops take text, or its tensors have no values (device meta).

    Example:
        >>> import fxgrad, tempfile
        >>> libra = fxgrad.convert(nn.Sequential(nn.Linear(3, 2), nn.GELU()).eval(), (torch.randn(4, 3),))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     fxgrad.save(libra, f"{folder}/libra.pt2")
        ...     plain = torch.export.load(f"{folder}/libra.pt2").module()
        >>> x = torch.randn(5, 3)
        >>> torch.equal(plain(x), libra(x))
        True

    Source: torch.export.save, https://docs.pytorch.org/docs/stable/export.html
    """
    if not isinstance(converted, ConvertedModule):
        raise ArtefactError(f"fxgrad.save takes what fxgrad.convert returned, not a {type(converted).__name__}.")
    path = Path(path)
    try:
        with _replacing(path) as file:
            _write(converted, file)
    except OSError as error:
        raise ArtefactError(f"{path} cannot be written: {error.strerror or one_line(error)}.") from error


def load(path: str | Path, *, twins: Twins | None = None) -> ConvertedModule:
    """Read what `save` wrote, and apply the pass again: the same forward and gradients, bit for bit.

    Nothing in the file is run, unpickled or imported: anything but a plain program of ops that this process has is
    refused before PyTorch sees it. So a hostile file can at worst be a model that computes nonsense or needs more
    memory than you have. The safety of PyTorch's kernels on unusual operands is not checked.

    Args:
        path: path of the file.
        twins: op -> function, for composed ops that were converted with your own twins.

    Returns:
        The converted module, on the CPU.

    Raises:
        ArtefactError: there is no such file; or it is damaged, edited, hostile, or from a newer fxgrad; or it needs
            twins, or an import.
        FxgradError: as for `fxgrad.convert`, if the file's table does not fit its program.

    Example:
        >>> import fxgrad, tempfile
        >>> x = torch.randn(4, 3, requires_grad=True)
        >>> libra = fxgrad.convert(nn.Sequential(nn.Linear(3, 2), nn.GELU()).eval(), (x,))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     fxgrad.save(libra, f"{folder}/libra.pt2")
        ...     loaded = fxgrad.load(f"{folder}/libra.pt2")
        >>> ours, theirs = (torch.autograd.grad(f(x).sum(), x)[0] for f in (loaded, libra))
        >>> torch.equal(loaded(x), libra(x)), torch.equal(ours, theirs)
        (True, True)

    Source: torch.export.load, https://docs.pytorch.org/docs/stable/export.html
    """
    return _restored(read(path), dict(twins or {}))


def pieces(converted: ConvertedModule) -> tuple[Callable[..., ConvertedModule], tuple[Any, ...]]:
    """For `pickle`: (`from_pieces`, its arguments): the artefact without tensors, and the tensors, for shared memory.

    The user's own twins are pickled like any function: by the name under which they can be imported.

    Example:
        >>> import fxgrad, pickle
        >>> libra = fxgrad.convert(nn.Sequential(nn.Linear(3, 2), nn.GELU()).eval(), (torch.randn(4, 3),))
        >>> x = torch.randn(5, 3)
        >>> torch.equal(pickle.loads(pickle.dumps(libra))(x), libra(x))
        True
    """
    buffer = io.BytesIO()
    _write(converted, buffer, empty=True)
    rows = converted.classified.table.rows
    twins = {op: rows[op].twin for op in own_twins(converted.classified.table)}
    tensors = [dict(named(remove_duplicate=False)) for named in (converted.named_parameters, converted.named_buffers)]
    return from_pieces, (buffer.getvalue(), *tensors, twins)


def from_pieces(
    artefact: bytes, parameters: dict[str, Tensor], buffers: dict[str, Tensor], twins: Twins
) -> ConvertedModule:
    """Rebuild the module from `pieces`."""
    archive = read_from(io.BytesIO(artefact), "the pickled module")
    return _restored(archive, twins, (parameters, buffers))


def _write(converted: ConvertedModule, file: IO[bytes], empty: bool = False) -> None:
    """Write the artefact to an open file; `empty` leaves the tensors' values out."""
    captured, table = converted.with_tensors().captured, converted.classified.table
    if any(tensor.is_meta for tensor in [*captured.parameters.values(), *captured.buffers.values()]) and not empty:
        raise ArtefactError("the module is on the device meta, where tensors have no values: there is nothing to save.")
    if call := closed_call(captured.graph):
        raise ArtefactError(
            f"the module cannot be saved: {call} decides by data which program to run, and a file holds one program. "
            "Save the model's state_dict instead, and convert the model again."
        )
    stored: dict[Any, Tensor] = {}
    state, constants = ({n: _stored(t, stored, empty) for n, t in named.items()} for named in captured.persistent)
    example = pytree.tree_map_only(Tensor, lambda leaf: _stored(leaf, stored), opened(captured.example))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about unusual strides and about file names
            program = move_to_device_pass(captured.program.filled(state, constants, example), "cpu")
            torch.export.save(program, file, extra_files={RULES: json.dumps(to_data(table), indent=1)})
        archive = read_from(file, "the module", tensors=False)
        vetted(archive.json("models/model.json"))
        if archive.members["data/sample_inputs/model.pt"]:
            torch.load(io.BytesIO(archive.members["data/sample_inputs/model.pt"]), weights_only=True)
    except OSError:
        raise
    except ArtefactError as error:
        raise ArtefactError(f"the module cannot be saved in a way that can be read safely: {error}") from error
    except Exception as error:
        raise ArtefactError(
            f"the module cannot be saved, for torch.export cannot write it: {one_line(error)}"
        ) from error
    digests = digests_of(file)
    with zipfile.ZipFile(file, "a") as appended:
        member = zipfile.ZipInfo(f"archive/extra/{MANIFEST}")  # a fixed date: equal modules make equal files
        appended.writestr(member, json.dumps(_manifest_of(converted, captured, digests), indent=1))


def _stored(tensor: Tensor, stored: dict[Any, Tensor], empty: bool = False) -> Tensor:
    """The tensor as written: on the CPU, without the rest of a larger storage; shared tensors stay shared."""
    storage = tensor.untyped_storage()
    key = (tensor.device, storage.data_ptr(), tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype)
    if key not in stored or empty:
        span = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride())) if tensor.numel() else 0
        value = torch.empty(0, dtype=tensor.dtype) if empty else tensor.detach().cpu()
        stored[key] = value.clone() if span * tensor.element_size() != value.untyped_storage().nbytes() else value
    return nn.Parameter(stored[key], tensor.requires_grad) if isinstance(tensor, nn.Parameter) else stored[key]


def _manifest_of(converted: ConvertedModule, captured: Captured, digests: Mapping[str, str]) -> dict[str, Any]:
    (outputs,) = captured.graph.output_node().args
    assert isinstance(outputs, (list, tuple))
    paths = pytree.tree_flatten_with_path(pytree.tree_unflatten(list(outputs), captured.out_spec))[0]
    table = converted.classified.table
    return {
        "format": FORMAT,
        "fxgrad": version(),
        "torch": torch.__version__,
        "policy": table.name,
        "cite": table.cite,
        "inputs": [_described(i) for i in captured.inputs],
        "embedded": [_described(i) for i in captured.embedded],
        "sizes": Sizes.within(captured).to_data(),
        "outputs": [f"output{pytree.keystr(path)}" for path, _ in paths],
        "forward": _parameters(captured.signature),
        "options": {
            "through_no_grad": captured.through_no_grad,
            **({"autocast": list(captured.autocast)} if captured.autocast else {}),
            "on_unknown": table.on_unknown,
            "form": converted.form,
        },
        "twins": own_twins(table),
        "sha256": dict(digests),
    }


def _described(declared: Input) -> dict[str, Any]:
    shape, dtype = declared.shape, str(declared.dtype).removeprefix("torch.")
    if declared.dtype is None:
        return {"name": declared.name, "constant": repr(declared.constant)}
    return {"name": declared.name, "shape": shape, "dtype": dtype, "attributed": declared.attributed}


def _parameters(signature: inspect.Signature | None) -> list[dict[str, Any]] | None:
    """The signature of forward as JSON values, with defaults that JSON can express."""
    if signature is None:
        return None
    plain = (bool, int, float, str, type(None))
    found = []
    for p in signature.parameters.values():
        entry: dict[str, Any] = {"name": p.name, "kind": p.kind.name}
        if p.default is not inspect.Parameter.empty:
            entry["default"] = p.default if isinstance(p.default, plain) else "..."
        found.append(entry)
    return found


def _signature(parameters: Any) -> inspect.Signature | None:
    if parameters is None:
        return None
    found = []
    for entry in expect(list, parameters, "forward"):
        kind = getattr(inspect.Parameter, expect(str, entry["kind"], "kind"))
        default = entry.get("default", inspect.Parameter.empty)
        if not is_name(expect(str, entry["name"], "name")):
            raise ArtefactError(f"forward has a parameter {entry['name']!r}.")
        found.append(inspect.Parameter(entry["name"], kind, default=default))
    return inspect.Signature(found)


def _restored(
    archive: Archive, twins: Twins, tensors: tuple[dict[str, Tensor], dict[str, Tensor]] | None = None
) -> ConvertedModule:
    """The module in an archive; with `tensors` instead of the archive's, if given."""
    manifest = _manifest(archive)
    rules = archive.json(f"extra/{RULES}")
    program = archive.program()
    try:
        if program.example_inputs is None:
            raise ArtefactError("there are no example inputs.")
        needed = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
        table = from_data(rules, twins, manifest["twins"], needed)
        options, signature = manifest["options"], _signature(manifest["forward"])
        captured = captured_from(program, signature, program.example_inputs, table, options["through_no_grad"])
        captured = replace(captured, autocast=tuple(options.get("autocast", ())))  # older files have none
        if "sizes" in manifest:  # older files have none
            captured = Sizes.from_data(manifest["sizes"], [len(i.shape or ()) for i in captured.inputs]).of(captured)
        if tensors is not None:
            captured = captured.with_tensors(*tensors)
        converted = ConvertedModule(classify(captured, table))
        return cast(ConvertedModule, FORMS[options["form"]](converted))
    except ArtefactError as error:
        raise ArtefactError(f"{archive.origin}: {error}") from error
    except FxgradError:
        raise
    except Exception as error:
        raise ArtefactError(
            f"{archive.origin}: its parts do not fit together ({one_line(error)}). It is damaged or edited: write it "
            "again."
        ) from error


def _manifest(archive: Archive) -> dict[str, Any]:
    """The manifest, after all members were compared with its digests."""
    member = f"extra/{MANIFEST}"
    if member not in archive.members:
        raise ArtefactError(
            f"{archive.origin} has no manifest, so fxgrad.save did not write it. For a program of torch.export.save, "
            "call fxgrad.convert."
        )
    manifest = archive.json(member)
    try:
        format = expect(int, manifest["format"], "format")
        if format > FORMAT:
            raise ArtefactError(
                f"fxgrad {manifest.get('fxgrad')} wrote it, in format {format}; this is fxgrad {version()}, which "
                f"knows formats up to {FORMAT}. Install that version or a later one."
            )
        wanted = dict(expect(dict, manifest["sha256"], "sha256"))
        for key, kind in (("options", dict), ("twins", dict), ("policy", str)):
            expect(kind, manifest[key], key)
        expect(bool, manifest["options"]["through_no_grad"], "through_no_grad")
        for device in expect(list, manifest["options"].get("autocast", []), "autocast"):
            if not isinstance(device, str) or not torch.amp.is_autocast_available(device):
                raise ArtefactError(f"there is no autocast on {str(device)[:60]!r}.")
        form = expect(str, manifest["options"]["form"], "form")
        if form not in FORMS:
            raise ArtefactError(f"form should be one of {', '.join(FORMS)}, not {form[:60]!r}.")
    except ArtefactError as error:
        raise ArtefactError(f"{archive.origin}: {error}") from error
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ArtefactError(
            f"{archive.origin}: its manifest is none ({one_line(error)}). Write the file again."
        ) from error
    found = {name: digest for name, digest in archive.digests().items() if name != member}
    if changed := sorted(name for name in {*wanted, *found} if wanted.get(name) != found.get(name)):
        raise ArtefactError(
            f"{archive.origin}: {', '.join(changed[:3])} was changed, added or removed since fxgrad.save wrote the "
            "file. Write it again."
        )
    return dict(manifest)


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file beside `path`; it replaces `path` once it is complete and on disk."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with open(beside, "x+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


# A module is pickled as an artefact, so that no code is pickled.
copyreg.pickle(ConvertedModule, pieces)
