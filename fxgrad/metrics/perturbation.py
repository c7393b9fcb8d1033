"""Perturbation: does a map foretell what a removal does, and does it stay when the picture hardly changes?"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fxgrad.errors import InputError
from fxgrad.metrics.metric import Measured, Metric
from fxgrad.metrics.removal import Removal

SQUARES = 50
SAMPLES = 10
RADIUS = 0.02


def infidelity(
    removal: Removal,
    x: Tensor,
    scores: Tensor,
    target: Tensor,
    *,
    squares: int = SQUARES,
    seed: int = 0,
    batch: int = 256,
) -> Tensor:
    """How far the scores of removed squares are from the logit's drop, in the mean over squares, squared.

    The scores of each attribution and picture are first multiplied by the one number that fits best, so that methods of
    any scale can be compared; so a map and its reverse are equal here.

    Args:
        removal: `Dropping` for tokens, `Replacing` for patches or pixels.
        x: pictures (pictures, C, H, W).
        scores: influence of each part, (..., pictures, parts).
        target: class indices, int64 (pictures,).
        squares: how many squares of parts are removed, one at a time, of sides up to half of the grid.
        seed: seed of their sizes and places, which are the same for all pictures.
        batch: pictures per forward pass.

    Returns:
        float64 (..., pictures): 0 where the scores add up to what the removal of any square takes from the logit.

    Raises:
        InputError: scores that do not fit the pictures or the grid; or no squares.

    Example:
        >>> from fxgrad.metrics.removal import Replacing
        >>> x = torch.rand(3, 1, 4, 4)
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2)).eval()
        >>> shares = x.flatten(1) * model[1].weight[0].detach()
        >>> found = infidelity(Replacing(model, (4, 4)), x, shares, torch.tensor([0, 0, 0]))
        >>> bool((found < 1e-10).all())
        True

    Source: Yeh et al., On the (In)fidelity and Sensitivity of Explanations, NeurIPS 2019, arXiv:1901.09392, definition
    2.1 with square removals, and section 2.1.2 for the scale.
    """
    rows, columns = removal.grid
    if scores.shape[-2:] != (len(x), rows * columns):
        raise InputError(
            f"scores of shape {tuple(scores.shape)} do not fit {len(x)} pictures of {rows} x {columns} parts: their "
            f"last two axes must be ({len(x)}, {rows * columns})."
        )
    if squares < 1:
        raise InputError(f"squares is at least 1, not {squares}.")
    removed = _squares(removal.grid, squares, seed)
    drops, prepared = [], removal.prepare(x)
    whole = _logits(removal, prepared, torch.arange(rows * columns), target, batch)
    for square in removed:
        drops.append(whole - _logits(removal, prepared, (~square).nonzero()[:, 0], target, batch))
    drop = torch.stack(drops, 1)  # (pictures, squares)
    told: Tensor = scores.double().cpu() @ removed.double().T  # (..., pictures, squares)
    size = told.square().sum(-1, keepdim=True)
    scale = (told * drop).sum(-1, keepdim=True) / size.where(size > 0, 1)
    found: Tensor = (scale * told - drop).square().mean(-1)
    return found


def max_sensitivity(
    explain: Callable[[Tensor], Tensor], x: Tensor, *, radius: float = RADIUS, samples: int = SAMPLES, seed: int = 0
) -> Tensor:
    """The largest change of a map, relative to its length, as the picture changes by noise of at most a radius.

    Args:
        explain: from pictures to their maps, (..., pictures, H, W).
        x: pictures (pictures, C, H, W).
        radius: the noise is even in [-radius, radius], for each element of x.
        samples: how many noisy pictures there are.
        seed: seed of the noise.

    Returns:
        float64 (..., pictures): the largest |map of the noisy picture - map| / |map|; NaN for a map of zeros.

    Raises:
        InputError: no samples, or a radius below 0.

    Example:
        >>> max_sensitivity(lambda x: torch.ones(2, 3, 3), torch.rand(2, 1, 3, 3)).tolist()
        [0.0, 0.0]

    Source: Yeh et al., arXiv:1901.09392, definition 3.1; divided by the map's length as in `captum.metrics`.
    """
    if samples < 1 or radius < 0:
        raise InputError(f"there is at least 1 sample, and no radius below 0; not {samples} and {radius}.")
    generator = torch.Generator().manual_seed(seed)
    own = explain(x).double().flatten(-2)
    largest = torch.zeros(own.shape[:-1], dtype=torch.float64)
    for _ in range(samples):
        noise = radius * (2 * torch.rand(x.shape, generator=generator) - 1)
        changed = explain(x + noise.to(x)).double().flatten(-2)
        largest = torch.maximum(largest, (changed - own).norm(dim=-1).cpu())
    found: Tensor = largest / own.norm(dim=-1).cpu()
    return found


def _squares(grid: tuple[int, int], count: int, seed: int) -> Tensor:
    """Squares of parts at random, bool (count, parts)."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(end: int) -> int:
        return int(torch.randint(end, (), generator=generator))

    found = torch.zeros(count, *grid, dtype=torch.bool)
    for square in found:
        side = 1 + drawn(max(1, min(grid) // 2))
        top, left = (drawn(length - side + 1) for length in grid)
        square[top : top + side, left : left + side] = True
    return found.flatten(1)


def _logits(removal: Removal, prepared: tuple[Tensor, ...], keep: Tensor, target: Tensor, batch: int) -> Tensor:
    """The targets' logits with only some parts, the same of every picture; float64 (pictures,) on the CPU."""
    found = []
    for start in range(0, len(target), batch):
        some = tuple(p[start : start + batch] for p in prepared)
        kept = keep.to(some[0].device).expand(len(some[0]), -1)
        wanted = target[start : start + batch].to(some[0].device)
        found.append(removal(some, kept).detach().double().gather(1, wanted[:, None])[:, 0].cpu())
    return torch.cat(found)


def _infidelity(measured: Measured) -> Tensor:
    m = measured
    return infidelity(m.tokens, m.x, m.scores, m.target, batch=m.batch)


def _sensitivity(measured: Measured) -> Tensor | None:
    explain = measured.explain
    if explain is None:
        return None

    def again(x: Tensor) -> Tensor:
        maps = explain(x)
        if maps is None:
            raise InputError("max_sensitivity needs attributions that can be made again; these cannot.")
        return maps

    return max_sensitivity(again, measured.x)


METRICS = (Metric("infidelity", "lower", _infidelity), Metric("max_sensitivity", "lower", _sensitivity))
