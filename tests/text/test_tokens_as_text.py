"""Tokens as text: together they are the text, whatever the tokenizer; words and sentences among them."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("transformers")

import transformers as tr
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from fxgrad.text.pieces import pieces, sentences, shown, words
from tests.helpers.language_models import tokenizer


def word_pieces() -> Any:
    """As BERT's: what goes on within a word begins with ##."""
    known = {w: i for i, w in enumerate(["[UNK]", "[CLS]", "[SEP]", "un", "##like", "##ly", "he", "said", ",", "."])}
    made = Tokenizer(models.WordPiece(known, unk_token="[UNK]"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    return tr.PreTrainedTokenizerFast(tokenizer_object=made, cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]")


def metaspace() -> Any:
    """As Llama's first ones: a word begins with ▁."""
    known = ["<unk>", "▁the", "▁un", "like", "ly", "▁sky", "."]
    made = Tokenizer(models.Unigram([(w, -float(i)) for i, w in enumerate(known)], unk_id=0))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return tr.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")


@pytest.mark.parametrize(
    "text", ["the sky is blue", "I said: unlikely, he said\nit  rains.", "naïve café, 天気がいい", "🙂 one"]
)
def test_together_they_are_the_text(text: str) -> None:
    ids = tokenizer()(text)["input_ids"]
    found = pieces(tokenizer(), ids)
    assert len(found) == len(ids)
    if text.isascii():
        assert "".join(found) == text
    else:  # what ends within a character shows it as �, and the token that completes it has it
        assert "".join(found).replace("�", "") == text


def test_a_long_text_is_decoded_in_windows() -> None:
    text = "the night is red. " * 30
    assert "".join(pieces(tokenizer(), tokenizer()(text)["input_ids"])) == text


def test_word_pieces() -> None:
    found = pieces(word_pieces(), word_pieces()("[CLS] unlikely, he said. [SEP]")["input_ids"])
    assert found == ("[CLS]", " un", "like", "ly", ",", " he", " said", ".", "[SEP]")
    assert ["".join(found[a:b]).strip() for a, b in words(found)] == [
        *("[CLS]", "unlikely", ",", "he", "said", ".", "[SEP]")
    ]


def test_metaspace() -> None:
    found = pieces(metaspace(), metaspace()("the unlikely sky.")["input_ids"])
    assert "".join(found) == "the unlikely sky." and found[1] == " un"
    assert ["".join(found[a:b]) for a, b in words(found)] == ["the", " unlikely", " sky", "."]


def test_words_and_sentences() -> None:
    tokens = ["It", " ", "rains", "!", " We", "'", "ll", " stay", ".", "\n", "<s>", "Yes", " 3", ".", "5", "天", "気"]
    assert ["".join(tokens[a:b]) for a, b in words(tokens)] == [
        *("It", " rains", "!", " We'll", " stay", ".", "\n", "<s>", "Yes", " 3", ".", "5", "天", "気")
    ]
    assert ["".join(tokens[a:b]) for a, b in sentences(tokens)] == [
        *("It rains!", " We'll stay.", "\n", "<s>", "Yes 3.5天気")
    ]
    assert words([]) == [] and sentences([]) == []


def test_as_shown() -> None:
    assert [shown(t) for t in (" sky", "\n", "", "\x00", "incomprehensibilities")] == [
        *("sky", "⏎", "␣", "�", "incomprehensibili…")
    ]
