"""`fxgrad explain` with many pictures, methods, policies and targets, and what it writes."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from fxgrad.commands import cli, explain, manifest
from fxgrad.data.models import load_model
from fxgrad.evaluate.methods import method_options
from tests.helpers.small_nets import FACTORY


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with a factory and three pictures of three shapes, two of them in a folder."""
    (tmp_path / "many_nets.py").write_text(FACTORY)
    (tmp_path / "photos").mkdir()
    generator = np.random.default_rng(0)
    for name, shape in (("a.png", (20, 30, 3)), ("photos/b.png", (40, 20, 3)), ("photos/a.png", (24, 24, 3))):
        Image.fromarray(generator.integers(0, 255, shape, np.uint8)).save(tmp_path / name)
    (tmp_path / "photos/notes.txt").write_text("no picture")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("many_nets", None)


def succeed(*arguments: str) -> str:
    result = CliRunner().invoke(cli.main, ["explain", "many_nets:net", *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def refuse(*arguments: str) -> str:
    result = CliRunner().invoke(cli.main, ["explain", "many_nets:net", *arguments])
    assert result.exit_code == 2 and "Traceback" not in result.output, result.output
    return result.stderr


def test_a_folder_with_a_manifest(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    captured = []
    convert = explain.convert  # type: ignore[attr-defined]
    monkeypatch.setattr("fxgrad.commands.explain.convert", lambda *a, **k: captured.append(1) or convert(*a, **k))
    arguments = ["--methods", "input_x_gradient,saliency", "--policies", "libragrad,gradient,attnlrp"]
    text = succeed("a.png", "photos", "--target", "bee", "--target", "0", *arguments, "-o", "maps")
    assert captured == [1]  # one capture for all
    assert "wrote maps/" in text and "a.png: target 1 (bee), logit " in text
    assert sorted(path.name for path in (here / "maps").iterdir()) == ["a-2.png", "a.png", "b.png", "manifest.json"]
    record = json.loads((here / "maps/manifest.json").read_text())
    loaded = load_model("many_nets:net")
    assert record["model"] == "many_nets:net" and record["weights_sha256"] == manifest.digest_of(loaded.model)
    assert torch.__version__.startswith(record["versions"]["torch"].partition("+")[0])
    found = record["explanations"]
    assert [(e["picture"], e["label"], e["figure"]) for e in found] == [
        (picture, label, figure)
        for picture, figure in (("a.png", "a.png"), ("photos/a.png", "a-2.png"), ("photos/b.png", "b.png"))
        for label in ("bee", "ant")
    ]
    for e in found:
        image = Image.open(here / e["picture"])
        assert e["picture_sha256"] == hashlib.sha256((here / e["picture"]).read_bytes()).hexdigest()
        assert e["size"] == list(image.size) and e["window"] == list(loaded.preprocess.window(*image.size))
        assert e["value"] == pytest.approx(loaded.model(loaded.preprocess(image))[0, e["target"]].item(), rel=1e-5)
        assert [(m["method"], m["policy"]) for m in e["maps"]] == [
            (method, policy)
            for method in ("input_x_gradient", "saliency")
            for policy in ("libragrad", "gradient", "attnlrp")
        ]
        errors = [m["completeness_error"] for m in e["maps"]]
        assert errors[0] < 1e-4 < errors[1] and errors[3:] == [None] * 3
        assert "Not complete by" in e["maps"][1]["note"]


def test_no_error_for_a_method_that_has_none(here: Path) -> None:
    text = succeed("a.png", "--method", "saliency", "-o", "a.svg")
    assert "completeness error" not in text and ", saliency\n" in text
    svg = (here / "a.svg").read_text("utf-8")
    drawn = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    assert "completeness error" not in drawn and ">Plain gradient</text>" in drawn and "Saliency" in drawn
    assert "completeness error" in succeed("a.png", "-o", "a.svg") and "completeness" in (here / "a.svg").read_text()


def test_a_picture_says_how_it_was_made(here: Path) -> None:
    succeed("a.png", "photos/b.png", "--top", "2", "-o", "a.png.png")
    about = json.loads(Image.open(here / "a.png.png").text["Description"])  # type: ignore[attr-defined]
    assert len(about["explanations"]) == 4 and about["weights_sha256"]


def test_the_page_of_largest_logits(here: Path) -> None:
    text = succeed(
        "photos", "-o", "all.html", "--methods", "fullgrad_plus", "--methods", "random", "--policies", "cp-lrp"
    )
    assert text.count("target ") == 12 and "wrote all.html" in text  # two pictures, three targets, two methods
    shown = (here / "all.html").read_text("utf-8")
    data = json.loads(re.search(r'application/json">(.*?)</script>', shown, re.S).group(1))  # type: ignore[union-attr]
    assert [p["name"] for p in data["pictures"]] == ["a.png", "b.png"]
    assert [len(p["targets"]) for p in data["pictures"]] == [3, 3]
    assert [m["words"] for m in data["methods"]] == ["FullGrad+", "Random"]
    assert [p["words"] for p in data["policies"]] == ["CP-LRP"] and "Check of cp-lrp" in shown
    assert "weights_sha256" in shown


def test_sixteen_bits_and_alpha_are_seen_as_they_are(here: Path) -> None:
    """A picture of 16 bits has the logits of the same picture in 8; a transparent one, those of what shows on white."""
    ramp = np.linspace(0, 255, 24 * 24).round().reshape(24, 24).astype(np.uint8)
    Image.fromarray(ramp).save("eight.png")
    Image.fromarray(ramp.astype(np.uint16) * 257).save("sixteen.png")
    Image.fromarray(ramp.astype(np.float32) / 255).save("float.tiff")
    alpha = np.dstack([np.zeros((24, 24, 3), np.uint8), 255 - ramp])
    Image.fromarray(alpha).save("alpha.png")
    names = ("eight.png", "sixteen.png", "float.tiff", "alpha.png")
    lines = [line for line in succeed(*names, "--target", "bee").splitlines() if "target" in line]
    logits = [line.partition(": ")[2] for line in lines]
    assert len(logits) == 4 and len(set(logits)) == 1
    Image.fromarray(ramp.astype(np.float32)).save("float.tiff")
    assert "float.tiff: its float pixels go from 0 to 255" in refuse("float.tiff")


def test_options_reach_their_method(here: Path) -> None:
    many = succeed("a.png", "--methods", "smoothgrad,saliency", "--option", "samples=2", "--target", "bee")
    assert "smoothgrad" in many and "saliency" in many
    assert method_options(["fullgrad"], ["grid=(4, 4)"]) == {"fullgrad": {"grid": (4, 4)}}
    assert "saliency has no option 'samples'" in refuse("a.png", "--method", "saliency", "--option", "samples=2")


def test_many_are_counted(here: Path) -> None:
    for i in range(explain.PAGE_TARGETS * 5):  # type: ignore[attr-defined]
        Image.new("RGB", (9, 9), (i, 99, 0)).save(f"photos/c{i}.png")
    text = succeed("photos", "-o", "maps")
    assert "17 pictures, 17 targets, 34 maps\nlargest completeness error: gradient " in text


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["a.png", "-o", "a.bin"], "a.bin must end in one of .png, .pdf, .svg, .html: the ending says which format"),
        (["a.png", "-o", "photos/b.png/c"], "cannot be written"),
        (["a.png", "-o", "photos.d/c.png"], "photos.d/c.png cannot be written: there is no folder photos.d"),
        (["a.png", "-o", "b.png", "-o", "c.png"], "--output is given more than once"),
        (["a.png", "-o", "a.png"], "a.png is where the pictures are that are to be explained. Choose another --output"),
        (["photos/b.png", "-o", "photos"], "photos is where the pictures are"),
        (["a.png", "--methods", ","], "--methods names nothing. Give one or more names, separated by commas"),
        (["a.png", "--html", "c.png"], "c.png must end in one of .html"),
        (["a.png", "photos/notes.txt"], "Pillow cannot read the image photos/notes.txt"),
        (["a.png", "absent.png"], "Pillow cannot read the image absent.png: No such file"),
        (["a.png", "--methods", "saliency,cam"], "there is no method 'cam'"),
        (["a.png", "--policies", "libra"], "libra"),
        (["a.png", "--cmap", "rainbows"], "matplotlib has no colormap 'rainbows'"),
        (["a.png", "--target", "bea"], "no class 'bea'. Close to it: bee."),
        (["a.png", "--target", "bee", "--top", "2"], "--top a third. Give one of them."),
    ],
)
def test_errors_come_before_work(arguments: list[str], says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("the model was captured")

    monkeypatch.setattr("fxgrad.commands.explain.convert", never)
    assert says in refuse(*arguments)


def test_half_precision(here: Path) -> None:
    assert "completeness error" in succeed("a.png", "--dtype", "bfloat16", "--target", "cat")
