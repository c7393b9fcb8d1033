"""The pages that explain photos and digits in the browser: built, opened in a headless Chromium, and used."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import ExifTags, Image, ImageOps
from safetensors.torch import save_file
from torch import nn

import fxgrad
from fxgrad.demo.canvases import canvas
from fxgrad.demo.model import digits_vit
from fxgrad.explainer.run import OnnxExplainer

WEB = Path(__file__).parents[2] / "docs" / "examples" / "web"
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
PATCH = 6


class _Silent(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


NAMES = ["tabby, tabby cat", "leopard, Panthera pardus", "snow leopard, ounce", "tench"]
needs_a_browser = pytest.mark.skipif(not shutil.which("npm") or not CHROMIUM, reason="needs npm and chromium")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the built page is served, by a server that knows files only."""
    folder = tmp_path_factory.mktemp("page")
    built = subprocess.run([sys.executable, WEB / "build.py", folder], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    handler = functools.partial(_Silent, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


@pytest.fixture(scope="module")
def checks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the scripts that use the pages are installed."""
    work = tmp_path_factory.mktemp("checks")
    for name in ("check.mjs", "check_any.mjs", "package.json", "package-lock.json"):
        shutil.copy(WEB / name, work)
    subprocess.run(["npm", "ci", "--no-audit", "--no-fund", "--silent"], cwd=work, check=True, timeout=300)
    return work


def used(checks: Path, script: str, *arguments: str | Path) -> dict[str, Any]:
    """What a script saw on a page."""
    environment = {**os.environ, "CHROMIUM": str(CHROMIUM)}
    ran = subprocess.run(
        ["node", script, *map(str, arguments)],
        cwd=checks,
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
    )
    assert ran.returncode == 0, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout)
    assert found["complaints"] == []
    return found


def explained(pixels: list[float]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and every class's map, by fxgrad itself."""
    x = ((torch.tensor(pixels) - 0.5) / 0.5).reshape(1, 1, 48, 48).repeat(10, 1, 1, 1).requires_grad_()
    logits = fxgrad.convert(digits_vit(), (x,))(x)
    (gradient,) = torch.autograd.grad(logits.diagonal().sum(), x)
    maps = (x * gradient).detach().sum(1).unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH).sum((-1, -2))
    return logits[0].detach(), maps


@needs_a_browser
def test_the_page_explains_what_is_drawn(address: str, checks: Path) -> None:
    found = used(checks, "check.mjs", f"{address}digits.html")
    for step in ("sample", "cleared", "drawn"):
        logits, maps = explained(found[step]["pixels"])
        scale = maps.abs().max()
        torch.testing.assert_close(torch.tensor(found[step]["logits"]), logits, rtol=1e-4, atol=1e-4)
        shown = torch.tensor(found[step]["attribution"]).reshape(maps.shape)
        torch.testing.assert_close(shown / scale, maps / scale, rtol=0, atol=1e-4)
        assert max(found[step]["errors"]) < 1e-4
    image = torch.from_numpy(canvas(1).image).flatten()
    assert (torch.tensor(found["sample"]["pixels"]) - image).abs().max() <= 0.5 / 255 + 1e-6
    assert "three and four" in found["sample"]["status"]
    assert max(found["cleared"]["pixels"]) == 0 and max(found["drawn"]["pixels"]) == 1
    assert found["pressed"] == "true", "a click on a class lays its map over the canvas"


def write_files(folder: Path) -> OnnxExplainer:
    """An explainer under two policies, a photo that lies on its side, and wrong files."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 8, 8), nn.GELU(), nn.Flatten(), nn.Linear(512, 4)).eval()
    x = torch.randn(2, 3, 64, 64)
    how = {"size": [3, 64, 64], "mean": [0.5, 0.4, 0.3], "std": [0.25] * 3, "interpolation": "bicubic", "crop": 0.9}
    about = {"model": "a small CNN", "preprocessing": how, "class_names": NAMES}
    file = folder / "explainer.onnx"
    policies = ["libragrad", "gradient"]
    fxgrad.export_explainer(fxgrad.convert(model, (x,)), (x,), file, policies=policies, metadata=about)
    rows, columns = np.mgrid[0:90, 0:140]
    waves = (np.sin(columns / 9 + rows / 20), np.cos(rows / 7), np.sin(rows * columns / 900))
    photo, turned = Image.fromarray((127 + 120 * np.stack(waves, -1)).astype(np.uint8)), Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    photo.save(folder / "photo.jpg", quality=95, exif=turned)
    (folder / "wrong_cut.onnx").write_bytes(file.read_bytes()[:-50])
    (folder / "wrong_empty.onnx").write_bytes(b"")
    save_file({"w": torch.zeros(2)}, folder / "wrong_weights.onnx")
    torch.save(model.state_dict(), folder / "wrong_checkpoint.pt2")
    (folder / "wrong_photo.jpg").write_bytes(b"no")
    plain = onnx.load(file)
    del plain.metadata_props[:]
    onnx.save(plain, folder / "wrong_ordinary.onnx")
    return OnnxExplainer(file, threads=1)


@needs_a_browser
def test_the_page_takes_any_explainer_and_photo(address: str, checks: Path, tmp_path: Path) -> None:
    explainer = write_files(tmp_path)
    found = used(checks, "check_any.mjs", address, tmp_path)
    wanted = explainer.preprocess(ImageOps.exif_transpose(Image.open(tmp_path / "photo.jpg")))
    for step, policy in (("first", "libragrad"), ("searched", "libragrad"), ("other", "gradient")):
        seen = np.array(found[step]["input"], np.float32).reshape(wanted.shape)
        levels = np.abs(seen - wanted) * 0.25 * 255
        assert levels.max() < 2.5 and levels.mean() < 0.5, "decoded, turned, resized and cropped as by Pillow"
        ran = explainer(seen, target=np.array([found[step]["target"]]))
        map = ran[f"attribution_{policy}"][0]
        np.testing.assert_allclose(np.reshape(found[step]["map"], map.shape), map, atol=1e-5 * np.abs(map).max())
        np.testing.assert_allclose(found[step]["logits"], ran["logits"][0], rtol=1e-4, atol=1e-5)
    assert found["only"] == "Now a photo: choose one or drop it."
    assert found["first"]["target"] == int(np.argmax(found["first"]["logits"]))
    assert sorted(found["matches"]) == ["leopard, Panthera pardus", "snow leopard, ounce"]
    assert NAMES[found["searched"]["target"]] == found["matches"][0]
    assert found["first"]["error"] < 1e-4 < found["other"]["error"]
    assert found["value"].startswith("row 0, column 0: ") and abs(found["full"]["mean"] - found["bare"]["mean"]) > 5
    assert found["wide"] == 400, "no scrolling sideways on a phone"
    assert found["demo"]["error"] < 1e-4 and len(found["demo"]["logits"]) == 10
    said = {name.partition(".")[0]: text for name, text in found["refused"].items()}
    assert found["status"] == "alert" and len(said) == 6
    assert said["wrong_cut"].endswith("cannot be read: it ends too early. Copy or export it again.")
    assert "it is an empty file" in said["wrong_empty"] and "it is a .safetensors file" in said["wrong_weights"]
    assert "it is a zip archive" in said["wrong_checkpoint"]
    assert "wrong_photo.jpg is no picture that this browser can read" in said["wrong_photo"]
    assert "is an ordinary ONNX model, without an attribution" in said["wrong_ordinary"]
