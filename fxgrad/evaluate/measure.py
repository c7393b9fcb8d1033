"""All metrics of some attributions of the same pictures, measured together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fxgrad.data import Batch
from fxgrad.data.factory import load_object
from fxgrad.errors import InputError, one_line
from fxgrad.evaluate.methods import Attribution, Shares
from fxgrad.metrics import METRICS, OF_TEXTS, OPTIONAL, Measured, MeasuredTexts, Metric, Removal


@dataclass(frozen=True, eq=False)
class Ruler:
    """How pictures are measured: the same for all attributions of a model.

    Attributes:
        metrics: the metrics to measure.
        tokens: the removal of tokens.
        pixels: the removal of pixels; None leaves deletion and insertion out.
        fractions, steps: as in `Plan`.
        multilabel: as in `Data`.
        model: the model, from pictures to logits.
    """

    metrics: Sequence[Metric]
    tokens: Removal
    pixels: Removal | None
    fractions: Sequence[float]
    steps: int
    multilabel: bool
    model: Callable[[Tensor], Tensor] | None = None

    def measure(
        self,
        pictures: Batch,
        x: Tensor,
        target: Tensor,
        logits: Tensor,
        attributions: Mapping[str, Attribution],
        explain: Callable[[Tensor], Tensor | None] | None = None,
    ) -> dict[str, dict[str, list[float]]]:
        """Measure several attributions at once, so that their masked pictures share forward passes.

        Args:
            pictures: the batch; only its masks are used.
            x: the model's input, (batch, C, H, W).
            target: class indices, int64 (batch,).
            logits: the model's output for x, (batch, classes).
            attributions: method -> its attribution.
            explain: makes them again for changed pictures, as in `Measured`.

        Returns:
            Method -> metric -> one value per picture. A metric without a value for any picture is left out.

        Raises:
            InputError: a metric returned another shape than (attributions, pictures).
        """
        measured = replace(self._measured(pictures, x, target, logits, list(attributions.values())), explain=explain)
        return by_metric(self.metrics, measured, attributions)

    def _measured(
        self, pictures: Batch, x: Tensor, target: Tensor, logits: Tensor, attributions: Sequence[Attribution]
    ) -> Measured:
        output, total, absolute = stacked(attributions)
        return Measured(
            maps=torch.stack([a.pixels.cpu().float() for a in attributions]),
            scores=torch.stack([a.patches.cpu().float() for a in attributions]).flatten(2),
            total=total,
            absolute=absolute,
            output=output,
            masks=pictures.masks,
            others=pictures.others,
            x=x,
            target=target,
            logits=logits,
            multilabel=self.multilabel,
            tokens=self.tokens,
            pixels=self.pixels,
            fractions=self.fractions,
            steps=self.steps,
            model=self.model,
        )


def stacked(attributions: Sequence[Shares]) -> tuple[Tensor, Tensor, Tensor]:
    """(output, total, absolute) of several attributions, each (attributions, batch); NaN where there are no shares."""
    output = torch.stack([a.output.cpu() for a in attributions])
    nothing = torch.full_like(output[0], torch.nan)
    sums = [(a.total, a.absolute) for a in attributions]
    total, absolute = ([nothing if one is None else one.cpu() for one in column] for column in zip(*sums))
    return output, torch.stack(total), torch.stack(absolute)


def by_metric(
    metrics: Iterable[Metric], measured: Measured | MeasuredTexts, attributions: Mapping[str, Any]
) -> dict[str, dict[str, list[float]]]:
    """Method -> metric -> one value per example.

    Args:
        metrics: to measure.
        measured: the attributions together.
        attributions: method -> its attribution; those of baselines say which examples have one (`known`).

    Raises:
        InputError: a metric returned another shape than (attributions, examples).
    """
    found: dict[str, dict[str, list[float]]] = {name: {} for name in attributions}
    unknown = [~a.known if hasattr(a, "known") else slice(0) for a in attributions.values()]
    for metric in metrics:
        values = metric(measured)
        for name, gone, column in zip(attributions, unknown, () if values is None else values):
            column[gone] = torch.nan
            if not column.isnan().all():
                found[name][metric.name] = column.tolist()
    return found


def named_metric(spec: str) -> Metric:
    """A metric that is measured where it is named only: one of fxgrad's, or the user's own.

    Args:
        spec: one of `fxgrad.metrics.OPTIONAL`, or `module.path:metric`, looked for in the current directory and on
            sys.path.

    Raises:
        InputError: there is no such metric.

    Example:
        >>> named_metric("fxgrad.metrics:iou")
        Traceback (most recent call last):
        fxgrad.errors.InputError: fxgrad.metrics:iou is a function, and no fxgrad.metrics.Metric...
    """
    if spec in OPTIONAL:
        return OPTIONAL[spec]
    try:
        _, found = load_object(spec)
    except Exception as error:
        raise InputError(
            f"a metric of your own is module.path:metric; {spec!r} is not: {one_line(error)}. fxgrad has "
            f"{', '.join(OPTIONAL)} beside those that it always measures."
        ) from error
    if not isinstance(found, Metric):
        raise InputError(f"{spec} is a {type(found).__name__}, and no fxgrad.metrics.Metric(name, better, function).")
    return found


def all_metrics(own: Iterable[Metric], of_texts: bool = False) -> tuple[Metric, ...]:
    """fxgrad's metrics of pictures, or of texts, then the user's own.

    Raises:
        InputError: two metrics have the same name; or one of pictures is to measure texts.

    Example:
        >>> [metric.name for metric in all_metrics([])][:2]
        ['srg_aopc', 'srg_lodds']
    """
    found = dict(OF_TEXTS if of_texts else METRICS)
    for metric in own:
        if of_texts and metric is OPTIONAL.get(metric.name):
            raise InputError(f"the metric {metric.name} is of pictures, and the data set has texts. Leave it out.")
        if metric.name in found:
            raise InputError(f"there is a metric {metric.name!r} already. Give this one another name.")
        found[metric.name] = metric
    return tuple(found.values())
