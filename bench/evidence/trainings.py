"""Independent trainings, evaluated: `python -m bench.evidence.trainings WEIGHTS STORE`

WEIGHTS is the folder of `python -m fxgrad.demo.train all --from-scratch WEIGHTS`. Each model is measured on the same
held-out canvases, by a short list of methods and metrics that was fixed before any of them was trained. What is
measured is kept in STORE, a folder per training; a run that was stopped goes on.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import click
import torch
from safetensors import safe_open

from fxgrad.data import Batch
from fxgrad.data.models import LoadedModel, load_model
from fxgrad.errors import FxgradError, InputError, first_line
from fxgrad.evaluate import POLICIES, Plan, Results, Store, evaluate, read
from fxgrad.evaluate.compare import labelled
from fxgrad.evaluate.methods import takes_gradient
from fxgrad.evaluate.plan import ANY
from fxgrad.metrics import Interval, holm, two_level
from fxgrad.module.converted import ConvertedModule

METHODS = {"input_x_gradient": "Input x Gradient", "fullgrad_plus": "FullGrad+", "attcat": "AttCAT"}
"""The registered methods, the first at the tokens."""
METRICS = {"srg_aopc": "SRG", "average_precision": "AP", "own_over_other": "own digit over the other"}
"""The registered metrics; of all, higher is better."""
PLAIN, BALANCED = "gradient", "libragrad"
COUNT = 200
RESAMPLES = 20_000
"""Of the registered tests: their smallest p-value, times their number, has to be small."""

Key = tuple[str, str, str]
"""Architecture, method, metric."""


def opened(model: str) -> tuple[str, LoadedModel, str]:
    """Of module.path:factory, or module.path:factory=CHECKPOINT: the name, the model, the canvases that it reads."""
    spec, _, checkpoint = model.partition("=")
    loaded = load_model(spec, checkpoint=checkpoint or None)
    name = Path(checkpoint).stem if checkpoint else spec.rpartition(":")[2]
    return name, loaded, canvases(loaded.preprocess.size[0] == 3)


def canvases(coloured: bool) -> str:
    """The data set of held-out canvases."""
    return "digits:heldout:colours" if coloured else "digits"


Measure = Callable[[ConvertedModule], Mapping[str, list[float]]]
"""A converted model -> metric -> one value per picture."""


def by_policy(
    store: Store,
    name: str,
    plain: ConvertedModule,
    batch: Batch,
    start: int,
    policies: Sequence[str],
    methods: Mapping[str, Measure],
) -> None:
    """Measure methods under every policy on one batch, and those that take no gradient once; store what is found.

    Args:
        store: where to; a method that the model does not have is noted with the reason.
        name: of the model.
        plain: the model under the plain gradient.
        batch: the pictures; the first is number `start` of its data set.
        policies: to measure under.
        methods: name of a method -> how it is measured.
    """
    for policy in (ANY, *policies):
        converted, found = plain if policy == ANY else plain.under(policy), {}
        for method, measure in methods.items():
            if takes_gradient(method) is (policy == ANY):
                continue
            try:
                found[method] = measure(converted)
            except FxgradError as error:
                store.refuse(name, policy, method, first_line(error))
        store.add(name, policy, found, list(batch.ids), start, start + len(batch.ids), batch.groups)


@dataclass(frozen=True)
class Comparison:
    """libragrad against another policy, for one architecture, method and metric, over trainings and canvases.

    Attributes:
        ours, theirs: the means of each training, libragrad's and the other policy's.
        difference: the mean of ours - theirs, its interval over trainings and scans, and its p-value.
        corrected: the p-value after Holm's correction for all that is registered; None where it is not.
    """

    ours: tuple[float, ...]
    theirs: tuple[float, ...]
    difference: Interval
    corrected: float | None = None

    @property
    def outcome(self) -> int:
        """1 better, -1 worse, 0 neither: by the corrected p-value if there is one, else by the interval."""
        if self.corrected is None:
            return self.difference.sign
        return self.difference.sign if self.corrected < 0.05 else 0


def plan(weights: Path) -> Plan:
    """The evaluation of one training's weights, NAME-SEED.safetensors."""
    name = weights.stem.rpartition("-")[0]
    return Plan(
        (f"fxgrad.demo.independent:{name}",),
        tuple(METHODS),
        data=canvases(name == "clip"),
        count=COUNT,
        steps=0,
        options=("input_x_gradient.at='tokens'",),
        checkpoint=str(weights),
    )


def gathered(store: Path) -> Results:
    """The results of all folders of a store in one; a model's name is its checkpoint's, NAME-SEED."""
    found = [labelled(read(folder)) for folder in sorted(store.iterdir()) if folder.is_dir()]
    if not found:
        raise InputError(f"there are no results in {store}.")
    return Results(
        {key: value for run in found for key, value in run.values.items()},
        {key: value for run in found for key, value in run.refused.items()},
        {"settings": found[0].facts["settings"]},
        frozenset(),
        {image: group for run in found for image, group in run.groups.items()},
    )


def trainings(results: Results) -> dict[str, list[str]]:
    """Architecture -> its trainings, in the order of their seeds."""
    found: dict[str, list[str]] = {}
    for model in sorted(
        {model for model, *_ in results.values}, key=lambda m: (m.rpartition("-")[0], int(m.rpartition("-")[2]))
    ):
        found.setdefault(model.rpartition("-")[0], []).append(model)
    return found


def compare(results: Results, other: str = PLAIN) -> dict[Key, Comparison]:
    """libragrad against another policy, for everything that is registered.

    Args:
        results: of all trainings.
        other: the other policy.

    Returns:
        What both policies have values for. Against the plain gradient with corrected p-values: that is the registered
        list.
    """
    found: dict[Key, Comparison] = {}
    for architecture, models in trainings(results).items():
        sides = {
            (method, metric): [_columns(results, models, policy, method, metric) for policy in (BALANCED, other)]
            for method, metric in itertools.product(METHODS, METRICS)
        }
        shared = {key: (ours, theirs) for key, (ours, theirs) in sides.items() if ours and theirs}
        compared = _compared(shared, results.groups, RESAMPLES if other == PLAIN else 2000)
        found.update({(architecture, *key): comparison for key, comparison in compared.items()})
    if other != PLAIN:
        return found
    corrected = holm([c.difference.p for c in found.values()])
    return {key: replace(c, corrected=p) for (key, c), p in zip(found.items(), corrected)}


Columns = list[Mapping[str, float]]
"""One mapping from image to value for each training."""


def _columns(results: Results, models: Sequence[str], policy: str, method: str, metric: str) -> Columns:
    """Empty unless every training has values."""
    found = [results.values.get((model, policy, method), {}).get(metric, {}) for model in models]
    return found if all(found) else []


def _compared(
    sides: Mapping[tuple[str, str], tuple[Columns, Columns]], groups: Mapping[str, str], resamples: int
) -> dict[tuple[str, str], Comparison]:
    """All comparisons of one architecture, by the same resamples."""
    if not sides:
        return {}
    images = sorted({image for side in sides.values() for columns in side for column in columns for image in column})
    ours, theirs = (
        torch.tensor([[[c.get(i, torch.nan) for i in images] for c in side[which]] for side in sides.values()])
        for which in (0, 1)
    )
    differences = two_level(
        (ours.double() - theirs.double()).permute(1, 2, 0),
        groups=[groups.get(i, i) for i in images],
        resamples=resamples,
    )
    means = [side.double().nanmean(2).tolist() for side in (ours, theirs)]
    return {
        key: Comparison(tuple(a), tuple(b), difference) for key, a, b, difference in zip(sides, *means, differences)
    }


def records(results: Results, others: Sequence[str] = POLICIES) -> dict[str, dict[str, tuple[int, int, int]]]:
    """Other policy -> metric -> how often libragrad is better, neither, worse, over architectures and methods."""
    found: dict[str, dict[str, tuple[int, int, int]]] = {}
    for other in others:
        if other == BALANCED:
            continue
        outcomes = {key: c.difference.sign for key, c in compare(results, other).items()}
        found[other] = {}
        for metric in METRICS:
            own = [outcome for (*_, of), outcome in outcomes.items() if of == metric]
            found[other][metric] = (own.count(1), own.count(0), own.count(-1))
    return found


@click.command()
@click.argument("weights", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("store", type=click.Path(file_okay=False, path_type=Path))
def main(weights: Path, store: Path) -> None:
    """Measure every training in WEIGHTS that STORE lacks; STORE/trainings.json says how well each reads canvases."""
    torch.set_num_threads(1)
    facts = {}
    for file in sorted(weights.glob("*-*.safetensors")):
        evaluate(plan(file), str(store / file.stem))
        facts[file.stem] = _facts(file)
        (store / "trainings.json").write_text(json.dumps(facts, indent=1) + "\n")
        click.echo(f"{file.stem} is measured")


def _facts(weights: Path) -> dict[str, float]:
    """What the training wrote down beside the weights: shares of canvases, as numbers."""
    with safe_open(weights, "pt") as file:
        return {key: float(value) for key, value in file.metadata().items() if key.startswith(("heldout_", "valid"))}


if __name__ == "__main__":
    main()
