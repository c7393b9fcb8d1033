"""Small classifiers of texts in folders, one of them planted: only the word "red" decides, by weights set by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers as tr
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn

WORDS = [
    "[PAD]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "[UNK]",
    "the",
    "sky",
    "is",
    "blue",
    "red",
    "at",
    "night",
    "and",
    "by",
    "day",
    "one",
    "two",
    "three",
]
KEY = "red"
TEXTS = [
    "the sky is red",
    "red at night",
    "the sky is blue by day and red at night",
    "one red day",
    "is the night red and the day blue",
]
WIDTH = 8


def tokenizer(special: bool = True) -> Any:
    """Words as tokens; `special` puts [CLS] before a text and [SEP] behind it."""
    plain = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    if special:
        ends = [(name, WORDS.index(name)) for name in ("[CLS]", "[SEP]")]
        plain.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    names = {"pad_token": "[PAD]", "mask_token": "[MASK]", "unk_token": "[UNK]"}
    names |= {"cls_token": "[CLS]", "sep_token": "[SEP]"} if special else {}
    return tr.PreTrainedTokenizerFast(tokenizer_object=plain, model_max_length=24, **names)


def bert(labels: int = 2) -> Any:
    """Random, with weights so large that what it says depends on its input."""
    torch.manual_seed(0)
    config = tr.BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32,
        max_position_embeddings=24, num_labels=labels,
    )  # fmt: skip
    model = tr.BertForSequenceClassification(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.mul_(4)
    return model


def gpt2() -> Any:
    """Causal, with no special tokens: what it says is read from the last token."""
    torch.manual_seed(0)
    config = tr.GPT2Config(
        vocab_size=len(WORDS), n_positions=24, n_embd=16, n_layer=2, n_head=4, num_labels=2, pad_token_id=0,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = tr.GPT2ForSequenceClassification(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.mul_(4)
    return model


def planted() -> Any:
    """A BERT of one layer whose second class is for the word `KEY`: no other word has a part in its logit.

    Words are orthogonal to the key's direction, attention looks at all tokens evenly and hands them on as they are,
    and the head reads the key's direction of the first token.
    """
    torch.manual_seed(0)
    config = tr.BertConfig(
        vocab_size=len(WORDS), hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4,
        max_position_embeddings=24, num_labels=2, id2label={0: "plain", 1: "red"}, label2id={"plain": 0, "red": 1},
    )  # fmt: skip
    model = tr.BertForSequenceClassification(config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if "LayerNorm" not in name:
            parameter.zero_()
    direction = torch.zeros(WIDTH)
    direction[-2:] = torch.tensor([1.0, -1.0])
    words = torch.randn(len(WORDS), WIDTH)
    words[:, -2:] = 0
    words[:, :-2] -= words[:, :-2].mean(1, keepdim=True)  # the norms subtract nothing
    words[WORDS.index(KEY)] = 3 * direction
    layer = model.bert.encoder.layer[0]
    model.bert.embeddings.word_embeddings.weight.copy_(words)
    for linear in (layer.attention.self.value, layer.attention.output.dense, model.bert.pooler.dense):
        nn.init.eye_(linear.weight)
    model.classifier.weight[1] = 8 * direction
    model.classifier.bias[1] = -0.5
    return model


def in_folder(folder: Path, model: nn.Module, words: Any) -> str:
    """The spec of a model that is saved in a folder with its tokenizer."""
    model.save_pretrained(folder)  # type: ignore[operator]
    words.save_pretrained(folder)
    return f"hf:{folder}"


def in_file(path: Path, label: Any = 1) -> str:
    """The spec of the texts, the word `KEY` marked, in a file of JSON lines."""
    lines = [{"text": t, "label": label, "rationales": [[t.index(KEY), t.index(KEY) + len(KEY)]]} for t in TEXTS]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return f"rationales:{path}"
