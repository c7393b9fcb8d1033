"""Removal by imputation: removed pixels are guessed from their neighbours, so that their outline tells little.

A mask of constant pixels shows a model where it was laid, and the model may read that. This is what ROAD mends.

Source: Rong, Leemann, Borisov, Kasneci, Kasneci, A Consistent and Efficient Evaluation Strategy for Attribution
Methods, ICML 2022, arXiv:2202.00449.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from fxgrad.errors import InputError
from fxgrad.metrics.curves import measured_faithfulness
from fxgrad.metrics.metric import Measured, Metric
from fxgrad.metrics.removal import Grid, on_pixels

NOISE = 0.01
"""Standard deviation of the noise on imputed pixels."""
_TOLERANCE, _STEPS = 1e-6, 2000


def imputed(x: Tensor, removed: Tensor) -> Tensor:
    """Pictures whose removed pixels are the weighted means of their up to eight neighbours, all at once.

    Direct neighbours count twice as much as diagonal ones. Removed neighbours are means themselves, so this is a system
    of linear equations; conjugate gradients solve it.

    Args:
        x: pictures (batch, C, H, W), floating point.
        removed: bool (batch, H, W), or (batch, 1, H, W).

    Returns:
        The pictures, same shape and dtype; pixels that are not removed stay.

    Raises:
        InputError: a picture whose pixels are all removed, so that nothing is left to tell them.

    Example:
        >>> x = torch.tensor([[[[1.0, 9.0, 3.0]]]])
        >>> imputed(x, torch.tensor([[[False, True, False]]]))
        tensor([[[[1., 2., 3.]]]])

    Source: Rong et al., arXiv:2202.00449, section 4.2, noisy linear imputation, here without its noise.
    """
    gone = removed.reshape(len(x), 1, *x.shape[-2:])
    if bool(gone.flatten(1).all(1).any()):
        raise InputError("all pixels of a picture are removed, so that there is nothing to impute them from.")
    values = x.double()
    mask = gone.double()
    whole = _around(torch.ones_like(values))  # less than 1 at the border

    def applied(guess: Tensor) -> Tensor:
        return mask * (whole * guess - _around(guess))

    wanted = mask * _around((1 - mask) * values)
    guess, left = torch.zeros_like(values), wanted
    direction, size = left, _dot(left, left)
    enough = _TOLERANCE**2 * size.clamp(min=torch.finfo(torch.float64).tiny)
    for _ in range(_STEPS):
        if bool((size <= enough).all()):
            break
        image = applied(direction)
        along = _dot(direction, image)
        step = torch.where(along > 0, size / along.where(along > 0, 1), 0)
        guess, left = guess + step * direction, left - step * image
        before, size = size, _dot(left, left)
        direction = left + size / before.where(before > 0, 1) * direction
    return torch.where(gone, guess.to(x.dtype), x)


class Imputing:
    """Removal by noisy linear imputation; a `Removal`.

    Args:
        model: from pictures (batch, C, H, W) to logits (batch, classes).
        grid: (rows, columns) of the parts; (H, W) removes single pixels.
        noise: standard deviation of the noise on imputed pixels.
        seed: seed of the noise.

    Raises:
        InputError: when called, a picture that the grid does not divide evenly, or all parts of one removed.

    Example:
        >>> removal = Imputing(torch.nn.Flatten(), (2, 2), noise=0)
        >>> removal(removal.prepare(torch.tensor([[[[1.0, 7.0], [7.0, 1.0]]]])), torch.tensor([[0, 3]])).tolist()
        [[1.0, 1.0, 1.0, 1.0]]

    Source: Rong et al., arXiv:2202.00449, section 4.2.
    """

    def __init__(self, model: Callable[[Tensor], Tensor], grid: Grid, noise: float = NOISE, seed: int = 0) -> None:
        self.model, self.grid, self.noise, self.seed = model, grid, noise, seed
        self.name = "imputed from their neighbours"

    def prepare(self, x: Tensor) -> tuple[Tensor, ...]:
        if x.shape[-2] % self.grid[0] or x.shape[-1] % self.grid[1]:
            raise InputError(f"a picture of {x.shape[-2]} x {x.shape[-1]} pixels has no even grid of {self.grid}.")
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(self.seed))
        return x, self.noise * noise.to(x)

    @torch.no_grad()
    def __call__(self, prepared: tuple[Tensor, ...], keep: Tensor) -> Tensor:
        x, noise = prepared
        kept = torch.zeros(len(x), math.prod(self.grid), dtype=torch.bool, device=x.device).scatter_(1, keep, True)
        gone = ~on_pixels(kept, self.grid, x)
        return self.model(torch.where(gone, imputed(x, gone) + noise, x))


def _around(pictures: Tensor) -> Tensor:
    """The sum of each pixel's neighbours: a sixth of the direct ones and a twelfth of the diagonal ones; 0 outside."""
    # The weights 1 2 1 along both axes give the pixel itself 4, which is taken off; a sum is far quicker than conv2d.
    padded = F.pad(pictures, (1, 1, 1, 1))
    rows = padded[..., :-2, :] + 2 * padded[..., 1:-1, :] + padded[..., 2:, :]
    return (rows[..., :-2] + 2 * rows[..., 1:-1] + rows[..., 2:] - 4 * pictures) / 12


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum((2, 3), keepdim=True)


def _road(measured: Measured) -> dict[str, Tensor]:
    """Metric -> values; empty without the model."""
    m = measured
    if m.model is None:
        return {}
    return measured_faithfulness(m, Imputing(m.model, (m.maps.shape[2], m.maps.shape[3])), m.maps.flatten(2))


def _measured(name: str, measured: Measured) -> Tensor | None:
    return measured.once(_road).get(name)


METRICS = (
    Metric("road_srg_aopc", "higher", partial(_measured, "srg_aopc")),
    Metric("road_mif_accuracy", "lower", partial(_measured, "mif_accuracy")),
    Metric("road_lif_accuracy", "higher", partial(_measured, "lif_accuracy")),
)
