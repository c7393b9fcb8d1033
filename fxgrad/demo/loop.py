"""The training loop: batches in a drawn order, two optimizers, and a state on disk to go on from after a stop."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fxgrad.demo.losses import Batch
from fxgrad.demo.muon import Muon

_WARMUP = 50
_SAVED_EVERY = 250

Loss = Callable[[int, Batch], tuple[Tensor, Tensor]]
"""Number of the step, from 1 on, and a batch -> the loss to minimise, and the loss to report."""


class Training:
    """One training of a model; iterating does it, and yields each step's number and loss.

    A training that goes on from its state gives the weights that one without a stop would have given.

    Args:
        model: in train mode.
        pool: the canvases.
        order: indices of canvases, int64 (steps * batch,).
        batch: canvases per step.
        lr: Muon's learning rate; AdamW's is two thirds of it.
        loss: the loss of a step.
        state: file that holds the state every 250 steps; None keeps none.
        facts: the training's name, seed and the like; a state with other facts is refused.

    Raises:
        ValueError: `state` belongs to another training.

    Example:
        >>> model, pool = nn.Linear(1, 1), Batch(torch.ones(4, 1), *(torch.zeros(4, 0) for _ in range(3)))
        >>> def loss(step, batch):
        ...     return (found := model(batch.pixels).square().mean()), found
        >>> [step for step, _ in Training(model, pool, torch.arange(4), 2, 1e-3, loss)]
        [1, 2]
    """

    def __init__(
        self,
        model: nn.Module,
        pool: Batch,
        order: Tensor,
        batch: int,
        lr: float,
        loss: Loss,
        state: Path | None = None,
        facts: dict[str, Any] | None = None,
    ) -> None:
        self.model, self.pool, self.loss, self.state, self.facts = model, pool, loss, state, facts or {}
        self.batches = torch.split(order, batch)
        self.optimizers = _optimizers(model, lr)
        self.schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate) for optimizer in self.optimizers]
        self.done = 0
        if state and state.exists():
            self._load(state)

    def __iter__(self) -> Iterator[tuple[int, float]]:
        for step in range(self.done + 1, len(self.batches) + 1):
            total, shown = self.loss(step, self.pool.at(self.batches[step - 1]))
            self.model.zero_grad()
            total.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            for optimizer, schedule in zip(self.optimizers, self.schedules, strict=True):
                optimizer.step()
                schedule.step()
            self.done = step
            if self.state and step % _SAVED_EVERY == 0:
                self._save(self.state)
            yield step, shown.item()

    def _rate(self, step: int) -> float:
        """The learning rate's factor: a linear warm-up, then half a cosine."""
        return min((step + 1) / _WARMUP, (1 + math.cos(math.pi * step / len(self.batches))) / 2)

    def _parts(self) -> dict[str, Any]:
        """Everything with a state of its own; the model's losses draw from torch's global generator."""
        numbered = {f"optimizer {i}": optimizer for i, optimizer in enumerate(self.optimizers)}
        return {"model": self.model, **numbered, **{f"schedule {i}": s for i, s in enumerate(self.schedules)}}

    def _save(self, path: Path) -> None:
        found = {name: part.state_dict() for name, part in self._parts().items()}
        # The factor of the learning rate is a method of this object, and follows from the step.
        for name in found:
            found[name].pop("lr_lambdas", None)
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        torch.save({"facts": self.facts, "done": self.done, "random": torch.get_rng_state(), **found}, beside)
        os.replace(beside, path)

    def _load(self, path: Path) -> None:
        found = torch.load(path, weights_only=True)
        if found["facts"] != self.facts:
            raise ValueError(
                f"{path} is the state of another training: {found['facts']}, and not {self.facts}. Delete it, or "
                "train into another folder."
            )
        for name, part in self._parts().items():
            extra = {"lr_lambdas": [None]} if name.startswith("schedule") else {}
            part.load_state_dict({**found[name], **extra})
        self.done = found["done"]
        torch.set_rng_state(found["random"])


def order(canvases: int, length: int) -> Tensor:
    """Indices of canvases, int64 (length,): all in a drawn order, then all in another, until there are enough."""
    return torch.cat([torch.randperm(canvases) for _ in range(math.ceil(length / canvases))])[:length]


def _optimizers(model: nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for all else: AdamW alone needs more than twice the steps."""
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        is_matrix = "blocks." in name and name.endswith("weight") and parameter.ndim == 2
        (matrices if is_matrix else rest).append(parameter)
    found: list[torch.optim.Optimizer] = [torch.optim.AdamW(rest, lr=lr / 1.5, weight_decay=0.0)] if rest else []
    return [Muon(matrices, lr=lr, weight_decay=0.05), *found] if matrices else found
