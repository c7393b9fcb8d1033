"""Results compared: every method under every policy, with intervals, and paired with another policy's."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from fxgrad.evaluate.plan import METRICS
from fxgrad.evaluate.store import Results
from fxgrad.metrics import OF_TEXTS, Interval, bootstrap, paired
from fxgrad.metrics.precision import DEGENERATE

PLAIN = "gradient"
BALANCED = "libragrad"
MEDIANS = ("completeness", "completeness_relative", "completeness_of_shares")
"""Metrics whose median is taken, not their mean: an error over a logit close to 0 may be of any size."""
AGREEMENT = "float64_agreement"
"""The metric that tells which maps are rounding noise; it has no table of its own."""

Key = tuple[str, str]
"""Policy and method."""


@dataclass(frozen=True)
class Compared:
    """One metric of one method under one policy.

    Attributes:
        value: mean (or median) and interval.
        outcome: 1 better, -1 worse than the plain gradient, 0 neither; None without a plain gradient to compare with,
            or where one of the two is degenerate.
        degenerate: whether the method's maps are rounding noise.
    """

    value: Interval
    outcome: int | None
    degenerate: bool = False

    def __str__(self) -> str:
        return f"{shown(self.value)}{' ⌀' if self.degenerate else mark(self.outcome)}"


def compare(results: Results, model: str, metric: str) -> dict[Key, Compared]:
    """Compare every method under every policy with the plain gradient, by one metric.

    Args:
        results: the result of `evaluate`.
        model: the model's name.
        metric: one of `METRICS`, or the name of the user's own metric.

    Returns:
        (policy, method) -> value and outcome; pairs without a value for any picture are left out.

    Example:
        >>> values = {("m", p, "saliency"): {"iou": {"a": v, "b": v + 0.1}} for p, v in (("gradient", 0), ("mine", 1))}
        >>> found = compare(Results(values, {}, {}, frozenset()), "m", "iou")
        >>> found["mine", "saliency"].outcome, found["gradient", "saliency"].outcome
        (1, None)
    """
    columns, groups = table(results, model, metric)
    if not columns:
        return {}
    statistic = "median" if metric in MEDIANS else "mean"
    means = dict(zip(columns, bootstrap(torch.stack(list(columns.values()), 1), groups=groups, statistic=statistic)))
    noise = degenerate(results, model)
    pairs = {
        key: (PLAIN, key[1])
        for key in columns
        if key[0] != PLAIN and (PLAIN, key[1]) in columns and not {key, (PLAIN, key[1])} & noise.keys()
    }
    outcomes = {key: way(results, metric) * i.sign for key, i in _paired(columns, pairs, groups, statistic).items()}
    return {key: Compared(means[key], outcomes.get(key), key in noise) for key in columns}


def differences(results: Results, model: str, metric: str, without: Collection[str] = ()) -> dict[Key, Interval]:
    """The balanced gradient minus each other policy, method by method, on the same pictures.

    Args:
        results, model, metric: as for `compare`.
        without: policies to leave out.

    Returns:
        (other policy, method) -> the difference; without degenerate maps.

    Example:
        >>> values = {("m", p, "a"): {"iou": {"x": v, "y": v}} for p, v in (("gradient", 0.25), ("libragrad", 1.0))}
        >>> differences(Results(values, {}, {}, frozenset()), "m", "iou")["gradient", "a"].mean
        0.75
    """
    columns, groups = table(results, model, metric)
    noise = degenerate(results, model)
    pairs = {
        key: (BALANCED, key[1])
        for key in columns
        if key[0] not in (BALANCED, *without)
        and (BALANCED, key[1]) in columns
        and not {key, (BALANCED, key[1])} & noise.keys()
    }
    return _paired(columns, pairs, groups, "median" if metric in MEDIANS else "mean", swapped=True)


def degenerate(results: Results, model: str) -> dict[Key, float]:
    """The methods and policies whose maps are rounding noise -> the rank correlation with their twins in float64.

    Example:
        >>> values = {("m", "gradient", "hirescam"): {"float64_agreement": {"a": 0.4, "b": 0.2}}}
        >>> list(degenerate(Results(values, {}, {}, frozenset()), "m"))
        [('gradient', 'hirescam')]
    """
    columns, _ = table(results, model, AGREEMENT)
    means = {key: float(column.nanmean()) for key, column in columns.items()}
    return {key: mean for key, mean in means.items() if mean < DEGENERATE}


def table(results: Results, model: str, metric: str) -> tuple[dict[Key, Tensor], list[str]]:
    """A model's values by one metric: (policy, method) -> a column with a row for each picture; the pictures' groups.

    Example:
        >>> values = {("m", "gradient", "saliency"): {"iou": {"a": 0.5}}}
        >>> table(Results(values, {}, {}, frozenset(), {"a": "scan 3"}), "m", "iou")
        ({('gradient', 'saliency'): tensor([0.5000], dtype=torch.float64)}, ['scan 3'])
    """
    columns = {
        (policy, method): metrics[metric]
        for (of, policy, method), metrics in results.values.items()
        if of == model and metric in metrics
    }
    images = sorted({image for column in columns.values() for image in column})
    found = {
        key: torch.tensor([c.get(i, torch.nan) for i in images], dtype=torch.float64) for key, c in columns.items()
    }
    known = {key: column for key, column in found.items() if not column.isnan().all()}
    return known, [results.groups.get(image, image) for image in images]


def ways(*runs: Results) -> dict[str, str]:
    """Metric -> "higher" or "lower", whichever is better: fxgrad's metrics of pictures and of texts, and the
    user's own in the results.

    Example:
        >>> ways(Results({}, {}, {"settings": {"metrics": {"mine": "lower"}}}, frozenset()))["mine"]
        'lower'
    """
    own = [run.facts.get("settings", {}).get("metrics", {}) for run in runs]
    found = (
        METRICS
        | {m.name: m.better for m in OF_TEXTS.values()}
        | {name: better for metrics in own for name, better in metrics.items()}
    )
    return {name: better for name, better in found.items() if name != AGREEMENT}


def way(results: Results, metric: str) -> int:
    """1 if more of a metric is better, -1 if less is."""
    return 1 if ways(results).get(metric, "higher") == "higher" else -1


def labelled(results: Results) -> Results:
    """Results whose model is named by its checkpoint, if it has one: several trainings of a model are several models.

    Example:
        >>> facts = {"settings": {"checkpoint": "weights/vit-2.safetensors"}}
        >>> list(labelled(Results({("nets:vit", "gradient", "saliency"): {}}, {}, facts, frozenset())).values)
        [('vit-2', 'gradient', 'saliency')]
    """
    checkpoint = results.facts.get("settings", {}).get("checkpoint")
    if not checkpoint:
        return results
    name = Path(checkpoint).stem
    of = {f"{fact.rpartition(' of ')[0]} of {name}": text for fact, text in results.facts.items() if " of " in fact}
    values = {(name, *key[1:]): found for key, found in results.values.items()}
    refused = {(name, *key[1:]): reason for key, reason in results.refused.items()}
    return replace(results, values=values, refused=refused, facts={**results.facts, **of})


def mark(outcome: int | None) -> str:
    """The sign of a win or a loss, after a space; "" for neither.

    Example:
        >>> mark(1), mark(0)
        (' ▲', '')
    """
    return {1: " ▲", -1: " ▼"}.get(outcome or 0, "")


def shown(value: Interval, signed: bool = False) -> str:
    """An interval as text.

    Example:
        >>> shown(Interval(0.5, 0.25, 0.75, 9))
        '0.5 [0.25, 0.75]'
    """
    mean, low, high = (f"{v:+.3g}" if signed else f"{v:.3g}" for v in (value.mean, value.low, value.high))
    return f"{mean} [{low}, {high}]"


def record(outcomes: Iterable[int | None]) -> str:
    """Wins, ties and losses as text; "" without any.

    Example:
        >>> record([1, 1, 0, None])
        '2 / 1 / 0'
    """
    found = [outcome for outcome in outcomes if outcome is not None]
    return " / ".join(str(found.count(outcome)) for outcome in (1, 0, -1)) if found else ""


def _paired(
    columns: Mapping[Key, Tensor], pairs: Mapping[Key, Key], groups: list[str], statistic: str, swapped: bool = False
) -> dict[Key, Interval]:
    """Each key's column minus that of its partner; the other way round if swapped."""
    if not pairs:
        return {}
    sides = [torch.stack([columns[key] for key in keys], 1) for keys in (pairs, pairs.values())]
    one, other = reversed(sides) if swapped else sides
    return dict(zip(pairs, paired(one, other, groups=groups, statistic=statistic)))
