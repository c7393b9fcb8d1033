"""Prompts and answers as token ids: texts, pairs of texts, chats, or ids as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Union

import torch
from torch import Tensor

from fxgrad.errors import InputError, first_line

Prompt = Union[str, "tuple[str, str]", "list[Mapping[str, Any]]", "Sequence[int]", Tensor]
"""A text, a pair of texts, the messages of a chat, token ids, or features of sound (features, frames)."""


@dataclass(frozen=True)
class Encoded:
    """One prompt.

    Attributes:
        ids: its token ids, special tokens among them.
        types: which of two texts each belongs to, for tokenizers that say so.
        features: in the place of ids, what a model of speech hears, (features, frames).
    """

    ids: list[int]
    types: list[int] | None = None
    features: Tensor | None = None


def encoded(tokenizer: Any, prompt: Prompt | Sequence[Prompt]) -> tuple[list[Encoded], bool]:
    """Token ids of a prompt, or of a batch of prompts.

    Args:
        tokenizer: of transformers.
        prompt: see `Prompt`; a list of prompts, ids (batch, tokens), or features (batch, features, frames) is a batch.

    Returns:
        (the prompts, whether they are a batch).

    Raises:
        InputError: a prompt is empty, or of no known form; the tokenizer has no template for chats.
    """
    several = (isinstance(prompt, Tensor) and prompt.dim() == 2 + prompt.is_floating_point()) or (
        isinstance(prompt, list) and bool(prompt) and not isinstance(prompt[0], (int, Mapping))
    )
    each: Any = prompt if several else [prompt]
    found = [_one(tokenizer, one) for one in each]
    for i, one in enumerate(found):
        if not one.ids and one.features is None:
            which = f"prompt {i}" if several else "the prompt"
            raise InputError(f"{which} is empty: there is no token before the answer. Give one word at least.")
    return found, several


def _one(tokenizer: Any, prompt: Any) -> Encoded:
    if isinstance(prompt, str):
        return _tokens(tokenizer, prompt) if prompt else Encoded([])
    if isinstance(prompt, tuple) and len(prompt) == 2 and all(isinstance(part, str) for part in prompt):
        return _tokens(tokenizer, *prompt)
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], Mapping):
        return Encoded(_chat(tokenizer, prompt))
    if isinstance(prompt, Tensor) and prompt.is_floating_point() and prompt.dim() == 2:
        return Encoded([], features=prompt)
    ids = prompt.tolist() if isinstance(prompt, Tensor) and prompt.dim() == 1 else prompt
    if isinstance(ids, (list, tuple)) and all(isinstance(i, int) for i in ids):
        return Encoded(list(ids))
    raise InputError(
        "a prompt is a text, a pair of texts, a list of messages {'role': ..., 'content': ...}, token ids, or features "
        f"of sound (features, frames); a list of prompts is a batch. This one is {type(prompt).__name__}."
    )


def _tokens(tokenizer: Any, *texts: str) -> Encoded:
    if not callable(tokenizer):
        raise InputError(f"the tokenizer is one of transformers, not {type(tokenizer).__name__}.")
    found = tokenizer(*texts)
    types = found.get("token_type_ids") if hasattr(found, "get") else None
    return Encoded(list(found["input_ids"]), None if types is None else list(types))


def _chat(tokenizer: Any, messages: list[Mapping[str, Any]]) -> list[int]:
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception as error:
        raise InputError(
            f"the tokenizer cannot write these messages as one text ({first_line(error).rstrip('.')}). Give the text, "
            "or a tokenizer with a chat_template."
        ) from error
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])  # the template has the special tokens


def answered(tokenizer: Any, answer: Any) -> list[int]:
    """The token ids of an answer, without special tokens; ids stay as they are.

    Raises:
        InputError: it is empty, or neither text nor ids.
    """
    ids = answer
    if isinstance(answer, str):
        ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
    ids = ids.tolist() if isinstance(ids, Tensor) else ids
    if not isinstance(ids, (list, tuple)) or not all(isinstance(i, int) for i in ids):
        raise InputError(f"an answer is a text or token ids, not {answer!r:.80}.")
    if not ids:
        raise InputError("the answer is empty: there is nothing to explain. Give a text of one token at least.")
    return list(ids)


def each(values: Any, count: int, several: bool, what: str) -> list[Any]:
    """One value for each prompt; None for all of them.

    Raises:
        InputError: there are more or fewer.
    """
    if values is None:
        return [None] * count
    if not several:
        return [values]
    if not isinstance(values, (list, tuple)) or len(values) != count:
        given = f"{len(values)}" if isinstance(values, (list, tuple)) else type(values).__name__
        raise InputError(f"with {count} prompts, {what} is a list of {count}, one for each; got {given}.")
    return list(values)


def padded(rows: Sequence[Sequence[int]], value: int, device: Any) -> Tensor:
    """Rows of numbers as int64 (rows, longest), short ones filled up behind.

    Example:
        >>> padded([[1, 2], [3]], 0, "cpu").tolist()
        [[1, 2], [3, 0]]
    """
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows], device=device)
