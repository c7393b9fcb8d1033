"""What `fxgrad explain MODEL --text` does: a text, an answer, and what each word, and each picture, gives to it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fxgrad.commands.printing import say
from fxgrad.commands.terminal import stage
from fxgrad.data.models import load_language_model
from fxgrad.errors import InputError
from fxgrad.reading import read_image
from fxgrad.text import Explanation, explain
from fxgrad.text.pieces import shown
from fxgrad.writing import write_text

MOST = 3
"""How many words are printed for each word of the answer."""


def explain_text(
    model: str,
    text: str,
    answer: str | None,
    against: str | None,
    output: str,
    pictures: Sequence[Path] = (),
    *,
    rules: tuple[str, ...],
    methods: tuple[str, ...],
    dtype: str,
    **which: Any,
) -> None:
    """Explain an answer, and write a picture, a page or its numbers.

    Args:
        model: hf:NAME or hf:FOLDER.
        text, answer, against: as for `fxgrad.text.explain`; "" and None is no answer.
        output: path of the file; its ending says what to write.
        pictures: that the text is about.
        rules, methods: of which there is one.
        dtype: of the model.
        **which: for `load_language_model`.

    Raises:
        InputError: there are several methods, no such folder; and as for `fxgrad.text.explain`.
    """
    if len(methods) > 1:
        raise InputError("--text takes one of --methods: the picture of an answer is a matrix already. Give one.")
    if which.pop("input_size", None):
        raise InputError("--input-size is for pictures. Leave it out with --text.")
    with stage(f"loading {model}"):
        texts = [part for part in (text, answer) if part]
        which |= {"texts": texts, "pictures": bool(pictures), "dtype": getattr(torch, dtype)}
        net, tokenizer, weights = load_language_model(model, **which)
    shown = [read_image(file) for file in pictures]
    prompt = text if not shown else (text, shown) if text else shown[0]
    with stage(f"explaining {model}"):
        found = explain(net, tokenizer, prompt, answer, rules=rules, against=against, method=methods[0])
        words = found.words()
    _write(words, Path(output))
    kind = "random weights" if weights == "random" else f"weights: {weights}"
    say("\n".join([f"{model}: {kind}", *_rows(words), *_error(words), f"wrote {output}"]))


def _write(found: Explanation, path: Path) -> None:
    if path.suffix == ".html":
        found.html(path)
    elif path.suffix == ".json":
        write_text(path, found.to_json() + "\n")
    else:
        found.plot(path)


def _rows(found: Explanation) -> list[str]:
    """Each word of the answer, its value, and what gives most to it."""
    rows = []
    for word, value, shares in zip(found.answer_tokens, found.values.tolist(), found.matrix):
        largest = shares.abs().argsort(descending=True)[:MOST].tolist()
        given = ", ".join(f"{shown(found.columns[i])} {float(shares[i]):+.3g}" for i in largest if shares[i] != 0)
        rows.append(f"{shown(word)}: {value:.4g}{', most of it from ' if given else ''}{given}")
    return rows


def _error(found: Explanation) -> list[str]:
    error = found.completeness_error
    return [] if error is None else [f"completeness error: {error:#.2g}"]
