"""What may enter: which models, which files, which calls; whatever may not is refused in words."""

from __future__ import annotations

import os
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from fxgrad.capture.quantised import refuse_untraceable
from fxgrad.errors import CaptureError, InputError

Call = tuple[tuple[Any, ...], dict[str, Any]]
_REBUILD = (
    "Build the model from its Python class, copy the weights with model.load_state_dict({}), and convert that model"
)


def refuse_bad_model(model: Any) -> None:
    """Raise `CaptureError` if a model cannot be captured for what it is: TorchScript, in train mode, no module.

    Example:
        >>> refuse_bad_model(nn.Dropout().eval())
        >>> refuse_bad_model(torch.relu)
        Traceback (most recent call last):
        fxgrad.errors.CaptureError: the model is a builtin_function_or_method; fxgrad takes a torch.nn.Module, \
an ExportedProgram or the path of a .pt2 file. Call the function in the forward of a module.
    """
    if not isinstance(model, nn.Module):
        raise CaptureError(
            f"the model is a {type(model).__name__}; fxgrad takes a torch.nn.Module, an ExportedProgram or the path "
            "of a .pt2 file. Call the function in the forward of a module."
        )
    _refuse_torchscript(model)
    refuse_untraceable(model)  # before the mode: torch.ao's modules are made in train mode
    training = [path or "the model itself" for path, module in model.named_modules() if module.training]
    if training:
        raise CaptureError(
            f"the model is in train mode ({training[0]}; modules in all: {len(training)}), where dropout and batch "
            "statistics make attributions meaningless. Call model.eval() first."
        )


def _refuse_torchscript(model: nn.Module) -> None:
    found = [(path, m) for path, m in model.named_modules() if isinstance(m, torch.jit.ScriptModule)]
    if not found:
        return
    path, script = found[0]
    name = getattr(script, "original_name", type(script).__name__)
    if path:
        rebuild = f"Put the Python module in its place, with the weights of {path}.state_dict(), and convert again."
    else:
        rebuild = _REBUILD.format("script.state_dict()") + "."
    if next(script.parameters(), None) is None:
        rebuild += " If it was frozen, its weights are in its code: take them from the script before torch.jit.freeze."
    raise CaptureError(
        f"{f'module {path!r}' if path else 'the model'} is TorchScript (a {name} that torch.jit scripted, traced or "
        f"froze), a program of its own that no Python call can be traced into. {rebuild}"
    )


def other_file(path: str | Path) -> str | None:
    """What a file that is no exported program is, and what to do with it; None where that is not known.

    Nothing in the file is interpreted.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({}, f"{folder}/weights.pt")
        ...     print(other_file(f"{folder}/weights.pt").split(":")[0])
        a file of torch.save
    """
    if not os.path.isfile(path):
        return None
    with open(path, "rb") as file:
        start = file.read(16)
    members = [name.partition("/")[2] for name in _members(path)]
    if "constants.pkl" in members and any(name.startswith("code/") for name in members):
        load = f"torch.jit.load({str(path)!r}).state_dict()"
        return f"TorchScript, a program of its own that no Python call can be traced into. {_REBUILD.format(load)}."
    if "data.pkl" in members or start.startswith(b"\x80\x02\x8a\x0a"):  # the second is torch's number of old files
        load = f"torch.load({str(path)!r})"
        return f"a file of torch.save: weights or a pickled module, not a program. {_REBUILD.format(load)}."
    if start[8:10] == b'{"' and int.from_bytes(start[:8], "little") < os.path.getsize(path):
        load = f"safetensors.torch.load_file({str(path)!r})"
        return f"a file of safetensors: weights, not a program. {_REBUILD.format(load)}."
    return None


def _members(path: str | Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return []


def call_of(args: Any, kwargs: Any) -> Call:
    """Arguments of a call as a tuple and a dict; a tensor in the tuple's place is taken as the only one.

    Raises:
        InputError: they are of other types; the message says how to pass them.

    Example:
        >>> call_of(torch.ones(1), None)
        ((tensor([1.]),), {})
    """
    if isinstance(args, (Tensor, PackedSequence)):
        args = (args,)
    if isinstance(args, Mapping):
        raise InputError(
            f"args is a {type(args).__name__}, which may mean two things. Pass inputs by name as kwargs: "
            "convert(model, (), inputs); pass one input that is a dict in a tuple: convert(model, (inputs,))."
        )
    if not isinstance(args, (tuple, list)):
        raise InputError(
            f"args must be a tuple of the model's positional inputs, not {type(args).__name__}. Pass (x,) for one."
        )
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise InputError(
            f"kwargs must be a dict of the model's inputs by name, not {type(kwargs).__name__}. Pass several "
            "positional inputs in one tuple: (x, y)."
        )
    return tuple(args), dict(kwargs or {})


def refuse_other_dtype(
    inputs: Sequence[tuple[str, Any]],
    weights: Iterable[Tensor],
    run: Callable[[list[Any]], Any],
    error: BaseException,
) -> None:
    """Raise `InputError` if a call failed only because inputs have another dtype than the weights.

    The model is asked: with these inputs cast to the weights' dtype it must run. So a model that takes what differs
    from its weights, or that autocast helps, never gets here.

    Args:
        inputs: (name, value) of each flattened input.
        weights: the model's parameters and buffers.
        run: calls the model with other flattened inputs.
        error: what the call raised.

    Example:
        >>> layer, x = nn.Linear(2, 2), torch.ones(1, 2).half()
        >>> try:
        ...     layer(x)
        ... except RuntimeError as error:
        ...     refuse_other_dtype([("x", x)], layer.parameters(), lambda values: layer(*values), error)
        Traceback (most recent call last):
        fxgrad.errors.InputError: input 'x' is torch.float16, but the weights are torch.float32, and the model does \
not run on both. Cast the input with .to(torch.float32), or the module with .to(torch.float16).
    """
    own = Counter(w.dtype for w in weights if w.is_floating_point())
    strays = [(n, v.dtype) for n, v in inputs if isinstance(v, Tensor) and v.is_floating_point() and v.dtype not in own]
    if not own or not strays:
        return
    (wanted, _), *_ = own.most_common(1)
    names = {name for name, _ in strays}
    try:
        with torch.no_grad():
            run([v.to(wanted) if n in names else v for n, v in inputs])
    except Exception:
        return  # it is not the dtype, or not that alone
    listed = ", ".join(f"{name!r}" for name, _ in strays)
    dtypes = " and ".join(dict.fromkeys(str(dtype) for _, dtype in strays))
    raise InputError(
        f"input {listed} is {dtypes}, but the weights are {wanted}, and the model does not run on both. "
        f"Cast the input with .to({wanted}), or the module with .to({strays[0][1]})."
    ) from error
