"""Tokens as text: what each adds to it, and which of them make a word or a sentence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

Span = tuple[int, int]
"""The tokens from the first number to before the second."""
WINDOW = 8
"""How many tokens before one are decoded with it: the text of a token may depend on those just before."""
_JOINING = "'’_-"  # noqa: RUF001
_ENDS = ".!?…。！？\n"  # noqa: RUF001
_EAST_ASIAN = "⺀"
"""From here on, scripts write no spaces: every token is a word."""


def pieces(tokenizer: Any, ids: Sequence[int]) -> tuple[str, ...]:
    """The text that each token adds to those before it; of special tokens, their names.

    Args:
        tokenizer: of transformers.
        ids: of one text.

    Returns:
        One string for each; together they are the text. A token that ends within a character shows it as �.
    """
    special = set(tokenizer.all_special_ids)

    def decoded(some: Sequence[int]) -> str:
        text: str = tokenizer.decode(list(some), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    found = []
    for at, token in enumerate(ids):
        if token in special:
            found.append(str(tokenizer.convert_ids_to_tokens(token)))
            continue
        start = max(0, at - WINDOW)
        before, after = decoded(ids[start:at]).rstrip("�"), decoded(ids[start : at + 1])
        found.append(after[len(before) :] if after.startswith(before) else decoded([token]))
    return tuple(found)


def words(tokens: Sequence[str]) -> list[Span]:
    """The words among tokens: at a space, or where letters and marks meet, a new one begins.

    Example:
        >>> words(["<s>", "un", "like", "ly", ",", " he", " said", "."])
        [(0, 1), (1, 4), (4, 5), (5, 6), (6, 7), (7, 8)]
    """
    return _grouped(tokens, _another_word)


def sentences(tokens: Sequence[str]) -> list[Span]:
    """The sentences among tokens, each with the mark that ends it.

    Example:
        >>> sentences(["It", " rains", ".", " We", " stay", "."])
        [(0, 3), (3, 6)]
    """
    return _grouped(tokens, _another_sentence)


def shown(token: str, longest: int = 18) -> str:
    """A token as it is written beside a number: without spaces around it, on one line, at most so long.

    Example:
        >>> shown(" sky"), shown("\\n"), shown("  ")
        ('sky', '⏎', '␣')
    """
    text = "".join("⏎" if c == "\n" else c if c.isprintable() else "�" for c in token.strip(" ")) or "␣"
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def _grouped(tokens: Sequence[str], another: Callable[[str, str], bool]) -> list[Span]:
    starts = [i for i, token in enumerate(tokens) if i == 0 or another(tokens[i - 1], token)]
    return list(zip(starts, [*starts[1:], len(tokens)]))


def _another_word(before: str, token: str) -> bool:
    if not before or not token or _special(before) or _special(token):
        return True
    if before.isspace():  # a space belongs to the word behind it
        return False
    last, first = before[-1], token[0]
    spaced = last.isspace() or first.isspace() or first >= _EAST_ASIAN
    return spaced or _in_word(last) != _in_word(first)


def _in_word(character: str) -> bool:
    return character.isalnum() or character in _JOINING or character == "�"


def _another_sentence(before: str, token: str) -> bool:
    if _special(before) or _special(token):
        return True
    ended = before.rstrip(" ")[-1:]
    return ended != "" and ended in _ENDS and (ended == "\n" or token[:1].isspace())


def _special(token: str) -> bool:
    """Whether it looks like a special token's name, such as <s> and [CLS]."""
    return len(token) > 2 and (token[0], token[-1]) in (("<", ">"), ("[", "]"))
