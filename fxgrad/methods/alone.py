"""One example's part of the inputs, for methods whose contributions cannot be split by example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from fxgrad.capture.captured import Captured
from fxgrad.classify.decision import Classified
from fxgrad.methods.parts import Anatomy
from fxgrad.methods.placing import within


def ways(captured: Captured, entries: Sequence[Any], axes: Mapping[str, int], batch: int) -> list[Mapping[str, int]]:
    """The axes of examples that the inputs may have, best first; the only ones, if the graph tells of every input.

    It does not tell of a mask whose rows are picked by number, say.

    Args:
        captured: the model.
        entries: its inputs, then its embedded tokens.
        axes: name of an entry -> its axis of examples, where the graph tells.
        batch: the number of examples.

    Example:
        >>> import fxgrad, torch
        >>> class Picked(torch.nn.Module):
        ...     def forward(self, x, mask):
        ...         return x * mask[torch.arange(len(x))]
        >>> inputs = torch.ones(3, 2), torch.ones(3, 1).bool()
        >>> captured = fxgrad.convert(Picked().eval(), inputs).classified.captured
        >>> ways(captured, inputs, {"x": 0}, 3)
        [{'x': 0, 'mask': 0}, {'x': 0}]
    """
    unsure = [
        name
        for name, declared, value in zip(captured.entry_names, captured.entries, entries)
        if isinstance(value, Tensor) and not declared.attributed and name not in axes
        if value.dim() and len(value) == batch and declared.shape and declared.shape[0] is None
    ]
    return [{**axes, **dict.fromkeys(unsure, 0)}, axes] if unsure else [axes]


def cut(captured: Captured, entries: Sequence[Any], axes: Mapping[str, int], example: int) -> list[Any]:
    """The part of one example of the entries that have an axis of examples, with the others.

    Args:
        captured, entries, axes: as for `ways`.
        example: its index.
    """
    return [
        value.narrow(axes[name], example, 1) if isinstance(value, Tensor) and name in axes else value
        for name, value in zip(captured.entry_names, entries)
    ]


def inseparable(classified: Classified, anatomy: Anatomy) -> bool:
    """Whether some contribution cannot be split by example, whatever the target is; see `Problem.mixed`."""
    nodes = {n.name: n for n in classified.captured.graph.nodes}
    kept = [d for d in classified.decisions.values() if d.keeps]
    return any(entry.attributed and entry.name not in anatomy.inputs for entry in classified.captured.entries) or any(
        d.backward.sums_the_batch or within(nodes[d.node], anatomy) is None for d in kept
    )
