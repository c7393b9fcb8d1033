"""Texts as a model's tokens: which of them count, and which the rationale has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fxgrad.data.texts import Passage, Span
from fxgrad.errors import InputError
from fxgrad.text.prompts import Encoded, padded


@dataclass(frozen=True, eq=False)
class Tokenized:
    """Texts as tokens, the shorter ones with room behind them.

    Attributes:
        encoded: the tokens of each text.
        counted: the tokens that are the text's own, bool (texts, tokens): no special ones, no padding.
        rationales: the tokens that lie on a marked piece of the text, bool (texts, tokens).
        passages: the texts.
    """

    encoded: list[Encoded]
    counted: Tensor
    rationales: Tensor
    passages: Sequence[Passage]


def tokenized(tokenizer: Any, passages: Sequence[Passage], longest: int | None = None) -> Tokenized:
    """Texts as tokens, by the tokenizer's offsets.

    Args:
        tokenizer: of transformers, a fast one.
        passages: the texts, at least one.
        longest: the most tokens that a text has, special ones among them; what is beyond is cut off. None: any number.

    Raises:
        InputError: the tokenizer does not say where its tokens lie in the text; or a text has no token.

    Example:
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from transformers import PreTrainedTokenizerFast
        >>> plain = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "fine": 2, "film": 3}, "[UNK]"))
        >>> plain.pre_tokenizer = pre_tokenizers.Whitespace()
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="[UNK]")
        >>> found = tokenized(tokenizer, [Passage("a fine film", 1, ((2, 6),), "1")])
        >>> found.encoded[0].ids, found.rationales.tolist()
        ([1, 2, 3], [[False, True, False]])
    """
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(
            f"{type(tokenizer).__name__} does not say where in a text its tokens lie (return_offsets_mapping), so that "
            "no rationale can be found among them. Use a fast tokenizer: one with a tokenizer.json."
        )
    cut = {} if longest is None else {"truncation": True, "max_length": longest}
    found, counted, marked = [], [], []
    for passage in passages:
        given = tokenizer(passage.text, return_offsets_mapping=True, return_special_tokens_mask=True, **cut)
        own = [not special for special in given["special_tokens_mask"]]
        if not any(own):
            raise InputError(f"the text {passage.id} has no token: {passage.text!r:.80}.")
        types = given.get("token_type_ids")
        found.append(Encoded(list(given["input_ids"]), None if types is None else list(types)))
        counted.append(own)
        marked.append([_lies_on(passage.text, tuple(place), passage.rationales) for place in given["offset_mapping"]])
    texts = padded(counted, 0, "cpu").bool()
    return Tokenized(found, texts, padded(marked, 0, "cpu").bool() & texts, passages)


def _lies_on(text: str, place: Span, spans: Sequence[Span]) -> bool:
    """Whether a token's characters, without the spaces around them, lie on one of the spans, in part at least."""
    piece = text[place[0] : place[1]]
    start, end = place[0] + len(piece) - len(piece.lstrip()), place[0] + len(piece.rstrip())
    return any(max(start, first) < min(end, last) for first, last in spans)
