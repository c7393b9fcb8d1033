"""A page of explanations in one file: policy, method and target are switched, and numbers read off by pointing."""

from __future__ import annotations

import base64
import html
import io
import json
import math
from collections.abc import Iterable, Sequence
from importlib import resources
from typing import Any

from PIL import Image
from torch import Tensor

from fxgrad.commands.explanation import Explanation, map_of, takes_gradient
from fxgrad.methods import Attribution
from fxgrad.methods.photo import Photo
from fxgrad.methods.words import method_in_words, policy_in_words

WIDEST = 900
"""Pixels of the longer side of a picture in the page."""


def page(
    title: str, explanations: Sequence[Explanation], sections: Iterable[tuple[str, str]] = (), *, pool: int = 1
) -> str:
    """A self-contained HTML page: the maps of all explanations, then sections (heading, HTML) that can be unfolded.

    Args:
        title: of the page.
        explanations: those of one picture have the same `picture`.
        sections: what else is to be said.
        pool: attributions of pixels are summed over blocks of pool x pool pixels.

    Example:
        >>> import fxgrad, torch
        >>> from fxgrad.commands.explanation import explain
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3)).eval()
        >>> x = torch.randn(1, 1, 4, 4)
        >>> found = explain([fxgrad.convert(model, (x,))], x, [2], picture=torch.zeros(1, 4, 4))
        >>> "<summary>Check</summary>" in page("class 2", found, [("Check", "<p>passed</p>")])
        True
    """
    text = resources.files("fxgrad.commands").joinpath("page.html").read_text("utf-8")
    data = json.dumps(_data(explanations, pool), allow_nan=False).replace("<", "\\u003c")
    return text.replace("TITLE", html.escape(title)).replace("SECTIONS", _folded(sections)).replace("DATA", data)


def _folded(sections: Iterable[tuple[str, str]]) -> str:
    return "".join(
        f"<details{' open' * (i < 1)}><summary>{html.escape(heading)}</summary><div>{content}</div></details>"
        for i, (heading, content) in enumerate(sections)
    )


def _data(explanations: Sequence[Explanation], pool: int) -> dict[str, Any]:
    """All that the page's script draws."""
    found = [one for explanation in explanations for one in explanation.found]
    pictures = {id(one.picture): one for one in explanations}
    policies = list(dict.fromkeys(one.rules for one in found))
    return {
        "size": found[0].anatomy.size,
        "methods": [
            {
                "name": name,
                "words": method_in_words(name),
                "gradient": takes_gradient(name),
            }
            for name in dict.fromkeys(one.method for one in found)
        ],
        "policies": [{"name": name, "words": policy_in_words(name)} for name in policies],
        "pictures": [
            {
                "name": first.name or "picture",
                "source": _source(first.picture),
                "width": first.picture.width,
                "height": first.picture.height,
                "window": first.picture.window,
                "whole": first.picture.whole,
                "targets": [_target(one, pool) for one in explanations if one.picture is first.picture],
            }
            for first in pictures.values()
        ],
    }


def _target(explanation: Explanation, pool: int) -> dict[str, Any]:
    maps: dict[str, dict[str, Any]] = {}
    for one in explanation.found:
        maps.setdefault(one.method, {})[one.rules] = _map(one, pool)
    return {"label": explanation.label, "logit": _finite(explanation.logit), "maps": maps}


def _map(found: Attribution, pool: int) -> dict[str, Any]:
    """The numbers of a map: 16 bits each, to be multiplied by `unit`."""
    values: Tensor = map_of(found, pool)
    unit = float(values.abs().max()) / 32767 or 1.0
    size = found.anatomy.size or tuple(values.shape)
    blocks = (pool, pool) if found.of_pixels else [side / count for side, count in zip(size, values.shape)]
    return {
        "rows": values.shape[0],
        "columns": values.shape[1],
        "cell": blocks,
        "unit": unit,
        "copies": found.copies,
        "data": base64.b64encode((values / unit).round().numpy().astype("<i2").tobytes()).decode(),
        "error": _finite(found.completeness_error),
        "note": found.note,
    }


def _source(picture: Photo) -> str:
    """The picture as a JPEG in a data: address."""
    image = Image.fromarray(picture.pixels)
    image.thumbnail((WIDEST, WIDEST))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
