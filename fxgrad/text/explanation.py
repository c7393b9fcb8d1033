"""The explanation of an answer: a row for each of its tokens, a column for each token that was there before."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fxgrad.errors import InputError
from fxgrad.methods.words import method_in_words, policy_in_words
from fxgrad.text.pieces import Span, sentences, words
from fxgrad.text.seen import cells, handed_on
from fxgrad.text.summed import Rows, Solve, summed
from fxgrad.writing import write_text


@dataclass(frozen=True, eq=False)
class Explanation:
    """What each token before gives to the logit of each answer token.

    Rows are the answer's tokens (after `words()`, its words). Columns are the prompt's tokens, then the answer's
    earlier ones. Shares add up: matrix.sum(1) + biases = values. The matrix is computed when it is first asked for.

    Attributes:
        columns: the tokens before, as text: the prompt's, then the answer's.
        prompt: how many of the columns are the prompt's.
        answer_tokens: the rows, as text.
        method: name of the attribution method.
        rules: name of the policy.
        against: the tokens of the answer that values are contrasted with, as text; None without a contrast.
        spans: the answer tokens of each row.
        earlier: the answer tokens of each of the answer's columns.
        solve: computes rows.
        seen: the column of each picture, or of each of its tiles.
        photos: how they look to the model, uint8 (rows, columns, channels).

    Example:
        >>> made = Rows(torch.tensor([[3.0, 1.0]]), torch.tensor([0.5]), torch.tensor([4.5]))
        >>> found = Explanation(("red", " sky"), 2, (" night",), "input_x_gradient", "libragrad", None, ((0, 1),),
        ...                     (), lambda spans: made)
        >>> found.matrix.tolist(), found.completeness_error
        ([[3.0, 1.0]], 0.0)
    """

    columns: tuple[str, ...]
    prompt: int
    answer_tokens: tuple[str, ...]
    method: str
    rules: str
    against: tuple[str, ...] | None
    spans: tuple[Span, ...]
    earlier: tuple[Span, ...]
    solve: Solve
    seen: tuple[int, ...] = ()
    photos: tuple[Tensor, ...] = ()

    @cached_property
    def _rows(self) -> Rows:
        return self.solve(self.spans)

    @property
    def prompt_tokens(self) -> tuple[str, ...]:
        """The prompt's tokens, as text."""
        return self.columns[: self.prompt]

    @property
    def matrix(self) -> Tensor:
        """The shares, (answer tokens, prompt tokens then earlier answer tokens), float32 or float64."""
        return self._rows.matrix

    @property
    def biases(self) -> Tensor | None:
        """What the model's constants give to each row, (answer tokens,); None if the numbers are no shares."""
        return self._rows.biases

    @property
    def values(self) -> Tensor:
        """The logit of each answer token, (answer tokens,); under a contrast, minus that of the other answer's."""
        return self._rows.values

    @property
    def pictures(self) -> tuple[Tensor, ...]:
        """The shares of each picture's pixels, or patches, (answer tokens, rows, columns): its column, spread out.

        A picture that is seen in tiles has one for each, which share the column.
        """
        return self._rows.pictures

    @property
    def completeness_error(self) -> float | None:
        """The largest |value - row's sum - bias| / |value| of the rows; None if the numbers are no shares."""
        matrix, biases, values, _ = self._rows
        if biases is None:
            return None
        tiny = torch.finfo(values.dtype).tiny
        return float(((values - matrix.sum(1) - biases).abs() / values.abs().clamp(min=tiny)).max())

    def span(self, start: int, end: int) -> Explanation:
        """The rows from `start` to before `end` as one: what each token before gives to the sum of their logits.

        It takes one backward pass, or none if the matrix is there and its numbers are shares.

        Raises:
            InputError: there are no such rows.
        """
        if not 0 <= start < end <= len(self.spans):
            raise InputError(f"a span is 0 <= start < end <= {len(self.spans)}, its rows; got {start}, {end}.")
        return self._merged([(start, end)])

    def words(self) -> Explanation:
        """Words by words: tokens of one word are one row, and one column. Rows still add up."""
        return self._folded(words)

    def sentences(self) -> Explanation:
        """Sentences by sentences. Rows still add up."""
        return self._folded(sentences)

    def hops(self, n: int) -> Explanation:
        """What the prompt gives by way of the answer's earlier tokens, n steps back. Rows still add up.

        One step hands the share of an earlier answer token on to what spoke for that token when it was said: its own
        row's positive shares, the bias's among them, in proportion (of a row without any, all shares by their size).
        With w those proportions and a the columns of the answer, matrix' = matrix without a, plus a w. After as many
        steps as the answer has tokens, all is the prompt's and the biases'.

        Raises:
            InputError: the numbers are no shares; an earlier token has no row of its own, as in a span; n is below 0.
        """
        matrix, biases, values, pictures = self._rows
        if biases is None:
            raise InputError(f"{self.method} gives no shares, so there is nothing to hand on. Use input_x_gradient.")
        if n < 0:
            raise InputError(f"n is a number of steps, at least 0, not {n}.")
        whole = torch.cat([matrix, biases[:, None]], 1)
        own = list(range(self.prompt, len(self.columns)))
        said = self._said()
        row = whole[said]
        spoke = torch.where((row > 0).any(1, keepdim=True), row.clamp(min=0), row.abs())
        handed = spoke / spoke.sum(1, keepdim=True)
        spread = handed_on(pictures, self.seen, said, handed)
        for _ in range(n):
            shares = whole[:, own]
            whole = whole.index_fill(1, torch.tensor(own, dtype=torch.long, device=whole.device), 0) + shares @ handed
            pictures = tuple(p + torch.einsum("re,ehw->rhw", shares, s) for p, s in zip(pictures, spread))
        found = Rows(whole[:, :-1], whole[:, -1], values, pictures)
        return replace(self, solve=lambda spans: summed(found, self.spans, spans))

    def plot(self, path: str | Path | None = None, *, size: float = 0.32) -> Any:
        """Draw the matrix: a row for each answer token, red for, blue against it; below it, its map of each picture.

        Args:
            path: of a .png, .svg or .pdf; None writes none.
            size: of a cell, in inches.

        Returns:
            The figure of matplotlib.

        Raises:
            InputError: the file cannot be written.
        """
        from fxgrad.text.figure import heat_map

        against = "" if self.against is None else f" rather than {''.join(self.against).strip()!r}"
        title = f"{''.join(self.answer_tokens).strip()[:80]}{against}"
        numbers = self.matrix.detach().cpu().float()
        pictures = [(photo, cells(maps).cpu().float()) for photo, maps in zip(self.photos, self.pictures)]
        said = self.answer_tokens, self.columns, self.prompt, title, self._caption()
        return heat_map(numbers, *said, path, size, pictures)

    def html(self, path: str | Path | None = None) -> str:
        """A page: hover over a word of the answer, and the words before it light up.

        Args:
            path: of the file to write; None writes none.

        Returns:
            The page's text.

        Raises:
            InputError: the file cannot be written.
        """
        from fxgrad.methods.html import page

        text = page("".join(self.answer_tokens).strip()[:80], self._repr_html_())
        if path is not None:
            write_text(path, text)
        return text

    def to_json(self) -> str:
        """All numbers and texts, as JSON; maps of pictures as sums over blocks, of at most 32 by 32."""
        matrix, biases, values, pictures = self._rows
        found = {
            "prompt": list(self.prompt_tokens),
            "earlier": list(self.columns[self.prompt :]),
            "answer": list(self.answer_tokens),
            "against": None if self.against is None else list(self.against),
            "method": self.method,
            "rules": self.rules,
            "values": values.tolist(),
            "biases": None if biases is None else biases.tolist(),
            "matrix": matrix.tolist(),
            "pictures": [{"column": at, "maps": cells(p).tolist()} for p, at in zip(pictures, self.seen)],
            "completeness_error": self.completeness_error,
        }
        return json.dumps(found, ensure_ascii=False)

    def _said(self) -> list[int]:
        """The row of each of the answer's columns."""
        rows = {start: row for row, (start, _) in enumerate(self.spans)}
        starts = [start for start, _ in self.earlier]
        if not all(start in rows for start in starts):
            raise InputError("an earlier token has no row of its own here. Take .hops before .span.")
        return [rows[start] for start in starts]

    def _folded(self, group: Callable[[Sequence[str]], list[Span]]) -> Explanation:
        """Groups of tokens as one, of the rows, of the prompt's columns, and of the answer's."""
        before, behind = group(self.prompt_tokens), group(self.columns[self.prompt :])
        columns = before + [(self.prompt + a, self.prompt + b) for a, b in behind]
        earlier = tuple((self.earlier[a][0], self.earlier[b - 1][1]) for a, b in behind)
        seen = tuple(next(i for i, (a, b) in enumerate(columns) if a <= at < b) for at in self.seen)
        return replace(self._merged(group(self.answer_tokens), columns), prompt=len(before), earlier=earlier, seen=seen)

    def _merged(self, rows: Sequence[Span], columns: Sequence[Span] | None = None) -> Explanation:
        spans = tuple((self.spans[a][0], self.spans[b - 1][1]) for a, b in rows)
        joined = self.columns if columns is None else tuple("".join(self.columns[a:b]) for a, b in columns)

        def solve(asked: Sequence[Span]) -> Rows:
            # Shares of a sum are sums of shares; of other numbers, a sum has its own.
            known = "_rows" in self.__dict__ and self.biases is not None
            found = summed(self._rows, self.spans, asked) if known else self.solve(asked)
            if columns is None:
                return found
            return found._replace(matrix=torch.stack([found.matrix[:, a:b].sum(1) for a, b in columns], 1))

        answer = tuple("".join(self.answer_tokens[a:b]) for a, b in rows)
        return replace(self, columns=joined, answer_tokens=answer, spans=spans, solve=solve)

    def _caption(self) -> str:
        """The method, the policy, what values are, the error."""
        error = self.completeness_error
        said = [method_in_words(self.method), policy_in_words(self.rules)]
        said += [] if self.against is None else [f"the logit minus that of {''.join(self.against).strip()!r}"]
        said += [] if error is None else [f"completeness error {error:#.2g}"]
        return ", ".join(said)

    def __str__(self) -> str:
        error = self.completeness_error
        shares = "no shares" if error is None else f"completeness error {error:#.2g}"
        return f"{len(self.spans)} answer tokens by {len(self.columns)}, {self.method} under {self.rules}, {shares}"

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        from fxgrad.text.page import fragment

        found = self.words()
        said = f"{self._caption()}. Red speaks for the word, blue against it; colours are full at the largest share."
        return fragment(found.columns, found.prompt, found.answer_tokens, found._rows, said, self.photos)

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        """The words before, coloured by what they give to the whole answer, then the answer."""
        from fxgrad.methods.text import Text

        said = str(self)  # computes the matrix, of which the whole is a sum
        words = self.words()
        scores = tuple(words.span(0, len(words.spans)).matrix[0].double().tolist())
        yield Text(tuple(word.strip() for word in words.columns), scores, "".join(self.answer_tokens))
        yield said
