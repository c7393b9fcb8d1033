"""What is asked of a model about its answers, and the backward passes that answer it: one for each row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fxgrad.errors import InputError
from fxgrad.methods import Attribution, Contrast, Target, Token, attribute
from fxgrad.module.converted import ConvertedModule
from fxgrad.text.pieces import Span
from fxgrad.text.seen import PIXELS, Seen
from fxgrad.text.summed import Rows, summed


@dataclass(frozen=True, eq=False)
class Question:
    """The tokens of the answers to a batch of prompts, and where the model says them.

    Attributes:
        kwargs: the model's inputs.
        columns: the tokens before, as text, of each prompt.
        prompts: how many of these are the prompt's.
        answers: the answer's tokens as text, of each prompt.
        against: those of the other answer.
        positions: the row of the logits that says each answer token, int64 (prompts, tokens); of shorter answers, the
            last one's again.
        ids: the number of each answer token among the logits, shaped alike.
        others: of each token of the other answer; None without a contrast.
        logits: the model's outputs -> (prompts, rows, numbers).
        target: in place of these, for models without logits.
        seen: the pictures of the only prompt.
    """

    kwargs: dict[str, Any]
    columns: Sequence[tuple[str, ...]]
    prompts: list[int]
    answers: Sequence[tuple[str, ...]]
    positions: Tensor
    ids: Tensor
    logits: Callable[[Any], Tensor]
    others: Tensor | None = None
    against: Sequence[tuple[str, ...]] | None = None
    target: Target = None
    seen: Seen | None = None

    def of(self, span: Span) -> Target:
        """The sum of the logits of a span's tokens."""
        if self.target is not None:
            return self.target
        start, end = span
        if end - start == 1 and self.logits is plain:
            token = Token(self.positions[:, start], self.ids[:, start])
            return token if self.others is None else Contrast(token, Token(token.position, self.others[:, start]))

        def said(outputs: Any) -> Tensor:
            logits = self.logits(outputs)
            rows, at = torch.arange(len(logits), device=logits.device)[:, None], self.positions[:, start:end]
            found = logits[rows, at, self.ids[:, start:end]]
            return (found if self.others is None else found - logits[rows, at, self.others[:, start:end]]).sum(1)

        return said


def plain(outputs: Any) -> Tensor:
    """The outputs' own logits, one row for each token."""
    found: Tensor = outputs.logits
    return found


class _Shares(NamedTuple):
    """The shares of an example: of its columns, (columns,), of its pictures' pixels, and of what is neither, ()."""

    columns: Tensor
    pictures: tuple[Tensor, ...]
    aside: Tensor


class Solver:
    """The rows of a batch of answers, each computed once.

    Args:
        converted: the model.
        question: what is asked.
        method: name of the attribution method, or a function, as for `fxgrad.attribute`.
    """

    def __init__(self, converted: ConvertedModule, question: Question, method: Any) -> None:
        self.converted, self.question, self.method = converted, question, method
        self._found: dict[Span, Attribution] = {}

    def rows(self, example: int, spans: Sequence[Span]) -> Rows:
        """The rows of one answer."""
        tokens = [(i, i + 1) for i in range(len(self.question.answers[example]))]
        if all(token in self._found and self._found[token].apart is not None for token in tokens):
            return summed(self._cut(example, tokens), tokens, spans)
        if len(spans) > 1 and all(end - start == 1 for start, end in spans):  # the other examples' rows come along
            spans_of_all = [(i, i + 1) for i in range(self.question.ids.shape[1])]
        else:
            spans_of_all = list(spans)
        missing = [span for span in spans_of_all if span not in self._found]
        if missing:
            targets = [self.question.of(span) for span in missing]
            found = attribute(self.converted, kwargs=self.question.kwargs, target=targets, method=self.method)
            self._found.update(zip(missing, found))
        return self._cut(example, spans)

    def _cut(self, example: int, spans: Sequence[Span]) -> Rows:
        found = [self._found[span] for span in spans]
        shares = all(one.apart is not None for one in found)
        values = torch.stack([one.output[example] for one in found])
        exact = torch.promote_types(values.dtype, torch.float32)
        copies = found[0].copies
        rows = [self._shares(one, example) for one in found]
        biases = None
        if shares:
            for one, row in zip(found, rows):
                _refuse_left_out(one, row, example)
            apart = [one.apart[example] + row.aside for one, row in zip(found, rows) if one.apart is not None]
            biases = torch.stack(apart).to(exact) / copies
        heat = tuple(torch.stack(maps).to(exact) / copies for maps in zip(*(row.pictures for row in rows)))
        columns = torch.stack([row.columns for row in rows])
        return Rows(columns.to(exact) / copies, biases, values.to(exact), heat)

    def _shares(self, found: Attribution, example: int) -> _Shares:
        """The shares of one example's columns, of its pictures' pixels, and of what is neither."""
        seen, width = self.question.seen, len(self.question.columns[example])
        if seen is None:
            columns = self._tokens(_sides(found), example, width)
            return _Shares(columns, (), columns.new_zeros(()))
        if PIXELS not in found.maps:
            raise InputError(f"{found.method} has no map of the picture. Use input_x_gradient.")
        maps = seen.maps(found.maps[PIXELS])
        spans = seen.spans(seen.tokens(width))
        others = {name: map for name, map in found.maps.items() if name != PIXELS}
        # A vision tower may look up the places of its tiles, which is no text: it counts as the model's constants.
        text = {name: map for name, map in others.items() if map[0].numel() >= spans[-1][1]}
        if len(text) > 1 and "decoder_input_ids" not in self.question.kwargs:
            raise InputError(f"the model reads several texts, {', '.join(text)}. Use fxgrad.attribute.")
        row = self._tokens(list(text.values()), example, spans[-1][1]) if text else maps[0].new_zeros(0)
        columns = torch.stack([row[a:b].sum() for a, b in spans])
        shares = torch.stack([map.sum() for map in maps])
        columns = columns.index_add(0, torch.tensor(seen.columns, device=columns.device), shares)
        aside = [map.sum() for name, map in others.items() if name not in text]
        return _Shares(columns, maps, sum(aside, columns.new_zeros(())))

    def _tokens(self, sides: Sequence[Tensor], example: int, width: int) -> Tensor:
        """The shares of one example's tokens: of the prompt, then of the answer's side if that is an input, too."""
        if len(sides) == 1:
            return sides[0].reshape(len(sides[0]), -1)[example, :width]
        source, answer = (side.reshape(len(side), -1) for side in sides)
        before = width - self._behind(example)
        return torch.cat([source[example, :before], answer[example, : width - before]])

    def _behind(self, example: int) -> int:
        """How many columns are of the decoder."""
        given = self.question.kwargs["decoder_input_ids"].shape[1]
        longest = max(map(len, self.question.answers))
        return int(given) - longest + len(self.question.answers[example])


def _refuse_left_out(found: Attribution, row: _Shares, example: int) -> None:
    """Raise `InputError` if an input has shares that no column shows."""
    shares = {name: map[example].double().sum() for name, map in found.maps.items()}
    size = sum(float(map[example].double().abs().sum()) for map in found.maps.values())
    missing = sum(shares.values(), torch.zeros(())) - row.columns.double().sum() - row.aside
    if abs(float(missing)) > 1e-3 * size:
        raise InputError(
            f"of the inputs {', '.join(shares)}, some have shares that belong to no token and to no picture. Use "
            "fxgrad.attribute, whose .maps has every input."
        )


def _sides(found: Attribution) -> list[Tensor]:
    """The map of the input, and of a decoder's tokens if there are any, each (batch, tokens)."""
    decoders = [map for name, map in found.maps.items() if ".decoder." in f".{name}"]
    if len(found.maps) == len(decoders) or not decoders:
        return [found.map]
    if len(decoders) > 1 or found.map.dim() != 2:
        raise InputError(f"the model has inputs {', '.join(found.maps)}, of unknown order. Use fxgrad.attribute.")
    return [found.map, decoders[0]]
