"""A metric for `fxgrad.evaluate`: a name, whether higher or lower is better, and a function of a `Measured`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, TypeVar

from torch import Tensor

from fxgrad.errors import InputError
from fxgrad.metrics.removal import Removal
from fxgrad.metrics.token_removal import TokenRemoval

Result = TypeVar("Result")


class Remembering:
    """What computes a function of itself once."""

    _found: dict[Any, Any]

    def once(self, function: Callable[[Any], Result]) -> Result:
        """`function(self)`, computed once for all metrics that need it."""
        if function not in self._found:
            self._found[function] = function(self)
        found: Result = self._found[function]
        return found


@dataclass(frozen=True, eq=False)
class Measured(Remembering):
    """Several attributions of the same pictures, measured together, and their model.

    Attributes:
        maps: the influence of each pixel, float32 (attributions, pictures, H, W).
        scores: the influence of each token, float32 (attributions, pictures, tokens).
        total: the sum of all shares, (attributions, pictures); NaN for methods whose numbers are no shares.
        absolute: the sum of the sizes of all shares, (attributions, pictures); NaN like `total`.
        output: the target's value, which `total` should equal, (attributions, pictures).
        masks: the target's object, bool (pictures, H, W); all False for a picture without a mask.
        others: objects of other classes, bool (pictures, H, W); all False for a picture without such a mask.
        x: the model's input, (pictures, C, H, W).
        target: class indices, int64 (pictures,).
        logits: the model's output for x, (pictures, classes).
        multilabel: whether classes are independent (sigmoid), or exclusive (softmax).
        tokens: the removal of tokens.
        pixels: the removal of pixels; None leaves deletion and insertion out.
        fractions: shares of the tokens to remove.
        steps: steps of deletion and insertion.
        batch: pictures per forward pass.
        model: from pictures to logits; None where only the removals have it.
        explain: makes the attributions of changed pictures: from the first few rows of x after a change to their maps,
            float64 (attributions, rows, H, W). Rows in float64 are explained by the model in float64, and the result is
            None if it has no such twin. None where attributions cannot be made again.
    """

    maps: Tensor
    scores: Tensor
    total: Tensor
    absolute: Tensor
    output: Tensor
    masks: Tensor
    others: Tensor
    x: Tensor
    target: Tensor
    logits: Tensor
    multilabel: bool
    tokens: Removal
    pixels: Removal | None
    fractions: Sequence[float]
    steps: int
    batch: int = 64
    model: Callable[[Tensor], Tensor] | None = None
    explain: Callable[[Tensor], Tensor | None] | None = None
    _found: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)


@dataclass(frozen=True, eq=False)
class MeasuredTexts(Remembering):
    """Several attributions of the same texts, measured together, and their model.

    Attributes:
        scores: the influence of each token, float32 (attributions, texts, tokens).
        total, absolute, output: as in `Measured`, (attributions, texts).
        counted: the tokens that are measured, bool (texts, tokens): no special ones, no padding.
        rationales: the tokens that people marked, bool (texts, tokens); all False for a text without a rationale.
        inputs: the model's inputs: input_ids, and further ones by name, each (texts, tokens).
        target: class indices, int64 (texts,).
        logits: the model's output, (texts, classes).
        multilabel: as in `Measured`.
        removal: the removal of tokens.
        fractions: shares of the tokens to remove.
        batch: texts per forward pass.
        explain: makes the attributions of the first few texts again, float64 (attributions, rows, tokens): by the model
            in float64 if its second argument is true, then None if there is no such twin. None where attributions
            cannot be made again.
    """

    scores: Tensor
    total: Tensor
    absolute: Tensor
    output: Tensor
    counted: Tensor
    rationales: Tensor
    inputs: Mapping[str, Tensor]
    target: Tensor
    logits: Tensor
    multilabel: bool
    removal: TokenRemoval
    fractions: Sequence[float]
    batch: int = 64
    explain: Callable[[int, bool], Tensor | None] | None = None
    _found: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)


@dataclass(frozen=True)
class Metric:
    """One number for every picture, or text, of every attribution.

    Attributes:
        name: its name in files and tables.
        better: "higher" or "lower".
        function: from a `Measured`, or of texts a `MeasuredTexts`, to a tensor (attributions, pictures), NaN where
            there is no value; or to None if there is no value at all.

    Raises:
        InputError: `better` is something else.

    Example:
        >>> metric = Metric("share_inside", "higher", lambda m: (m.maps * m.masks).sum((2, 3)) / m.maps.sum((2, 3)))
        >>> metric.better
        'higher'
    """

    name: str
    better: Literal["higher", "lower"]
    function: Callable[[Any], Tensor | None]

    def __post_init__(self) -> None:
        if self.better not in ("higher", "lower"):
            raise InputError(f"of the metric {self.name}, higher or lower is better, not {self.better!r}.")

    def __call__(self, measured: Measured | MeasuredTexts) -> Tensor | None:
        """Its values, float64 (attributions, pictures) on the CPU; None if there are none.

        Raises:
            InputError: the function returned something else.
        """
        values = self.function(measured)
        if values is None:
            return None
        wanted = tuple(measured.output.shape)
        if not isinstance(values, Tensor) or tuple(values.shape) != wanted:
            given = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise InputError(
                f"the metric {self.name} must return a tensor (attributions, pictures), {wanted} here, or None where "
                f"there is nothing to measure; it returned {given}."
            )
        return values.detach().double().cpu()


def curve_metrics(value: Callable[[str, Any], Tensor]) -> tuple[Metric, ...]:
    """The metrics of `fxgrad.metrics.faithfulness`.

    Args:
        value: from a metric's name and what is measured to its values.

    Example:
        >>> [metric.name for metric in curve_metrics(lambda name, measured: measured.maps)][:3]
        ['srg_aopc', 'srg_lodds', 'srg_accuracy']
    """
    lower = ("mif_accuracy", "lif_aopc", "lif_lodds")
    names = [f"{of}_{what}" for of in ("srg", "mif", "lif") for what in ("aopc", "lodds", "accuracy")]
    return tuple(Metric(name, "lower" if name in lower else "higher", partial(value, name)) for name in names)
