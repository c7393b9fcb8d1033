"""What a metric is to `fxgrad.evaluate`: a name, which way is better, and a function of what is measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from torch import Tensor

from fxgrad.errors import InputError
from fxgrad.metrics.removal import Removal

Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class Measured:
    """Several attributions of the same pictures, measured together, and the model that they are of.

    Attributes:
        maps: of pixels, float32 (attributions, pictures, H, W).
        scores: the influence of each token, float32 (attributions, pictures, tokens).
        total: what all shares add up to, (attributions, pictures); NaN for methods whose numbers are no shares.
        output: what they should add up to, the target's value, (attributions, pictures).
        masks: the target's object, bool (pictures, H, W); all False for a picture without a mask.
        x: what the model saw, (pictures, C, H, W).
        target: class indices, int64 (pictures,).
        logits: the model's for x, (pictures, classes).
        multilabel: whether each class is a question of its own (sigmoid), or all are one (softmax).
        tokens: the model without some tokens.
        pixels: the model without some pixels; None where nobody wants that.
        fractions: shares of the tokens to remove.
        steps: of deletion and insertion.
        batch: pictures per forward.
    """

    maps: Tensor
    scores: Tensor
    total: Tensor
    output: Tensor
    masks: Tensor
    x: Tensor
    target: Tensor
    logits: Tensor
    multilabel: bool
    tokens: Removal
    pixels: Removal | None
    fractions: Sequence[float]
    steps: int
    batch: int = 128
    _found: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)

    def once(self, function: Callable[[Measured], Result]) -> Result:
        """What a function makes of this, computed once for all the metrics that ask for it."""
        if function not in self._found:
            self._found[function] = function(self)
        found: Result = self._found[function]
        return found


@dataclass(frozen=True)
class Metric:
    """One number for every picture of every attribution.

    Attributes:
        name: as it is stored and printed.
        better: "higher" or "lower".
        function: from what is measured to (attributions, pictures), NaN where there is no value; or None where there is
            none at all.

    Raises:
        InputError: `better` is something else.

    Example:
        >>> metric = Metric("share_inside", "higher", lambda m: (m.maps * m.masks).sum((2, 3)) / m.maps.sum((2, 3)))
        >>> metric.better
        'higher'
    """

    name: str
    better: Literal["higher", "lower"]
    function: Callable[[Measured], Tensor | None]

    def __post_init__(self) -> None:
        if self.better not in ("higher", "lower"):
            raise InputError(f"of the metric {self.name}, higher or lower is better, not {self.better!r}.")

    def __call__(self, measured: Measured) -> Tensor | None:
        """Its values, float64 on the CPU, (attributions, pictures); None where there are none.

        Raises:
            InputError: the function returned something else.
        """
        values = self.function(measured)
        if values is None:
            return None
        wanted = tuple(measured.maps.shape[:2])
        if not isinstance(values, Tensor) or tuple(values.shape) != wanted:
            given = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise InputError(
                f"the metric {self.name} must return a tensor (attributions, pictures), {wanted} here, or None where "
                f"there is nothing to measure; it returned {given}."
            )
        return values.detach().double().cpu()
