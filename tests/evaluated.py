"""A small model and its data for the tests of evaluate; as a script, one evaluation, as a process of torchrun runs it.

Of the data, `killing` ends process 1 where it takes its fourth picture, the first time.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxgrad.data import Digits, Sample
from fxgrad.evaluate import Plan, evaluate

MODEL = f"{Path(__file__).stem}:model"
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


class Killing(Digits):
    taken = 0

    def __getitem__(self, index: int) -> Sample:
        Killing.taken += 1
        flag = Path("killed")
        if os.environ.get("RANK") == "1" and Killing.taken == 4 and not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def killing() -> Killing:
    return Killing()


def plan(data: str = "digits", count: int = 6) -> Plan:
    return Plan(
        (MODEL,), METHODS, ("gradient", "libragrad"), data=data, count=count, chunk=2, steps=3, input_size=(1, 48, 48)
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    evaluate(plan(sys.argv[2]), sys.argv[1])
