"""Where in the user's model and code a node comes from."""

from __future__ import annotations

import os
import sys
import traceback
from typing import NamedTuple

import torch
from torch import fx


class Place(NamedTuple):
    """A node's origin.

    Attributes:
        module_path: of the innermost module that made it, as in `blocks.0.attn`; "" is the model itself.
        source_line: `file:line: code` of the innermost frame outside of torch, or "".
    """

    module_path: str
    source_line: str

    def __str__(self) -> str:
        return f"{self.module_path or 'the model itself'}, {self.source_line or 'source line unknown'}"


def place_of(node: fx.Node) -> Place:
    """Where a captured node comes from.

    Example:
        >>> str(place_of(fx.Graph().placeholder("x")))
        'the model itself, source line unknown'
    """
    stack = node.meta.get("nn_module_stack") or {}
    path = next(reversed([path for path, _ in stack.values()]), "")
    lines = (node.meta.get("stack_trace") or "").strip().splitlines()
    for where, code in zip(reversed(lines[:-1]), reversed(lines)):
        if where.strip().startswith('File "') and not _of_library(where.split('"')[1]):
            file, line = where.split('"')[1], where.split("line ")[1].split(",")[0]
            return Place(path, f"{_short(file)}:{line}: {code.strip()}")
    return Place(path, "")


def raised_at(error: BaseException) -> str:
    """`file:line: code` of the innermost frame outside of torch and fxgrad that raised an error, or ""."""
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    for link in reversed(chain):
        for frame in reversed(traceback.extract_tb(link.__traceback__)):
            if os.path.exists(frame.filename) and not _of_library(frame.filename):
                return f"{_short(frame.filename)}:{frame.lineno}: {frame.line}"
    return ""


def _of_library(file: str) -> bool:
    """Whether a file belongs to torch or to fxgrad's pass (its demo is a user's code)."""
    ours, torchs = os.path.dirname(__file__), os.path.dirname(torch.__file__)
    return file.startswith(torchs + os.sep) or os.path.dirname(file) in (ours, os.path.join(ours, "ops"))


def _short(file: str) -> str:
    """A file's path as the working directory or an import would spell it."""
    roots = [os.getcwd(), *(p for p in sys.path if p)]
    return min((os.path.relpath(file, r) for r in roots if file.startswith(r + os.sep)), key=len, default=file)
