"""The page of explanations: it stands alone, and in a browser it shows the numbers that were computed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

import fxgrad
from fxgrad.commands.explanation import Explanation, explain, map_of
from fxgrad.commands.page import page
from fxgrad.methods.photo import photo

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WINDOW = (10.0, 0.0, 50.0, 40.0)
STEPS = """
<script>
const log = [];
const say = what => log.push(what + ": " + [...document.querySelectorAll("#read")].map(e => e.innerText).join());
function point(x, y) {
  const canvas = document.querySelector("canvas"), box = canvas.getBoundingClientRect();
  canvas.dispatchEvent(new PointerEvent("pointermove", { clientX: box.left + x / 60 * box.width, clientY: box.top + y / 40 * box.height }));
}
function choose(field, i) { document.querySelectorAll(`#${field} input`)[i].click(); }
function shade(i, x, y) {
  const canvas = document.querySelectorAll("canvas")[i];
  return [...canvas.getContext("2d").getImageData(x / 60 * canvas.width, y / 40 * canvas.height, 1, 1).data].slice(0, 3);
}
window.onload = () => {
  point(32.5, 22.5); say("inside");
  point(5, 5); say("outside");
  choose("target", 1); point(32.5, 22.5); say("other target");
  choose("method", 1); point(32.5, 22.5); say("other method");
  choose("policy", 0); point(32.5, 22.5); say("one policy");
  choose("method", 2); choose("policy", 0); log.push("panels: " + document.querySelector("#panels").innerText);
  choose("method", 0); document.querySelector("canvas").dispatchEvent(new PointerEvent("pointerleave"));
  log.push("shade: " + JSON.stringify([shade(0, 5, 5), shade(0, 32.5, 22.5)]));
  const left = document.createElement("pre"); left.id = "log"; left.textContent = JSON.stringify(log); document.body.append(left);
};
</script>
"""


@pytest.fixture(scope="module")
def explanations() -> list[Explanation]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 2, 2), nn.GELU(), nn.Flatten(), nn.LayerNorm(64), nn.Linear(64, 4)).eval()
    x = torch.rand(1, 3, 8, 8)
    libra = fxgrad.convert(model, (x,))
    modules, shown = [libra.under("gradient"), libra], photo(Image.new("RGB", (60, 40)), (8, 8), WINDOW)
    options = {"smoothgrad": {"samples": 2}}
    methods = ["input_x_gradient", "smoothgrad", "random"]
    names = ["<b>cat</b>", "dog & </script>", "eel", "fox"]
    return explain(modules, x, [0, 1], picture=shown, class_names=names, methods=methods, options=options, name="a.png")


def test_page_stands_alone(explanations: list[Explanation]) -> None:
    text = page("cats & dogs", explanations, [("Check <1>", "<p>passed</p>")])
    assert "cats &amp; dogs" in text and "Check &lt;1&gt;" in text and "<p>passed</p>" in text
    assert 'src="' not in text and "data:image/jpeg;base64,/9j/" in text
    assert not re.search(r"https?://|@import|<link|fetch\(|XMLHttp", text)
    assert text.count("</script>") == 2 and "<b>cat</b>" not in text


def test_page_has_the_numbers(explanations: list[Explanation]) -> None:
    """In 16 bits: to a part in 65,534 of the largest."""
    import base64

    import numpy as np

    text = page("a", explanations, pool=2)
    data = json.loads(re.search(r'application/json">(.*?)</script>', text, re.S).group(1))  # type: ignore[union-attr]
    assert data["size"] == [8, 8] and data["pictures"][0]["window"] == list(WINDOW)
    assert [target["label"] for target in data["pictures"][0]["targets"]] == ["<b>cat</b>", "dog & </script>"]
    for one, target in zip(explanations, data["pictures"][0]["targets"]):
        assert target["logit"] == one.logit
        for found in one.found:
            made = target["maps"][found.method][found.rules]
            values = np.frombuffer(base64.b64decode(made["data"]), "<i2").reshape(made["rows"], made["columns"])
            wanted = map_of(found, 2).numpy()
            assert made["rows"] == made["columns"] == 4 and made["cell"] == [2, 2]
            assert abs(values * made["unit"] - wanted).max() <= abs(wanted).max() / 65_000
            assert made["error"] == found.completeness_error and made["copies"] == found.copies


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium to open the page in")
def test_page_in_a_browser(explanations: list[Explanation], tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text(page("a", explanations).replace("</body>", STEPS + "</body>"), "utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=3000", "--dump-dom"]
    shown = subprocess.run([str(CHROMIUM), *options, file.as_uri()], capture_output=True, text=True, timeout=60).stdout
    log = re.search(r'<pre id="log">(.*?)</pre>', shown, re.S)
    assert log, shown[-2000:]
    said = dict(line.split(": ", 1) for line in json.loads(log.group(1).replace("&amp;", "&")))

    def numbers(target: int, method: int) -> list[str]:
        found = explanations[target].rows()[method]
        return [f"{float(map_of(one)[4, 4]):.3g}"[:5].replace("-", "\u2212") for one in found]

    # (32.5, 22.5) is 22.5 of the window's 40 pixels from both edges: row and column 4 of 8.
    assert said["inside"].startswith("Pixel in row 4, column 4 of the model's input:")
    for what, target, method in (("inside", 0, 0), ("other target", 1, 0), ("other method", 1, 1)):
        for name, value in zip(("plain gradient", "LibraGrad"), numbers(target, method)):
            assert f"{name}: {value}" in said[what], (what, value, said[what])
    share = 100 * float(map_of(explanations[0].found[1])[4, 4]) / explanations[0].logit
    read = re.search(r"LibraGrad: \S+ \((\S+) % of the logit\)", said["inside"])
    assert read and float(read.group(1).replace("\u2212", "-")) == pytest.approx(share, rel=0.01)
    assert "of the logit" in said["inside"] and "of the logit" not in said["other method"]
    assert said["outside"] == "The model does not see this part of the picture."
    assert "plain gradient" not in said["one policy"] and "LibraGrad" in said["one policy"]
    assert said["panels"].startswith("Random, the same under every policy") and "completeness" not in said["panels"]
    outside, inside = json.loads(said["shade"])
    assert outside[0] == outside[1] == outside[2]  # the black picture, faint; no map
    assert len(set(inside)) > 1
