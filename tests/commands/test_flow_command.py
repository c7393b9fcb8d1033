"""`fxgrad flow`: of a picture, and of a text."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import fxgrad
from fxgrad.commands.cli import main
from fxgrad.data.models import load_model
from fxgrad.flows.files import read
from fxgrad.methods import Contrast, Token
from fxgrad.reading import read_image
from tests.helpers.language_models import model, tokenizer

NET = """
import torch
from timm.models import VisionTransformer

CLASS_NAMES = ["ant", "bee", "cat"]

def net():
    torch.manual_seed(0)
    model = VisionTransformer(img_size=32, patch_size=16, embed_dim=16, depth=2, num_heads=2, num_classes=3)
    model.default_cfg = dict(input_size=(3, 32, 32), mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=0.8)
    return model
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "flowing.py").write_text(NET)
    pixels = np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "cat.png")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("flowing", None)


def run(*arguments: str) -> str:
    result = CliRunner().invoke(main, ["flow", *arguments], catch_exceptions=False)
    assert result.exit_code == 0 and not result.stderr, result.output
    return result.stdout


def refuse(*arguments: str) -> str:
    result = CliRunner().invoke(main, ["flow", *arguments], catch_exceptions=False)
    assert result.exit_code == 2 and result.stderr.startswith("error: "), result.output
    return " ".join(result.stderr.split())


def test_of_a_picture(here: Path) -> None:
    said = run("flowing:net", "cat.png", "--target", "bee", "--against", "cat", "--dtype", "float64", "-o", "a.json")
    loaded = load_model("flowing:net", dtype=torch.float64)
    x = loaded.preprocess(read_image(here / "cat.png"))
    wanted = fxgrad.flow(fxgrad.convert(loaded.model, (x,)), (x,), target=Contrast(1, 2))
    found = read(here / "a.json")
    assert set(found.edges) == set(wanted.edges)
    assert all(abs(w - wanted.edges[a, b]["weight"]) < 1e-12 for a, b, w in found.edges.data("weight"))
    assert "bee minus cat: " in said and "libragrad, largest error at a node" in said and "wrote a.json" in said
    a, b, weight = max(wanted.edges.data("weight"), key=lambda edge: abs(edge[2]))
    assert f"{a} -> {b}: {weight:.4g}" in said
    run("flowing:net", "cat.png", "--cut", "blocks.0", "--top", "4", "-o", "a.graphml")
    some = read(here / "a.graphml")
    assert "rest before blocks.0" in some and {a["cut"] for a in some.nodes.values()} == {"x", "blocks.0", "target"}


@pytest.mark.parametrize(
    ("name", "start"), [("a.html", b"<!doctype html>"), ("a.png", b"\x89PNG"), ("a.svg", b"<?xml")]
)
def test_pages_and_pictures(name: str, start: bytes, here: Path) -> None:
    run("flowing:net", "cat.png", "-o", name)
    assert (here / name).read_bytes().startswith(start)
    if name == "a.html":
        assert "data:image/png;base64," in (here / name).read_text("utf-8")


def test_of_a_text(here: Path) -> None:
    pytest.importorskip("transformers")
    net = model("gpt2").float()
    net.save_pretrained(here / "gpt")
    tokenizer().save_pretrained(here / "gpt")
    text = "the sky is"
    said = run(
        f"hf:{here / 'gpt'}", "--pretrained", "--text", text, "--target", " blue", "--against", " red", "-o", "a.json"
    )
    assert "weights: pretrained" in " ".join(said.split())
    found = read(here / "a.json")
    assert [a["name"] for a in found.nodes.values() if a["kind"] == "input"] == ["the", " sky", " is"]
    ids = torch.tensor([tokenizer().encode(text)])
    one, other = (tokenizer().encode(word)[0] for word in (" blue", " red"))
    with torch.no_grad():
        logits = net(ids).logits[0, -1]
    assert abs(found.graph["value"] - float(logits[one] - logits[other])) < 1e-4
    goal = Contrast(Token(id=one), Token(id=other))
    wanted = fxgrad.flow(fxgrad.convert(net, (torch.cat([ids, ids]),)), (ids,), target=goal)
    assert all(abs(w - wanted.edges[a, b]["weight"]) < 1e-4 for a, b, w in found.edges.data("weight"))


def test_what_does_not_go_together(here: Path) -> None:
    assert "give a PICTURE, or a --text" in refuse("flowing:net")
    assert "give a PICTURE, or a --text" in refuse("flowing:net", "cat.png", "--text", "the sky")
    assert "must end in one of .html, .json, .graphml, .circuit.json, .png" in refuse(
        "flowing:net", "cat.png", "-o", "a.csv"
    )
    assert "cat.png is the picture itself" in refuse("flowing:net", "cat.png", "-o", "cat.png")
    assert "--input-size is for pictures" in refuse("hf:gpt2", "--text", "the", "--input-size", "3", "8", "8")
    assert "texts are for models of transformers" in refuse("flowing:net", "--text", "the sky")
    assert "No such file" in refuse("flowing:net", "dog.png")
    assert "no class 'bea'" in refuse("flowing:net", "cat.png", "--target", "bea")
