"""Classes and tokens by name."""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Mapping, Sequence
from typing import Any, Union

from fxgrad.errors import InputError

Names = Union[Sequence[str], Mapping[int, str], Mapping[str, int], Any]
"""All forms of the names: one per logit in order, index -> name, name -> index, or a tokenizer with `get_vocab()`."""
MOST = 12
"""The most names that a message offers."""
_WORD = re.compile(r"[^\W_]+")
SPACES = ("Ġ", "▁")
"""How the vocabularies of tokenizers write a space ahead of a word."""


def listed(names: Names | None) -> list[str] | None:
    """The names in order, "" where there is none; None without names.

    Raises:
        InputError: they are neither a sequence of strings nor a mapping between strings and whole numbers.

    Example:
        >>> listed({"cat": 2, "dog": 0}), listed({0: "dog", 1: "cat"}), listed(("dog", "cat"))
        (['dog', '', 'cat'], ['dog', 'cat'], ['dog', 'cat'])
    """
    if names is None:
        return None
    vocabulary = getattr(names, "get_vocab", None)
    given = vocabulary() if callable(vocabulary) else names
    pairs: list[tuple[Any, Any]] = [(-1, given)]
    if isinstance(given, Mapping):
        pairs = [(i, name) if isinstance(name, str) else (name, i) for i, name in given.items()]
    elif isinstance(given, Sequence) and not isinstance(given, str):
        pairs = list(enumerate(given))
    if any(not isinstance(name, str) or not isinstance(i, int) or i < 0 for i, name in pairs):
        raise InputError(
            "class_names are strings, one per logit in order, or a mapping from index to name or from name to index, "
            f"such as tokenizer.get_vocab(); {type(names).__name__} is none of these."
        )
    found = [""] * (max((i for i, _ in pairs), default=-1) + 1)
    for i, name in pairs:
        found[i] = name
    return found


def resolve(target: int | str, count: int, names: Sequence[str] | None = None) -> int:
    """The index of a class, by number or name.

    Args:
        target: an index (a number, or digits), a class name, or one of a name's synonyms, which are separated by
            commas; case does not matter.
        count: number of classes.
        names: the names of all classes, or None.

    Raises:
        InputError: no such index or name, or a name of several classes; the message says what to write instead.

    Example:
        >>> resolve("Ounce", 2, ["tench, Tinca tinca", "snow leopard, ounce"])
        1
    """
    number = int(target) if isinstance(target, str) and target.strip().lstrip("-").isdecimal() else whole(target)
    if number is None and not isinstance(target, str):
        raise InputError(
            f"{target!r} is no target: a class's number or name, a Contrast, a Token, a function of the outputs, or "
            "an int64 tensor with one class per example. A list of them gives one attribution each."
        )
    if number is not None:
        if 0 <= number < count:
            return number
        raise InputError(f"there is no class {target}: the model has {count}, numbered 0 to {count - 1}.")
    assert isinstance(target, str)
    if names is None:
        raise InputError(f"{target!r}: the model's classes have no names. Give a number from 0 to {count - 1}.")
    wanted = target.strip().lower()
    known: dict[str, list[int]] = {}
    for index, name in enumerate(names[:count]):
        for synonym in dict.fromkeys((*(part.strip().lower() for part in name.split(",")), name.strip().lower())):
            if synonym:
                known.setdefault(synonym, []).append(index)
    matches = known.get(wanted, [])
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise InputError(f"{target!r} names the classes {', '.join(map(str, matches))}. Give the number of one.")
    raise InputError(f"no class {target!r}. Close to it: {_close(wanted, known)}. Numbers go from 0 to {count - 1}.")


def whole(value: Any) -> int | None:
    """A whole number of any kind, NumPy's included, as an int; None for anything else, truth values included.

    Example:
        >>> whole(3), whole(True), whole(3.0)
        (3, None, None)
    """
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


def token_id(token: str, count: int, names: Sequence[str] | None) -> int:
    """The id of a token, written as in the vocabulary, or with plain spaces.

    Args:
        token: the token; digits are a token too, not its number.
        count: size of the vocabulary.
        names: the tokens by id, or None.

    Raises:
        InputError: there are no names, or there is no such token.

    Example:
        >>> token_id(" cat", 3, ["cat", "Ġcat", "7"]), token_id("7", 3, ["cat", "Ġcat", "7"])
        (1, 2)
    """
    if names is None:
        raise InputError(
            f"token {token!r}: the vocabulary has no names. Pass class_names=tokenizer.get_vocab(), or the token's "
            f"number, from 0 to {count - 1}."
        )
    known = {name: i for i, name in reversed(list(enumerate(names[:count]))) if name}
    for written in (token, *(token.replace(" ", mark) for mark in SPACES)):
        if written in known:
            return known[written]
    raise InputError(f"no token {token!r}. Close to it: {_close(token, known)}. Numbers go from 0 to {count - 1}.")


def _close(wanted: str, known: Mapping[str, Any]) -> str:
    """Names that may be meant: those with all of its words in them, one per class; else those written alike."""
    words = _WORD.findall(wanted.lower())
    having: dict[str, str] = {}  # a class -> the first of its names
    for name, classes in known.items():
        if words and set(words) <= set(_WORD.findall(name.lower())):
            having.setdefault(str(classes), name)
    # A tiger cat is a cat, a cat bear is none.
    found = sorted(having.values(), key=lambda name: _WORD.findall(name.lower())[-1] != words[-1])
    found = found or difflib.get_close_matches(wanted, known, 5) or [name for name in known if wanted in name][:5]
    more = f"; and {len(found) - MOST} more" if len(found) > MOST else ""
    return "; ".join(found[:MOST]) + more or "none"
