"""Draw attributions over pictures: red for, blue against, with the strength as opacity, on a symmetric scale."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import ArrayLike

from fxgrad.errors import InputError
from fxgrad.methods.photo import Photo, photo
from fxgrad.methods.text import AGAINST, FOR
from fxgrad.reading import Window

try:
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Colormap, LinearSegmentedColormap, ListedColormap, Normalize
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle
except ImportError as missing:
    raise InputError(f'drawing needs matplotlib ({missing}): pip install "fxgrad[cli]"') from missing

LEGEND = "Red speaks for the target, blue against it, in full from the panel's 99th percentile."
ENDINGS = (".png", ".pdf", ".svg")
FAINT, FAINT_GREY = 0.3, 0.2
"""How much of a photograph stays under a map, the rest is white; of one without colours, where dark parts are more."""
_OF_SIGN = [tuple(part / 255 for part in colour) for colour in (AGAINST, FOR)]
_SIGN = ListedColormap(_OF_SIGN)
_BLENDED = LinearSegmentedColormap.from_list("against, for", [_OF_SIGN[0], (1.0, 1.0, 1.0), _OF_SIGN[1]])
"""What the colours of signs are on white, by their opacity."""
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    "ps.fonttype": 42,
    "svg.hashsalt": "fxgrad",
}
_DATES = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
_ABOUT = {".png": "Description", ".svg": "Description", ".pdf": "Subject"}


class Drawing(Figure):
    """A figure that notebooks show once, whether or not pyplot is imported."""

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        write(self, file)
        return file.getvalue()


def alone(picture: Photo | None, size: Sequence[int], width: float) -> Axes:
    """The axes of a figure with one panel, `width` inches wide, for a picture or a model's input of this size."""
    rows, columns = (picture.height, picture.width) if picture else size
    figure = Drawing(figsize=(width, width * 0.85 * rows / columns + 0.8), dpi=160, layout="constrained")
    axes: Axes = figure.subplots()
    return axes


def panel(
    axes: Axes,
    values: ArrayLike,
    size: Sequence[int],
    *,
    picture: Any = None,
    window: Window | None = None,
    clip: float | None = 0.99,
    scale: float | None = None,
    cell: Sequence[float] | None = None,
    cmap: str | Colormap | None = None,
    colorbar: bool = False,
) -> None:
    """Draw an attribution in colour, over a faint copy of the picture if given.

    Args:
        axes: the axes to draw on.
        values: attribution of pixels or of blocks of pixels, a tensor or an array, (rows, columns).
        size: height and width of the model's input.
        picture, window: as for `photo`, or a `Photo`.
        clip: the quantile of |values| from which the colour is full; None: the maximum.
        scale: the value from which the colour is full, in place of that quantile.
        cell: height and width of one value, in pixels of the model's input; by default the values fill it.
        cmap: a colormap of matplotlib or its name; by default red and blue.
        colorbar: beside the axes, with numbers.

    Raises:
        InputError: there is no such colormap, or the picture does not fit.
    """
    bare(axes)
    values, (height, width) = np.asarray(values), size
    shown = picture if isinstance(picture, Photo) or picture is None else photo(picture, size, window)
    limit = scale or full_at([values], clip)
    lowest = -limit if float(values.min()) < 0 else 0.0
    strength = (values / limit).clip(-1, 1)
    reach = size if cell is None else [count * side for count, side in zip(values.shape, cell)]
    left, top, right, bottom = shown.window if shown else (0.0, 0.0, float(width), float(height))
    down, across = (bottom - top) / height, (right - left) / width  # pixels of the picture to one of the model's
    extent = (left - 0.5, left + reach[1] * across - 0.5, top + reach[0] * down - 0.5, top - 0.5)
    if shown:
        photograph(axes, shown, FAINT if shown.coloured else FAINT_GREY)
    common: dict[str, Any] = {"extent": extent, "interpolation": "nearest", "aspect": "equal"}
    if cmap is None:
        axes.imshow(strength > 0, cmap=_SIGN, vmin=0, vmax=1, alpha=abs(strength), **common)
    else:
        alpha = abs(strength) if shown else None
        axes.imshow(values, cmap=named(cmap), vmin=lowest, vmax=limit, alpha=alpha, **common)
    axes.set(xlim=(-0.5, (shown.width if shown else width) - 0.5))
    axes.set(ylim=((shown.height if shown else height) - 0.5, -0.5))
    if colorbar:
        _bar(axes, lowest, limit, named(cmap), float(abs(values).max()) > limit * 1.0001)


def _bar(axes: Axes, lowest: float, limit: float, cmap: Colormap, clipped: bool) -> None:
    """A colour bar with numbers at its ends and at 0."""
    norm = Normalize(-limit if cmap is _BLENDED else lowest, limit)
    bar = axes.figure.colorbar(ScalarMappable(norm, cmap), cax=axes.inset_axes((1.03, 0, 0.045, 1)))
    ends = [f"≥ {limit:.2g}", f"≤ -{limit:.2g}"] if clipped else [f"{limit:.2g}", f"-{limit:.2g}"]
    bar.ax.set_ylim(lowest, limit)
    bar.set_ticks([limit, 0.0, *([lowest] if lowest else [])], labels=[ends[0], "0", *([ends[1]] if lowest else [])])
    bar.ax.tick_params(labelsize=8, length=2)
    bar.outline.set_color("#cccccc")


def full_at(maps: Sequence[ArrayLike], clip: float | None) -> float:
    """The value from which the colour is full, one for all maps that are compared: the largest of their quantiles.

    Example:
        >>> full_at([[1.0, -4.0], [2.0]], None)
        4.0
    """
    return max(float(np.quantile(np.abs(np.asarray(map)), 1.0 if clip is None else clip)) for map in maps) or 1.0


def named(cmap: str | Colormap | None) -> Colormap:
    """A colormap by its name; None is fxgrad's own, from blue over white to red.

    Raises:
        InputError: matplotlib has no such colormap.
    """
    if cmap is None or isinstance(cmap, Colormap):
        return _BLENDED if cmap is None else cmap
    if cmap not in matplotlib.colormaps:
        known = "RdBu_r, PuOr, viridis, inferno"
        raise InputError(f"matplotlib has no colormap {cmap!r}. It has {known}, and all of matplotlib.colormaps.")
    return matplotlib.colormaps[cmap]


def photograph(axes: Axes, picture: Any, strength: float = 1.0) -> None:
    """Draw a picture, with the part that the model sees outlined where that is not all.

    Args:
        axes: the axes to draw on.
        picture: as for `photo`, or a `Photo`.
        strength: how much of its colour stays, from 0 (white) to 1; a third of that where the model does not see.
    """
    bare(axes)
    shown = picture if isinstance(picture, Photo) else photo(picture)
    pixels = shown.pixels.astype(np.float32) / 255
    kept = np.full((*pixels.shape[:2], 1), strength, np.float32)
    if not shown.whole:
        kept[~shown.seen()] *= 0.35 if strength < 1 else 1
    extent = (-0.5, shown.width - 0.5, shown.height - 0.5, -0.5)
    axes.imshow(1 - kept * (1 - pixels), extent=extent, vmin=0, vmax=1)
    if not shown.whole:
        left, top, right, bottom = shown.window
        edge = Rectangle((left - 0.5, top - 0.5), right - left, bottom - top, fill=False, lw=0.8, ls=(0, (3, 3)))
        edge.set_edgecolor("#444444")
        axes.add_patch(edge)


def bare(axes: Axes) -> None:
    """Remove the ticks and lighten the frame."""
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_color("#cccccc")


def write(figure: Any, path: str | Path | IO[bytes], about: str = "") -> None:
    """Save a figure; its suffix is the format (.png, .pdf, .svg). An open file gets a PNG.

    The text of an .svg is text, the fonts of a .pdf are of Type 42, and the same figure gives the same bytes.

    Args:
        figure: of matplotlib.
        path: of the file, or an open file.
        about: text for the file's metadata.

    Raises:
        InputError: the file cannot be written.
    """
    ending = Path(path).suffix if isinstance(path, (str, Path)) else ".png"
    metadata = {**_DATES.get(ending, {}), **({_ABOUT[ending]: about} if about and ending in _ABOUT else {})}
    try:
        with matplotlib.rc_context(_SETTINGS), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)  # a box stands for it
            figure.savefig(path, metadata=metadata or None)
    except (OSError, ValueError) as error:
        raise InputError(f"the picture cannot be written to {path}: {error}") from error
