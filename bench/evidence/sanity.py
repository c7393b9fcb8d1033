"""Sanity checks of trained models' attributions: `python -m bench.evidence.sanity STORE MODEL...`

Weights are shuffled from the head down; a method that explains the model loses all likeness with its own map of the
trained model. MODEL is module.path:factory, or module.path:factory=CHECKPOINT. What is done is kept in STORE.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import click
import torch

from bench.evidence.trainings import by_policy, opened
from fxgrad.data import collate, open_data
from fxgrad.data.models import LoadedModel
from fxgrad.evaluate.store import Store, read
from fxgrad.metrics.sanity import parameter_randomisation
from fxgrad.module.converted import ConvertedModule
from fxgrad.pipeline import convert

METHODS: dict[str, dict[str, Any]] = {
    "input_x_gradient": {"at": "tokens"},
    "fullgrad_plus": {},
    "attcat": {},
    "genatt": {},
    "raw_attention": {},
    "rollout": {},
}
POLICIES = ("gradient", "libragrad", "attnlrp")
METRICS = {"head": "lower", "half": "lower", "all": "lower"}
"""Rank correlation with the trained model's map: the head shuffled, half of all stages, all of them."""


def measure(loaded: LoadedModel, store: Store, name: str, data: str, count: int) -> None:
    """Cascades of every method under every policy, on the first pictures of a data set."""
    pictures = open_data(data)
    batch = collate([pictures[i] for i in range(count)], loaded.preprocess)
    plain = convert(loaded.model, (batch.x,), rules="gradient").requires_grad_(False)

    def likeness(method: str, options: dict[str, Any], converted: ConvertedModule) -> dict[str, list[float]]:
        cascade = parameter_randomisation(converted, (batch.x,), target=batch.labels, method=method, **options)
        last = len(cascade.stages) - 1
        stages = {"head": 0, "half": last // 2, "all": last}
        return {metric: cascade.spearman[stage].tolist() for metric, stage in stages.items()}

    methods = {method: partial(likeness, method, options) for method, options in METHODS.items()}
    by_policy(store, name, plain, batch, 0, POLICIES, methods)


@click.command()
@click.argument("folder", type=click.Path(file_okay=False))
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option("--count", default=20, show_default=True, help="Pictures of each model.")
def main(folder: str, models: Sequence[str], count: int) -> None:
    """Shuffle the weights of MODELs from the head down, into the store FOLDER."""
    torch.set_num_threads(1)
    store = Store(folder)
    store.note("settings", {"count": count, "metrics": METRICS})
    done = {model for model, *_ in read(folder).done}
    for model in models:
        name, loaded, data = opened(model)
        if name not in done:
            measure(loaded, store, name, data, count)
            click.echo(f"{name} is measured")


if __name__ == "__main__":
    main()
