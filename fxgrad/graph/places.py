"""Where in the user's model and code a node comes from."""

from __future__ import annotations

import linecache
import os
import re
import sys
import sysconfig
import traceback
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import fx

_EXPORT, _LAYERS = (os.path.join(os.path.dirname(torch.__file__), folder, "") for folder in ("export", "nn"))
_CALLER = os.path.join(_LAYERS, "modules", "module.py")
_PYTHON = os.path.join(sysconfig.get_path("stdlib"), "")
_PACKAGE = os.path.join(os.path.dirname(os.path.dirname(__file__)), "")


class Place(NamedTuple):
    """A node's origin.

    Attributes:
        module_path: path of the innermost module that called it, such as `blocks.0.attn`; "" is the model itself.
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
    lines = [line.strip() for line in (node.meta.get("stack_trace") or "").splitlines()]
    for where, code in reversed(list(zip(lines, [*lines[1:], ""]))):
        if where.startswith('File "') and not of_library(where.split('"')[1]):
            file, line = where.split('"')[1], where.split("line ")[1].split(",")[0]
            known = code and not code.startswith('File "')  # else the source text is not at hand
            return Place(path, f"{short(file)}:{line}{': ' + code if known else ''}")
    return Place(path, "")


def raised_at(error: BaseException) -> str:
    """`file:line: code` of the innermost frame outside of torch and fxgrad that raised an error, or ""."""
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    for link in reversed(chain):
        for frame in reversed(traceback.extract_tb(link.__traceback__)):
            if os.path.exists(frame.filename) and not of_library(frame.filename):
                return f"{short(frame.filename)}:{frame.lineno}: {frame.line}"
    return ""


def called_from() -> str:
    """`file:line: code` of the innermost frame of the model that torch.export is tracing, or of one of torch's layers.

    Returns "" where there is neither.

    Example:
        >>> called_from()  # nothing is being traced
        ''
    """
    frame: Any = sys._getframe(1)
    own, layers = None, None
    while frame is not None and not frame.f_code.co_filename.startswith(_EXPORT):
        file = frame.f_code.co_filename
        own = own or (None if of_library(file) else frame)
        layers = layers or (frame if file.startswith(_LAYERS) and file != _CALLER else None)
        frame = frame.f_back
    found = None if frame is None else own or layers
    return line_of(found.f_code.co_filename, found.f_lineno) if found else ""


def line_of(file: str, number: int | None) -> str:
    """`file:line: code`, the file's path relative to where it can be imported from.

    Example:
        >>> line_of("/nowhere/model.py", 3)
        '/nowhere/model.py:3'
    """
    code = linecache.getline(file, number or 0).strip()
    return f"{short(file)}:{number}{': ' + code if code else ''}"


def of_library(file: str) -> bool:
    """Whether a file belongs to Python, to torch (generated ones too) or to fxgrad, except for its demo.

    Example:
        >>> of_library(torch.__file__), of_library(os.__file__), of_library("model.py")
        (True, True, False)
    """
    own = file.startswith(_PACKAGE) and not file.startswith(os.path.join(_PACKAGE, "demo", ""))
    python = file.startswith(_PYTHON) and "site-packages" not in file
    return own or python or file.startswith(("<", os.path.join(os.path.dirname(torch.__file__), "")))


def short(file: str) -> str:
    """A file's path relative to the working directory or to an import root.

    Example:
        >>> short(os.path.join(os.getcwd(), "model.py"))
        'model.py'
    """
    roots = [os.getcwd(), *(p for p in sys.path if p)]
    return min((os.path.relpath(file, r) for r in roots if file.startswith(r + os.sep)), key=len, default=file)


def block_of(path: str) -> str:
    """The block that a module belongs to: its path up to the first number; empty outside of any.

    Example:
        >>> block_of("blocks.3.attn.qkv"), block_of("head")
        ('blocks.3', '')
    """
    match = re.match(r"(?:.*?\.)?\d+(?=\.|$)", path)
    return match.group() if match else ""


def calls_of(nodes: Iterable[fx.Node]) -> Iterator[tuple[fx.Node, list[str]]]:
    """Every call of an op, with the module calls that enclose it, outermost first.

    A module call is named by the module's path; a second call of the module by the path and @1, as in
    `torch.export.unflatten`. A module's nodes are consecutive, since tracing follows the order of execution.

    Args:
        nodes: in the order of the graph.

    Example:
        >>> class Twice(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.f = torch.nn.ReLU()
        ...
        ...     def forward(self, x):
        ...         return self.f(self.f(x)).neg()
        >>> graph = torch.export.export(Twice(), (torch.ones(2),)).graph
        >>> [(node.name, calls) for node, calls in calls_of(graph.nodes)]
        [('relu', ['f']), ('relu_1', ['f@1']), ('neg', [])]
    """
    open_: list[tuple[str, str]] = []
    names: list[str] = []
    counts: dict[str, int] = {}
    for node in nodes:
        if node.op != "call_function":
            continue
        stack = _stack(node)
        if stack is not None:  # a node without a module stack belongs to the modules of the node before it
            differ = (i for i, (own, call) in enumerate(zip(open_, stack)) if own != call)
            shared = next(differ, min(len(open_), len(stack)))
            del open_[shared:], names[shared:]
            for path, call in stack[shared:]:
                count = counts[path] = counts.get(path, -1) + 1
                open_.append((path, call))
                names.append(f"{path}@{count}" if count else path)
        yield node, list(names)


def returned_by(graph: fx.Graph, name: str) -> str | None:
    """The path of a module that is called once and whose result is a node's value alone; None if there is none.

    Args:
        graph: of a captured program.
        name: of the node.

    Example:
        >>> graph = torch.export.export(torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Tanh()), (torch.ones(2),)).graph
        >>> returned_by(graph, "relu"), returned_by(graph, "input_1")
        ('0', None)
    """
    inside: dict[str, set[fx.Node]] = {}
    for node, calls in calls_of(graph.nodes):
        for call in calls:
            inside.setdefault(call, set()).add(node)
    for call, nodes in reversed(inside.items()):  # the innermost first
        exits = {node.name for node in nodes if any(user not in nodes for user in node.users)}
        if exits == {name} and "@" not in call and f"{call}@1" not in inside:
            return call
    return None


def _stack(node: fx.Node) -> list[tuple[str, str]] | None:
    """(path, key of the call) for each module that encloses a node, outermost first, without the model itself."""
    found = [(path, str(key)) for key, (path, _) in (node.meta.get("nn_module_stack") or {}).items()]
    if not found or any(not isinstance(p, str) or p.startswith("_empty_nn_module_stack") for p, _ in found):
        return None
    nested: dict[str, str] = {}
    for path, key in found:
        if path.partition("@")[0]:
            nested.setdefault(path.partition("@")[0], key)
    return list(nested.items())
