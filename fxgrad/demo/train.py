"""Train the demo's model and write its weights: ``python -m fxgrad.demo.train``.

It takes two cores. Where other programs use them too, set OMP_WAIT_POLICY=passive: the same weights, many
times sooner, because a thread that waits for its twin does not spin.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np
import safetensors.torch
import torch
from rich.console import Console
from rich.progress import Progress
from timm.models import VisionTransformer
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from fxgrad.demo.canvas import batches, canvas
from fxgrad.demo.model import WEIGHTS, digits_vit, preprocess

STEPS = 4000
SEED = 0
HELDOUT_CANVASES = 2000

_BATCH = 64
_WARMUP = 200
_THREADS = 2


@dataclass(frozen=True)
class Score:
    """How well a model reads canvases; every number is a share, from 0 to 1.

    Attributes:
        accuracy: labels that are right, of all ten per canvas; naming no digit at all scores 0.8.
        recall: digits shown that are named.
        exact_match: canvases with all ten labels right.
    """

    accuracy: float
    recall: float
    exact_match: float


def train(steps: int = STEPS, seed: int = SEED) -> VisionTransformer:
    """A model trained from scratch on fresh canvases, in eval mode.

    Seeds torch's global generator; on one machine the same arguments give the same weights.

    Args:
        steps: batches of 64 canvases, at least 1.
        seed: for the initial weights and the canvases, at least 0.

    Raises:
        ValueError: ``steps`` or ``seed`` is too small.

    Example:
        >>> train(steps=1).training
        False
    """
    if steps < 1:
        raise ValueError(f"steps must be 1 or more, got {steps}")
    torch.manual_seed(seed)
    model = digits_vit(weights=False).train()
    optimizers = _optimizers(model)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min((step + 1) / _WARMUP, (1 + math.cos(math.pi * step / steps)) / 2)
        )
        for optimizer in optimizers
    ]
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("training", total=steps)
        for _, (images, targets) in zip(range(steps), batches(_BATCH, seed), strict=False):
            loss = binary_cross_entropy_with_logits(model(preprocess(images)), torch.from_numpy(targets))
            model.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer, schedule in zip(optimizers, schedules, strict=True):
                optimizer.step()
                schedule.step()
            progress.update(task, advance=1, description=f"loss {loss.item():.3f}")
    return model.eval()


@torch.no_grad()
def evaluate(model: nn.Module, count: int = HELDOUT_CANVASES, split: str = "heldout") -> Score:
    """Score a model on canvases 0 to ``count - 1`` of a split; a logit above zero names a digit.

    Args:
        model: preprocessed float32 (N, 1, 48, 48) in, logits (N, 10) out.
        count: how many canvases, at least 1.
        split: "heldout" or "train".

    Raises:
        ValueError: ``split`` is neither, or ``count`` is below 1.

    Example:
        >>> evaluate(digits_vit(), count=50).accuracy > 0.9
        True
    """
    if count < 1:
        raise ValueError(f"count must be 1 or more, got {count}")
    truth, named = [], []
    for start in range(0, count, 250):
        canvases = [canvas(seed, split) for seed in range(start, min(start + 250, count))]
        truth.append(np.stack([c.target for c in canvases]) > 0)
        named.append(model(preprocess(np.stack([c.image for c in canvases]))).numpy() > 0)
    shown, said = np.concatenate(truth), np.concatenate(named)
    right = shown == said
    return Score(float(right.mean()), float(said[shown].mean()), float(right.all(axis=1).mean()))


def _optimizers(model: VisionTransformer) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for all else: AdamW alone needs more than twice the steps."""
    matrices = [p for p in model.blocks.parameters() if p.ndim == 2]
    rest = [p for p in model.parameters() if all(p is not matrix for matrix in matrices)]
    return [
        torch.optim.Muon(matrices, lr=6e-3, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=2e-3, weight_decay=0.0),
    ]


@click.command()
@click.option("--steps", type=click.IntRange(min=1), default=STEPS, show_default=True, help="Batches of 64.")
@click.option("--seed", type=click.IntRange(min=0), default=SEED, show_default=True)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path(__file__).with_name(WEIGHTS),
    help="Where to write the weights; by default the file that digits_vit() loads.",
)
def main(steps: int, seed: int, out: Path) -> None:
    """Train the demo's model, score it on held-out scans, write its weights."""
    if not out.parent.is_dir():
        # Better now than after the training.
        raise click.BadParameter(f"there is no directory {out.parent}", param_hint="--out")
    torch.set_num_threads(_THREADS)
    start = time.perf_counter()
    model = train(steps, seed)
    seconds = time.perf_counter() - start
    score = evaluate(model, HELDOUT_CANVASES)
    facts = {"steps": steps, "seed": seed, "heldout_canvases": HELDOUT_CANVASES, **asdict(score)}
    safetensors.torch.save_file(model.state_dict(), out, {key: str(value) for key, value in facts.items()})
    click.echo(f"{steps} steps in {seconds:.0f} s; on {HELDOUT_CANVASES} canvases of held-out scans:")
    click.echo(f"per-label accuracy {score.accuracy:.2%} (naming nothing scores 80%)")
    click.echo(f"recall {score.recall:.2%}, exact match {score.exact_match:.2%}")
    click.echo(f"wrote {out} ({out.stat().st_size:,} bytes)")


if __name__ == "__main__":
    main()
