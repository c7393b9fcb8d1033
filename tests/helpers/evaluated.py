"""A small model and its data for the tests of evaluate.

`python -m tests.helpers.evaluated STORE` is one evaluation, as each process of torchrun runs it.

Where there is a folder `kill`, process 1 of several is killed as it takes its fourth picture, the first time.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from fxgrad.data import Sample, mask_of
from fxgrad.evaluate import Plan, evaluate

MODULE = "tests.helpers.evaluated"  # __name__ is another where this runs as a script
MODEL, DATA = f"{MODULE}:model", f"{MODULE}:squares"
KILLED = Path("kill") / "done"
METHODS = ("input_x_gradient", "fullgrad", "gradcam_plus", "random")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x))[:, None].chunk(3, -1)
        return x + F.gelu(self.out(F.scaled_dot_product_attention(q, k, v)[:, 0]))


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks, self.head = nn.Conv2d(1, 8, 12, 12), nn.ModuleList([Block(), Block()]), nn.Linear(8, 10)
        self.position = nn.Parameter(torch.randn(1, 16, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


def model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Tiny()


class Squares:
    """A bright square in the noise; its label says how bright."""

    class_names = None
    multilabel = True
    taken = 0

    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: int) -> Sample:
        Squares.taken += 1
        if KILLED.parent.exists() and os.environ.get("RANK") == "1" and Squares.taken == 4 and not KILLED.exists():
            KILLED.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        rng = np.random.default_rng(index)
        label, (top, left) = index % 10, rng.integers(0, 32, 2)
        mask = np.zeros((48, 48), np.bool_)
        mask[top : top + 16, left : left + 16] = True
        pixels = np.where(mask, 120 + 13 * label, rng.integers(0, 100, (48, 48))).astype(np.uint8)
        return Sample(Image.fromarray(pixels), label, mask_of(mask), str(index))


def squares() -> Squares:
    return Squares()


def plan(count: int = 8) -> Plan:
    return Plan(
        (MODEL,), METHODS, ("gradient", "libragrad"), data=DATA, count=count, chunk=2, steps=3, input_size=(1, 48, 48)
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    evaluate(plan(), sys.argv[1])
