"""Weights from a file into a model: .safetensors, or what torch.load reads without unpickling anything but tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from fxgrad.errors import CaptureError, one_line

_NESTED = ("state_dict", "model")
"""Keys that trainers store the weights under, beside other things."""


def load_checkpoint(model: nn.Module, path: str | Path, strip_prefix: str = "") -> None:
    """Load the weights of a file into a model; keys and shapes must be exactly the model's.

    Args:
        model: the model.
        path: a .safetensors file; or any other, such as .ckpt, .pth, .pt or .bin, which torch.load reads with
            weights_only=True: a state_dict, or a dict that has it under "state_dict" or "model".
        strip_prefix: cut off the keys that start with it, such as "backbone.".

    Raises:
        CaptureError: the file cannot be read, or does not fit.

    Example:
        >>> load_checkpoint(nn.Linear(2, 2), "absent.safetensors")
        Traceback (most recent call last):
        fxgrad.errors.CaptureError: checkpoint absent.safetensors cannot be read as safetensors: ...
    """
    fit_checkpoint(model, read_checkpoint(path), path, strip_prefix)


def fit_checkpoint(model: nn.Module, found: Mapping[str, Tensor], path: str | Path, strip_prefix: str = "") -> None:
    """Load tensors, read from a file by `read_checkpoint`, into a model; as `load_checkpoint`."""
    state = {key.removeprefix(strip_prefix): value for key, value in found.items()}
    if len(state) < len(found):
        double = next(key for key in found if key.startswith(strip_prefix) and key.removeprefix(strip_prefix) in found)
        raise CaptureError(
            f"checkpoint {path} has {double} and, without {strip_prefix!r}, the same again: save the model's tensors "
            "alone, as model.state_dict()."
        )
    if strip_prefix and not any(key.startswith(strip_prefix) for key in found):
        raise CaptureError(
            f"checkpoint {path} has no keys behind {strip_prefix!r}: they begin like {min(found, default='nothing')}."
        )
    wanted = model.state_dict()
    missing, unexpected = wanted.keys() - state.keys(), state.keys() - wanted.keys()
    shapes = {k: (tuple(state[k].shape), tuple(v.shape)) for k, v in wanted.items() if k in state}
    problems = [f"{len(missing)} missing ({min(missing)}, ...)"] if missing else []
    problems += [f"{len(unexpected)} unexpected ({min(unexpected)}, ...)"] if unexpected else []
    problems += [f"{k} is {given}, the model's {own}" for k, (given, own) in shapes.items() if given != own][:1]
    if problems:
        raise CaptureError(f"checkpoint {path} does not fit the model: {'; '.join(problems)}.{_advice(wanted, state)}")
    model.load_state_dict(state)


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a file, by key.

    Raises:
        CaptureError: the file cannot be read, or holds no tensors by name.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(path)
        except Exception as error:
            raise CaptureError(f"checkpoint {path} cannot be read as safetensors: {one_line(error)}") from error
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CaptureError(
            f"checkpoint {path} cannot be read by torch.load with weights_only=True: {_cause(error)}. Objects other "
            "than tensors are not loaded: save model.state_dict() alone, best as .safetensors."
        ) from error
    nested = next((content[key] for key in _NESTED if isinstance(content, Mapping) and key in content), content)
    if not isinstance(nested, Mapping) or not all(isinstance(value, Tensor) for value in nested.values()):
        raise CaptureError(f"checkpoint {path} holds no state_dict, a dict of tensors, at its top or as 'state_dict'.")
    return {str(key): value for key, value in nested.items()}


def _cause(error: Exception) -> str:
    """What is wrong with a file; torch's own words would have it loaded without a check."""
    if type(error).__name__ != "UnpicklingError":
        return one_line(error).rstrip(".")
    other = re.search(r"GLOBAL (\S+)", str(error))
    return f"it has an object of {other[1]}" if other else "it is not what torch.save writes"


def _advice(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """Which prefix to strip, if the file's keys are the model's behind one."""
    key = min(wanted, default="")
    prefixes = {name.removesuffix(key) for name in state if name.endswith(f".{key}")}
    fitting = [p for p in sorted(prefixes) if {f"{p}{k}" for k in wanted} <= state.keys()]
    return f" Its keys are the model's behind {fitting[0]!r}: --strip-prefix {fitting[0]}" if fitting else ""
