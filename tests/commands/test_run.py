"""`fxgrad run`: any picture, several policies, drawn like every other map."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from fxgrad.commands import cli
from fxgrad.data.models import load_model
from fxgrad.explainer.run import OnnxExplainer
from tests.helpers.small_nets import FACTORY


@pytest.fixture(scope="module", autouse=True)
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working directory with two explainers, and one picture in 8 and in 16 bits."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "run_nets.py").write_text(FACTORY)
    ramp = np.linspace(0, 255, 20 * 30).round().reshape(20, 30).astype(np.uint8)
    Image.fromarray(ramp).save(folder / "eight.png")
    Image.fromarray(ramp.astype(np.uint16) * 257).save(folder / "sixteen.png")
    Image.fromarray(ramp.astype(np.float32)).save(folder / "float.tiff")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run("export", "run_nets:net", "-o", "two.onnx", "--pool", "3", "--policies", "libragrad,gradient")
        run("export", "run_nets:net", "-o", "plain.onnx", "--method", "gradient")
        yield folder
    sys.modules.pop("run_nets", None)


def run(*arguments: str) -> str:
    result = CliRunner().invoke(cli.main, list(arguments))
    assert result.exit_code == 0, result.output
    return result.stdout


def refuse(*arguments: str) -> str:
    result = CliRunner().invoke(cli.main, list(arguments))
    assert result.exit_code == 2 and "Traceback" not in result.output, result.output
    return result.stderr


def test_every_policy_of_a_file_is_drawn_on_the_whole_picture(here: Path) -> None:
    text = run("run", "two.onnx", "eight.png", "--target", "bee", "-o", "two.svg")
    assert re.search(r"completeness error \(libragrad\): \S+e-0\d\ncompleteness error \(gradient\): 0\.\d+", text)
    svg = (here / "two.svg").read_text("utf-8")
    assert "Input × Gradient, LibraGrad</text>" in svg and "plain gradient</text>" in svg  # noqa: RUF001
    loaded = load_model("run_nets:net")
    picture = Image.open("eight.png")
    found = OnnxExplainer("two.onnx", threads=1).explain(picture, 1, "gradient")
    assert found.window == loaded.preprocess.window(30, 20) and found.attribution.shape == (3, 3)
    with torch.no_grad():
        assert np.allclose(found.logits, loaded.model(loaded.preprocess(picture))[0].numpy(), atol=1e-5)


def test_depth_is_read_as_everywhere() -> None:
    assert run("run", "two.onnx", "sixteen.png") == run("run", "two.onnx", "eight.png")
    assert "float.tiff: its float pixels go from 0 to 255" in refuse("run", "two.onnx", "float.tiff")


def test_no_error_for_a_method_that_has_none() -> None:
    assert "completeness" not in run("run", "plain.onnx", "eight.png")


def test_errors_come_first() -> None:
    assert "absent.onnx cannot be read: no such file" in refuse("run", "absent.onnx", "eight.png")
    assert "--target is given more than once" in refuse(
        "run", "two.onnx", "eight.png", "--target", "bee", "--target", "ant"
    )
    assert "a.bin must end in one of .png, .pdf, .svg" in refuse("run", "two.onnx", "eight.png", "-o", "a.bin")
