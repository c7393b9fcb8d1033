"""What an explainer computes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from fxgrad.errors import ExportError
from fxgrad.methods.entry import known
from fxgrad.methods.options import refuse_wrong

OF_INPUTS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "input_x_gradient": lambda value, gradient: value * gradient,
    "gradient": lambda value, gradient: gradient,
}
"""Method of the inputs -> function of an input and its gradient."""
OF_BLOCKS = (
    *("fullgrad", "fullgrad_plus", "hirescam", "gradcam", "gradcam_plus", "xgradcam_plus"),
    *("genatt", "gradsam", "attcat", "tokentm"),
)
"""Methods of `fxgrad.attribute` whose map is of patches or tokens, from one forward and one backward pass."""
METHODS = (*OF_INPUTS, *OF_BLOCKS)
"""The methods that can be exported; their formulas are those of `fxgrad.methods`."""


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
    layer: str | None = None
    anatomy: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ExportError(f"there is no method {self.method!r}. Choose one of {', '.join(METHODS)}.")
        if not isinstance(self.pool, int) or self.pool < 1:
            raise ExportError(f"pool is the side of the blocks to sum over, at least 1, not {self.pool!r}.")
        if self.targets is not None and (not isinstance(self.targets, int) or self.targets < 1):
            raise ExportError(f"targets is the number of targets per example, at least 1, not {self.targets!r}.")
        if self.channels not in ("auto", None) and not isinstance(self.channels, int):
            raise ExportError(f'channels is an axis of the input, "auto" or None, not {self.channels!r}.')
        refuse_wrong({"layer": self.layer, **self.anatomy})
        if self.method in OF_BLOCKS and (self.pool != 1 or self.channels != "auto"):
            wrong = f"pool={self.pool!r}" if self.pool != 1 else f"channels={self.channels!r}"
            raise ExportError(f"{self.method} maps patches, not pixels. Leave out {wrong}; {_and(OF_INPUTS)} take it.")
        if self.layer is not None and not known(self.method).layered:
            raise ExportError(
                f"{self.method} does not look at one layer. Leave out layer={self.layer!r}; "
                f"{_and(name for name in METHODS if known(name).layered)} do."
            )
        given = [name for name, value in self.anatomy.items() if value is not None]
        if given and self.method in OF_INPUTS:
            raise ExportError(
                f"{self.method} is of the inputs. Leave out {_and(given)}; {_and(OF_BLOCKS)} look at blocks."
            )

    @property
    def error(self) -> bool:
        """Whether the explainer gives a completeness error: it is wanted, and the method's numbers are shares."""
        return self.completeness and known(self.method).shares

    def attribution(self, value: Tensor, gradient: Tensor, *, tokens: bool) -> Tensor:
        """The attribution of one input, as the explainer returns it.

        Args:
            value: the input, (batch, ...).
            gradient: its gradient, shaped as the input.
            tokens: whether the input is an embedding's output.
        """
        attribution = OF_INPUTS[self.method](value, gradient)
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


def _and(names: Iterable[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def _pooled(attribution: Tensor, pool: int) -> Tensor:
    """Sums over blocks of pool x pool, also incomplete ones: (..., H, W) to (..., ceil(H / pool), ceil(W / pool))."""
    for axis in (-1, -2):
        shape = list(attribution.shape)
        shape[axis] = -shape[axis] % pool
        if shape[axis]:
            attribution = torch.cat([attribution, attribution.new_zeros(shape)], axis)
    rows, columns = (size // pool for size in attribution.shape[-2:])
    return attribution.unflatten(-1, (columns, pool)).unflatten(-3, (rows, pool)).sum((-3, -1))  # type: ignore[no-untyped-call, no-any-return]
