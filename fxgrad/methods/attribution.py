"""The result of an attribution method: values of tokens, patches and pixels, plots, coloured text, files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fxgrad.errors import InputError
from fxgrad.methods.parts import Anatomy, Grid
from fxgrad.methods.placing import resample
from fxgrad.writing import writing

if TYPE_CHECKING:
    from fxgrad.methods.text import Text


_INTERPOLATED = {
    "linear": {1: "linear", 2: "bilinear", 3: "trilinear"},
    "cubic": {2: "bicubic"},
}
"""How a map is enlarged -> PyTorch's word for it, by the number of the map's axes."""


@dataclass(frozen=True, eq=False)
class Attribution:
    """One target, attributed by one method under one policy, for a batch of examples.

    Attributes:
        method: the method's name.
        rules: the policy's name; "gradient" is the plain gradient.
        label: the target, in words.
        output: the target's value, (batch,).
        map: of the attributed input: over pixels, (batch, height, width); over tokens, (batch, prefix tokens and
            patches); or over its own axes without its channels, (batch, ...). Several embeddings of the same tokens
            that are added up have one map, their sum.
        maps: name of an attributed input, or of an embedding -> its map, (batch, *its own axes without its channels).
            An input that all examples share, such as a graph's nodes, has one for each: all of its axes follow the
            batch's. Methods that look at blocks have `map` for their input.
        apart: contributions of constants that belong to no part of the maps, such as the head's bias, (batch,); None if
            the method's numbers are no shares of the target's value.
        copies: all shares add up to this multiple of the target's value (fullgrad_plus: the number of blocks).
        anatomy: the model's anatomy, with its grid of patches and its number of prefix tokens.
        of_pixels: whether `map` is over pixels, and not over tokens.
        note: a warning, or "".
    """

    method: str
    rules: str
    label: str
    output: Tensor
    map: Tensor
    maps: Mapping[str, Tensor]
    apart: Tensor | None
    copies: int
    anatomy: Anatomy
    of_pixels: bool
    note: str = ""

    @property
    def grid(self) -> Grid:
        """(rows, columns) of the patches.

        Raises:
            InputError: the model's input is no picture, or its patches are unknown.
        """
        if self.anatomy.grid is None:
            raise InputError(
                "the model has no grid of patches: use .tokens for text and .pixels for pixels, or pass "
                "grid=(rows, columns) to attribute."
            )
        return self.anatomy.grid

    @property
    def tokens(self) -> Tensor:
        """(batch, tokens), without prefix tokens; for a map of pixels, the sum of each patch."""
        if self.of_pixels and (self.anatomy.grid is not None or self.map.dim() > 2):
            return resample(self.map, self._grid_of_pixels()).flatten(1)
        return self.map.reshape(len(self.map), -1)[:, 0 if self.of_pixels else self.anatomy.prefix :]

    @property
    def prefix(self) -> Tensor:
        """The attribution of the prefix tokens, such as the class token: (batch, 0 or more)."""
        return self.map[:, : self.anatomy.prefix] if not self.of_pixels else self.map.new_zeros(len(self.map), 0)

    @property
    def patches(self) -> Tensor:
        """The attribution of the patches, (batch, rows, columns).

        Raises:
            InputError: the model has no grid of patches.
        """
        return self.tokens.reshape(-1, *self.grid)

    @property
    def pixels(self) -> Tensor:
        """(batch, height, width): the map of pixels, or the patches, interpolated linearly along each axis.

        Raises:
            InputError: the model's input is no picture.
        """
        return self.enlarged()

    def enlarged(self, how: str = "linear") -> Tensor:
        """(batch, height, width): the map of pixels, or the patches, interpolated.

        Args:
            how: "linear" along each axis; or "cubic", for pictures.

        Raises:
            InputError: the model's input is no picture, or there is no such way for its number of axes.
        """
        if self.of_pixels:
            return self.map
        size = self.anatomy.size
        if size is None:
            raise InputError(
                f"input {self.anatomy.input!r} is no picture (batch, channels, height, width): use .tokens."
            )
        if len(size) != len(self._grid_of_pixels()):
            raise InputError(
                f"the model's map of features has {len(self.grid)} axes, input {self.anatomy.input!r} has {len(size)}: "
                "use .patches."
            )
        ways = [way for way, modes in _INTERPOLATED.items() if len(size) in modes]
        if how not in ways:
            raise InputError(f"a map with {len(size)} axes is enlarged by {' or '.join(map(repr, ways))}, not {how!r}.")
        return F.interpolate(self.patches[:, None], size, mode=_INTERPOLATED[how][len(size)])[:, 0]

    def _grid_of_pixels(self) -> Grid:
        """The grid of the patches, with as many axes as the map of pixels."""
        rank = self.map.dim() - 1
        if self.of_pixels and (self.anatomy.grid is None or len(self.grid) != rank):
            model = (
                "no grid of patches" if self.anatomy.grid is None else f"a map of features with {len(self.grid)} axes"
            )
            raise InputError(
                f"the model has {model}, and the map of input {self.anatomy.input!r} has {rank} behind the batch's, "
                f"{tuple(self.map.shape)} in all: use .map."
            )
        return self.grid

    @property
    def total(self) -> Tensor | None:
        """The sum of all shares of each example, divided by `copies`, (batch,); None if there are no shares."""
        if self.apart is None:
            return None
        return (sum((m.reshape(len(m), -1).sum(1) for m in self.maps.values()), self.apart)) / self.copies

    @property
    def absolute(self) -> Tensor | None:
        """The sum of the sizes of all shares of each example, divided by `copies`, (batch,); None without shares."""
        if self.apart is None:
            return None
        sizes = (m.reshape(len(m), -1).abs().sum(1) for m in self.maps.values())
        return sum(sizes, self.apart.abs()) / self.copies

    @property
    def completeness_error(self) -> float | None:
        """The largest |output - total| / |output| of the examples; None if there are no shares."""
        if self.total is None:
            return None
        error = (self.output - self.total).abs() / self.output.abs().clamp(min=torch.finfo(self.output.dtype).tiny)
        return float(error.max())

    def plot(
        self,
        path: str | Path | IO[bytes] | None = None,
        *,
        picture: Any = None,
        window: tuple[float, float, float, float] | None = None,
        example: int = 0,
        clip: float | None = 0.99,
        scale: float | None = None,
        title: str = "",
        cmap: Any = None,
        colorbar: bool = True,
        size: float = 4.2,
        ax: Any = None,
    ) -> Any:
        """Draw one example: red speaks for the target, blue against it, on a symmetric scale.

        Args:
            path: path of a file to write (.png, .svg, .pdf), or an open file for a PNG; None writes none.
            picture: drawn beneath the attribution: a PIL image, or a tensor (C, H, W) in [0, 1].
            window: left, top, right and bottom edge of the model's input in the picture, in the picture's pixels; by
                default the whole picture.
            example: index in the batch.
            clip: the quantile of |attribution| from which the colour is full, such as 0.99; None: the maximum.
            scale: the value from which the colour is full, in place of that quantile: one for all that is compared.
            title: title above the picture.
            cmap: a colormap of matplotlib or its name, from the lowest to the highest value; by default red and blue.
            colorbar: beside the picture, with numbers.
            size: width of the figure in inches.
            ax: axes of matplotlib to draw on, in place of a figure of its own.

        Returns:
            The matplotlib figure, which a notebook shows; or `ax`.

        Raises:
            InputError: the input is no picture, there is no such example or colormap, the picture does not fit, or the
                file cannot be written.
        """
        from fxgrad.methods import drawing
        from fxgrad.methods.photo import photo
        from fxgrad.methods.words import method_in_words, policy_in_words

        self._has(example)
        height_width, error = self.anatomy.size, self.completeness_error
        if height_width is None or len(height_width) != 2:
            raise InputError("the input is no picture: show a text's tokens by .text(words); .map has the numbers.")
        values = (self.map if self.of_pixels else self.patches)[example].detach().float().cpu()
        complete = "" if error is None else f", completeness error {error:#.2g}"
        title = title or f"{self.label}: {float(self.output[example]):.3g}"
        shown = None if picture is None else photo(picture, height_width, window)
        axes = drawing.alone(shown, height_width, size) if ax is None else ax
        drawing.panel(axes, values, height_width, picture=shown, clip=clip, scale=scale, cmap=cmap, colorbar=colorbar)
        axes.set_title(title, loc="left", fontsize=10, parse_math=False)
        caption = f"{method_in_words(self.method)}, {policy_in_words(self.rules)}{complete}"
        axes.set_xlabel(caption, loc="left", fontsize=9, parse_math=False)
        if path is not None:
            drawing.write(axes.figure, path)
        return axes.figure if ax is None else ax

    def text(self, words: Sequence[str], example: int = 0, clip: float | None = None) -> Text:
        """Coloured tokens: for the terminal (rich), a notebook, or as HTML.

        Args:
            words: one per token, such as `tokenizer.convert_ids_to_tokens(ids[0])`.
            example: index in the batch.
            clip: as for `plot`.

        Raises:
            InputError: the numbers of words and tokens differ.

        Example:
            >>> import fxgrad
            >>> model = torch.nn.Sequential(torch.nn.Embedding(9, 4), torch.nn.Flatten(), torch.nn.Linear(12, 2)).eval()
            >>> ids = torch.tensor([[1, 5, 2]])
            >>> found = fxgrad.attribute(fxgrad.convert(model, (ids,)), (ids,), target=1)
            >>> found.text(["a", "red", "seven"]).html().count("<span")
            3
        """
        from fxgrad.methods.text import Text

        self._has(example)
        scores = self.tokens[example]
        if len(words) != len(scores):
            raise InputError(f"there are {len(words)} words for {len(scores)} tokens.")
        return Text(tuple(words), tuple(scores.double().tolist()), self.label, clip)

    def save(self, path: str | Path) -> None:
        """Write the numbers to an .npz file: map, output, total if there is one, and the names; maps of several inputs.

        Raises:
            InputError: the path does not end in .npz, or cannot be written.
        """
        import numpy as np

        if Path(path).suffix != ".npz":
            raise InputError(f"{path}: the numbers go to an .npz file; plot(path) draws a .png, .svg or .pdf.")
        found = {"map": self.map, "output": self.output, "apart": self.apart, "total": self.total}
        if len(self.maps) > 1:
            found |= {f"maps[{name}]": map for name, map in self.maps.items()}
        if not self.of_pixels or self.anatomy.grid is not None:
            found["tokens"] = self.tokens
        arrays: dict[str, Any] = {k: v.detach().float().cpu().numpy() for k, v in found.items() if v is not None}
        arrays |= {"method": self.method, "rules": self.rules, "label": self.label}
        with writing(path) as file:
            np.savez(file, **arrays)

    def __str__(self) -> str:
        error = self.completeness_error
        complete = "not made of shares" if error is None else f"completeness error {error:#.2g}"
        kind = "pixels" if self.of_pixels else "tokens"
        first = f"{self.method} of {self.label} under {self.rules}: {tuple(self.map.shape)} {kind}, {complete}"
        several = ", ".join(f"{name} {tuple(map.shape)}" for name, map in self.maps.items())
        of = f"inputs: {several}; .map is of {self.anatomy.input}" if len(self.maps) > 1 else ""
        return "\n".join(filter(None, (first, of, self.note)))

    def __repr__(self) -> str:
        return str(self)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        """For notebooks: the first example's picture, or its tokens by number; text alone where it has neither."""
        of = f", the first of {len(self.map)}" if len(self.map) > 1 else ""
        try:
            if self.anatomy.size is not None and len(self.anatomy.size) == 2:
                title = f"{self.label}: {float(self.output[0]):.3g}{of}"
                return {"text/plain": str(self), "image/png": self.plot(title=title)._repr_png_()}
            words = [str(i) for i in range(self.tokens.shape[1])]
            return {"text/plain": str(self), "text/html": self.text(words).html()}
        except InputError:
            return {"text/plain": str(self)}

    def _has(self, example: int) -> None:
        if not -len(self.map) <= example < len(self.map):
            raise InputError(f"there is no example {example}: the batch has {len(self.map)}.")


def joined(parts: Sequence[Attribution]) -> Attribution:
    """Concatenate attributions of several batches."""
    first = parts[0]
    apart = [p.apart for p in parts if p.apart is not None]
    labels = {p.label for p in parts}
    return Attribution(
        first.method,
        first.rules,
        first.label if len(labels) == 1 else "a class per example",
        torch.cat([p.output for p in parts]),
        torch.cat([p.map for p in parts]),
        {name: torch.cat([p.maps[name] for p in parts]) for name in first.maps},
        torch.cat(apart) if apart else None,
        first.copies,
        first.anatomy,
        first.of_pixels,
        first.note,
    )
