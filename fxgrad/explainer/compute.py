"""The computation of an explainer: logits, the attribution of each target, and its completeness error."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxgrad.errors import ExportError
from fxgrad.explainer.blocks import Solver
from fxgrad.explainer.settings import OF_BLOCKS, Settings
from fxgrad.graph.axes import Within, where
from fxgrad.graph.sizes import known, sizes_of
from fxgrad.module.converted import ConvertedModule
from fxgrad.run.examples import BATCH, examples_of, tracked
from fxgrad.run.recording import Contributions, Recording


class Explanation(nn.Module):
    """The computation to trace, as a module whose tensors can be replaced for a call.

    Args:
        converted: what `fxgrad.convert` returned.
        settings: what to compute.
        leaves: the flattened inputs; methods of blocks fix all sizes but the batch's at theirs.

    Attributes:
        at: index of the logits among the model's flattened outputs.
        rank: number of the logits' axes without the batch.

    Raises:
        ExportError: no output is logits, or a constant's contribution cannot be split into the batch's examples.
    """

    def __init__(self, converted: ConvertedModule, settings: Settings, leaves: Sequence[Any]) -> None:
        super().__init__()
        self.converted, self.settings = converted, settings
        self.at = _logits_at(converted, settings.output)
        self.rank = _outputs(converted)[self.at].dim() - 1
        self._solver = Solver(converted, settings, leaves) if settings.method in OF_BLOCKS else None
        self._places = _places(converted) if settings.error and self._solver is None else {}

    def forward(self, inputs: list[Tensor]) -> dict[str, Tensor]:
        """Output name -> value. `inputs` are the model's tensor inputs, then the targets."""
        captured, settings = self.converted.classified.captured, self.settings
        *given, target = inputs
        values = iter(given)
        entries: list[Any] = [i.constant if i.dtype is None else next(values) for i in captured.inputs]
        if self.converted.lookup:
            entries += self.converted.lookup(*self.converted.state, *entries)
        solver = self._solver
        sources = settings.error if solver is None else solver.method.shares
        run = Recording(self.converted, entries, also=solver.reads if solver else (), sources=sources)
        logits = run.outputs[self.at]
        found: dict[str, list[Tensor]] = {}
        for own in [target] if settings.targets is None else target.unbind(1):
            one_hot = _one_hot(own, logits)
            y = (logits * one_hot).reshape(logits.shape[0], -1).sum(1)
            cotangents = [one_hot if i == self.at else None for i in range(len(run.outputs))]
            parts = run.back(cotangents, last=False)
            if solver is None:
                outputs = self._of_inputs(parts, y)
            else:
                row = own[:, 0] if logits.dim() > 2 else None
                outputs = _of_blocks(*solver(entries, parts, cotangents, y, row), y, settings.completeness)
            for name, value in outputs.items():
                found.setdefault(name, []).append(value)
        stacked = {name: part[0] if settings.targets is None else torch.stack(part, 1) for name, part in found.items()}
        return {"logits": logits, **stacked}

    def _of_inputs(self, parts: Contributions, y: Tensor) -> dict[str, Tensor]:
        """The attribution of every attributed input, and the completeness error if it is wanted."""
        settings, embedded = self.settings, {i.name for i in self.converted.classified.captured.embedded}
        outputs = {}
        for name, value in parts.inputs.items():
            called = "attribution" if len(parts.inputs) == 1 else f"attribution_{identifier(name)}"
            outputs[called] = settings.attribution(value, parts.gradients[name], tokens=name in embedded)
        if settings.error:
            outputs["completeness_error"] = _relative(y - _shares(parts, self._places, y), y)
        return outputs


def _of_blocks(map: Tensor, shares: Tensor | None, y: Tensor, completeness: bool) -> dict[str, Tensor]:
    map = map.to(y.dtype)
    if shares is None or not completeness:
        return {"attribution": map}
    return {"attribution": map, "completeness_error": _relative(y - shares.to(y.dtype), y)}


def identifier(name: str) -> str:
    """An input's name as an identifier.

    Example:
        >>> identifier("batch['ids']")
        'batch_ids'
    """
    return re.sub(r"\W+", "_", name).strip("_")


def _logits_at(converted: ConvertedModule, wanted: str | None) -> int:
    """Index of the logits among the flattened outputs: the output named `wanted`, the only one, or `logits`.

    Raises:
        ExportError: there is no such output.
    """
    captured = converted.classified.captured
    values = _outputs(converted)
    tree = pytree.tree_unflatten(list(range(len(values))), captured.out_spec)
    named: dict[str, int] = {
        re.sub(r"[\[\]'.]+", ".", pytree.keystr(path)).strip(".") or "output": at
        for path, at in pytree.tree_flatten_with_path(tree)[0]
        if isinstance(values[at], Tensor) and values[at].is_floating_point() and values[at].dim() > 1
    }
    if wanted is None:
        wanted = next(iter(named)) if len(named) == 1 else "logits"
    if wanted not in named:
        raise ExportError(
            f"the model has no output {wanted!r} of floating dtype, shaped (batch, classes) or with more axes; it has "
            f"{', '.join(named) or 'none'}. Name the one to explain: output=..."
        )
    return named[wanted]


def _outputs(converted: ConvertedModule) -> list[Any]:
    """The model's flattened outputs, as tensors without data."""
    outputs: Any = converted.classified.captured.graph.output_node().args[0]
    return [getattr(node, "meta", {}).get("val") for node in outputs]


def _shares(parts: Contributions, places: Mapping[str, Within], y: Tensor) -> Tensor:
    """The sum of all contributions to y of every example, (batch,): FullGrad's eq. 1 for each example."""
    batch, total = y.shape[0], torch.zeros_like(y)
    for name, value in parts.inputs.items():
        total = total + (value * parts.gradients[name]).reshape(batch, -1).sum(1).to(y.dtype)
    for node, tensors in parts.sources.items():
        for tensor in tensors:
            total = total + places.get(node, Within(0, 1, 1)).sums(tensor, batch).to(y.dtype)
    return total


def _relative(error: Tensor, y: Tensor) -> Tensor:
    """|error| / |y| of every example, (batch,)."""
    return error.abs() / y.abs().clamp(min=torch.finfo(y.dtype).tiny)


def _places(converted: ConvertedModule) -> dict[str, Within]:
    """Node name -> where the examples are in its value, for every node whose constants contribute.

    Raises:
        ExportError: the examples cannot be told apart.
    """
    captured, decisions = converted.classified.captured, converted.classified.decisions
    entries = captured.entry_nodes
    source = next(p for p in entries if sizes_of(p))
    examples = examples_of(converted.classified, tracked(converted.classified), source)
    axes, batch = examples.places, examples.size
    found = {}
    for name, decision in decisions.items():
        if decision.keeps:
            place = where(axes.get(name, ()), BATCH, batch)
            free = place is not None and not any(isinstance(size, int) for size in place[1:])
            if place is None or free or decision.backward.sums_the_batch:
                raise ExportError(
                    f"what the constants of {decision.op} at {decision.place} contribute cannot be told apart by items "
                    "of the batch. Pass completeness=False."
                )
            found[name] = Within(place.axis, known(place.ahead, {}), known(place.behind, {}))
    return found


def _one_hot(target: Tensor, logits: Tensor) -> Tensor:
    """1 at the target, else 0, in the logits' shape.

    An index out of range ends the run: it is looked up among the positions, which every runtime on a CPU refuses.
    Runtimes take negative indices for positions from the end, or read something where a GPU does not check; so those
    become the first number that is out of range, and what is not found again is NaN.
    """
    target = target if logits.dim() > 2 else target.unsqueeze(-1)
    batch = logits.shape[0]
    total = logits.new_ones(batch)
    for axis, size in enumerate(logits.shape[1:]):
        index = target[:, axis : axis + 1]
        index = torch.where(index < 0, size, index)
        positions = torch.arange(size, device=logits.device).expand(batch, size)
        found = positions.gather(1, index)
        hot = (positions == found).to(logits).masked_fill(found != index, math.nan)
        total = total.unsqueeze(-1) * hot.reshape(-1, *[1] * axis, size)
    return total
