"""What commands about the next token of a text share: the language model, its inputs, and the target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from fxgrad.commands.terminal import stage
from fxgrad.data.models import load_language_model
from fxgrad.errors import InputError
from fxgrad.methods.targets import Contrast, Token
from fxgrad.text.host import Host
from fxgrad.text.prompts import encoded


def language_model(texts: Sequence[str], rules: tuple[str, ...], which: Mapping[str, Any]) -> tuple[str, Host, Any]:
    """(a heading, the model, its tokenizer).

    Args:
        texts: what it will read.
        rules: of the conversion.
        which: the options of `model_options`.

    Raises:
        InputError: an option for pictures.
    """
    if which.get("input_size"):
        raise InputError("--input-size is for pictures. Leave it out with --text.")
    given = {name: value for name, value in which.items() if name not in ("input_size", "model", "dtype")}
    model = which["model"]
    with stage(f"loading {model}"):
        given |= {"texts": list(texts), "pictures": False, "dtype": getattr(torch, which["dtype"])}
        net, tokenizer, weights = load_language_model(model, **given)
    said = f"{model}: {'random weights' if weights == 'random' else f'weights: {weights}'}"
    return said, Host(net, tokenizer, rules), tokenizer


def read(host: Host, text: str) -> tuple[list[int], dict[str, Any]]:
    """(a text's token ids, the model's inputs).

    Raises:
        InputError: it is too long for the model.
    """
    ids = encoded(host.processor, text)[0][0].ids
    host.check([ids])
    return ids, {"input_ids": torch.tensor([ids], device=host.device), **host.given("use_cache", False)}


def next_token(tokenizer: Any, text: str | None, against: str | None) -> Token | Contrast:
    """The next token as the target, the likeliest for None; or how much rather it comes than another.

    Raises:
        InputError: a text is several tokens.
    """
    wanted = _token(tokenizer, text)
    return wanted if against is None else Contrast(wanted, _token(tokenizer, against))


def _token(tokenizer: Any, text: str | None) -> Token:
    if text is None:
        return Token()
    ids = tokenizer.encode(text, add_special_tokens=False)
    if len(ids) != 1:
        raise InputError(f"{text!r} is {len(ids)} tokens, and the target is one. Give a text of one token.")
    return Token(id=ids[0])
