"""The explanation of an answer as a page: hover over a word of it, and the words before light up."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence

from torch import Tensor

from fxgrad.methods.html import as_url, rounded
from fxgrad.methods.text import AGAINST, FOR
from fxgrad.text.seen import cells
from fxgrad.text.summed import Rows

_FRAGMENT = """<div class="fxgrad-answer">
<style>
.fxgrad-answer {{ font: 16px/1.9 system-ui, sans-serif; color: #222; background: #fff; }}
.fxgrad-answer p {{ white-space: pre-wrap; margin: .6em 0; }}
.fxgrad-answer span {{ border-radius: 3px; padding: 1px 0; }}
.fxgrad-answer .row {{ cursor: pointer; border-bottom: 2px solid #bbb; }}
.fxgrad-answer .row.chosen {{ border-color: #222; font-weight: 600; }}
.fxgrad-answer small {{ color: #555; }}
.fxgrad-answer figure {{ position: relative; display: inline-block; margin: 0 .5em .5em 0; line-height: 0; }}
.fxgrad-answer figure > * {{ width: 14rem; image-rendering: pixelated; }}
.fxgrad-answer img {{ opacity: .35; }}
.fxgrad-answer canvas {{ position: absolute; inset: 0; height: 100%; }}
</style>
<small>before</small><div>{pictures}</div><p class="before">{before}</p>
<small>answer: point at a word, or move with Tab</small><p class="answer">{answer}</p>
<small class="said" aria-live="polite"></small><br><small>{about}</small>
<script type="application/json">{data}</script>
<script>
(() => {{
  const scripts = document.querySelectorAll(".fxgrad-answer");
  const root = scripts[scripts.length - 1];
  const data = JSON.parse(root.querySelector("script[type='application/json']").textContent);
  const cells = root.querySelectorAll("[data-column]"), rows = root.querySelectorAll(".row");
  const canvases = root.querySelectorAll("canvas"), number = (x) => x.toPrecision(3);
  const coloured = (share, scale) => {{
    const strength = Math.min(1, Math.abs(share) / scale);
    return `rgba(${{data.colours[share > 0 ? 1 : 0]}}, ${{strength.toFixed(3)}})`;
  }};
  const show = (row) => {{
    cells.forEach((cell) => {{
      const share = data.matrix[row][cell.dataset.column];
      cell.style.background = coloured(share, data.scale);
      cell.title = number(share);
    }});
    canvases.forEach((canvas, at) => {{
      const {{maps, scale}} = data.pictures[at], context = canvas.getContext("2d");
      context.clearRect(0, 0, canvas.width, canvas.height);
      maps[row].forEach((line, y) => line.forEach((share, x) => {{
        context.fillStyle = coloured(share, scale);
        context.fillRect(x, y, 1, 1);
      }}));
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


def fragment(
    columns: Sequence[str], prompt: int, answer: Sequence[str], rows: Rows, about: str, photos: Sequence[Tensor] = ()
) -> str:
    """What stands on the page, for notebooks, too.

    Args:
        columns: the words before.
        prompt: how many of them are the prompt's; the others are the answer's own.
        answer: its words.
        rows: what they are made of.
        about: said below.
        photos: the pictures, uint8 (height, width, channels), whose maps the rows have.
    """
    maps = [cells(each).double() for each in rows.pictures]
    data = {
        "answer": answer,
        "matrix": rounded(rows.matrix.double().tolist()),
        "biases": None if rows.biases is None else rounded(rows.biases.double().tolist()),
        "values": rounded(rows.values.double().tolist()),
        "scale": float(rows.matrix.abs().max()) or 1.0,
        "pictures": [{"maps": rounded(each.tolist(), 3), "scale": float(each.abs().max()) or 1.0} for each in maps],
        "colours": [", ".join(map(str, colour)) for colour in (AGAINST, FOR)],
    }
    before = "".join(f'<span data-column="{at}">{html.escape(word)}</span>' for at, word in enumerate(columns[:prompt]))
    own = range(prompt, len(columns))
    said = "".join(
        f'<span class="row" tabindex="0" data-row="{row}"{_column(own, row)}>{html.escape(word)}</span>'
        for row, word in enumerate(answer)
    )
    text = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")
    pictures = "".join(map(_figure, photos, maps))
    return _FRAGMENT.format(before=before, answer=said, about=html.escape(about), data=text, pictures=pictures)


def _figure(photo: Tensor, maps: Tensor) -> str:
    """A picture, with a canvas for its map on it."""
    source = as_url(photo.expand(*photo.shape[:2], 3).contiguous().numpy())
    height, width = maps.shape[1:]
    return f'<figure><img alt="picture" src="{source}"><canvas width="{width}" height="{height}"></canvas></figure>'


def _column(own: range, row: int) -> str:
    return f' data-column="{own[row]}"' if row < len(own) else ""
