"""docs/examples/cpp is built by g++ and explains an input without Python."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import fxgrad

SOURCES = Path(__file__).parents[2] / "docs" / "examples" / "cpp"


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_the_example_is_built_and_explains(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.GELU(), nn.Flatten(), nn.Linear(16, 3)).eval()
    x = torch.randn(1, 3, 8, 8)
    libra = fxgrad.convert(model, (x,))
    fxgrad.export_explainer(libra, (x,), tmp_path / "e.aoti")
    x.numpy().tofile(tmp_path / "x.f32")
    build = ["sh", SOURCES / "build.sh", tmp_path / "explain"]
    made = subprocess.run(build, capture_output=True, text=True, env={**os.environ, "PYTHON": sys.executable})
    assert made.returncode == 0, made.stderr[-3000:]

    def explain(*arguments: object) -> subprocess.CompletedProcess[bytes]:
        command = [tmp_path / "explain", tmp_path / "e.aoti", tmp_path / "x.f32", *map(str, arguments)]
        return subprocess.run(command, capture_output=True)

    for target in (None, 1):
        ran = explain(3, 8, 8, *[] if target is None else [target])
        assert ran.returncode == 0, ran.stderr
        wanted = fxgrad.attribute(libra, (x,), target=target)
        index = int(model(x).argmax()) if target is None else target
        said = re.fullmatch(r"libragrad: class (\d), logit (\S+), completeness error (\S+)\n", ran.stderr.decode())
        assert said is not None and int(said[1]) == index and float(said[3]) < 1e-4
        assert float(said[2]) == pytest.approx(float(wanted.output), rel=1e-4)
        header, pixels = ran.stdout[:11], np.frombuffer(ran.stdout[11:], np.uint8).reshape(8, 8)
        assert header == b"P5\n8 8\n255\n"
        shares = wanted.map[0].numpy()
        np.testing.assert_allclose(pixels, np.rint(shares / np.abs(shares).max() * 127 + 128), atol=1)
    for arguments, message in (
        ((3, 8, 8, 3), b"explain: index out of bounds"),
        ((3, 8, 8, -1), b"explain: index out of bounds"),
        ((3, 4, 8), b"x.f32 does not have 96 float32 numbers"),
        ((1, 8, 24), b"explain: input_handles[0]: unmatched dim value"),
    ):
        ran = explain(*arguments)
        assert ran.returncode == 1 and not ran.stdout and message in ran.stderr, ran.stderr
