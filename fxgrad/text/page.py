"""The explanation of an answer as a page: hover over a word of it, and the words before light up."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fxgrad.errors import InputError
from fxgrad.methods.text import AGAINST, FOR
from fxgrad.text.summed import Rows

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title></head><body style="margin:2rem auto;max-width:60rem;padding:0 1rem">
{fragment}
</body></html>
"""
_FRAGMENT = """<div class="fxgrad-answer">
<style>
.fxgrad-answer {{ font: 16px/1.9 system-ui, sans-serif; color: #222; background: #fff; }}
.fxgrad-answer p {{ white-space: pre-wrap; margin: .6em 0; }}
.fxgrad-answer span {{ border-radius: 3px; padding: 1px 0; }}
.fxgrad-answer .row {{ cursor: pointer; border-bottom: 2px solid #bbb; }}
.fxgrad-answer .row.chosen {{ border-color: #222; font-weight: 600; }}
.fxgrad-answer small {{ color: #555; }}
</style>
<small>before</small><p class="before">{before}</p>
<small>answer: point at a word, or move with Tab</small><p class="answer">{answer}</p>
<small class="said" aria-live="polite"></small><br><small>{about}</small>
<script type="application/json">{data}</script>
<script>
(() => {{
  const scripts = document.querySelectorAll(".fxgrad-answer");
  const root = scripts[scripts.length - 1];
  const data = JSON.parse(root.querySelector("script[type='application/json']").textContent);
  const cells = root.querySelectorAll("[data-column]"), rows = root.querySelectorAll(".row");
  const number = (x) => x.toPrecision(3);
  const show = (row) => {{
    cells.forEach((cell) => {{
      const share = data.matrix[row][cell.dataset.column];
      const strength = Math.min(1, Math.abs(share) / data.scale);
      const colour = share > 0 ? data.colours[1] : data.colours[0];
      cell.style.background = `rgba(${{colour}}, ${{strength.toFixed(3)}})`;
      cell.title = number(share);
    }});
    rows.forEach((one) => one.classList.toggle("chosen", Number(one.dataset.row) === row));
    const bias = data.biases === null ? "" : `, of which constants give ${{number(data.biases[row])}}`;
    root.querySelector(".said").textContent = `${{data.answer[row].trim()}}: ${{number(data.values[row])}}${{bias}}`;
  }};
  rows.forEach((one) => ["pointerenter", "focus", "click"].forEach((event) =>
    one.addEventListener(event, () => show(Number(one.dataset.row)))));
  show(0);
}})();
</script></div>"""


def page(title: str, fragment: str) -> str:
    """A whole page around a fragment."""
    return _PAGE.format(title=html.escape(title), fragment=fragment)


def fragment(columns: Sequence[str], prompt: int, answer: Sequence[str], rows: Rows, about: str) -> str:
    """What stands on the page, for notebooks, too.

    Args:
        columns: the words before.
        prompt: how many of them are the prompt's; the others are the answer's own.
        answer: its words.
        rows: what they are made of.
        about: said below.
    """
    data = {
        "answer": answer,
        "matrix": _rounded(rows.matrix.double().tolist()),
        "biases": None if rows.biases is None else _rounded(rows.biases.double().tolist()),
        "values": _rounded(rows.values.double().tolist()),
        "scale": float(rows.matrix.abs().max()) or 1.0,
        "colours": [", ".join(map(str, colour)) for colour in (AGAINST, FOR)],
    }
    before = "".join(f'<span data-column="{at}">{html.escape(word)}</span>' for at, word in enumerate(columns[:prompt]))
    own = range(prompt, len(columns))
    said = "".join(
        f'<span class="row" tabindex="0" data-row="{row}"{_column(own, row)}>{html.escape(word)}</span>'
        for row, word in enumerate(answer)
    )
    text = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")
    return _FRAGMENT.format(before=before, answer=said, about=html.escape(about), data=text)


def write(path: str | Path, text: str) -> None:
    """Write a page.

    Raises:
        InputError: the file cannot be written.
    """
    try:
        Path(path).write_text(text, "utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}.") from error


def _column(own: range, row: int) -> str:
    return f' data-column="{own[row]}"' if row < len(own) else ""


def _rounded(values: list[Any]) -> list[Any]:
    """Numbers with six digits, which is more than a page shows."""
    return [_rounded(v) if isinstance(v, list) else float(f"{v:.6g}") for v in values]
