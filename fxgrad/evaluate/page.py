"""The results as Markdown: methods x policies for every metric, with intervals, compared with the plain gradient.

Several models get an overview and a page each.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from fxgrad.evaluate.baselines import BASELINES
from fxgrad.evaluate.compare import (
    BALANCED,
    MEDIANS,
    PLAIN,
    Compared,
    Key,
    compare,
    degenerate,
    differences,
    labelled,
    mark,
    record,
    shown,
    way,
    ways,
)
from fxgrad.evaluate.plan import ANY, POLICIES
from fxgrad.evaluate.store import Results
from fxgrad.methods import METHODS
from fxgrad.metrics import Interval
from fxgrad.report import markdown

SHOWN = ("srg_aopc", "comprehensiveness", "average_precision", "own_over_other", "completeness_of_shares")
"""One metric of each family is shown; the others can be unfolded."""

_MEDIANS = ", ".join(f"`{name}`" for name in MEDIANS)
_BASELINES = {"pictures": (*BASELINES, "random"), "texts": ("oracle", "random")}
_LEGEND = """Means over {of} (of {medians}: medians) with 95 % bootstrap intervals, which resample whole groups
of {of} where the data has them, such as all of one scan. ▲ better and ▼ worse than the plain gradient's on the same
{of}, where the interval of the paired difference leaves out 0. Methods of policy *{any}* take no gradient; the
baselines among them are {baselines}.
⌀ marks maps that are rounding noise: in float64 they are others. They are compared with nothing.
Of the metrics, `srg` is the least influential removed first minus the most influential removed first (`lif` - `mif`);
`accuracy` is how often the target is still named, `aopc` the drop of its probability, `lodds` that of its logarithm,
each averaged over the shares removed. docs/evaluate.md defines all of them.
"""

Found = Mapping[tuple[str, str], Mapping[Key, Compared]]
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
    runs = [labelled(run) for run in runs]
    of = {model: run for run in runs for model in sorted({model for model, *_ in run.values})}
    found: Found = {(model, metric): compare(run, model, metric) for model, run in of.items() for metric in ways(run)}
    head = ["# Evaluation", "", *(_settings(run) + "\n" for run in runs), _legend(runs)]
    if len(of) < 2:
        return {
            f"{stem}.md": _text([*head, *(line for model, run in of.items() for line in _model(run, model, found))])
        }
    files = {model: f"{stem}/{re.sub(r'[^A-Za-z0-9]+', '-', _short(model))}.md" for model in of}
    return {f"{stem}.md": _text([*head, *_overview(files, found, ways(*runs))])} | {
        file: _text(
            [*head[:1], "", _settings(of[model]) + "\n", _legend([of[model]]), *_model(of[model], model, found)]
        )
        for model, file in files.items()
    }


def _text(lines: Iterable[str]) -> str:
    return "\n".join(lines).rstrip() + "\n"


def _legend(runs: Sequence[Results]) -> str:
    kinds = list(dict.fromkeys(map(_examples, runs))) or ["pictures"]
    names = dict.fromkeys(name for kind in kinds for name in _BASELINES[kind])
    baselines = ", ".join(f"`{name}`" for name in names)
    return _LEGEND.format(of=" and ".join(kinds), medians=_MEDIANS, any=ANY, baselines=baselines)


def _examples(results: Results) -> str:
    """What was evaluated: pictures, or texts."""
    return str(results.facts.get("settings", {}).get("examples", "pictures"))


def _short(model: str) -> str:
    """A model's name without its package."""
    return model.rpartition(":")[2]


def _overview(files: Mapping[str, str], found: Found, better: Mapping[str, str]) -> list[str]:
    """Markdown lines for all models side by side: counts of wins, and one metric of each family."""
    linked = [f"[{_short(model)}]({file})" for model, file in files.items()]
    rows = [[metric, *(_record(found[model, metric], BALANCED) for model in files)] for metric in better]
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


def _change(cells: Mapping[Key, Compared], method: str) -> str:
    """A method's mean under the plain gradient and under the balanced one, as text."""
    there = [cells[policy, method] for policy in (PLAIN, BALANCED, ANY) if (policy, method) in cells]
    means = " → ".join(f"{cell.value.mean:.3g}{' ⌀' if cell.degenerate else ''}" for cell in there)
    return means + (mark(cells[BALANCED, method].outcome) if (BALANCED, method) in cells else "")


def _model(results: Results, model: str, found: Found) -> list[str]:
    """Markdown lines for one model: every method under every policy, by every metric."""
    better = ways(results)
    alike = _alike([found[model, metric] for metric in better])
    dropped = {policy for _, *others in alike for policy in others}
    found = {(of, m): {k: c for k, c in cells.items() if k[0] not in dropped} for (of, m), cells in found.items()}
    lines = [f"## {model}", "", *_facts(results, model)]
    for first, *others in alike:
        lines.append(f"The same numbers as {first}, and so no column: {', '.join(others)}.\n")
    lines += _noise(results, model)
    lines += _wins([(metric, found[model, metric]) for metric in better])
    apart = {metric: differences(results, model, metric, dropped) for metric in better}
    lines += _others(results, apart)
    for metric, wanted in better.items():
        if found[model, metric]:
            lines += _metric(f"{metric} ({wanted} is better)", metric in SHOWN, found[model, metric])
        if metric in SHOWN and apart[metric]:
            lines += _differences(f"{metric}: {BALANCED} minus each other policy", apart[metric], way(results, metric))
    return lines + _refused(results, model)


def _noise(results: Results, model: str) -> list[str]:
    """Which maps are rounding noise, and by how much."""
    found = [f"{method} under {policy} ({mean:.2g})" for (policy, method), mean in degenerate(results, model).items()]
    why = "Rounding noise, by the rank correlation of the maps with those in float64: "
    return [f"{why}{', '.join(found)}.", ""] if found else []


def _others(results: Results, apart: Mapping[str, Mapping[Key, Interval]]) -> list[str]:
    """The balanced gradient's record against each other policy."""
    policies = _policies(apart.values())
    rows = [
        [metric, *(record(way(results, metric) * i.sign for (of, _), i in cells.items() if of == p) for p in policies)]
        for metric, cells in apart.items()
        if cells
    ]
    heading = f"{BALANCED} against each other policy, methods won / tied / lost:"
    return [heading, "", *markdown(["metric", *policies], rows), ""] if len(policies) > 1 else []


def _differences(title: str, cells: Mapping[Key, Interval], better: int) -> list[str]:
    text = {key: shown(i, signed=True) + mark(better * i.sign) for key, i in cells.items()}
    policies, methods = _policies([cells]), _methods(method for _, method in cells)
    rows = [[m, *(text.get((policy, m), "") for policy in policies)] for m in methods]
    return _folded(title, ["", *markdown(["method", *policies], rows), ""])


def _folded(title: str, body: list[str]) -> list[str]:
    return [f"<details><summary>{title}</summary>", *body, "</details>", ""]


def _alike(cells: Sequence[Mapping[Key, Compared]]) -> list[list[str]]:
    """Groups of two or more policies with the same numbers everywhere: they give every node the same backward."""
    numbers = {
        policy: [{method: cell.value for (of, method), cell in metric.items() if of == policy} for metric in cells]
        for policy in _policies(cells)
        if policy not in (PLAIN, ANY)
    }
    groups = ([p for p in numbers if numbers[p] == numbers[first]] for first in numbers)
    return [group for group, first in zip(groups, numbers) if len(group) > 1 and group[0] == first]


def _methods(there: Iterable[str]) -> list[str]:
    """Names of methods in the order of `METHODS`, then the user's own, then the baselines."""
    there = set(there)
    known = [m for m in METHODS if m in there]
    return known + sorted(there - {*METHODS, *BASELINES}) + [m for m in BASELINES if m in there]


def _wins(metrics: Sequence[tuple[str, Mapping[Key, Compared]]]) -> list[str]:
    policies = [p for p in _policies(cells for _, cells in metrics) if p not in (PLAIN, ANY)]
    rows = [[metric, *(_record(cells, policy) for policy in policies)] for metric, cells in metrics]
    rows = [row for row in rows if any(row[1:])]
    heading = "Against the plain gradient, methods won / tied / lost:"
    return [heading, "", *markdown(["metric", *policies], rows), ""] if rows else []


def _record(cells: Mapping[Key, Compared], policy: str) -> str:
    return record(cell.outcome for (of, _), cell in cells.items() if of == policy)


def _metric(title: str, open: bool, cells: Mapping[Key, Compared]) -> list[str]:
    policies = _policies([cells])
    methods = _methods(method for _, method in cells)
    rows = [[m, *(str(cells.get((policy, m), "")) for policy in policies)] for m in methods]
    body = ["", *markdown(["method", *policies], rows), ""]
    return [f"### {title}", *body] if open else _folded(title, body)


def _policies(cells: Iterable[Mapping[Key, object]]) -> list[str]:
    there = {policy for metric in cells for policy, _ in metric}
    known = [policy for policy in POLICIES if policy in there]
    return known + sorted(there - set(known) - {ANY}) + [ANY] * (ANY in there)


def _settings(results: Results) -> str:
    settings = results.facts.get("settings", {})
    shown = [f"{name} {_plain(value)}" for name, value in settings.items() if value not in (None, False)]
    return f"Written by `fxgrad evaluate`. Settings: {'; '.join(shown) or 'not noted'}."


def _facts(results: Results, model: str) -> list[str]:
    images = {i for (of, *_), metrics in results.values.items() if of == model for c in metrics.values() for i in c}
    said = {
        "removal": "tokens {}",
        "length": "cut off behind {} tokens",
        "no float64": "no maps in float64 to compare with: {}",
    }
    known = {fact: results.facts.get(f"{fact} of {model}") for fact in said}
    more = "".join(f"; {said[fact].format(value)}" for fact, value in known.items() if value)
    return [f"{len(images)} {_examples(results)}{more.rstrip('.')}.", ""]


def _refused(results: Results, model: str) -> list[str]:
    reasons: dict[tuple[str, str], list[str]] = {}
    for (of, policy, method), reason in results.refused.items():
        if of == model:
            reasons.setdefault((method, reason), []).append(policy)
    lines = [f"- {method} ({', '.join(p)}): {reason}" for (method, reason), p in sorted(reasons.items())]
    return ["Not measured:", "", *lines, ""] if lines else []


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} ({way} is better)" for name, way in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
