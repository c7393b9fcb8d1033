"""Train the demo's models and write their weights: ``python -m fxgrad.demo.train NAME``, or ``all``.

Each model trains in one thread and takes minutes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path

import click
import numpy as np
import safetensors.torch
import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from fxgrad.demo import losses
from fxgrad.demo.canvases import COLOURS, canvas
from fxgrad.demo.hints import Adapters, Tokens, hints, inherit, width
from fxgrad.demo.model import checkpoint
from fxgrad.demo.models import MODELS
from fxgrad.demo.muon import Muon
from fxgrad.demo.results import measure, record
from fxgrad.demo.score import evaluate

__all__ = ["RECIPES", "SEED", "Recipe", "evaluate", "main", "train"]

SEED = 0
HELDOUT_CANVASES = 2000


@dataclass(frozen=True)
class Recipe:
    """How a model is trained.

    Attributes:
        steps: number of batches.
        batch: canvases per batch.
        canvases: number of different canvases.
        lr: Muon's learning rate; AdamW's is two thirds of it.
        hints: share of the steps that use the teacher's hints. CLIP's last steps go without, since the teacher knows no
            colours.
    """

    steps: int
    batch: int = 32
    canvases: int = 20000
    lr: float = 6e-3
    hints: float = 1.0


RECIPES = {
    "vit": Recipe(4000, 64, 256000, hints=0.0),
    "deit3": Recipe(500, lr=2e-3),
    "beit2": Recipe(800, lr=2e-3),
    "eva02": Recipe(1200, lr=4e-3),
    "flexivit": Recipe(800, lr=2e-3),
    "siglip": Recipe(600, lr=2e-3),
    "clip": Recipe(3000, lr=4e-3, hints=0.3),
    "mixer": Recipe(1200),
    "vit_tiny": Recipe(8000, canvases=64000),
    "vit_small": Recipe(6000, canvases=64000),
    "vit_medium": Recipe(4000, canvases=64000),
}
TEACHER = "vit"
"""The model that gives hints to the others."""

_CHUNK = 250
_WARMUP = 50
_THREADS = 1
_LOSSES: dict[str, Callable[..., Tensor]] = {"clip": losses.contrastive, "flexivit": losses.flexible}


def train(name: str = "vit", steps: int | None = None, seed: int = SEED) -> nn.Module:
    """A model trained on the train split's canvases, in eval mode, its weights rounded to float16.

    The teacher is trained from scratch, the others start from its weights and use its hints.
    Seeds torch's global generator; on one machine the same arguments give the same weights.

    Args:
        name: one of `fxgrad.demo.models.MODELS`.
        steps: batches of canvases, at least 1; by default the recipe's.
        seed: for the initial weights and the order of the canvases, at least 0.

    Raises:
        ValueError: ``steps`` or ``seed`` is too small, or there is no such model.

    Example:
        >>> train("vit_tiny", steps=1).training
        False
    """
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}: use one of {', '.join(MODELS)}")
    recipe = RECIPES[name]
    steps, batch = recipe.steps if steps is None else steps, recipe.batch
    if steps < 1:
        raise ValueError(f"steps must be 1 or more, got {steps}")
    torch.manual_seed(seed)
    model = MODELS[name](weights=False).train()
    if name != TEACHER:
        inherit(model, MODELS[TEACHER]())
    loss_of = _LOSSES.get(name, losses.multilabel)
    pool = _pool(min(recipe.canvases, steps * batch), name == "clip", recipe.hints > 0)
    taught = nn.ModuleDict({"model": model})
    if recipe.hints:
        taught["adapters"] = Adapters(width(model), pool.hints.shape[-1])
    optimizers = _optimizers(taught, recipe.lr)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min((step + 1) / _WARMUP, (1 + math.cos(math.pi * step / steps)) / 2)
        )
        for optimizer in optimizers
    ]
    order = torch.cat([torch.randperm(len(pool)) for _ in range(math.ceil(steps * batch / len(pool)))])
    seen = 0.0
    with Progress(console=Console(stderr=True), transient=True) as progress, Tokens(model) as tokens:
        task = progress.add_task(name, total=steps)
        for step, picked in enumerate(torch.split(order[: steps * batch], batch), 1):
            canvases = pool.at(picked)
            task_loss = loss = loss_of(model, canvases)
            if step <= recipe.hints * steps:
                loss = task_loss + taught["adapters"](tokens.found, canvases.hints)
            taught.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(taught.parameters(), 1.0)
            for optimizer, schedule in zip(optimizers, schedules, strict=True):
                optimizer.step()
                schedule.step()
            seen += task_loss.item()
            progress.update(task, advance=1)
            if step % 250 == 0:
                progress.console.print(f"{name}, step {step}: loss {seen / 250:.3f}")
                seen = 0.0
    for tensor in model.state_dict().values():
        tensor.copy_(tensor.half())
    return model.eval()


def _pool(count: int, colours: bool, taught: bool) -> losses.Batch:
    """Canvases 0 to ``count - 1`` of the train split; with the teacher's hints if `taught`."""
    chunks = [_chunk(i, colours, taught) for i in range(math.ceil(count / _CHUNK))]
    columns = ([getattr(chunk, field.name) for chunk in chunks] for field in fields(losses.Batch))
    return losses.Batch(*(torch.cat(column)[:count] for column in columns))


@cache
def _chunk(index: int, colours: bool, taught: bool) -> losses.Batch:
    """One chunk of the canvases, cached for the next model."""
    names = list(COLOURS)
    canvases = [canvas(index * _CHUNK + i, "train", colours=colours) for i in range(_CHUNK)]
    pixels = torch.from_numpy(np.stack([(c.image * 255).round().astype(np.uint8) for c in canvases]))
    labels = torch.tensor([c.labels for c in canvases])
    inks = torch.tensor([[names.index(name) for name in c.colours] for c in canvases])
    return losses.Batch(pixels, labels, inks, hints(MODELS[TEACHER](), pixels) if taught else torch.empty(_CHUNK, 0))


def _optimizers(model: nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for all else: AdamW alone needs more than twice the steps."""
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        is_matrix = "blocks." in name and name.endswith("weight") and parameter.ndim == 2
        (matrices if is_matrix else rest).append(parameter)
    return [Muon(matrices, lr=lr, weight_decay=0.05), torch.optim.AdamW(rest, lr=lr / 1.5, weight_decay=0.0)]


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME...|all]")
@click.option("--steps", type=click.IntRange(min=1), help="Batches; by default each model's own number.")
@click.option("--seed", type=click.IntRange(min=0), default=SEED, show_default=True)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where to write the weights of one model; by default the file that its factory loads.",
)
@click.option(
    "--results",
    type=click.Path(dir_okay=False, path_type=Path),
    help="A JSON file to add what was measured to; the page beside it, of the same name, is written anew.",
)
def main(names: Sequence[str], steps: int | None, seed: int, out: Path | None, results: Path | None) -> None:
    """Train models of the demo, score them on held-out scans, write their weights.

    NAME is vit by default.
    """
    names = list(MODELS) if "all" in names else names or ["vit"]
    unknown = [name for name in names if name not in MODELS]
    if unknown:
        raise click.BadParameter(f"there is no model {unknown[0]}: use all, {', '.join(MODELS)}", param_hint="NAME")
    if out and len(names) > 1:
        raise click.BadParameter("it is for one model; leave it out", param_hint="--out")
    for path in filter(None, (out, results)):
        if not path.parent.is_dir():
            # Fail before the training, not after it.
            raise click.BadParameter(
                f"there is no directory {path.parent}", param_hint=f"--{'out' if path is out else 'results'}"
            )
    torch.set_num_threads(_THREADS)
    for name in names:
        _train_and_write(name, steps or RECIPES[name].steps, seed, out or checkpoint(name), results)


def _train_and_write(name: str, steps: int, seed: int, out: Path, results: Path | None) -> None:
    recipe = RECIPES[name]
    seen = steps * recipe.batch
    different = min(recipe.canvases, seen)
    _pool(different, name == "clip", recipe.hints > 0)  # made once for all models, so not part of the measured time
    start = time.process_time()
    model = train(name, steps, seed)
    seconds = time.process_time() - start
    score = evaluate(model, HELDOUT_CANVASES)
    facts = {"steps": steps, "seed": seed, "heldout_canvases": HELDOUT_CANVASES, **asdict(score)}
    halves = {key: tensor.half() for key, tensor in model.state_dict().items()}
    safetensors.torch.save_file(halves, out, {key: str(value) for key, value in facts.items()})
    click.echo(f"{name}: {steps} steps in {seconds:.0f} s; on {HELDOUT_CANVASES} canvases of held-out scans:")
    click.echo(f"both digits found {score.both:.2%}")
    click.echo(f"per-label accuracy {score.accuracy:.2%} (naming nothing scores 80%)")
    click.echo(f"recall {score.recall:.2%}, exact match {score.exact_match:.2%}")
    click.echo(f"wrote {out} ({out.stat().st_size:,} bytes)")
    if results:
        fresh, teacher = MODELS[name](weights=False), MODELS[TEACHER](weights=False)
        cost = {
            "inherited": 0.0 if name == TEACHER else inherit(fresh, teacher),
            "canvases": seen,
            "epochs": seen / different,
            "seconds": round(seconds),
        }
        record(results, name, {**facts, **cost, **measure(model)})


if __name__ == "__main__":
    main()
