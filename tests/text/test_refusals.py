"""What cannot be explained: one clear error each."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("transformers")

import fxgrad
from fxgrad.text import Explainer, explain
from tests.helpers.language_models import CAUSAL, explainer, model, tokenizer

LONG = "one two three four five six seven " * 20


@pytest.mark.parametrize(
    ("name", "prompt", "answer", "options", "says"),
    [
        ("gpt2", "", " blue", {}, "the prompt is empty: there is no token before the answer"),
        ("gpt2", ["the sky", ""], [" a", " b"], {}, "prompt 1 is empty"),
        ("gpt2", "the sky", "", {}, "the answer is empty: there is nothing to explain"),
        ("gpt2", "the sky", 3.5, {}, r"an answer is a text or token ids, not 3\.5"),
        (
            "gpt2",
            3.5,
            " blue",
            {},
            "a prompt is a text, a pair of texts, a text and a picture, a list of messages .* This one is float",
        ),
        ("gpt2", ["the sky", "one"], " blue", {}, "with 2 prompts, answer is a list of 2, one for each; got str"),
        ("gpt2", LONG, " blue", {}, "prompt and answer have .* tokens, and GPT2LMHeadModel has room for 64. Shorten"),
        ("gpt2", [0, 10**6], " blue", {}, r"has a token 1000000, and the model's vocabulary ends at \d+: they do not"),
        ("gpt2", "the sky", " blue", {"against": " one two"}, "against has .* tokens and the answer .* token by token"),
        ("gpt2", [{"role": "user", "content": "sky?"}], " b", {}, "cannot write these messages .* chat_template"),
        (
            "masked",
            "the sky",
            " blue",
            {},
            r"the prompt has no \[MASK\], so a model that fills in masks is asked nothing",
        ),
        (
            "masked",
            "the [MASK]",
            " one two",
            {},
            "the answer has .* tokens, the prompt 1 masks: one mask for each token",
        ),
        ("bert", "the sky", "LABEL_7", {}, "no class 'LABEL_7'"),
        ("bert", "the sky", 7, {}, "there is no class 7: the model has 3"),
        ("spans", ("who", "the sky"), " red", {}, "' red' does not stand in the prompt, token by token"),
        ("sentence", "the sky", None, {}, "BertModel has no head that answers, so its answer is another text"),
        ("gpt2", "the sky", " blue", {"method": "no_such"}, "there is no method 'no_such'"),
    ],
)
def test_bad_input(name: str, prompt: Any, answer: Any, options: dict[str, Any], says: str) -> None:
    with pytest.raises(fxgrad.InputError, match=says) as raised:
        explain(model(name), tokenizer(name not in ("gpt2",)), prompt, answer, **options)
    assert len(str(raised.value)) < 600


def test_no_language_model() -> None:
    with pytest.raises(fxgrad.InputError, match="takes a language model of transformers, not Linear"):
        explain(nn.Linear(2, 2), tokenizer(), "the sky", " blue")


def test_models_that_say_nothing_themselves() -> None:
    ids = torch.zeros(1, 4, dtype=torch.long)
    libra = fxgrad.convert(model("gpt2"), kwargs={"input_ids": ids, "use_cache": False})
    with pytest.raises(fxgrad.InputError, match=r"does not generate\. Give the answer, or the model of transformers"):
        explain(libra, tokenizer(), "the sky")
    found = explain(libra, tokenizer(), "the sky", " blue")
    assert torch.allclose(found.matrix, explainer("gpt2").explain("the sky", " blue").matrix, atol=1e-9)
    silent = model("gpt2")
    silent.generate = lambda input_ids, **_: torch.cat([input_ids, torch.tensor([[2]])], 1)  # type: ignore[operator, assignment]
    with pytest.raises(fxgrad.InputError, match=r"ends at once after this prompt\. Give the answer"):
        explain(silent, tokenizer(), "the sky")
    two = fxgrad.convert(model("bart"), kwargs={"input_ids": ids, "decoder_input_ids": ids, "use_cache": False})
    with pytest.raises(fxgrad.InputError, match=r"does not say how its answers begin\. Pass the model itself"):
        explain(two, tokenizer(), "the sky", " blue")


def test_a_chat_is_written_by_the_template() -> None:
    words = tokenizer()
    words.chat_template = "{% for m in messages %}<s>{{ m['content'] }}{% endfor %}</s>"
    try:
        found = explain(model("gpt2"), words, [{"role": "user", "content": "the sky"}], " blue")
    finally:
        words.chat_template = None
    assert found.prompt_tokens[0] == "<s>" and found.prompt_tokens[-1] == "</s>"
    assert "".join(found.prompt_tokens) == "<s>the sky</s>"


def test_the_vocabulary_is_known_of_a_converted_module() -> None:
    ids = torch.zeros(1, 4, dtype=torch.long)
    libra = fxgrad.convert(model("gpt2"), kwargs={"input_ids": ids, "use_cache": False})
    with pytest.raises(fxgrad.InputError, match=rf"the model's vocabulary ends at {CAUSAL['vocab_size'] - 1}"):
        explain(libra, tokenizer(), [1, 2, 10**6], " blue")


def test_a_converted_module_gets_all_that_its_prompts_need() -> None:
    """Never a batch without the mask of its padding, nor a pair without its types."""
    ids = torch.zeros(2, 4, dtype=torch.long)
    words = tokenizer(wrapped=True)
    bare = fxgrad.convert(model("bert"), kwargs={"input_ids": ids})
    alone = explain(bare, words, "the sky is", 1)
    assert torch.allclose(alone.values, explainer("bert").explain("the sky is", 1).values, atol=1e-9)
    assert alone.completeness_error is not None and alone.completeness_error < 1e-9
    with pytest.raises(fxgrad.InputError, match="takes no attention_mask, which these prompts need"):
        explain(bare, words, ["the sky is", "one"], [1, 1])
    with pytest.raises(fxgrad.InputError, match="takes no token_type_ids, which these prompts need"):
        explain(bare, words, ("the sky is", "one"), 1)
    three = {"input_ids": ids[:, :3], "attention_mask": ids[:, :3] + 1, "use_cache": False}
    masked = fxgrad.convert(model("gpt2"), kwargs=three)
    found = explain(masked, tokenizer(), "the sky is", " blue")
    assert torch.allclose(found.matrix, explainer("gpt2").explain("the sky is", " blue").matrix, atol=1e-9)
    filling = fxgrad.convert(model("masked"), kwargs={"input_ids": ids, "attention_mask": ids + 1})
    found = explain(filling, words, "the [MASK]", " sky")
    assert torch.allclose(found.values, explainer("masked").explain("the [MASK]", " sky").values, atol=1e-9)


def test_a_pair_after_a_single_text_keeps_its_types() -> None:
    own = Explainer(model("bert"), tokenizer(wrapped=True))
    own.explain("the sky is", 1)
    pair = ("the sky is", "one two")
    found = own.explain(pair, 1)
    assert torch.allclose(found.values, explain(model("bert"), tokenizer(wrapped=True), pair, 1).values)
    with torch.no_grad():
        logits = model("bert")(**tokenizer(wrapped=True)(*pair, return_tensors="pt")).logits
    assert torch.allclose(found.values, logits[0, 1])
