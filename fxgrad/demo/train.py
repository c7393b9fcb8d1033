"""Train the demo's models and write their weights: ``python -m fxgrad.demo.train NAME``, or ``all``.

Each model trains in one thread and takes minutes.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
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
from fxgrad.demo.independent import INDEPENDENT
from fxgrad.demo.loop import Training, order
from fxgrad.demo.model import checkpoint
from fxgrad.demo.models import MODELS
from fxgrad.demo.results import measure, record
from fxgrad.demo.score import evaluate

__all__ = ["RECIPES", "SCRATCH", "SEED", "Recipe", "evaluate", "main", "train"]

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
        split: the canvases' split.
        classes: share of the steps that learn the classes only, before a model's own loss. CLIP from scratch begins so:
            captions alone do not get it started.
    """

    steps: int
    batch: int = 32
    canvases: int = 20000
    lr: float = 6e-3
    hints: float = 1.0
    split: str = "train"
    classes: float = 0.0


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
SCRATCH = Recipe(8000, canvases=128000, lr=3e-3, hints=0.0, split="fit")
"""Of every model that is trained without the teacher; chosen on the split "validation"."""
TEACHER = "vit"
"""The model that gives hints to the others."""

_CHUNK = 250
_THREADS = 1
_LOSSES: dict[str, Callable[..., Tensor]] = {"clip": losses.contrastive, "flexivit": losses.flexible}


def train(
    name: str = "vit",
    steps: int | None = None,
    seed: int = SEED,
    *,
    from_scratch: bool = False,
    state: Path | None = None,
    device: str = "cpu",
) -> nn.Module:
    """A trained model in eval mode, its weights rounded to float16.

    The teacher is trained from scratch on the train split's canvases; the others start from its weights and use its
    hints. `from_scratch` makes each an independent witness instead: weights of its own, no hints, one recipe for all,
    and the canvases of the split "fit". Seeds torch's global generator; on one machine the same arguments give the same
    weights.

    Args:
        name: one of `fxgrad.demo.models.MODELS`; `from_scratch`, of `fxgrad.demo.independent.INDEPENDENT`.
        steps: batches of canvases, at least 1; by default the recipe's.
        seed: for the initial weights and the order of the canvases, at least 0.
        from_scratch: train without the teacher.
        state: file that keeps the state every 250 steps, from which a training that was stopped goes on; the weights
            are the same as without a stop.
        device: where to train without the teacher, such as "cuda"; the initial weights and all that is drawn are the
            CPU's.

    Raises:
        ValueError: ``steps`` or ``seed`` is too small, there is no such model, ``state`` is another training's, or the
            teacher is to teach on another device than the CPU.

    Example:
        >>> train("vit_tiny", steps=1).training
        False
    """
    known = list(INDEPENDENT if from_scratch else MODELS)
    if name not in known:
        raise ValueError(f"unknown model {name!r}: use one of {', '.join(known)}")
    recipe = scratch(name) if from_scratch else RECIPES[name]
    steps = recipe.steps if steps is None else steps
    if steps < 1:
        raise ValueError(f"steps must be 1 or more, got {steps}")
    if device != "cpu" and not from_scratch:
        raise ValueError("the teacher teaches on the CPU only: leave out device, or train from scratch")
    torch.manual_seed(seed)
    model = (INDEPENDENT[name]() if from_scratch else MODELS[name](weights=False)).train().to(device)
    if not from_scratch and name != TEACHER:
        inherit(model, MODELS[TEACHER]())
    facts = {"name": name, "steps": steps, "seed": seed, "from_scratch": from_scratch}
    _run(model, name, recipe, steps, state, facts)
    for tensor in model.state_dict().values():
        tensor.copy_(tensor.half())
    return model.eval().cpu()


def scratch(name: str) -> Recipe:
    """The recipe of a model that is trained without the teacher.

    Example:
        >>> scratch("vit") == SCRATCH, scratch("clip").classes
        (True, 0.5)
    """
    return replace(SCRATCH, classes=0.5) if name == "clip" else SCRATCH


def _run(model: nn.Module, name: str, recipe: Recipe, steps: int, state: Path | None, facts: dict[str, object]) -> None:
    """Train a model in place."""
    loss_of = _LOSSES.get(name, losses.multilabel)
    pool = _pool(min(recipe.canvases, steps * recipe.batch), name == "clip", recipe.hints > 0, recipe.split)
    taught = nn.ModuleDict({"model": model})
    if recipe.hints:
        taught["adapters"] = Adapters(width(model), pool.hints.shape[-1])
    picked = order(len(pool), steps * recipe.batch)

    with Progress(console=Console(stderr=True), transient=True) as progress, Tokens(model) as tokens:

        def loss(step: int, canvases: losses.Batch) -> tuple[Tensor, Tensor]:
            task = (losses.multilabel if step <= recipe.classes * steps else loss_of)(model, canvases)
            if step <= recipe.hints * steps:
                return task + taught["adapters"](tokens.found, canvases.hints), task
            return task, task

        training = Training(taught, pool, picked, recipe.batch, recipe.lr, loss, state, facts)
        task, seen = progress.add_task(name, total=steps, completed=training.done), 0.0
        for step, found in training:
            seen += found
            progress.update(task, completed=step)
            if step % 250 == 0:
                progress.console.print(f"{name}, step {step}: loss {seen / 250:.3f}")
                seen = 0.0


def _pool(count: int, colours: bool, taught: bool, split: str = "train") -> losses.Batch:
    """Canvases 0 to ``count - 1`` of a split; with the teacher's hints if `taught`."""
    chunks = [_chunk(i, colours, taught, split) for i in range(math.ceil(count / _CHUNK))]
    columns = ([getattr(chunk, field.name) for chunk in chunks] for field in fields(losses.Batch))
    return losses.Batch(*(torch.cat(column)[:count] for column in columns))


@cache
def _chunk(index: int, colours: bool, taught: bool, split: str) -> losses.Batch:
    """One chunk of the canvases, cached for the next model."""
    names = list(COLOURS)
    canvases = [canvas(index * _CHUNK + i, split, colours=colours) for i in range(_CHUNK)]
    pixels = torch.from_numpy(np.stack([(c.image * 255).round().astype(np.uint8) for c in canvases]))
    labels = torch.tensor([c.labels for c in canvases])
    inks = torch.tensor([[names.index(name) for name in c.colours] for c in canvases])
    return losses.Batch(pixels, labels, inks, hints(MODELS[TEACHER](), pixels) if taught else torch.empty(_CHUNK, 0))


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME...|all]")
@click.option("--steps", type=click.IntRange(min=1), help="Batches; by default each model's own number.")
@click.option(
    "--seed", "seeds", type=click.IntRange(min=0), multiple=True, default=(SEED,), show_default=True, help="May repeat."
)
@click.option(
    "--from-scratch",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Train without the teacher, into FOLDER/NAME-SEED.safetensors. What is there is left, and what was stopped "
    "goes on: run it again.",
)
@click.option("--device", default="cpu", show_default=True, help="For --from-scratch: cpu or cuda.")
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
def main(
    names: Sequence[str],
    steps: int | None,
    seeds: Sequence[int],
    folder: Path | None,
    device: str,
    out: Path | None,
    results: Path | None,
) -> None:
    """Train models of the demo, score them on held-out scans, write their weights.

    NAME is vit by default.
    """
    known = list(INDEPENDENT if folder else MODELS)
    names = known if "all" in names else names or ["vit"]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise click.BadParameter(f"there is no model {unknown[0]}: use all, {', '.join(known)}", param_hint="NAME")
    if folder and (out or results):
        raise click.BadParameter("it names all files; leave out --out and --results", param_hint="--from-scratch")
    if not folder and len(seeds) > 1:
        raise click.BadParameter("several are for --from-scratch", param_hint="--seed")
    if not folder and device != "cpu":
        raise click.BadParameter("another device is for --from-scratch", param_hint="--device")
    if out and len(names) > 1:
        raise click.BadParameter("it is for one model; leave it out", param_hint="--out")
    for path in filter(None, (out, results)):
        if not path.parent.is_dir():
            # Fail before the training, not after it.
            raise click.BadParameter(
                f"there is no directory {path.parent}", param_hint=f"--{'out' if path is out else 'results'}"
            )
    torch.set_num_threads(_THREADS)
    for seed in seeds:
        for name in names:
            if folder:
                _from_scratch(name, steps, seed, folder, device)
            else:
                _train_and_write(name, steps or RECIPES[name].steps, seed, out or checkpoint(name), results)


def _from_scratch(name: str, steps: int | None, seed: int, folder: Path, device: str) -> None:
    """Train a model without the teacher, unless its weights are there."""
    folder.mkdir(parents=True, exist_ok=True)
    out, state = (folder / f"{name}-{seed}.{ending}" for ending in ("safetensors", "state"))
    if out.exists():
        return
    model = train(name, steps, seed, from_scratch=True, state=state, device=device)
    scores = {split: evaluate(model, HELDOUT_CANVASES, split) for split in ("validation", "heldout")}
    facts = {f"{split}_{key}": value for split, score in scores.items() for key, value in asdict(score).items()}
    _write(model, out, {"name": name, "seed": seed, "steps": steps or SCRATCH.steps, **facts})
    state.unlink(missing_ok=True)
    click.echo(f"{out}: both digits found {scores['heldout'].both:.2%}; validation {scores['validation'].both:.2%}")


def _write(model: nn.Module, out: Path, facts: Mapping[str, object]) -> None:
    """Write a model's weights in float16, whole or not at all."""
    halves = {key: tensor.half() for key, tensor in model.state_dict().items()}
    beside = out.with_name(f".{out.name}")
    safetensors.torch.save_file(halves, beside, {key: str(value) for key, value in facts.items()})
    os.replace(beside, out)


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
    _write(model, out, facts)
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
