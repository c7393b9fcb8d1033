"""docs/evidence.md from what was measured: `python -m bench.evidence.page`, or with stores, `... trainings=STORE ...`

What is in the stores is first added to bench/measured/evidence/NAME.npz, all values of all pictures; the page is
computed from these files alone, so that anyone can compute it again, and trainings may be measured here and there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch

from bench.evidence import analytic, trainings
from bench.evidence.real.comparison import Cells
from bench.evidence.real.page import of_mosaics
from bench.evidence.trainings import BALANCED, METRICS, PLAIN, Comparison
from fxgrad.errors import InputError
from fxgrad.evaluate import Results, read
from fxgrad.evaluate.baselines import ALWAYS
from fxgrad.evaluate.compare import record
from fxgrad.evaluate.plan import ANY, POLICIES
from fxgrad.evaluate.values import read_values, write_values
from fxgrad.methods import METHODS
from fxgrad.metrics import bootstrap
from fxgrad.report import markdown

MEASURED = Path(__file__).parents[1] / "measured" / "evidence"
PAGE = Path(__file__).parents[2] / "docs" / "evidence.md"
PARTS = ("trainings", "shapley", "shortcut", "sanity", "labels")
_APART = {"checkpoint", "data"}
"""Settings that differ from model to model."""
TEMPLATE = Path(__file__).with_name("page.md")


@dataclass(frozen=True)
class Evidence:
    """All that the page is made of.

    Attributes:
        trainings, shapley, shortcut, sanity, labels: the values of every picture.
        accuracy: NAME-SEED -> what the training reached.
        remembered: architecture -> what the training on random labels learned by heart.
        read: architecture -> what the shortcut's models read, by intervention.
        real: the table of `bench.evidence.real`.
    """

    trainings: Results
    shapley: Results
    shortcut: Results
    sanity: Results
    labels: Results
    accuracy: Mapping[str, Mapping[str, float]]
    remembered: Mapping[str, Mapping[str, float]]
    read: Mapping[str, Mapping[str, float]]
    real: Mapping[str, np.ndarray]


def load(folder: Path) -> Evidence:
    """Read bench/measured/evidence/."""
    parts = {part: read_values(folder / f"{part}.npz")[0] for part in PARTS}
    accuracy, known, found = (
        json.loads((folder / f"{p}.json").read_text()) for p in ("trainings", "labels", "shortcut")
    )
    with np.load(folder.parent / "real.npz", allow_pickle=False) as table:
        real = dict(table)
    return Evidence(**parts, accuracy=accuracy, remembered=known, read=found, real=real)


def text(evidence: Evidence) -> str:
    """The page."""
    compared = trainings.compare(evidence.trainings)
    fields = {
        "scope": _scope(evidence),
        "claims": _claims(evidence, compared),
        "registered": _registered(compared),
        "outcome": counted(compared.values()),
        "baselines": _baselines(evidence.trainings),
        "policies": _policies(evidence.trainings),
        "shapley": _shapley(evidence.shapley),
        "shortcut": _shortcut(evidence.shortcut),
        "sanity": _sanity(evidence.sanity, evidence.labels),
        "remembered": _remembered(evidence.remembered),
        "interventions": _interventions(evidence.read),
        "analytic": analytic.table(),
        "accuracy": _accuracy(evidence),
        "real": _real(evidence.real),
    }
    page = TEMPLATE.read_text("utf-8")
    for name, found in fields.items():
        page = page.replace("{" + name + "}", found if isinstance(found, str) else "\n".join(found))
    return page


def _scope(evidence: Evidence) -> str:
    runs = trainings.trainings(evidence.trainings)
    counts = sorted({len(models) for models in runs.values()})
    seeds = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    images = next(iter(next(iter(evidence.trainings.values.values())).values()))
    scans = len({evidence.trainings.groups.get(image, image) for image in images})
    return (
        f"{len(runs)} architectures, {seeds} training{'s' if seeds != '1' else ''} of each, {len(images)} held-out "
        f"canvases of {scans} scans."
    )


def _accuracy(evidence: Evidence) -> list[str]:
    rows = []
    for name, models in trainings.trainings(evidence.trainings).items():
        both = [evidence.accuracy[model]["heldout_both"] for model in models]
        rows.append([name, len(both), *(f"{value:.1%}" for value in (sum(both) / len(both), min(both), max(both)))])
    return markdown(["architecture", "trainings", "both digits, mean", "least", "most"], rows)


def _registered(compared: Mapping[trainings.Key, Comparison]) -> list[str]:
    rows = []
    for name in dict.fromkeys(name for name, *_ in compared):
        for method, title in trainings.METHODS.items():
            cells = [compared.get((name, method, metric)) for metric in METRICS]
            if any(cells):
                rows.append([name, title, *("" if cell is None else _change(cell) for cell in cells)])
    return markdown(["architecture", "method", *METRICS.values()], rows)


def _change(cell: Comparison) -> str:
    """Means over trainings, with their standard deviation, and the interval of the difference."""
    mark = {1: " ▲", -1: " ▼", 0: ""}[cell.outcome]
    low, high = cell.difference.low, cell.difference.high
    return f"{_spread(cell.theirs)} → {_spread(cell.ours)} [{low:+.2f}, {high:+.2f}]{mark}"


def _spread(values: Sequence[float]) -> str:
    found = torch.tensor(values, dtype=torch.float64)
    deviation = f" ± {float(found.std()):.2f}" if len(values) > 1 else ""
    return f"{float(found.mean()):.2f}{deviation}"


def _baselines(results: Results) -> list[str]:
    """The means of what takes no gradient, over all trainings and canvases."""
    rows = []
    for name in ALWAYS:
        found = [_pairs(results, name, [ANY], metric) for metric in METRICS]
        rows.append([name.replace("_", " "), *(_cell(pairs) if pairs else "" for pairs in found)])
    return markdown(["baseline", *METRICS.values()], rows)


def _policies(results: Results) -> list[str]:
    rows = []
    for other, by_metric in trainings.records(results).items():
        rows.append([other, *(" / ".join(map(str, counts)) for counts in by_metric.values())])
    return markdown(["libragrad against", *METRICS.values()], rows)


def _pairs(results: Results, method: str, policies: Sequence[str], metric: str) -> list[tuple[str, float]]:
    """(group, value) of each picture of each model, for one method and metric."""
    return [
        (results.groups.get(image, image), value)
        for (_, policy, name), metrics in results.values.items()
        if name == method and policy in policies
        for image, value in metrics.get(metric, {}).items()
    ]


def _means(results: Results, metric: str, policies: Sequence[str]) -> list[list[str]]:
    """Rows of methods by policies: the mean over models and pictures of one metric, with its interval."""
    rows = []
    there = {method for _, _, method in results.values}
    for method in [*(m for m in METHODS if m in there and m != "random"), *(b for b in ALWAYS if b in there)]:
        found = [_pairs(results, method, [policy, ANY], metric) for policy in policies]
        if any(found):
            rows.append([method.replace("_", " "), *(_cell(pairs) if pairs else "" for pairs in found)])
    return rows


def _cell(pairs: Sequence[tuple[str, float]]) -> str:
    values = torch.tensor([[value] for _, value in pairs], dtype=torch.float64)
    (found,) = bootstrap(values, groups=[group for group, _ in pairs])
    return "" if found.count == 0 else f"{found.mean:.2f} [{found.low:.2f}, {found.high:.2f}]"


_SHOWN = (PLAIN, BALANCED, "attnlrp", "libragrad-without-normalization")


def _shapley(results: Results) -> list[str]:
    return markdown(["method", *_SHOWN], _means(results, "shapley", _SHOWN))


def _shortcut(results: Results) -> list[str]:
    return markdown(["method", *_SHOWN], _means(results, "pointing_game", _SHOWN))


def _real(table: Mapping[str, np.ndarray]) -> list[str]:
    """libragrad against the plain gradient on real weights: methods won / tied / lost."""
    mosaics, text = of_mosaics(table), Cells(table, "text", bootstrap)
    titles = {"focus": "Focus", "ahead": "own side over the other", "average_precision": "AP"}
    rows = [[f"mosaics of photographs, {title}", mosaics.count(metric)] for metric, title in titles.items()]
    rows += [[f"planted sentences, {titles[m]}", text.count(m)] for m in ("focus", "average_precision")]
    return markdown(["real weights", "methods won / tied / lost"], rows)


def _sanity(results: Results, labels: Results) -> list[str]:
    shown = (PLAIN, BALANCED)
    rows = []
    for found, metric, title in (
        (results, "head", "the head shuffled"),
        (results, "half", "half of the stages shuffled"),
        (results, "all", "everything shuffled"),
        (labels, "labels", "trained on random labels"),
    ):
        rows += [[title, *row] for row in _means(found, metric, shown)]
    return markdown(["the other model", "method", *shown], rows)


def _remembered(known: Mapping[str, Mapping[str, float]]) -> str:
    return ", ".join(f"{name} {facts['remembered']:.0%}" for name, facts in known.items())


def _interventions(read: Mapping[str, Mapping[str, float]]) -> list[str]:
    keys = ("right", "follows", "kept", "unmarked")
    rows = [[name, *(f"{facts[key]:.1%}" for key in keys)] for name, facts in read.items()]
    heads = ["names the patch", "follows another patch", "keeps it in another picture", "names one without a patch"]
    return markdown(["architecture", *heads], rows)


def _claims(evidence: Evidence, compared: Mapping[trainings.Key, Comparison]) -> list[str]:
    def some(architectures: Iterable[str] = (), metric: str = "") -> list[Comparison]:
        wanted = set(architectures)
        return [c for (a, _, m), c in compared.items() if (not wanted or a in wanted) and metric in ("", m)]

    others = [p for p in POLICIES if p in ("attnlrp", "cp-lrp")]
    against = [c for other in others for c in trainings.compare(evidence.trainings, other).values()]
    mosaics = of_mosaics(evidence.real)
    rows = [
        verdict("Gradient-based methods get better, on every architecture", "the registered ones", counted(some())),
        verdict("", "all methods, real weights, Focus", mosaics.count("focus")),
        verdict("Better than other white-box policies", "AttnLRP and CP-LRP", counted(against)),
        verdict("Tells classes apart", "own digit over the other", counted(some(metric="own_over_other"))),
        verdict("", "all methods, real weights, own side", mosaics.count("ahead")),
        verdict("Finds what a text names", "CLIP", counted(some(["clip"]))),
        verdict("MLP-Mixer, too", "MLP-Mixer and gMixer", counted(some(["mixer", "gmixer"]))),
    ]
    return markdown(["the paper's claim", "by", "it", "won / tied / lost"], rows)


def counted(cells: Iterable[Comparison]) -> str:
    """Won / tied / lost."""
    return record(cell.outcome for cell in cells) or "0 / 0 / 0"


def verdict(claim: str, by: str, counts: str) -> list[str]:
    """The claim, what it is judged by, whether it holds, and won / tied / lost."""
    won, tied, lost = map(int, counts.split(" / "))
    said = "holds" if won and not tied + lost else "partly" if won > lost else "not shown"
    return [claim, by, said, counts]


def joined(known: Results, more: Results) -> Results:
    """What was measured, and more of it; of a model that both have, the latter.

    Raises:
        InputError: they were measured in different ways.
    """
    ways = [{k: v for k, v in run.facts.get("settings", {}).items() if k not in _APART} for run in (known, more)]
    if ways[0] != ways[1]:
        other = next(k for k in ways[0] | ways[1] if ways[0].get(k) != ways[1].get(k))
        raise InputError(
            f"{other} was {ways[0].get(other)!r}, and is {ways[1].get(other)!r} now: values of different settings do "
            "not go together. Remove the old values, and measure all again."
        )
    models = {model for model, *_ in more.values}
    kept, refused = ({k: v for k, v in was.items() if k[0] not in models} for was in (known.values, known.refused))
    return Results(
        {**kept, **more.values}, {**refused, **more.refused}, more.facts, frozenset(), {**known.groups, **more.groups}
    )


def add(part: str, folder: Path, measured: Path) -> None:
    """Add the values and facts of a store to those of a part."""
    found = read(folder) if any(folder.glob("*.sqlite")) else trainings.gathered(folder)
    values, facts = measured / f"{part}.npz", measured / f"{part}.json"
    if values.exists():
        found = joined(read_values(values)[0], found)
    write_values([found], values)
    if (own := folder / facts.name).exists():
        known = json.loads(facts.read_text()) if facts.exists() else {}
        facts.write_text(json.dumps({**known, **json.loads(own.read_text())}, indent=1) + "\n")


@click.command()
@click.argument("stores", nargs=-1, metavar="[PART=STORE...]")
def main(stores: Sequence[str]) -> None:
    """Add the values of some stores to what is measured, then write the page."""
    MEASURED.mkdir(exist_ok=True)
    for pair in stores:
        part, _, store = pair.partition("=")
        add(part, Path(store), MEASURED)
    PAGE.write_text(text(load(MEASURED)), "utf-8")
    click.echo(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
