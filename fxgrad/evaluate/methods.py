"""The seam to the attribution methods: what the runner calls for each of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fxgrad.evaluate.measure import Attribution
from fxgrad.metrics.removal import Grid
from fxgrad.module import ConvertedModule

Attribute = Callable[[ConvertedModule, Tensor, Tensor, Grid], Attribution]
"""Converted model, pictures (batch, C, H, W), targets int64 (batch,), patch grid -> attributions."""


@dataclass(frozen=True, eq=False)
class Map:
    """Attributions to pixels; a patch gets the sum of its own."""

    pixels: Tensor
    grid: Grid
    total: Tensor | None

    @property
    def patches(self) -> Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(self.pixels[None], self.grid)[0]


def input_x_gradient(converted: ConvertedModule, x: Tensor, target: Tensor, grid: Grid) -> Map:
    leaf = x.detach().requires_grad_()
    logit = converted(leaf).gather(1, target[:, None]).sum()
    (gradient,) = torch.autograd.grad(logit, leaf)
    pixels = (x * gradient).sum(1)
    return Map(pixels, grid, pixels.sum((1, 2)))


def gradient(converted: ConvertedModule, x: Tensor, target: Tensor, grid: Grid) -> Map:
    leaf = x.detach().requires_grad_()
    logit = converted(leaf).gather(1, target[:, None]).sum()
    return Map(torch.autograd.grad(logit, leaf)[0].sum(1), grid, None)


METHODS: dict[str, Attribute] = {"gradient": gradient, "input_x_gradient": input_x_gradient}
POLICY_FREE = {"raw_attention", "rollout", "random"}
