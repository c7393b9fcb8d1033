"""Rows add up, whatever the model's kind; a batch is its prompts one by one; nothing comes from later tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

import fxgrad
from fxgrad.methods import Token
from fxgrad.text import Explainer, Explanation, explain
from fxgrad.text.prompts import encoded
from tests.helpers.language_models import IN_FLOAT32, WRAPPED, explainer, model, tokenizer

SOUND = torch.randn(2, 8, 32, generator=torch.Generator().manual_seed(0)).double()
SAYING = ["llama", "qwen3", "gemma3", "gpt2", "mamba", "mixtral", "t5", "bart"]
PROMPTS = ["the sky is", "one two three four five"]
ANSWERS = [" blue and unlikely", " seven red"]
ASKED: dict[str, tuple[list[Any], list[Any]]] = {
    **dict.fromkeys(SAYING, (PROMPTS, ANSWERS)),
    "whisper": ([*SOUND], [" blue and", " seven"]),
    "bert": (PROMPTS, [1, "LABEL_2"]),
    "masked": (["the [MASK] is[MASK].", "one[MASK][MASK] two three"], [" sky blue", " six six"]),
    "tokens": (PROMPTS, ["LABEL_0", None]),
    "spans": ([("who is red", "the night is red."), ("what", "the sky is blue")], [" night", None]),
    "sentence": (PROMPTS, ["the night is red.", "one two"]),
}


def of(name: str) -> tuple[Any, Any]:
    return model(name), tokenizer(name in WRAPPED)


def error(found: Explanation) -> float:
    assert found.biases is not None
    return float((found.matrix.sum(1) + found.biases - found.values).abs().max())


@pytest.mark.parametrize("name", ASKED)
def test_rows_add_up_and_a_batch_is_its_prompts(name: str) -> None:
    tolerance = 2e-5 if name == "mixtral" else 1e-6 if name in IN_FLOAT32 else 1e-9
    own = explainer(name)
    prompts, answers = ASKED[name]
    together = own.explain(prompts, answers)
    for prompt, answer, found in zip(prompts, answers, together):
        assert error(found) < tolerance and float(found.matrix.abs().max()) > 1e-3
        alone = own.explain(prompt, answer)
        assert (alone.columns, alone.answer_tokens) == (found.columns, found.answer_tokens)
        for a, b in zip((alone.matrix, alone.biases, alone.values), (found.matrix, found.biases, found.values)):
            assert torch.allclose(a, b, rtol=0, atol=10 * tolerance)
        for folded in (found.words(), found.sentences(), found.hops(1), found.words().hops(2), found.hops(9).words()):
            assert error(folded) < tolerance
            assert float(folded.values.sum()) == pytest.approx(float(found.values.sum()), abs=10 * tolerance)


@pytest.mark.parametrize("name", [n for n in SAYING if n not in ("t5", "bart")])
def test_a_causal_matrix(name: str) -> None:
    """It equals single calls of `attribute`, is 0 for later tokens, and the values are the model's own logits."""
    net, words = of(name)
    found = explainer(name).explain(PROMPTS[0], ANSWERS[0])
    prompt, answer = words(PROMPTS[0])["input_ids"], words(ANSWERS[0])["input_ids"]
    ids = torch.tensor([prompt + answer])
    start = len(prompt) - 1
    rows = torch.arange(len(answer))
    with torch.no_grad():
        logits = net(ids, use_cache=False).logits[0]
    assert torch.allclose(found.values, logits[start + rows, answer], rtol=1e-5)
    assert not found.matrix[rows[:, None] < torch.arange(ids.shape[1] - 1) - start].any()
    libra = fxgrad.convert(net, kwargs={"input_ids": ids[:, :-1], "use_cache": False})
    for row in rows.tolist():
        one = fxgrad.attribute(
            libra, kwargs={"input_ids": ids[:, :-1], "use_cache": False}, target=Token(start + row, answer[row])
        )
        assert torch.allclose(one.map[0].to(found.matrix), found.matrix[row], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "qwen3", "bert", "t5", "bart"])
def test_one_conversion_for_all_lengths(name: str) -> None:
    """The forward is the model's own, bit for bit."""
    net, words = of(name)
    own = Explainer(net, words)
    seen = []
    for prompt in ("the sky is", "one two three four", "unlikely, the night is red and it rains"):
        answer = 1 if name == "bert" else " blue red"
        question = own._ask(own._host, encoded(words, prompt)[0], [answer], [None])
        libra = own._host.conversion(question.kwargs)
        seen.append(libra)
        with torch.no_grad():
            assert torch.equal(libra(**question.kwargs).logits, net(**question.kwargs).logits)
    assert all(one is seen[0] for one in seen) and own.converted is seen[0]


def test_what_a_model_says_itself() -> None:
    net, words = of("gpt2")
    own = explainer("gpt2")
    found = own.explain(PROMPTS[0], generate={"max_new_tokens": 3})
    ids = torch.tensor([words(PROMPTS[0])["input_ids"]])
    said = net.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, do_sample=False, pad_token_id=0)
    assert "".join(found.answer_tokens) == words.decode(said[0, ids.shape[1] :])
    several = own.explain(PROMPTS, generate={"max_new_tokens": 2})
    assert [len(one.answer_tokens) for one in several] == [2, 2]
    label = explain(*of("bert"), PROMPTS[0])
    with torch.no_grad():
        logits = model("bert")(torch.tensor([tokenizer(True)(PROMPTS[0])["input_ids"]])).logits[0]
    assert label.answer_tokens == (f"LABEL_{int(logits.argmax())}",)
    assert float(label.values[0]) == pytest.approx(float(logits.max()))


@pytest.mark.parametrize("name", ["gpt2", "bert", "masked", "bart", "tokens"])
def test_this_answer_and_not_that_one(name: str) -> None:
    other = {"gpt2": " red", "bart": " red", "bert": 0, "masked": " red blue", "tokens": 2}[name]
    prompt, answer = (ASKED[name][i][0] for i in range(2))
    answer = " blue" if name in ("gpt2", "bart") else answer
    own = explainer(name)
    found, plain, unlike = (
        own.explain(prompt, answer, against=other), own.explain(prompt, answer),
        own.explain(prompt, other if name != "tokens" else 2),
    )  # fmt: skip
    assert found.against is not None and plain.against is None and error(found) < 1e-9
    assert torch.allclose(found.matrix[0], plain.matrix[0] - unlike.matrix[0], atol=1e-9)


def test_a_span_is_one_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    found = explainer("gpt2").explain(PROMPTS[0], ANSWERS[0])
    counted: list[int] = []
    attribute = fxgrad.attribute
    monkeypatch.setattr(
        "fxgrad.text.rows.attribute",
        lambda *a, target, **k: counted.append(len(target)) or attribute(*a, target=target, **k),
    )
    span = found.span(1, 3)
    first = span.matrix
    assert counted == [1]
    assert torch.allclose(first[0], found.matrix[1:3].sum(0), atol=1e-9) and counted == [1, len(found.answer_tokens)]
    assert torch.equal(found.span(0, 3).matrix[0], found.matrix.sum(0)) and len(counted) == 2
    with pytest.raises(fxgrad.InputError, match="a span is 0 <= start < end"):
        found.span(3, 3)


def test_parts_of_parts_add_up() -> None:
    found = explainer("gpt2").explain("the nightly skies", " blueish rains, redder")
    assert len(found.words().spans) < len(found.spans)
    for part in (
        found.span(1, 4),
        found.span(1, 4).words(),
        found.words().span(0, 2),
        found.words().span(1, 3).words(),
    ):
        assert error(part) < 1e-9 and part.matrix.shape == (len(part.spans), len(part.columns))
        assert "".join(part.columns) == "".join(found.columns)
        assert float(part.matrix.sum()) == pytest.approx(
            float(sum(found.matrix[a:b].sum() for a, b in part.spans)), abs=1e-9
        )
        with pytest.raises(fxgrad.InputError, match=r"has no row of its own here. Take .hops before .span"):
            part.hops(1)
    assert error(found.words().hops(1).span(0, 2)) < 1e-9 and error(found.hops(1).words()) < 1e-9


def test_the_likeness_of_two_texts() -> None:
    net, words = of("sentence")
    found = explainer("sentence").explain(PROMPTS[0], PROMPTS[1])
    with torch.no_grad():
        a, b = (net(**words(text, return_tensors="pt")).last_hidden_state.mean(1) for text in PROMPTS)
    assert float(found.values) == pytest.approx(float(torch.cosine_similarity(a, b)), abs=1e-9)
    assert float(explainer("sentence").explain(PROMPTS[0], PROMPTS[0]).values) == pytest.approx(1)


def test_an_encoder_and_a_decoder_have_both_sides() -> None:
    found = explainer("bart").explain(PROMPTS[0], ANSWERS[0])
    source = tokenizer()(PROMPTS[0])["input_ids"]
    assert len(found.prompt_tokens) == len(source) + 1 and found.prompt_tokens[-1] == "</s>"
    assert found.columns[found.prompt :] == found.answer_tokens[:-1]
    assert not found.matrix[0, found.prompt :].any() and found.matrix[-1].ne(0).all()


def test_sound_has_frames() -> None:
    own = explainer("whisper")
    found = own.explain(SOUND[0], " blue red")
    assert found.columns[:2] == (" frame 0", " frame 1") and found.prompt == 33 and error(found) < 1e-9
    source = found.matrix[:, :32]
    assert bool(source.ne(0).all()) and len(found.words().prompt_tokens) == 33
    assert own.explain(SOUND[0], generate={"max_new_tokens": 3, "min_new_tokens": 3}).answer_tokens
    with pytest.raises(fxgrad.InputError, match="GPT2LMHeadModel takes texts, and no features of sound"):
        explain(*of("gpt2"), SOUND[0])


def test_hops_hand_on_what_spoke_for_a_token() -> None:
    found = explainer("gpt2").explain(PROMPTS[0], ANSWERS[0])
    steps = len(found.answer_tokens)
    assert torch.equal(found.hops(0).matrix, found.matrix)
    assert not found.hops(steps).matrix[:, found.prompt :].any()
    assert found.biases is not None
    first = torch.cat([found.matrix, found.biases[:, None]], 1)[0]
    spoke = first.clamp(min=0) if bool((first > 0).any()) else first.abs()
    share = found.matrix[1, found.prompt] * spoke / spoke.sum()  # what the first token gives to the second
    once = found.hops(1)
    assert torch.allclose(once.matrix[1, : found.prompt], (found.matrix[1] + share[:-1])[: found.prompt])
    assert once.biases is not None and torch.allclose(once.biases[1], found.biases[1] + share[-1])


def test_other_methods() -> None:
    for method in ("attcat", "genatt", "gradient"):
        own = Explainer(*of("gpt2"), method=method)
        found = own.explain(PROMPTS[0], ANSWERS[0])
        assert found.matrix.shape == (len(found.answer_tokens), len(found.columns)) and found.method == method
        assert (found.biases is None) == (found.completeness_error is None)
        whole = found.span(0, len(found.spans)).matrix[0]  # of the sum of all logits, whatever was asked before
        again = own.explain(PROMPTS[0], ANSWERS[0]).span(0, len(found.spans)).matrix[0]
        assert torch.allclose(whole, again, atol=1e-9)
        assert (method == "gradient") == torch.allclose(whole, found.matrix.sum(0), atol=1e-9)
    with pytest.raises(fxgrad.InputError, match="gives no shares, so there is nothing to hand on"):
        found.hops(1)
