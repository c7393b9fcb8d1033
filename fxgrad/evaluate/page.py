"""The results as Markdown: methods x policies for every metric, with intervals, compared with the plain gradient.

Several models get an overview and a page each.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fxgrad.evaluate.plan import ANY, METRICS, POLICIES
from fxgrad.evaluate.store import Results
from fxgrad.methods import METHODS
from fxgrad.metrics import Interval, bootstrap, paired
from fxgrad.report import markdown

PLAIN = "gradient"
BALANCED = "libragrad"
SHOWN = ("srg_aopc", "average_precision", "completeness_relative")
"""One metric of each family is shown; the others can be unfolded."""

_LEGEND = f"""Means over pictures with 95 % bootstrap intervals. ▲ better and ▼ worse than the plain gradient's on the
same pictures, where the interval of the paired difference leaves out 0. Methods of policy *{ANY}* take no gradient.
Of the metrics, `srg` is the least influential removed first minus the most influential removed first (`lif` - `mif`);
`accuracy` is how often the target is still named, `aopc` the drop of its probability, `lodds` that of its logarithm,
each averaged over the shares removed. docs/evaluate.md defines all of them.
"""


@dataclass(frozen=True)
class Compared:
    """One metric of one method under one policy.

    Attributes:
        value: mean and interval.
        outcome: 1 better, -1 worse than the plain gradient, 0 neither; None without a plain gradient to compare with.
    """

    value: Interval
    outcome: int | None

    def __str__(self) -> str:
        mark = {1: " ▲", -1: " ▼"}.get(self.outcome or 0, "")
        return f"{_number(self.value.mean)} [{_number(self.value.low)}, {_number(self.value.high)}]{mark}"


def compare(results: Results, model: str, metric: str) -> dict[tuple[str, str], Compared]:
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
    better = 1 if ways(results)[metric] == "higher" else -1
    plain = {key: table[PLAIN, key[1]] for key in table if key[0] != PLAIN and (PLAIN, key[1]) in table}
    outcomes: dict[tuple[str, str], int] = {}
    if plain:
        differences = paired(_columns(table, plain), torch.stack(list(plain.values()), 1))
        outcomes = {key: better * difference.sign for key, difference in zip(plain, differences)}
    return {key: Compared(means[key], outcomes.get(key)) for key in table}


def ways(*runs: Results) -> dict[str, str]:
    """Metric -> "higher" or "lower", whichever is better: fxgrad's metrics, and the user's own in the results.

    Example:
        >>> ways(Results({}, {}, {"settings": {"metrics": {"mine": "lower"}}}, frozenset()))["mine"]
        'lower'
    """
    own = [run.facts.get("settings", {}).get("metrics", {}) for run in runs]
    return METRICS | {name: way for metrics in own for name, way in metrics.items()}


Found = Mapping[tuple[str, str], Mapping[tuple[str, str], Compared]]
"""(model, metric) -> (policy, method) -> value and outcome."""


def pages(runs: Sequence[Results], stem: str = "results") -> dict[str, str]:
    """The pages as Markdown.

    Args:
        runs: results of `evaluate` with different models, such as one for each data set.
        stem: name of the first page's file, without its ending.

    Returns:
        File name -> text: one page; for several models an overview, and a folder with a page for each model.

    Example:
        >>> values = {("m", "gradient", "saliency"): {"iou": {"a": 0.5}}}
        >>> found = pages([Results(values, {}, {}, frozenset())])
        >>> [line for line in found["results.md"].splitlines() if "saliency" in line]
        ['| saliency | 0.5 [0.5, 0.5] |']
    """
    of = {model: run for run in runs for model in sorted({model for model, *_ in run.values})}
    found: Found = {(model, metric): compare(run, model, metric) for model, run in of.items() for metric in ways(run)}
    head = ["# Evaluation", "", *(_settings(run) + "\n" for run in runs), _LEGEND]
    if len(of) < 2:
        return {
            f"{stem}.md": _text([*head, *(line for model, run in of.items() for line in _model(run, model, found))])
        }
    files = {model: f"{stem}/{re.sub(r'[^A-Za-z0-9]+', '-', _short(model))}.md" for model in of}
    return {f"{stem}.md": _text([*head, *_overview(files, found, ways(*runs))])} | {
        file: _text([*head[:1], "", _settings(of[model]) + "\n", _LEGEND, *_model(of[model], model, found)])
        for model, file in files.items()
    }


def _text(lines: Iterable[str]) -> str:
    return "\n".join(lines).rstrip() + "\n"


def _short(model: str) -> str:
    """A model's name without its package."""
    return model.rpartition(":")[2]


def _overview(files: Mapping[str, str], found: Found, better: Mapping[str, str]) -> list[str]:
    """Markdown lines for all models side by side: counts of wins, and one metric of each family."""
    linked = [f"[{_short(model)}]({file})" for model, file in files.items()]
    rows = [[metric, *(_record(found.get((model, metric), {}), BALANCED) for model in files)] for metric in better]
    rows = [row for row in rows if any(row[1:])]
    lines = [f"## {BALANCED} against the plain gradient: methods won / tied / lost", ""]
    lines += markdown(["metric", *linked], rows) if rows else [", ".join(linked)]
    for metric in SHOWN:
        there = {method for model in files for policy, method in found[model, metric] if policy in (PLAIN, ANY)}
        cells = [[method, *(_change(found[model, metric], method) for model in files)] for method in _methods(there)]
        if cells:
            title = f"### {metric} ({better[metric]} is better): plain gradient → {BALANCED}"
            lines += ["", title, "", *markdown(["method", *map(_short, files)], cells)]
    return lines


def _change(cells: Mapping[tuple[str, str], Compared], method: str) -> str:
    """A method's mean under the plain gradient and under the balanced one, as text."""
    policies = [policy for policy in (PLAIN, BALANCED, ANY) if (policy, method) in cells]
    mark = str(cells[BALANCED, method]).partition("]")[2] if BALANCED in policies else ""
    return " → ".join(_number(cells[policy, method].value.mean) for policy in policies) + mark


def _model(results: Results, model: str, found: Found) -> list[str]:
    """Markdown lines for one model: every method under every policy, by every metric."""
    better = ways(results)
    alike = _alike([found[model, metric] for metric in better])
    dropped = {policy for _, *others in alike for policy in others}
    found = {(of, m): {k: c for k, c in cells.items() if k[0] not in dropped} for (of, m), cells in found.items()}
    lines = [f"## {model}", "", *_facts(results, model)]
    for first, *others in alike:
        lines.append(f"The same numbers as {first}, and so no column: {', '.join(others)}.\n")
    lines += _wins([(metric, found[model, metric]) for metric in better])
    for metric, way in better.items():
        if found[model, metric]:
            lines += _metric(f"{metric} ({way} is better)", metric in SHOWN, found[model, metric])
    return lines + _refused(results, model)


def _alike(cells: Sequence[Mapping[tuple[str, str], Compared]]) -> list[list[str]]:
    """Groups of two or more policies with the same numbers everywhere: they give every node the same backward."""
    numbers = {
        policy: [{method: cell.value for (of, method), cell in metric.items() if of == policy} for metric in cells]
        for policy in _policies(cells)
        if policy not in (PLAIN, ANY)
    }
    groups = ([p for p in numbers if numbers[p] == numbers[first]] for first in numbers)
    return [group for group, first in zip(groups, numbers) if len(group) > 1 and group[0] == first]


def _methods(there: Iterable[str]) -> list[str]:
    """Names of methods in the order of `METHODS`, the user's own last."""
    there = set(there)
    return [m for m in METHODS if m in there] + sorted(there - set(METHODS))


def _wins(metrics: Sequence[tuple[str, Mapping[tuple[str, str], Compared]]]) -> list[str]:
    policies = [p for p in _policies(cells for _, cells in metrics) if p not in (PLAIN, ANY)]
    rows = [[metric, *(_record(cells, policy) for policy in policies)] for metric, cells in metrics]
    rows = [row for row in rows if any(row[1:])]
    heading = "Against the plain gradient, methods won / tied / lost:"
    return [heading, "", *markdown(["metric", *policies], rows), ""] if rows else []


def _record(cells: Mapping[tuple[str, str], Compared], policy: str) -> str:
    outcomes = [cell.outcome for (of, _), cell in cells.items() if of == policy and cell.outcome is not None]
    return " / ".join(str(outcomes.count(outcome)) for outcome in (1, 0, -1)) if outcomes else ""


def _metric(title: str, open: bool, cells: Mapping[tuple[str, str], Compared]) -> list[str]:
    policies = _policies([cells])
    methods = _methods(method for _, method in cells)
    rows = [[m, *(str(cells.get((policy, m), "")) for policy in policies)] for m in methods]
    body = ["", *markdown(["method", *policies], rows), ""]
    if open:
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


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} ({way} is better)" for name, way in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _number(value: float) -> str:
    return f"{value:.3g}"
