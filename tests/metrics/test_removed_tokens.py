"""Tokens removed from texts, against plain loops over the original model, one text at a time, without padding."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import transformers as tr
from sklearn.metrics import average_precision_score
from torch import Tensor

from fxgrad import metrics
from fxgrad.data.texts import Passage
from fxgrad.data.tokenized import tokenized
from fxgrad.errors import InputError
from fxgrad.metrics import FRACTIONS, TokenRemoval
from fxgrad.metrics.tokens import BINS
from fxgrad.text.prompts import padded
from tests.helpers import classified

MASK, PAD = classified.WORDS.index("[MASK]"), 0
HOWS = {"hide": ("hide", PAD), "drop": ("drop", PAD), "mask": ("replace", MASK), "pad": ("replace", PAD)}
TARGET = torch.tensor([0, 1, 1, 0, 1])


def texts(special: bool = True) -> tuple[list[list[int]], dict[str, Tensor], Tensor]:
    """(ids of each text, the padded batch, the tokens that count)."""
    found = tokenized(classified.tokenizer(special), [Passage(t, 0, (), t) for t in classified.TEXTS])
    ids = [one.ids for one in found.encoded]
    inputs = {"input_ids": padded(ids, PAD, "cpu"), "attention_mask": padded([[1] * len(i) for i in ids], 0, "cpu")}
    return ids, inputs, found.counted


def probability(model: Any, ids: list[int], gone: set[int], how: str, target: int) -> float:
    """The target's probability without some tokens of one text, as one would write it down."""
    mask, positions = [1] * len(ids), list(range(len(ids)))
    if how == "hide":
        mask = [int(i not in gone) for i in positions]
    elif how == "drop":
        positions = [i for i in positions if i not in gone]
        ids, mask = [ids[i] for i in positions], [1] * len(positions)
    else:
        ids = [HOWS[how][1] if i in gone else token for i, token in enumerate(ids)]
    with torch.no_grad():
        given = {"input_ids": [ids], "attention_mask": [mask], "position_ids": [positions]}
        logits = model(**{name: torch.tensor(value) for name, value in given.items()}).logits[0]
    return float(logits.double().softmax(0)[target])


def ranked(scores: Tensor, counted: Tensor) -> list[int]:
    """Places of the counted tokens of one text, the most influential first."""
    own = [i for i in range(len(counted)) if counted[i]]
    return sorted(own, key=lambda i: (-float(scores[i]), i))


def curve(model: Any, ids: list[int], order: list[int], how: str, target: int) -> list[float]:
    counts = [round(share * len(order)) for share in FRACTIONS]
    return [probability(model, ids, set(order[:count]), how, target) for count in counts]


@pytest.mark.parametrize("how", HOWS)
def test_all_metrics_are_those_of_a_plain_loop(how: str) -> None:
    model = classified.bert().double()
    ids, inputs, counted = texts()
    scores = torch.randn(2, *counted.shape, dtype=torch.float64)
    scores[0, 2, 3:6] = 0.5  # equal ones
    removal, words = TokenRemoval(model, *HOWS[how]), (TARGET, counted)
    rationale = torch.rand(counted.shape) < 0.4
    hard = [f(removal, inputs, rationale, *words, batch=4) for f in (metrics.comprehensiveness, metrics.sufficiency)]
    soft = metrics.eraser(removal, inputs, scores, *words, batch=7)
    most, least = (metrics.token_curve(removal, inputs, scores, *words, most_first=m) for m in (True, False))
    close = {"rel": 0, "abs": 1e-12}
    for text, (own, target) in enumerate(zip(ids, TARGET.tolist())):
        whole = probability(model, own, set(), how, target)
        places = {i for i in range(len(own)) if counted[text, i]}
        marked = {i for i in places if rationale[text, i]}
        for found, gone in zip(hard, (marked, places - marked)):
            assert float(found[text]) == pytest.approx(whole - probability(model, own, gone, how, target), **close)
        for which in range(2):
            order = ranked(scores[which, text], counted[text])
            tops = [set(order[: math.ceil(round(share * len(order), 9))]) for share in BINS]
            for name, gone in (("comprehensiveness", tops), ("sufficiency", [places - top for top in tops])):
                wanted = sum(whole - probability(model, own, some, how, target) for some in gone) / len(BINS)
                assert float(soft[name][which, text]) == pytest.approx(wanted, **close)
            for found, first in ((most, order), (least, order[::-1])):
                assert found.probability[which, text].tolist() == pytest.approx(
                    curve(model, own, first, how, target), **close
                )


def test_special_tokens_and_padding_stay_and_do_not_count() -> None:
    """What a function of the inputs sees: ends are there whatever is removed; scores of what does not count are free."""
    _, inputs, counted = texts()
    seen: list[dict[str, Tensor]] = []

    def model(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        seen.append({"input_ids": input_ids, "attention_mask": attention_mask})
        hidden = (input_ids * attention_mask).double()
        return torch.stack([hidden.sin().sum(1), hidden.cos().sum(1)], 1)

    scores = torch.randn(counted.shape)
    other = scores.where(counted, torch.randn(counted.shape) * 1e6)
    found = [metrics.eraser(TokenRemoval(model), inputs, s, TARGET, counted) for s in (scores, other)]
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    ends = [classified.WORDS.index(name) for name in ("[CLS]", "[SEP]")]
    assert all(
        bool((((one["input_ids"] == end) & one["attention_mask"].bool()).sum(1) == 1).all())
        for one in seen
        for end in ends
    )


@pytest.mark.parametrize("name", ["llama", "roberta"])
def test_dropped_tokens_leave_the_others_where_they_were(name: str) -> None:
    """Rotary positions, and positions that begin behind the padding's number; in the reference, nothing is padded."""
    sizes = {"vocab_size": len(classified.WORDS), "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"intermediate_size": 32, "max_position_embeddings": 24, "num_labels": 2, "pad_token_id": PAD}
    made: Any = {
        "llama": lambda: tr.LlamaForSequenceClassification(tr.LlamaConfig(**sizes)),
        "roberta": lambda: tr.RobertaForSequenceClassification(tr.RobertaConfig(**sizes)),
    }[name]
    model = made().double().eval()
    for parameter in model.parameters():
        parameter.data.mul_(4 if parameter.dim() > 1 else 1)
    ids, inputs, counted = texts(special=name == "roberta")
    removal = TokenRemoval(model, "drop", PAD)
    keep = ~counted | (torch.rand(counted.shape) < 0.5)
    keep[:, 0] = True
    logits = removal(removal.prepare(inputs, counted), keep)
    first = 0 if name == "llama" else PAD + 1
    for text, own in enumerate(ids):
        left = [i for i in range(len(own)) if keep[text, i]]
        given = {"input_ids": torch.tensor([[own[i] for i in left]]), "position_ids": torch.tensor([left]) + first}
        assert torch.allclose(logits[text], model(**given).logits[0], rtol=0, atol=1e-6 if name == "llama" else 1e-12)


def test_where_nothing_is_left_there_is_no_value() -> None:
    model = classified.gpt2().double()
    _, inputs, counted = texts(special=False)
    removal = TokenRemoval(model, "drop")
    everything, nothing = counted.clone(), torch.zeros_like(counted)
    nothing[0, 1] = True
    assert metrics.comprehensiveness(removal, inputs, everything, TARGET, counted).isnan().all()
    found = metrics.sufficiency(removal, inputs, nothing, TARGET, counted)
    assert found.isnan().tolist() == [False, True, True, True, True]


def test_what_a_model_cannot_do_is_said() -> None:
    _, inputs, counted = texts()
    gpt2 = TokenRemoval(classified.gpt2(), "hide")
    gpt2.prepare(inputs, counted)  # its last token is [SEP], which stays
    with pytest.raises(InputError, match="GPT2ForSequenceClassification reads a token that is hidden"):
        gpt2.prepare(*texts(special=False)[1:])
    sizes = {"vocab_size": 18, "d_model": 16, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 4}
    t5 = tr.T5ForSequenceClassification(tr.T5Config(**sizes, num_labels=2, eos_token_id=2))
    with pytest.raises(
        InputError, match="T5ForSequenceClassification takes no position_ids, without which tokens that"
    ):
        TokenRemoval(t5, "drop")
    relative = {"relative_attention": True, "pos_att_type": ["c2p"], "position_biased_input": False}
    shape = {"vocab_size": 18, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4}
    deberta = tr.DebertaV2ForSequenceClassification(tr.DebertaV2Config(**shape, intermediate_size=8, **relative)).eval()
    for parameter in deberta.parameters():
        parameter.data.mul_(8)
    with pytest.raises(InputError, match="does not place tokens by their position_ids alone"):
        TokenRemoval(deberta, "drop").prepare(inputs, counted)
    with pytest.raises(InputError, match="takes no attention_mask, which hides tokens"):
        TokenRemoval(lambda input_ids: input_ids)
    with pytest.raises(InputError, match="tokens are removed by 'hide', 'replace', 'drop', not 'blur'"):
        TokenRemoval(t5, "blur")
    bert = TokenRemoval(classified.bert())
    with pytest.raises(InputError, match=r"attention_mask is \(5, 2\), input_ids \(5, 12\)"):
        bert.prepare({**inputs, "attention_mask": inputs["attention_mask"][:, :2]}, counted)
    with pytest.raises(InputError, match="inputs that have input_ids; these have inputs_embeds"):
        bert.prepare({"inputs_embeds": inputs["input_ids"]}, counted)
    with pytest.raises(InputError, match=r"it is bool, not torch.int64"):
        bert.prepare(inputs, counted.long())
    with pytest.raises(InputError, match="some scores are NaN"):
        metrics.eraser(bert, inputs, torch.full(counted.shape, torch.nan), TARGET, counted)
    with pytest.raises(InputError, match=r"a rationale is bool \(..., texts, tokens\)"):
        metrics.sufficiency(bert, inputs, counted.double(), TARGET, counted)


def test_agreement_is_that_of_sklearn_and_of_sets_of_tokens() -> None:
    scores = torch.randint(0, 5, (3, 6, 12)).double()
    rationales, counted = torch.rand(6, 12) < 0.4, torch.rand(6, 12) < 0.8
    rationales[0], rationales[1] = False, True
    counted[5, :] = True
    count = (rationales & counted).sum(1)
    chosen = metrics.top_tokens(scores, counted, count)
    precision = metrics.token_precision(scores, rationales, counted)
    f1 = [f(chosen, rationales, counted) for f in (metrics.token_f1, metrics.iou_f1)]
    for which in range(3):
        for text in range(6):
            own = [i for i in range(12) if counted[text, i]]
            truth = [bool(rationales[text, i]) for i in own]
            if len({*truth}) < 2:
                assert precision[which, text].isnan()
            else:
                wanted = average_precision_score(truth, [float(scores[which, text, i]) for i in own])
                assert float(precision[which, text]) == pytest.approx(wanted, abs=1e-12)
            best = set(ranked(scores[which, text], counted[text])[: int(count[text])])
            assert {i for i in range(12) if chosen[which, text, i]} == best
            marked = {i for i in own if rationales[text, i]}
            if not marked:
                assert all(bool(f[which, text].isnan()) for f in f1)
                continue
            assert float(f1[0][which, text]) == pytest.approx(2 * len(best & marked) / (len(best) + len(marked)))
            pieces, gold = runs(best), runs(marked)
            hits = sum(any(len(p & g) >= 0.5 * len(p | g) for g in gold) for p in pieces)
            assert float(f1[1][which, text]) == pytest.approx(2 * hits / (len(pieces) + len(gold)))


def runs(places: set[int]) -> list[set[int]]:
    """Places side by side together."""
    found: list[set[int]] = []
    for place in sorted(places):
        if found and place - 1 in found[-1]:
            found[-1].add(place)
        else:
            found.append({place})
    return found
