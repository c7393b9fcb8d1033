"""Targets: classes, names, contrasts, tokens, probabilities, similarities, functions; and the attributions of them."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

import fxgrad
from fxgrad.methods import Attribution, Contrast, Probability, Similarity, Token
from fxgrad.methods.outputs import logits_of
from fxgrad.methods.scoring import scored
from fxgrad.methods.text import Text
from tests.helpers import balanced_vit

NAMES = ["zero", "one, uno", "two", "three", "four"]


@pytest.fixture(scope="module")
def model() -> tuple[nn.Module, Tensor, fxgrad.ConvertedModule]:
    vit, x = balanced_vit.vit()
    return vit, x, fxgrad.convert(vit, (x,))


def attribute(model: tuple, target: Any, **options: Any) -> Attribution:  # type: ignore[type-arg]
    return fxgrad.attribute(model[2], (model[1],), target=target, **options)  # type: ignore[no-any-return]


def test_classes_by_number_name_tensor_and_default(model: tuple) -> None:  # type: ignore[type-arg]
    vit, x, _ = model
    logits = vit(x)
    assert torch.allclose(attribute(model, 2).output, logits[:, 2])
    assert torch.equal(attribute(model, "2").map, attribute(model, 2).map)
    named = attribute(model, "UNO", class_names=NAMES)
    assert torch.equal(named.map, attribute(model, 1).map) and named.label == "one, uno"
    each = attribute(model, torch.tensor([4, 0]))
    assert (
        torch.allclose(each.output, torch.stack([logits[0, 4], logits[1, 0]])) and each.label == "a class per example"
    )
    assert torch.allclose(attribute(model, None).output, logits.amax(1))


def test_several_at_once(model: tuple) -> None:  # type: ignore[type-arg]
    found = attribute(model, [3, Contrast(3, 1)])
    assert isinstance(found, list) and [a.label for a in found] == ["class 3", "class 3 minus class 1"]
    assert torch.equal(found[0].map, attribute(model, 3).map)


@pytest.mark.parametrize("method", ["input_x_gradient", "hirescam", "fullgrad_plus"])
def test_a_contrast_is_the_difference(method: str, model: tuple) -> None:  # type: ignore[type-arg]
    a, b = (attribute(model, target, method=method) for target in (3, torch.tensor([1, 2])))
    both = attribute(model, Contrast(3, torch.tensor([1, 2])), method=method)
    assert torch.allclose(both.map, a.map - b.map, rtol=1e-9, atol=1e-12)
    assert torch.allclose(both.output, a.output - b.output)
    assert both.completeness_error is not None and both.completeness_error < 1e-11


def test_functions_of_the_output(model: tuple) -> None:  # type: ignore[type-arg]
    summed = attribute(model, lambda y: y[:, 1] + 2 * y[:, 4])
    one, four = attribute(model, 1), attribute(model, 4)
    assert torch.allclose(summed.map, one.map + 2 * four.map, rtol=1e-9, atol=1e-12)
    assert summed.completeness_error is not None and summed.completeness_error < 1e-11


def test_a_probability_comes_with_a_warning(model: tuple) -> None:  # type: ignore[type-arg]
    vit, x, _ = model
    found = attribute(model, Probability("two"), class_names=NAMES)
    assert torch.allclose(found.output, vit(x).softmax(-1)[:, 2])
    assert found.label == "probability of two"
    assert found.completeness_error is not None and found.completeness_error > 1e-2
    assert "a probability is no sum of contributions" in str(found) and "cannot be complete" in found.note
    assert attribute(model, 2).note == "" and "Warning" not in str(attribute(model, 2))


def test_similarity_holds_the_length(model: tuple) -> None:  # type: ignore[type-arg]
    vit, x, _ = model
    wanted = torch.randn(5).double()
    found = attribute(model, Similarity(3 * wanted, scale=10.0, label="a red seven"))
    assert torch.allclose(found.output, 10 * F.cosine_similarity(vit(x), wanted[None]))
    assert found.completeness_error is not None and found.completeness_error < 1e-11
    assert found.label == "similarity with a red seven"
    lengths = vit(x).norm(dim=1)
    by_hand = attribute(model, lambda y: 10 * (y * F.normalize(wanted, dim=0)).sum(1) / lengths.detach())
    assert torch.allclose(found.map, by_hand.map, rtol=1e-9, atol=1e-13)


def test_outputs_of_other_structures() -> None:
    logits = torch.zeros(2, 3)
    assert logits_of(logits) is logits
    assert logits_of({"loss": torch.zeros(()), "logits": logits}) is logits
    assert logits_of(SimpleNamespace(logits=logits)) is logits
    assert logits_of((logits, torch.zeros(2, dtype=torch.int64))) is logits
    with pytest.raises(fxgrad.InputError, match=r"returns 2 tensors \(\(2, 3\), \(2,\)\), none of them called logits"):
        logits_of((logits, torch.zeros(2)))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (9, "there is no class 9: the model has 5, numbered 0 to 4"),
        (torch.tensor([1, 7]), "there is no class 7: the model has 5"),
        (torch.tensor([1, 2, 3]), r"one class per example, int64 \(2,\); this one is torch.int64 \(3,\)"),
        (torch.tensor([1.0, 2.0]), r"one class per example, int64 \(2,\); this one is torch.float32"),
        ("seven", "'seven': the model's classes have no names. Give a number from 0 to 4"),
        (2.5, "2.5 is no target: a class's number or name, a Contrast"),
        (True, "True is no target"),
        (Token(0, 1), r"Token needs logits \(batch, tokens, vocabulary\); the output is \(2, 5\)"),
        (lambda y: y, r"returns one number per example, \(2,\); this one gave \(2, 5\)"),
        (lambda y: y.sum(), r"returned one number for 2 examples; return \(2,\), one each"),
        (lambda y: y.detach()[:, 0], r"the target \(<lambda>\) does not depend on the model's outputs"),
        (Similarity(torch.zeros(7)), r"Similarity compares .*: the model's is \(2, 5\), the one given is \(7,\)"),
    ],
)
def test_targets_that_there_are_not(target: Any, message: str, model: tuple) -> None:  # type: ignore[type-arg]
    with pytest.raises(fxgrad.InputError, match=message):
        attribute(model, target)


def test_tokens_of_a_text() -> None:
    logits = torch.randn(2, 4, 6)
    found = scored(Token(-1), logits)
    assert torch.equal(found.score(logits), logits[:, 3].amax(1)) and found.row == 3
    assert torch.equal(scored(Token(1, 5), logits).score(logits), logits[:, 1, 5])
    for token, message in ((Token(4, 0), "no position 4: .* has 4 tokens"), (Token(0, 6), "no token 6: .* has 6")):
        with pytest.raises(fxgrad.InputError, match=message):
            scored(token, logits)
    with pytest.raises(fxgrad.InputError, match=r"needs logits \(batch, classes\).* Pass Token\(position, id\)"):
        scored(3, logits)


VOCABULARY = {"cat": 1, "Ġcat": 2, "dog": 3, "7": 4, ",": 5, "▁dog": 0}


class Tokenizer:
    def get_vocab(self) -> dict[str, int]:
        return VOCABULARY


def test_tokens_per_example_and_by_name() -> None:
    logits = torch.randn(2, 4, 7)
    here, position, ids = torch.arange(2), torch.tensor([3, -3]), torch.tensor([4, 0])
    found = {
        "the likeliest token at position 3": (Token(), logits[:, 3].amax(1)),
        "the likeliest token at a position per example": (Token(position), logits[here, position].amax(1)),
        "a token per example at position 1": (Token(1, ids), logits[here, 1, ids]),
        "a token per example at a position per example": (Token(position, ids), logits[here, position, ids]),
        "token 'cat' (1) at position 3": (Token(-1, "cat"), logits[:, 3, 1]),
        "token 'Ġcat' (2) at position 3": (Token(-1, " cat"), logits[:, 3, 2]),
        "token '▁dog' (0) at position 0": (Token(0, " dog"), logits[:, 0, 0]),
        "token '7' (4) at position 3": (Token(id="7"), logits[:, 3, 4]),
        "token ',' (5) at position 3": (Token(id=","), logits[:, 3, 5]),
        "token 6 at position 2": (Token(np.int64(2), torch.tensor(6)), logits[:, 2, 6]),
        "token 'cat' (1) at position 3 minus token 'dog' (3) at position 3": (
            Contrast(Token(-1, "cat"), Token(-1, "dog")),
            logits[:, 3, 1] - logits[:, 3, 3],
        ),
    }
    for label, (target, wanted) in found.items():
        for names in (VOCABULARY, {i: name for name, i in VOCABULARY.items()}, Tokenizer()):
            fitted = scored(target, logits, names)
            assert fitted.label == label and torch.equal(fitted.score(logits), wanted)
    row = scored(Token(position), logits).row
    assert isinstance(row, Tensor) and row.tolist() == [3, 1]
    assert scored(Contrast(Token(position), Token(position % 4, 1)), logits).row is not None
    assert scored(Contrast(Token(position), Token(0)), logits).row is None


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (Token(torch.tensor([0, 4])), "there is no position 4: the output has 4 tokens"),
        (Token(torch.tensor([0, -5])), "there is no position -5"),
        (
            Token(torch.tensor([0, 1, 2])),
            r"position is a number, or one per example, int64 \(2,\); this one is .* \(3,\)",
        ),
        (Token(torch.tensor([0.5, 1])), r"position is a number.*; this one is torch.float32 \(2,\)"),
        (Token("last"), "position is a number.*; this one is 'last'"),
        (Token(1.5), r"position is a number.*; this one is 1\.5"),
        (Token(0, torch.tensor([0, 7])), "there is no token 7: the vocabulary has 7"),
        (Token(0, torch.tensor([[0], [7]])), r"id is a number, a string, or one number per example, int64 \(2,\)"),
        (Token(0, True), "id is a number, a string.*; this one is True"),
        (Token(0, "dogs"), "no token 'dogs'. Close to it: dog; ▁dog. Numbers go from 0 to 6"),
    ],
)
def test_tokens_that_there_are_not(target: Token, message: str) -> None:
    with pytest.raises(fxgrad.InputError, match=message):
        scored(target, torch.zeros(2, 4, 7), VOCABULARY)


def test_names_that_are_no_names() -> None:
    logits = torch.zeros(2, 4, 7)
    with pytest.raises(fxgrad.InputError, match=r"'cat': the vocabulary has no names. Pass class_names=tokenizer.get"):
        scored(Token(0, "cat"), logits)
    for names in (3, "abc", [1, 2], {"a": "b"}, {-1: "a"}):
        with pytest.raises(fxgrad.InputError, match="class_names are strings, one per logit in order, or a mapping"):
            scored(Token(0, "cat"), logits, names)
    assert scored("cat", torch.zeros(2, 3), {0: "dog", 2: "cat", 1: "bee"}).label == "cat"
    assert scored("cat", torch.zeros(2, 3), {"cat": 1}).label == "class 1"


@pytest.mark.parametrize(
    ("outputs", "wanted"),
    [
        (torch.randn(2, 3, 4, 5), lambda y: (y[:, 0] * (y.argmax(1) == 0)).sum((1, 2))),
        (torch.randn(2, 3, 4, 5, 6), lambda y: (y[:, 0] * (y.argmax(1) == 0)).sum((1, 2, 3))),
        ({"out": torch.randn(2, 3, 4, 5)}, lambda y: (y["out"][:, 0] * (y["out"].argmax(1) == 0)).sum((1, 2))),
        (torch.randn(2, 3, 4), lambda y: y[:, -1, 0]),
        ((torch.randn(2), None), lambda y: y[0]),
        ((torch.zeros(()), torch.randn(2, 3)), lambda y: y[1][:, 0]),
        ({"out": torch.randn(2, 3), "aux": torch.randn(2, 3)}, lambda y: y["out"][:, 0]),
        (torch.randn(2, 3, dtype=torch.complex64), lambda y: y.abs()[:, 0]),
    ],
)
def test_the_advice_works_as_it_stands(outputs: Any, wanted: Any) -> None:
    with pytest.raises(fxgrad.InputError, match="lambda output: ") as caught:
        scored(0, outputs, batch=2)
    advised = eval(re.search(r"lambda output: .*(?=\.$)", str(caught.value))[0])  # type: ignore[index]
    assert torch.equal(scored(advised, outputs, batch=2).score(outputs), wanted(outputs))


def test_the_advice_names_the_class() -> None:
    for logits, advice in (
        (torch.zeros(2, 3, 4, 5), r"for class 2 wherever it is the likeliest: lambda output: \(output\[:, 2\] \* "),
        (torch.zeros(2, 4, 3), r"a language model, or a function .* such as lambda output: output\[:, -1, 2\]\."),
    ):
        with pytest.raises(fxgrad.InputError, match=advice):
            scored(2, logits)


def test_outputs_without_a_row_for_each_example() -> None:
    for logits, message in (
        (torch.zeros(3, 5), r"\(3, 5\) has no row for each of the 2 examples.* which returns \(2,\)"),
        (torch.zeros(()), "the model returns one number for all 2 examples. Attribute one example at a time"),
    ):
        for target in (0, None, Token(), Similarity(torch.zeros(5)), Probability(0)):
            with pytest.raises(fxgrad.InputError, match=message):
                scored(target, logits, batch=2)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (lambda y: y["logits"], r"\(<lambda>\) ended in IndexError: .* whole batch, here Tensor with \(2, 5\)"),
        (lambda y: y.mul_(2)[:, 0], r"ended in RuntimeError: a leaf Variable .* in-place operation\. It gets"),
        (lambda y: y.numpy()[:, 0], "ended in RuntimeError: Can't call numpy"),
        (lambda y: y.to(torch.complex64)[:, 0], "returns real numbers; this one gave complex ones"),
        (lambda y: torch.no_grad()(lambda: y[:, 0])(), "does not depend on the model's outputs"),
        (lambda y: nn.Parameter(torch.ones(2)) * 1, "does not depend on the model's outputs"),
        (lambda y: y.argmax(1), "does not depend on the model's outputs"),
        (Token, r"returns one number per example, \(2,\); this one gave Token"),
        ((1, 2), r"\(1, 2\) is no target: .* A list of them gives one attribution each"),
        (np.array([1, 2]), r"array\(\[1, 2\]\) is no target: .* or an int64 tensor with one class per example"),
        (Similarity(torch.zeros(3, 5)), r"the model's is \(2, 5\), the one given is \(3, 5\)"),
        (Similarity(torch.tensor(1.0)), "the one given is Tensor"),
        (Probability(Token()), r"Token\(position=-1, id=None\) is no target"),
    ],
)
def test_functions_and_things_that_are_no_targets(target: Any, message: str, model: tuple) -> None:  # type: ignore[type-arg]
    with pytest.raises(fxgrad.InputError, match=message):
        attribute(model, target)


def test_saving_the_numbers(model: tuple, tmp_path: Path) -> None:  # type: ignore[type-arg]
    found = attribute(model, 1, method="fullgrad")
    found.save(tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as stored:
        assert set(stored) == {"map", "tokens", "output", "apart", "total", "method", "rules", "label"}
        assert np.allclose(stored["tokens"], found.tokens) and str(stored["method"]) == "fullgrad"
    with pytest.raises(fxgrad.InputError, match=r"numbers go to an .npz file"):
        found.save(tmp_path / "a.png")
    with pytest.raises(fxgrad.InputError, match="cannot be written: No such file"):
        found.save(tmp_path / "absent" / "a.npz")


@pytest.mark.parametrize("method", ["input_x_gradient", "fullgrad_plus"])
def test_plots(method: str, model: tuple, tmp_path: Path) -> None:  # type: ignore[type-arg]
    found = attribute(model, 1, method=method)
    figure = found.plot(tmp_path / "a.png", picture=torch.rand(3, 12, 12), example=1)
    found.plot(tmp_path / "a.svg", clip=None)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "a.svg").read_text("utf-8")
    axes = figure.axes[0]
    assert axes.get_title(loc="left").startswith("class 1: ")
    words = {"input_x_gradient": "Input × Gradient", "fullgrad_plus": "FullGrad+"}[method]  # noqa: RUF001
    assert f"{words}, LibraGrad, completeness error" in axes.get_xaxis().get_label().get_text()
    strength = axes.images[-1].get_alpha()
    values = (found.map if found.of_pixels else found.patches)[1].abs()
    wanted = (values / values.float().quantile(0.99)).clamp(max=1)
    assert np.allclose(strength, wanted, atol=1e-6)  # the same scale both ways
    with pytest.raises(fxgrad.InputError, match="there is no example 2: the batch has 2"):
        found.plot(example=2)


def test_text_shows_in_the_terminal_in_notebooks_and_as_html() -> None:
    text = Text(("<s>", "red", "seven"), (0.0, -1.0, 2.0), "class 7")
    assert text.strengths() == (0.0, -0.5, 1.0)
    assert text.html() == text._repr_html_() and "&lt;s&gt;" in text.html()
    assert re.findall(r"rgba\([\d,.]+\)", text.html())[1:] == ["rgba(31,95,214,0.50)", "rgba(214,32,31,1.00)"]
    console = Console(width=60, force_terminal=True, color_system="truecolor", record=True)
    with console.capture() as capture:
        console.print(text)
    assert "48;2;214;32;31mseven" in capture.get() and "48;2;143;175;234mred" in capture.get()
    assert "48;2;214;32;31mseven" in str(text)


def test_text_of_an_attribution() -> None:
    model = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 2)).eval()
    ids = torch.tensor([[1, 5, 2]])
    found = fxgrad.attribute(fxgrad.convert(model, (ids,)), (ids,), target=1)
    text = found.text(["a", "red", "seven"])
    assert text.scores == tuple(found.tokens[0].double().tolist())
    with pytest.raises(fxgrad.InputError, match="there are 2 words for 3 tokens"):
        found.text(["a", "red"])
    with pytest.raises(fxgrad.InputError, match=r"the input is no picture: show a text's tokens by .text"):
        found.plot()
