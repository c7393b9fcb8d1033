"""A model's maps beside those of one trained on random labels: `python -m bench.evidence.labels FOLDER NAME=WEIGHTS...`

The other model starts from weights of its own and learns some canvases by heart, two random classes for each. A method
that explains what was learned, and not only what is bright in the picture, explains the two models otherwise.
WEIGHTS is a training of `python -m fxgrad.demo.train --from-scratch`. What is done is kept in FOLDER.

Source: Adebayo et al., arXiv:1810.03292, section 4.2.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import safetensors.torch
import torch
from torch import nn

from bench.evidence.sanity import METHODS, POLICIES
from bench.evidence.trainings import by_policy, opened
from fxgrad.data import collate, open_data
from fxgrad.data.models import LoadedModel
from fxgrad.demo import losses
from fxgrad.demo.canvases import canvas
from fxgrad.demo.independent import INDEPENDENT
from fxgrad.demo.loop import Training, order
from fxgrad.evaluate.store import Store, read
from fxgrad.metrics.sanity import label_randomisation
from fxgrad.module.converted import ConvertedModule
from fxgrad.pipeline import convert

STEPS, BATCH, CANVASES, COUNT = 3000, 32, 512, 100
METRICS = {"labels": "lower"}
"""Rank correlation of the two models' maps."""


def relabelled(count: int, seed: int = 0) -> losses.Batch:
    """Canvases of the split "fit", with two random classes each.

    Example:
        >>> relabelled(3).labels.shape
        torch.Size([3, 2])
    """
    rng = np.random.default_rng([seed, 4])
    pixels = np.stack([(canvas(i, "fit").image * 255).round().astype(np.uint8) for i in range(count)])
    labels = np.stack([rng.choice(10, 2, replace=False) for _ in range(count)])
    return losses.Batch(torch.from_numpy(pixels), torch.from_numpy(labels), *(torch.empty(count, 0) for _ in range(2)))


def train(name: str, pool: losses.Batch, steps: int = STEPS, seed: int = 1) -> nn.Module:
    """A model of one architecture that knows the canvases by heart; seeds torch's global generator."""
    torch.manual_seed(seed)
    model = INDEPENDENT[name]().train()

    def loss(step: int, batch: losses.Batch) -> tuple[torch.Tensor, torch.Tensor]:
        found = losses.multilabel(model, batch)
        return found, found

    for _ in Training(nn.ModuleDict({"model": model}), pool, order(len(pool), steps * BATCH), BATCH, 3e-3, loss):
        pass
    return model.eval()


@torch.no_grad()
def remembered(model: nn.Module, pool: losses.Batch) -> float:
    """The share of canvases whose two largest logits are those of their labels."""
    top = model(pool.images).topk(2).indices
    return float((top.sort(1).values == pool.labels.sort(1).values).all(1).double().mean())


def measure(loaded: LoadedModel, other: nn.Module, store: Store, name: str, count: int) -> None:
    """The likeness of the two models' maps of held-out canvases, by every method under every policy."""
    pictures = open_data("digits")
    batch = collate([pictures[i] for i in range(count)], loaded.preprocess)
    plain, beside = (convert(m, (batch.x,), rules="gradient").requires_grad_(False) for m in (loaded.model, other))

    def likeness(method: str, options: dict[str, Any], converted: ConvertedModule) -> dict[str, list[float]]:
        policy = converted.classified.table.name
        found = label_randomisation(
            converted, beside.under(policy), (batch.x,), target=batch.labels, method=method, **options
        )
        return {"labels": found.spearman.tolist()}

    by_policy(store, name, plain, batch, 0, POLICIES, {m: partial(likeness, m, o) for m, o in METHODS.items()})


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.argument("models", nargs=-1, required=True, metavar="NAME=WEIGHTS...")
@click.option("--steps", default=STEPS, show_default=True, help="Of the trainings on random labels.")
@click.option("--count", default=COUNT, show_default=True, help="Held-out pictures.")
def main(folder: Path, models: Sequence[str], steps: int, count: int) -> None:
    """Train on random labels what FOLDER lacks, and compare; FOLDER/labels.json says what was learned by heart."""
    torch.set_num_threads(1)
    store = Store(str(folder))
    store.note("settings", {"count": count, "metrics": METRICS})
    facts = folder / "labels.json"
    known = json.loads(facts.read_text()) if facts.exists() else {}
    done = {model for model, *_ in read(str(folder)).done}
    for given in models:
        architecture, _, weights = given.partition("=")
        name, loaded, _ = opened(f"fxgrad.demo.independent:{architecture}={weights}")
        if name in done:
            continue
        file, pool = folder / f"{architecture}.safetensors", relabelled(CANVASES)
        if not file.exists():
            model = train(architecture, pool, steps)
            safetensors.torch.save_file(model.state_dict(), file)
            known[architecture] = {"steps": steps, "remembered": remembered(model, pool)}
            facts.write_text(json.dumps(known, indent=1) + "\n")
            click.echo(f"{architecture}: {known[architecture]}")
        other = INDEPENDENT[architecture]()
        safetensors.torch.load_model(other, file)
        measure(loaded, other.eval(), store, name, count)
        click.echo(f"{name} is measured")


if __name__ == "__main__":
    main()
