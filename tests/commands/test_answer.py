"""`fxgrad explain --text`: answers of language models in a folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

pytest.importorskip("transformers")

import transformers

from fxgrad.commands.cli import main
from fxgrad.text import explain
from tests.helpers import seeing_models
from tests.helpers.language_models import model, tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("gpt")
    model("gpt2").float().save_pretrained(made)
    tokenizer().save_pretrained(made)
    return made


def run(*arguments: str) -> str:
    result = CliRunner().invoke(main, ["explain", *arguments], catch_exceptions=False)
    assert result.exit_code == 0 and not result.stderr, result.output
    return result.stdout


def refuse(*arguments: str) -> str:
    result = CliRunner().invoke(main, ["explain", *arguments], catch_exceptions=False)
    assert result.exit_code == 2 and result.stderr.count("\n") <= 4
    return " ".join(result.stderr.split())


def test_the_numbers_are_those_of_explain(folder: Path, tmp_path: Path) -> None:
    given = ["--pretrained", "--text", "the sky is", "--answer", " blue and red", "-o", str(tmp_path / "sky.json")]
    said = run(f"hf:{folder}", *given)
    written = json.loads((tmp_path / "sky.json").read_text("utf-8"))
    net = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()
    words = explain(net, tokenizer(), "the sky is", " blue and red").words()
    assert written["matrix"] == words.matrix.tolist() and written["answer"] == [" blue", " and", " red"]
    assert written["prompt"] == ["the", " sky", " is"] and written["earlier"] == [" blue", " and"]
    assert f"\nblue: {float(words.values[0]):.4g}, most of it from is " in said and "completeness error: " in said
    assert "weights: pretrained" in said and str(tmp_path / "sky.json") in said.replace("\n", "")


def test_pages_and_pictures(folder: Path, tmp_path: Path) -> None:
    for name, start in (("sky.html", b"<!doctype html>"), ("sky.png", b"\x89PNG"), ("sky.svg", b"<?xml")):
        run(
            f"hf:{folder}", "--pretrained", "--text", "the sky is", "--answer", "\n\x01 red", "-o", str(tmp_path / name)
        )
        assert (tmp_path / name).read_bytes().startswith(start)
    page = (tmp_path / "sky.html").read_text("utf-8")
    assert '<span data-column="1"> sky</span>' in page and "Red speaks for the word, blue against it" in page


def test_what_it_says_itself_and_contrasts(folder: Path, tmp_path: Path) -> None:
    run(f"hf:{folder}", "--pretrained", "--text", "the sky is", "-o", str(tmp_path / "own.json"))
    assert json.loads((tmp_path / "own.json").read_text("utf-8"))["answer"]
    given = ["--text", "the sky is", "--answer", " blue", "--against", " red", "-o", str(tmp_path / "not.json")]
    run(f"hf:{folder}", "--pretrained", *given)
    assert json.loads((tmp_path / "not.json").read_text("utf-8"))["against"]


def test_a_text_about_a_picture(tmp_path: Path) -> None:
    made = tmp_path / "llava"
    seeing_models.model("llava").float().save_pretrained(made)
    seeing_models.llava_processor().save_pretrained(made)
    Image.new("RGB", (40, 30), "teal").save(tmp_path / "cat.png")
    given = [
        f"hf:{made}",
        str(tmp_path / "cat.png"),
        "--pretrained",
        "--text",
        "<image> the sky is",
        "--answer",
        " blue",
    ]
    said = run(*given, "-o", str(tmp_path / "why.json"))
    written = json.loads((tmp_path / "why.json").read_text("utf-8"))
    assert written["prompt"] == ["[picture]", " the", " sky", " is"] and len(written["pictures"]) == 1
    assert "completeness error: " in said
    run(*given, "-o", str(tmp_path / "why.html"))
    assert "data:image/png;base64," in (tmp_path / "why.html").read_text("utf-8")


def test_what_does_not_go_together(folder: Path, tmp_path: Path) -> None:
    text = [f"hf:{folder}", "--text", "the sky"]
    assert "--target is for pictures without a --text" in refuse(*text, "--target", "3")
    assert "cat.png" in refuse(*text, "cat.png")
    assert "--text takes one of --methods" in refuse(*text, "--methods", "genatt,attcat")
    assert "--answer is what follows a --text" in refuse("timm:test_vit", "cat.png", "--answer", "b")
    assert "there is nothing to explain. Give pictures" in refuse("timm:test_vit")
    assert "must end in one of .png, .pdf, .svg, .html: " in refuse("timm:test_vit", "cat.png", "-o", "a.json")
    assert "texts are for models of transformers" in refuse("timm:test_vit", "--text", "the sky")
    assert "has no tokenizer: its folder or repository has" in refuse("hf:gpt2", "--text", "the sky")
    assert "must end in one of .png, .pdf, .svg, .html, .json: " in refuse(*text, "-o", str(tmp_path / "folder"))
    assert "the prompt is empty" in refuse(f"hf:{folder}", "--text", "", "--answer", " red")
