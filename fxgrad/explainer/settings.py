"""What an explainer computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fxgrad.errors import ExportError

METHODS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "input_x_gradient": lambda value, gradient: value * gradient,
    "gradient": lambda value, gradient: gradient,
}
"""Method -> function of an input and its gradient."""


@dataclass(frozen=True)
class Settings:
    """What an explainer computes, and in which form; see `fxgrad.export_explainer`.

    Raises:
        ExportError: there is no such method, or a number is out of range.

    Example:
        >>> settings = Settings(pool=2)
        >>> settings.attribution(torch.ones(1, 3, 4, 4), torch.ones(1, 3, 4, 4), tokens=False).tolist()
        [[[12.0, 12.0], [12.0, 12.0]]]
    """

    method: str = "input_x_gradient"
    targets: int | None = None
    channels: int | Literal["auto"] | None = "auto"
    pool: int = 1
    output: str | None = None
    completeness: bool = True

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ExportError(f"there is no method {self.method!r}. Choose one of {', '.join(METHODS)}.")
        if not isinstance(self.pool, int) or self.pool < 1:
            raise ExportError(f"pool is the side of the blocks to sum over, at least 1, not {self.pool!r}.")
        if self.targets is not None and (not isinstance(self.targets, int) or self.targets < 1):
            raise ExportError(f"targets is the number of targets per example, at least 1, not {self.targets!r}.")
        if self.channels not in ("auto", None) and not isinstance(self.channels, int):
            raise ExportError(f'channels is an axis of the input, "auto" or None, not {self.channels!r}.')

    def attribution(self, value: Tensor, gradient: Tensor, *, tokens: bool) -> Tensor:
        """The attribution of one input, as the explainer returns it.

        Args:
            value: the input, (batch, ...).
            gradient: its gradient, shaped as the input.
            tokens: whether the input is an embedding's output.
        """
        attribution = METHODS[self.method](value, gradient)
        axis = self._channel_axis(value, tokens)
        attribution = attribution if axis is None else attribution.sum(axis)
        return _pooled(attribution, self.pool) if self.pool > 1 and not tokens else attribution

    def _channel_axis(self, value: Tensor, tokens: bool) -> int | None:
        """The axis to sum over: the width of embeddings, the channels of pictures and videos."""
        if self.channels == "auto":
            return value.dim() - 1 if tokens else 1 if value.dim() > 3 else None
        if self.channels is None:
            return None
        if not -value.dim() <= self.channels < value.dim() or self.channels % value.dim() == 0:
            raise ExportError(f"channels={self.channels} is no axis beside the batch of an input {tuple(value.shape)}.")
        return self.channels % value.dim()


def _pooled(attribution: Tensor, pool: int) -> Tensor:
    """Sums over blocks of pool x pool, also incomplete ones: (..., H, W) to (..., ceil(H / pool), ceil(W / pool))."""
    for axis in (-1, -2):
        shape = list(attribution.shape)
        shape[axis] = -shape[axis] % pool
        if shape[axis]:
            attribution = torch.cat([attribution, attribution.new_zeros(shape)], axis)
    rows, columns = (size // pool for size in attribution.shape[-2:])
    return attribution.unflatten(-1, (columns, pool)).unflatten(-3, (rows, pool)).sum((-3, -1))  # type: ignore[no-untyped-call, no-any-return]
