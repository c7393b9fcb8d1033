"""`fxgrad patch`: of two pictures, and of two texts."""

from __future__ import annotations

import json
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
from fxgrad.methods import Contrast, Token
from fxgrad.reading import read_image
from tests.commands.test_flow_command import NET
from tests.helpers.language_models import model, tokenizer


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "patched_net.py").write_text(NET)
    for seed, name in enumerate(("cat.png", "dog.png")):
        pixels = np.random.default_rng(seed).integers(0, 255, (40, 40, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("patched_net", None)


def run(*arguments: str) -> str:
    result = CliRunner().invoke(main, ["patch", *arguments], catch_exceptions=False)
    assert result.exit_code == 0 and not result.stderr, result.output
    return result.stdout


def refuse(*arguments: str) -> str:
    result = CliRunner().invoke(main, ["patch", *arguments], catch_exceptions=False)
    assert result.exit_code == 2 and result.stderr.startswith("error: "), result.output
    return " ".join(result.stderr.split())


def test_of_pictures(here: Path) -> None:
    options = ["--target", "bee", "--against", "cat", "--dtype", "float64", "--run", "corrupt", "--effects"]
    heads = ["--cut", "blocks.0", "--heads", "blocks.1.attn"]
    said = run("patched_net:net", "cat.png", "dog.png", *options, *heads, "-o", "a.json")
    loaded = load_model("patched_net:net", dtype=torch.float64)
    clean, corrupt = (loaded.preprocess(read_image(here / name)) for name in ("cat.png", "dog.png"))
    libra = fxgrad.convert(loaded.model, (clean,))
    cuts = ["blocks.0", fxgrad.Heads("blocks.1.attn")]
    wanted = fxgrad.patching(libra, clean, corrupt, target=Contrast(1, 2), cuts=cuts, run="corrupt", effects=True)
    found = json.loads((here / "a.json").read_text())
    assert [one["cut"] for one in found["cuts"]] == ["blocks.0", "blocks.1.attn by heads"] and found["run"] == "corrupt"
    for one in found["cuts"]:
        for what in ("estimate", "effect"):
            numbers = torch.tensor(one[what], dtype=torch.float64)
            assert torch.allclose(numbers, getattr(wanted, what)[one["cut"]], rtol=0, atol=1e-12)
    words = " ".join(said.split())
    assert "bee minus cat: " in words and "clean values put into the corrupt run" in words
    assert f"correlation of estimates and effects: {wanted.correlation['all'].pearson:.3f}" in words
    best = wanted.strongest(1)[0]
    assert f"{best.node}, {best.name}: estimate {best.estimate:.4g}, effect {best.effect:.4g}" in words
    run("patched_net:net", "cat.png", "dog.png", *options, *heads, "-o", "a.html")
    plain = fxgrad.patching(
        libra.under("gradient"), clean, corrupt, target=Contrast(1, 2), cuts=cuts, run="corrupt", effects=True
    )
    for one in (wanted, plain):
        agree = one.correlation["all"]
        numbers = f"{one.rules}: correlation with effects {agree.pearson:.3f}, of ranks {agree.spearman:.3f}"
        assert numbers in (here / "a.html").read_text("utf-8")
    run("patched_net:net", "cat.png", "dog.png", "--rules", "gradient", "-o", "a.html")
    assert (here / "a.html").read_text("utf-8").count("<h4>") == 1
    run("patched_net:net", "cat.png", "dog.png")
    assert (here / "patching.png").read_bytes().startswith(b"\x89PNG")


def test_of_texts(here: Path) -> None:
    pytest.importorskip("transformers")
    net = model("gpt2").float()
    net.save_pretrained(here / "gpt")
    tokenizer().save_pretrained(here / "gpt")
    texts = "the sky is", "the night is"
    run(
        f"hf:{here / 'gpt'}", "--pretrained", "--text", *texts, "--target", " blue", "--against", " red", "-o", "a.json"
    )
    found = json.loads((here / "a.json").read_text())
    assert [token["name"] for token in found["cuts"][0]["tokens"]] == ["the", " sky", " is"]
    ids = [torch.tensor([tokenizer().encode(text)]) for text in texts]
    goal = Contrast(*(Token(id=tokenizer().encode(word)[0]) for word in (" blue", " red")))
    wanted = fxgrad.patching(fxgrad.convert(net, (torch.cat(ids),)), *ids, target=goal)
    for one, estimate in zip(found["cuts"], wanted.estimate.values()):
        assert one["effect"] is None and torch.allclose(torch.tensor(one["estimate"]), estimate, rtol=0, atol=1e-5)


def test_what_does_not_go_together(here: Path) -> None:
    pair = "patched_net:net", "cat.png", "dog.png"
    assert "must end in one of .png, .pdf, .svg, .json" in refuse(*pair, "-o", "a.csv")
    assert "dog.png is one of the pictures itself" in refuse(*pair, "-o", "dog.png")
    assert "No such file" in refuse("patched_net:net", "cat.png", "cow.png")
    assert "has none in the graph" in refuse(*pair, "--heads", "blocks.0.mlp")
    pytest.importorskip("transformers")
    model("gpt2").save_pretrained(here / "gpt")
    tokenizer().save_pretrained(here / "gpt")
    said = refuse(f"hf:{here / 'gpt'}", "--pretrained", "--text", "the sky is", "the sky")
    assert "the texts are 3 and 2 tokens" in said
