"""The results as Markdown: methods x policies for every metric, with intervals, and who wins."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fxgrad.evaluate.plan import ANY, METRICS, POLICIES
from fxgrad.evaluate.store import Results
from fxgrad.methods import METHODS
from fxgrad.metrics import Interval, bootstrap, paired

PLAIN = "gradient"
SHOWN = ("srg_aopc", "average_precision", "completeness_relative")
"""One metric of each family is open to see; the others fold open."""

_LEGEND = f"""Means over pictures with 95 % bootstrap intervals. ▲ better and ▼ worse than the plain gradient's on the
same pictures, where the interval of the paired difference leaves out 0. Methods of policy *{ANY}* take no gradient.
Of the metrics, `srg` is the least influential removed first minus the most influential removed first (`lif` - `mif`);
`accuracy` is how often the target is still named, `aopc` the drop of its probability, `lodds` that of its logarithm,
each averaged over the shares removed. docs/evaluate.md defines all of them.
"""


@dataclass(frozen=True)
class Compared:
    """One method under one policy, by one metric.

    Attributes:
        value: mean and interval.
        outcome: 1 better, -1 worse than the plain gradient, 0 neither; None where there is nothing to compare with.
    """

    value: Interval
    outcome: int | None

    def __str__(self) -> str:
        mark = {1: " ▲", -1: " ▼"}.get(self.outcome or 0, "")
        return f"{_number(self.value.mean)} [{_number(self.value.low)}, {_number(self.value.high)}]{mark}"


def compare(results: Results, model: str, metric: str) -> dict[tuple[str, str], Compared]:
    """Every method under every policy, by one metric, beside the plain gradient.

    Args:
        results: of `evaluate`.
        model: which.
        metric: one of `METRICS`.

    Returns:
        (policy, method) -> value and outcome; those without a value for any picture are left out.

    Example:
        >>> values = {("m", p, "saliency"): {"iou": {"a": v, "b": v + 0.1}} for p, v in (("gradient", 0), ("mine", 1))}
        >>> found = compare(Results(values, {}, {}, frozenset()), "m", "iou")
        >>> found["mine", "saliency"].outcome, found["gradient", "saliency"].outcome
        (1, None)
    """
    columns = {
        (policy, method): metrics[metric]
        for (of, policy, method), metrics in results.values.items()
        if of == model and metric in metrics
    }
    images = sorted({image for column in columns.values() for image in column})
    table = {key: torch.tensor([c.get(i, torch.nan) for i in images]).double() for key, c in columns.items()}
    table = {key: column for key, column in table.items() if not column.isnan().all()}
    if not table:
        return {}
    means = dict(zip(table, bootstrap(torch.stack(list(table.values()), 1))))
    better = 1 if METRICS[metric] == "higher" else -1
    plain = {key: table[PLAIN, key[1]] for key in table if key[0] != PLAIN and (PLAIN, key[1]) in table}
    outcomes: dict[tuple[str, str], int] = {}
    if plain:
        differences = paired(_columns(table, plain), torch.stack(list(plain.values()), 1))
        outcomes = {key: better * difference.sign for key, difference in zip(plain, differences)}
    return {key: Compared(means[key], outcomes.get(key)) for key in table}


def page(results: Results) -> str:
    """The page as Markdown.

    Args:
        results: of `evaluate`, for one or several models.

    Example:
        >>> values = {("m", "gradient", "saliency"): {"iou": {"a": 0.5}}}
        >>> print([line for line in page(Results(values, {}, {}, frozenset())).splitlines() if "saliency" in line][0])
        | saliency | 0.5 [0.5, 0.5] |
    """
    models = sorted({model for model, _, _ in results.values})
    found = {(model, metric): compare(results, model, metric) for model in models for metric in METRICS}
    lines = ["# Evaluation", "", _settings(results), "", _LEGEND]
    if len(models) > 1:
        lines += _models(models, found)
    for model in models:
        lines += [f"## {model}", "", *_facts(results, model)]
        lines += _wins(model, found)
        for metric in METRICS:
            if found[model, metric]:
                lines += _metric(metric, found[model, metric])
        lines += _refused(results, model)
    return "\n".join(lines).rstrip() + "\n"


def _models(models: Sequence[str], found: Mapping[tuple[str, str], Mapping[tuple[str, str], Compared]]) -> list[str]:
    rows = [[metric, *(_record(found[model, metric], "libragrad") for model in models)] for metric in METRICS]
    rows = [row for row in rows if any(row[1:])]
    heading = "## libragrad against the plain gradient: methods won / tied / lost"
    return [heading, "", *_table(["metric", *models], rows), ""] if rows else []


def _wins(model: str, found: Mapping[tuple[str, str], Mapping[tuple[str, str], Compared]]) -> list[str]:
    policies = [p for p in _policies(found[model, metric] for metric in METRICS) if p not in (PLAIN, ANY)]
    rows = [[metric, *(_record(found[model, metric], policy) for policy in policies)] for metric in METRICS]
    rows = [row for row in rows if any(row[1:])]
    heading = "Against the plain gradient, methods won / tied / lost:"
    return [heading, "", *_table(["metric", *policies], rows), ""] if rows else []


def _record(cells: Mapping[tuple[str, str], Compared], policy: str) -> str:
    outcomes = [cell.outcome for (of, _), cell in cells.items() if of == policy and cell.outcome is not None]
    return " / ".join(str(outcomes.count(outcome)) for outcome in (1, 0, -1)) if outcomes else ""


def _metric(metric: str, cells: Mapping[tuple[str, str], Compared]) -> list[str]:
    policies = _policies([cells])
    methods = [m for m in METHODS if any(m == method for _, method in cells)]
    methods += sorted({method for _, method in cells} - set(methods))
    rows = [[m, *(str(cells.get((policy, m), "")) for policy in policies)] for m in methods]
    body = ["", *_table(["method", *policies], rows), ""]
    title = f"{metric} ({METRICS[metric]} is better)"
    if metric in SHOWN:
        return [f"### {title}", *body]
    return [f"<details><summary>{title}</summary>", *body, "</details>", ""]


def _policies(cells: Iterable[Mapping[tuple[str, str], Compared]]) -> list[str]:
    there = {policy for metric in cells for policy, _ in metric}
    known = [policy for policy in POLICIES if policy in there]
    return known + sorted(there - set(known) - {ANY}) + [ANY] * (ANY in there)


def _settings(results: Results) -> str:
    settings = results.facts.get("settings", {})
    shown = [f"{name} {_plain(value)}" for name, value in settings.items() if value not in (None, False)]
    return f"Written by `fxgrad evaluate`. Settings: {'; '.join(shown) or 'not noted'}."


def _facts(results: Results, model: str) -> list[str]:
    images = {i for (of, *_), metrics in results.values.items() if of == model for c in metrics.values() for i in c}
    removal = results.facts.get(f"removal of {model}")
    return [f"{len(images)} pictures{f'; tokens {removal}' if removal else ''}.", ""]


def _refused(results: Results, model: str) -> list[str]:
    reasons: dict[tuple[str, str], list[str]] = {}
    for (of, policy, method), reason in results.refused.items():
        if of == model:
            reasons.setdefault((method, reason), []).append(policy)
    lines = [f"- {method} ({', '.join(p)}): {reason}" for (method, reason), p in sorted(reasons.items())]
    return ["Not measured:", "", *lines, ""] if lines else []


def _columns(table: Mapping[tuple[str, str], Tensor], keys: Iterable[tuple[str, str]]) -> Tensor:
    return torch.stack([table[key] for key in keys], 1)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [list(head), ["---"] + ["---:"] * (len(head) - 1), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def _plain(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _number(value: float) -> str:
    return f"{value:.3g}"
