"""Models that behave well or badly, for the zoo's worker processes: they import this, not the tests."""

from __future__ import annotations

import os
import signal
import time

import torch
from torch import nn

from fxgrad.zoo.case import Built


def good() -> Built:
    return Built(nn.Sequential(nn.Linear(3, 4), nn.GELU()).eval(), (torch.randn(2, 3),), {})


def crash() -> Built:
    os.kill(os.getpid(), signal.SIGSEGV)
    return good()


def hang() -> Built:
    time.sleep(100)
    return good()


def hog() -> Built:
    """Takes up to 2 GB, so that a limit which does not work costs no more."""
    hoard = [b"x" * 100_000_000 for _ in range(20)]
    time.sleep(100)
    return Built(nn.Identity(), (), {}, f"{len(hoard)} x 100 MB")


def mistaken() -> Built:
    raise ValueError("one line\n\nand another")


class Softmax(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.softmax(-1)


def refused() -> Built:
    return Built(Softmax().eval(), (torch.randn(2, 3),), {})
