"""The page and the picture of an answer."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from fxgrad.errors import InputError
from fxgrad.text.explanation import Explanation
from fxgrad.text.summed import Rows, summed

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
TOKENS = tuple((i, i + 1) for i in range(2))
MADE = Rows(torch.tensor([[4.0, -2.0, 0.0], [1.0, 0.0, 3.0]]), torch.tensor([0.5, 0.0]), torch.tensor([2.5, 4.0]))


def found(against: tuple[str, ...] | None = None) -> Explanation:
    columns = ("red", " <sky>", " night")
    return Explanation(
        columns, 2, (" night", " falls"), "input_x_gradient", "libragrad", against, TOKENS, ((0, 1),),
        lambda spans: summed(MADE, TOKENS, spans),
    )  # fmt: skip


def test_what_the_page_says(tmp_path: Path) -> None:
    page = found(against=(" day", " breaks")).html(tmp_path / "a.html")
    assert (tmp_path / "a.html").read_text("utf-8") == page
    assert "&lt;sky&gt;" in page and "<sky>" not in page
    assert "Input × Gradient, LibraGrad, the logit minus that of &#x27;day breaks&#x27;" in page  # noqa: RUF001
    assert found()._repr_html_() in found().html()
    with pytest.raises(InputError, match=r"absent/a.html cannot be written: No such file"):
        found().html(tmp_path / "absent" / "a.html")


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.parametrize("row", [0, 1])
def test_pointing_at_a_word_lights_up_those_before(row: int, tmp_path: Path) -> None:
    point = f'<script>document.querySelectorAll(".row")[{row}].dispatchEvent(new Event("pointerenter"))</script>'
    (tmp_path / "a.html").write_text(found().html().replace("</body>", f"{point}</body>"), "utf-8")
    call = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", f"file://{tmp_path}/a.html"]
    text = subprocess.run(call, capture_output=True, text=True, check=True, timeout=120).stdout
    shares = dict(re.findall(r'data-column="(\d)"[^>]*title="([^"]*)"', text))
    assert [float(shares[str(i)]) for i in range(3)] == MADE.matrix[row].tolist()
    strengths = re.findall(r"background: rgba?\((\d+), (\d+), (\d+)(?:, ([\d.]+))?\)", text)
    assert [float(s[3] or 1) for s in strengths] == [abs(v) / 4 for v in MADE.matrix[row].tolist()]
    said = ["night: 2.50, of which constants give 0.500", "falls: 4.00, of which constants give 0.00"][row]
    assert said in text and text.count("row chosen") == 1


def test_the_picture(tmp_path: Path) -> None:
    figure = found().plot(tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text("utf-8")
    assert "night falls" in text and "completeness error 0.0" in text and "&lt;sky&gt;" in text
    (image,) = figure.axes[0].images
    assert image.get_array().tolist() == MADE.matrix.tolist() and image.norm.vmin == -image.norm.vmax


def test_in_the_terminal() -> None:
    from rich.console import Console

    console = Console(width=100)
    with console.capture() as shown:
        console.print(found())
    assert "red" in shown.get() and "2 answer tokens by 3, input_x_gradient under libragrad" in shown.get()
