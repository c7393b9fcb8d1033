"""Coloured tokens: in the terminal, in a notebook, as HTML."""

from __future__ import annotations

import html
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fxgrad.errors import InputError

FOR, AGAINST = (214, 32, 31), (31, 95, 214)
"""Red speaks for the target, blue against it."""


@dataclass(frozen=True)
class Text:
    """One text with a score for every token. `str`, notebooks and `rich.print` show it coloured.

    Attributes:
        words: the tokens as shown.
        scores: one number per token; positive numbers speak for the target.
        label: the target, in words.
        clip: the quantile of |scores| from which the colour is full; None: the maximum.
    """

    words: tuple[str, ...]
    scores: tuple[float, ...]
    label: str
    clip: float | None = None

    def strengths(self) -> tuple[float, ...]:
        """One strength per token, from -1 (fully against) to 1 (fully for).

        Example:
            >>> Text(("a", "b"), (2.0, -1.0), "class 0").strengths()
            (1.0, -0.5)
        """
        ordered = sorted(abs(score) for score in self.scores)
        scale = ordered[min(int((self.clip or 1) * len(ordered)), len(ordered) - 1)] if ordered else 0.0
        return tuple(max(-1.0, min(1.0, score / (scale or 1.0))) for score in self.scores)

    def html(self) -> str:
        """HTML with one span per token: the background shows the score, hovering the number."""
        spans = "".join(
            f'<span title="{score:.3g}" style="background:rgba({",".join(map(str, _colour(strength)))},'
            f'{abs(strength):.2f});border-radius:3px;padding:1px 2px">{html.escape(word)}</span> '
            for word, score, strength in zip(self.words, self.scores, self.strengths())
        )
        target = f"<small>target: {html.escape(self.label)}</small>"
        return f'<div><p style="line-height:1.8">{spans.strip()}</p>{target}</div>'

    def _repr_html_(self) -> str:
        return self.html()

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        from rich.text import Text as RichText

        line = RichText()
        for word, strength in zip(self.words, self.strengths()):
            ground = [round(255 + abs(strength) * (c - 255)) for c in _colour(strength)]
            line.append(word, style=f"#000000 on #{ground[0]:02x}{ground[1]:02x}{ground[2]:02x}")
            line.append(" ")
        yield line

    def __str__(self) -> str:
        """The text with terminal colours.

        Raises:
            InputError: rich is not installed.
        """
        try:
            from rich.console import Console
        except ImportError as error:
            raise InputError(f'coloured text needs rich ({error}): pip install "fxgrad[cli]"') from error
        console = Console(force_terminal=True, color_system="truecolor", width=100)
        with console.capture() as capture:
            console.print(self)
        return capture.get()


def _colour(strength: float) -> tuple[int, int, int]:
    return FOR if strength > 0 else AGAINST
