"""Muon in float32: PyTorch's own uses bfloat16, which is slow on CPUs without bfloat16 instructions."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

_QUINTIC = (3.4445, -4.7750, 2.0315)
"""Coefficients that bring singular values from (0, 1] to about 1 in five iterations."""


class Muon(torch.optim.Optimizer):
    """Muon: steps along the momentum, orthogonalized by Newton-Schulz iterations.

    Args:
        params: matrices; those of one shape are updated together.
        lr: learning rate; scaled by 0.2 sqrt(max(rows, columns)), so that a step is as long as one of AdamW.
        weight_decay: decoupled weight decay.
        momentum: Nesterov momentum.

    Raises:
        ValueError: a parameter is no matrix.

    Example:
        >>> weight = nn.Parameter(torch.eye(2))
        >>> weight.grad = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
        >>> Muon([weight], lr=1.0).step()
        >>> bool((weight.diagonal() < 0.9).all())
        True

    Source: Jordan et al., Muon: An optimizer for hidden layers in neural networks, 2024; the step's length from
    Liu et al., arXiv:2502.16982.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float, weight_decay: float = 0.0, momentum: float = 0.95
    ) -> None:
        params = list(params)
        if any(p.ndim != 2 for p in params):
            raise ValueError("Muon is for matrices; give other parameters to another optimizer")
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update the matrices by their gradients; a closure is not supported."""
        for group in self.param_groups:
            alike: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                alike[parameter.shape].append(parameter)
            for shape, matrices in alike.items():
                gradients = torch.stack([m.grad for m in matrices if m.grad is not None])
                average = self.state[matrices[0]].setdefault("average", torch.zeros_like(gradients))
                average.lerp_(gradients, 1 - group["momentum"])
                steps = orthogonal(gradients.lerp(average, group["momentum"]))
                length = group["lr"] * 0.2 * math.sqrt(max(shape))
                for matrix, step in zip(matrices, steps, strict=True):
                    matrix.mul_(1 - group["lr"] * group["weight_decay"]).sub_(step, alpha=length)


def orthogonal(matrices: Tensor) -> Tensor:
    """Matrices with the same singular vectors and all singular values near 1: (N, R, C) to (N, R, C).

    Example:
        >>> singular = torch.linalg.svdvals(orthogonal(torch.randn(1, 4, 8)))
        >>> bool((singular > 0.5).all() and (singular < 1.5).all())
        True
    """
    wide = matrices.mT if matrices.shape[1] > matrices.shape[2] else matrices
    x = wide / wide.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    a, b, c = _QUINTIC
    for _ in range(5):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    result: Tensor = x.mT if wide is not matrices else x
    return result
