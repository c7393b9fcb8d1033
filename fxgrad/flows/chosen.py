"""Some numbers of a model's outputs, as a linear function of these."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxgrad.errors import InputError
from fxgrad.methods.outputs import called, differentiable
from fxgrad.run.passes import differentiated
from fxgrad.run.recording import Cotangents


class Chosen:
    """Numbers that are chosen among a model's outputs.

    Args:
        outputs: the flattened outputs of one run, detached.
        spec: their structure.
        function: from the outputs to a tensor (k,), linear in them; None for all elements of the first output of
            floating dtype.

    Attributes:
        value: the numbers, (k,), detached.

    Raises:
        InputError: the function gives something else, or is not linear.

    Example:
        >>> outputs, spec = pytree.tree_flatten({"logits": torch.tensor([[1.0, 5.0, 7.0]])})
        >>> chosen = Chosen(outputs, spec, lambda found: found["logits"][0, 1:] - found["logits"][0, 0])
        >>> chosen.value, chosen.cotangents(torch.tensor([1.0, 0.0]))
        (tensor([4., 6.]), [tensor([[-1.,  1.,  0.]])])
    """

    def __init__(self, outputs: Sequence[Any], spec: pytree.TreeSpec, function: Callable[[Any], Tensor] | None) -> None:
        self._leaves = [v.detach().requires_grad_() if differentiable(v) else v for v in outputs]
        with torch.enable_grad():
            whole = pytree.tree_unflatten(self._leaves, spec)
            found = _first(self._leaves) if function is None else called(function, whole)
        if not isinstance(found, Tensor) or found.dim() != 1 or not found.requires_grad:
            given = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise InputError(
                "outputs is a function of the model's outputs that returns a tensor (k,) that depends on them, such as "
                f"lambda output: output[0]; it returned {given}."
            )
        self._numbers, self.value = found, found.detach()
        self._refuse_curves()

    @cached_property
    def probe(self) -> Tensor:
        """Random cotangents of the numbers, the same each time: (k,)."""
        return torch.randn(self.value.shape, generator=torch.Generator().manual_seed(0)).to(self.value)

    def cotangents(self, g: Tensor, record: bool = False) -> Cotangents:
        """The cotangents of the model's outputs for those of the numbers.

        Args:
            g: (k,).
            record: whether they can be differentiated in g.

        Returns:
            One per flattened output; None for an output that takes no part.
        """
        where = [i for i, leaf in enumerate(self._leaves) if differentiable(leaf)]
        found = differentiated([self._numbers], [self._leaves[i] for i in where], [g], keep=True, record=record)
        parts: dict[int, Any] = dict(zip(where, found))
        return [parts.get(i) for i in range(len(self._leaves))]

    def _refuse_curves(self) -> None:
        """Raise InputError unless the numbers are what their gradients make of the outputs: Euler's theorem."""
        pairs = [(g, v.detach()) for g, v in zip(self.cotangents(self.probe), self._leaves) if g is not None]
        parts = [torch.where(g == 0, 0, g * v).double().sum() for g, v in pairs]  # infinities of a mask count as 0
        wanted = (self.probe * self.value).double()
        scale = wanted.abs().sum() + sum(part.abs() for part in parts)
        rounding = max(torch.finfo(t.dtype).eps for t in (self.value, *(v for _, v in pairs)))
        if not bool((wanted.sum() - sum(parts)).abs() <= 1000 * rounding * scale):
            raise InputError(
                "outputs is no linear function of the model's outputs: it has a constant in it, or a curve such as a "
                "probability's. Return logits, or differences or weighted sums of them."
            )


def _first(leaves: Sequence[Any]) -> Tensor:
    """All elements of the first output of floating dtype."""
    first = next((leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()), None)
    if first is None:
        raise InputError("no output of the model is a tensor of floating dtype: pass outputs, a function of them.")
    return first.flatten()
