"""A net with a live node of every kind, in which faults are planted and sources are added up."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxgrad
from fxgrad.capture import Captured, capture
from tests.helpers import sharing


class Block(nn.Module):
    """One live node of every kind but linear, all of them carrying something that reaches the output."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(6)
        self.project = nn.Linear(6, 18)
        self.out = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.project(self.norm(x)).chunk(3, -1)
        x = x + F.scaled_dot_product_attention(q, k, v)
        x = x + F.gelu(q) + torch.tanh(k)
        x = x + torch.sigmoid(v)
        x = x + q * v
        scale = 2 + v.abs()
        x = x / scale + scale
        x = x + F.relu(v) + q.square() + F.glu(torch.cat([q, k], -1))
        return self.out(x)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.block, self.last = nn.Linear(4, 6), Block(), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.hardtanh(self.block(self.first(x)), -2, 2))


def net() -> tuple[nn.Module, tuple[Tensor]]:
    torch.manual_seed(0)
    model = Net().double().eval()
    for parameter in model.parameters():
        parameter.detach().add_(torch.randn_like(parameter) / 4)
    return model, (torch.randn(3, 5, 4).double(),)


@functools.cache
def captured_net() -> Captured:
    return capture(*net())


def converted_net(rules: Any = None) -> tuple[nn.Module, Tensor, fxgrad.ConvertedModule]:
    model, (x,), libra = sharing.converted(net, rules)
    return model, x, libra
