"""Compare a converted module with the model that it was made of, on the example, bit for bit."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from fxgrad.capture.captured import Captured
from fxgrad.capture.objects import returned, spared
from fxgrad.capture.program import Arguments
from fxgrad.capture.trace import outputs_of
from fxgrad.errors import CaptureError
from fxgrad.graph.nodes import differentiable
from fxgrad.graph.places import place_of
from fxgrad.graph.replay import Interpreter
from fxgrad.module.converted import ConvertedModule

ROUNDING = 16
"""Differences up to this many times the rounding of the largest element are said to be of rounding."""


def verify(converted: ConvertedModule, model: nn.Module | ExportedProgram) -> None:
    """Run both on the example; raise `CaptureError` if an output differs in any bit.

    Args:
        converted: a conversion of the model; runs without gradients.
        model: runs without gradients, and without MultiheadAttention's fast path.

    Raises:
        CaptureError: the outputs differ. The message names the first node whose value the model never computed.

    Example:
        >>> import fxgrad
        >>> model = nn.Linear(2, 3).eval()
        >>> verify(fxgrad.convert(model, (torch.ones(1, 2),), verify=False), model)
    """
    captured = converted.classified.captured
    if any(leaf.is_meta for leaf in pytree.tree_leaves(captured.example) if isinstance(leaf, Tensor)):
        return
    original = model.module() if isinstance(model, ExportedProgram) else model
    args, kwargs = captured.example
    with torch.no_grad():
        ours = pytree.tree_leaves(converted(*args, **kwargs))
    theirs = _outputs(original, captured)
    if _equal(ours, theirs):
        return
    again = _outputs(original, captured)
    if not _equal(theirs, again):
        raise CaptureError(
            "the model gives other outputs each time it runs on the same inputs, so no attribution of them is right. "
            "Make forward deterministic: random numbers, the time, or a state that it changes are what to look for."
        )
    if _rounds(ours, theirs):
        raise CaptureError(
            f"the captured program computes what the model computes, but not bit for bit: {_difference(ours, theirs)}, "
            "as by rounding. A part that the model compiles for itself, with torch.compile, does "
            "that. Choose another implementation of that part, or pass verify=False to convert what was captured."
        )
    raise CaptureError(
        f"the captured program does not compute what the model computes: {_difference(ours, theirs)}. "
        f"{_first_other(converted, original, captured.example)}Code that asks whether it is being compiled or "
        "exported, that tries one thing and falls back on another, or that depends on the grad mode, does that. Make "
        "forward the same in all cases, or pass verify=False to convert what was captured."
    )


def _outputs(model: nn.Module, captured: Captured) -> list[Any]:
    """The model's own outputs on the example, flattened as the converted module's are."""
    return pytree.tree_leaves(returned(outputs_of(model, spared(captured.example), captured.draws)))


def _equal(ours: Sequence[Any], theirs: Sequence[Any]) -> bool:
    """Whether all tensors are the same bit for bit, NaN included."""
    return len(ours) == len(theirs) and all(
        a.shape == b.shape and a.dtype == b.dtype and bool(((a == b) | ((a != a) & (b != b))).all())
        for a, b in zip(ours, theirs)
        if isinstance(a, Tensor) and isinstance(b, Tensor)
    )


def _rounds(ours: Sequence[Any], theirs: Sequence[Any]) -> bool:
    """Whether outputs differ by no more than the rounding of other kernels."""
    pairs = [(a, b) for a, b in zip(ours, theirs) if isinstance(a, Tensor) and isinstance(b, Tensor)]
    return len(ours) == len(theirs) and all(
        a.shape == b.shape
        and a.dtype == b.dtype
        and (not a.is_floating_point() or torch.allclose(a, b, rtol=0, atol=ROUNDING * _ulp(b), equal_nan=True))
        for a, b in pairs
    )


def _ulp(value: Tensor) -> float:
    """The rounding of a tensor's largest finite element."""
    finite = value[value.isfinite()].abs()
    return float(finite.max()) * torch.finfo(value.dtype).eps if finite.numel() else 0.0


def _difference(ours: Sequence[Any], theirs: Sequence[Any]) -> str:
    if len(ours) != len(theirs):
        return f"it has {len(ours)} outputs, the model {len(theirs)}"
    for index, (a, b) in enumerate(zip(ours, theirs)):
        if _equal([a], [b]):
            continue
        if a.shape != b.shape or a.dtype != b.dtype:
            return f"output {index} is {a.dtype} {tuple(a.shape)}, the model's {b.dtype} {tuple(b.shape)}"
        most = (a.double() - b.double()).abs().max() if not a.is_complex() else (a - b).abs().max()
        return f"output {index} differs by up to {float(most):.2g}"
    return "the outputs differ"


def _first_other(converted: ConvertedModule, model: nn.Module, example: Arguments) -> str:
    """A sentence that names the first node whose value is none that the model computed; "" if there is none."""
    seen = _Seen()
    try:
        with seen:
            outputs_of(model, spared(example))
    except Exception:  # a model with flex_attention or other code to compile does not run while it is watched
        return ""
    captured = converted.classified.captured
    with torch.no_grad():
        leaves = converted.entries(*example)
        runner = _Compared(fx.GraphModule(nn.Module(), captured.graph), seen.digests)
        runner.run(*converted.state, *leaves)
    if runner.found is None:
        return ""
    return f"The first node that differs is {runner.found.name} ({runner.found.target}) at {place_of(runner.found)}. "


class _Seen(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The digest of every value that is computed meanwhile."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.digests: set[bytes] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.digests |= {_digest(leaf) for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)}
        return result


class _Compared(Interpreter):
    """Runs a graph, and keeps the first node whose value has no digest among those given."""

    def __init__(self, module: fx.GraphModule, digests: set[bytes]) -> None:
        super().__init__(module)
        self.digests, self.found = digests, None

    def run_node(self, node: fx.Node) -> Any:
        result = super().run_node(node)
        if self.found is None and node.op == "call_function" and differentiable(node) and isinstance(result, Tensor):
            self.found = None if _digest(result) in self.digests else node  # type: ignore[assignment]
        return result


def _digest(value: Tensor) -> bytes:
    """A digest of the elements in their order, whatever the shape and the strides."""
    flat = torch.empty(value.numel(), dtype=value.dtype).copy_(value.detach().flatten())
    return hashlib.blake2b(flat.view(torch.uint8).numpy().tobytes(), digest_size=16).digest()
