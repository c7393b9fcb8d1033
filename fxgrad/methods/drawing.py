"""Draw attributions over pictures: red for, blue against, with the strength as opacity, on a symmetric scale."""

from __future__ import annotations

from pathlib import Path
from typing import IO

from torch import Tensor
from torch.nn import functional as F

from fxgrad.errors import InputError

try:
    from matplotlib.axes import Axes
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure
except ImportError as missing:
    raise InputError(f'drawing needs matplotlib ({missing}): pip install "fxgrad[cli]"') from missing

LEGEND = "Red speaks for the target, blue against it, in full from the panel's 99th percentile."
_SIGN = ListedColormap(["#1f5fd6", "#d6201f"])  # against, for; the strength is the opacity


def single(
    values: Tensor,
    size: tuple[int, ...],
    path: str | Path | IO[bytes] | None,
    *,
    picture: Tensor | None,
    clip: float | None,
    title: str,
    caption: str,
) -> Figure:
    """A figure of one attribution.

    Args:
        values, size, picture, clip: as for `panel`.
        path: as for `write`; None writes nothing.
        title, caption: text above and below.

    Raises:
        InputError: the file cannot be written.
    """
    figure = Figure(figsize=(4.2, 4.2 * size[0] / size[1] + 0.8), dpi=160, layout="constrained")
    axes = figure.subplots()
    panel(axes, values, size, picture=picture, clip=clip)
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel(caption, loc="left", fontsize=9)
    if path is not None:
        write(figure, path)
    return figure


def panel(
    axes: Axes,
    values: Tensor,
    size: tuple[int, ...],
    *,
    picture: Tensor | None = None,
    clip: float | None = 0.99,
    cell: tuple[float, ...] | None = None,
) -> None:
    """Draw an attribution in colour, over a faint grey copy of the picture if given.

    Args:
        axes: the axes to draw on.
        values: attribution of pixels or of blocks of pixels, float32 (rows, columns).
        size: height and width of the picture.
        picture: in [0, 1], (C, height, width).
        clip: the quantile of |values| from which the colour is full; None: the maximum.
        cell: height and width of one value, in pixels; by default the values fill the picture.
    """
    bare(axes)
    height, width = size
    scale = float(values.abs().quantile(1.0 if clip is None else clip)) or 1.0
    strength = (values / scale).clamp(-1, 1).numpy()
    reach = size if cell is None else [count * side for count, side in zip(values.shape, cell)]
    extent = (-0.5, reach[1] - 0.5, reach[0] - 0.5, -0.5)
    if picture is not None:
        axes.imshow(picture.mean(0).numpy(), cmap="gray", vmin=-4.0, vmax=1.0)
    axes.imshow(strength > 0, cmap=_SIGN, vmin=0, vmax=1, alpha=abs(strength), extent=extent, interpolation="nearest")
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))


def photograph(axes: Axes, picture: Tensor) -> None:
    """Draw a picture, in [0, 1], (C, H, W)."""
    bare(axes)
    axes.imshow(picture[: 3 if len(picture) >= 3 else 1].permute(1, 2, 0).expand(-1, -1, 3).numpy())


def bare(axes: Axes) -> None:
    """Remove the ticks and lighten the frame."""
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_color("#cccccc")


def write(figure: Figure, path: str | Path | IO[bytes]) -> None:
    """Save a figure; its suffix is the format (.png, .pdf, .svg). An open file gets a PNG.

    Raises:
        InputError: the file cannot be written.
    """
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise InputError(f"the picture cannot be written to {path}: {error}") from error


def pool_sum(attribution: Tensor, pool: int) -> Tensor:
    """Sums over blocks of pool x pool pixels, (H, W) to (ceil(H / pool), ceil(W / pool)); the total stays the same.

    Example:
        >>> import torch
        >>> pool_sum(torch.ones(3, 3), 2).tolist()
        [[4.0, 2.0], [2.0, 1.0]]
    """
    return F.avg_pool2d(attribution[None, None], pool, ceil_mode=True, divisor_override=1)[0, 0]
