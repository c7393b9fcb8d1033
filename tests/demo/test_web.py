"""The page that explains digits in the browser: built, opened in a headless Chromium, and used."""

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

import pytest
import torch

import fxgrad
from fxgrad.demo.canvases import canvas
from fxgrad.demo.model import digits_vit

WEB = Path(__file__).parents[2] / "docs" / "examples" / "web"
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
PATCH = 6


class _Silent(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """Where the built page is served, by a server that knows files only."""
    built = subprocess.run([sys.executable, WEB / "build.py", tmp_path / "page"], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    handler = functools.partial(_Silent, directory=str(tmp_path / "page"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


def explained(pixels: list[float]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and every class's map, by fxgrad itself."""
    x = ((torch.tensor(pixels) - 0.5) / 0.5).reshape(1, 1, 48, 48).repeat(10, 1, 1, 1).requires_grad_()
    logits = fxgrad.convert(digits_vit(), (x,))(x)
    (gradient,) = torch.autograd.grad(logits.diagonal().sum(), x)
    maps = (x * gradient).detach().sum(1).unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH).sum((-1, -2))
    return logits[0].detach(), maps


@pytest.mark.skipif(not shutil.which("npm") or not CHROMIUM, reason="needs npm and chromium")
def test_the_page_explains_what_is_drawn(address: str, tmp_path: Path) -> None:
    work = tmp_path / "check"
    work.mkdir()
    for name in ("check.mjs", "package.json", "package-lock.json"):
        shutil.copy(WEB / name, work)
    subprocess.run(["npm", "ci", "--no-audit", "--no-fund", "--silent"], cwd=work, check=True, timeout=300)
    command = ["node", "check.mjs", address]
    ran = subprocess.run(
        command, cwd=work, capture_output=True, text=True, timeout=300, env={**os.environ, "CHROMIUM": str(CHROMIUM)}
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert found["complaints"] == []
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
