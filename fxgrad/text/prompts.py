"""Prompts and answers as token ids: texts, pairs of texts, chats, or ids as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Union

import torch
from torch import Tensor

from fxgrad.errors import InputError, first_line

Prompt = Union[str, "tuple[str, Any]", "list[Mapping[str, Any]]", "Sequence[int]", Tensor, "Mapping[str, Any]"]
"""A text, a pair of texts, a text and a picture or a list of them, a picture, the messages of a chat, token ids,
features of sound (features, frames), or what a processor gives."""
_OTHERS = ("input_ids", "attention_mask", "labels")
"""What a processor gives that says nothing more than the ids, or nothing of the prompt."""
_TEMPLATE = " Give the text, or a tokenizer with a chat_template."


@dataclass(frozen=True)
class Encoded:
    """One prompt.

    Attributes:
        ids: its token ids, special tokens among them.
        types: which of two texts each belongs to, for tokenizers that say so.
        features: in the place of ids, what a model of speech hears, (features, frames).
        given: further inputs of the model, such as pixels, as a processor gives them for one prompt.
    """

    ids: list[int]
    types: list[int] | None = None
    features: Tensor | None = None
    given: Mapping[str, Tensor] = field(default_factory=dict)


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
        isinstance(prompt, list) and bool(prompt) and not isinstance(prompt[0], int) and not _is_message(prompt[0])
    )
    each: Any = prompt if several else [prompt]
    found = [_one(tokenizer, one) for one in each]
    for i, one in enumerate(found):
        if not one.ids and one.features is None and not one.given:
            which = f"prompt {i}" if several else "the prompt"
            raise InputError(f"{which} is empty: there is no token before the answer. Give one word at least.")
    return found, several


def _one(tokenizer: Any, prompt: Any) -> Encoded:
    own = getattr(tokenizer, "tokenizer", tokenizer)
    if isinstance(prompt, str):
        return _tokens(own, prompt) if prompt else Encoded([])
    if isinstance(prompt, tuple) and len(prompt) == 2 and isinstance(prompt[0], str):
        text, other = prompt
        return _tokens(own, text, other) if isinstance(other, str) else _pictured(tokenizer, text, other)
    if isinstance(prompt, list) and prompt and _is_message(prompt[0]):
        return _chat(tokenizer, prompt)
    if isinstance(prompt, Mapping):
        return _processed(prompt)
    if isinstance(prompt, Tensor) and prompt.is_floating_point() and prompt.dim() == 2:
        return Encoded([], features=prompt)
    if _is_picture(prompt):
        return _pictured(tokenizer, None, prompt)
    ids = prompt.tolist() if isinstance(prompt, Tensor) and prompt.dim() == 1 else prompt
    if isinstance(ids, (list, tuple)) and all(isinstance(i, int) for i in ids):
        return Encoded(list(ids))
    raise InputError(
        "a prompt is a text, a pair of texts, a text and a picture, a list of messages {'role': ..., 'content': ...}, "
        "token ids, features of sound (features, frames), or what a processor gives; a list of prompts is a batch. "
        f"This one is {type(prompt).__name__}."
    )


def _tokens(tokenizer: Any, *texts: str) -> Encoded:
    if not callable(tokenizer):
        raise InputError(f"the tokenizer is one of transformers, not {type(tokenizer).__name__}.")
    found = tokenizer(*texts)
    types = found.get("token_type_ids") if hasattr(found, "get") else None
    return Encoded(list(found["input_ids"]), None if types is None else list(types))


def _is_message(prompt: Any) -> bool:
    return isinstance(prompt, Mapping) and "role" in prompt


def _is_picture(value: Any) -> bool:
    """Whether it is a PIL image."""
    return hasattr(value, "convert") and hasattr(value, "size")


def _pictured(processor: Any, text: str | None, pictures: Any) -> Encoded:
    """A text and its pictures, or a picture alone, by the model's processor."""
    some = pictures if isinstance(pictures, (list, tuple)) else [pictures]
    if not all(map(_is_picture, some)):
        raise InputError(f"a text comes with a text, or with pictures of PIL, not with {type(some[0]).__name__}.")
    if not hasattr(processor, "image_processor"):
        raise InputError(
            f"{type(processor).__name__} takes no pictures. In the place of the tokenizer, pass the model's processor: "
            "AutoProcessor.from_pretrained(...)."
        )
    texts = {} if text is None else {"text": text}
    return _processed(_tried(processor, "this prompt", "", images=list(some), **texts, return_tensors="pt"))


def _chat(tokenizer: Any, messages: list[Mapping[str, Any]]) -> Encoded:
    """The messages as the template writes them, with the pictures among them."""
    options: dict[str, Any] = {"add_generation_prompt": True}
    if hasattr(tokenizer, "image_processor"):
        options |= {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
        return _processed(_tried(tokenizer.apply_chat_template, "these messages", _TEMPLATE, messages, **options))
    text = _tried(tokenizer.apply_chat_template, "these messages", _TEMPLATE, messages, tokenize=False, **options)
    return Encoded(list(tokenizer(text, add_special_tokens=False)["input_ids"]))  # the template has the special tokens


def _tried(function: Any, what: str, advice: str, *args: Any, **kwargs: Any) -> Any:
    """What a function of transformers makes of a prompt.

    Raises:
        InputError: it fails.
    """
    try:
        return function(*args, **kwargs)
    except Exception as error:
        raise InputError(
            f"the tokenizer cannot write {what} as one text ({first_line(error).rstrip('.')}).{advice}"
        ) from error


def _processed(found: Mapping[str, Any]) -> Encoded:
    """What a processor gives, for one prompt.

    Raises:
        InputError: it is of several prompts, or no tensors.
    """
    tensors = {name: value for name, value in found.items() if isinstance(value, Tensor)}
    ids = tensors.get("input_ids")
    if not tensors or (ids is not None and len(ids) != 1):
        raise InputError("what a processor gives is of one prompt, with return_tensors='pt'. For a batch, list them.")
    given = {name: value for name, value in tensors.items() if name not in _OTHERS}
    return Encoded([] if ids is None else ids[0].tolist(), given=given)


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
