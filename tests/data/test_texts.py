"""Texts and rationales from files, and as tokens by the tokenizer's offsets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fxgrad.data import Passage, open_data, order
from fxgrad.data.texts import rationales
from fxgrad.data.tokenized import tokenized
from fxgrad.errors import InputError
from tests.helpers import classified, language_models


def lines(path: Path, *values: Any) -> Path:
    path.write_text("\n".join(json.dumps(value) for value in values) + "\n\n")
    return path


def test_json_lines(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "reviews.jsonl",
        {"text": "a fine film", "label": "pos", "rationales": [[2, 6]]},
        {"text": "dull\u2028and long", "label": "neg", "id": "second", "group": "critic"},
        {"text": "no label"},
    )
    data: Any = open_data(f"rationales:{path}")
    assert (len(data), data.class_names, data.multilabel, data.of_texts) == (3, ["neg", "pos"], False, True)
    assert data[0] == Passage("a fine film", "pos", ((2, 6),), "reviews.jsonl:1")
    assert data[1] == Passage("dull\u2028and long", "neg", (), "second", "critic") and data[2].label is None
    (tmp_path / "ids").write_text("second\n")
    assert order(data, ids=tmp_path / "ids") == [1]
    with pytest.raises(InputError, match="a mode is one of pictures, and these are texts"):
        order(data, mode="RGB")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "t.jsonl:1 is no JSON"),
        ("[1]", "t.jsonl:1 is a list, and no object of JSON"),
        ('{"label": 1}', "t.jsonl:1 has no text"),
        ('{"text": "a", "label": 0.5}', "a label is the number or the name of a class, not 0.5"),
        ('{"text": "abc", "label": 0, "rationales": [[2, 2]]}', r"is \[start, end\] in 3 places, .* not \[2, 2\]"),
        ('{"text": "abc", "label": 0, "rationales": [[0, 4]]}', r"not \[0, 4\]"),
        ('{"text": "abc", "label": 0, "rationales": 3}', r"rationales are a list of \[start, end\], not 3"),
        ("", "the data set has no texts"),
        ('{"text": "a", "id": 1}\n{"text": "b", "id": 1}', "two texts have the id '1'"),
    ],
)
def test_lines_that_are_none(line: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(line)
    with pytest.raises(InputError, match=message):
        rationales(str(tmp_path / "t.jsonl"))


def evidence(docid: str, start: int, end: int) -> dict[str, Any]:
    return {"docid": docid, "start_token": start, "end_token": end, "text": "not read"}


def eraser(root: Path, *annotations: dict[str, Any]) -> str:
    (root / "docs").mkdir(exist_ok=True)
    (root / "docs" / "neg_1.txt").write_text("a dull  film ,\n \nlong and\u00a0slow .\n", "utf-8")
    (root / "docs" / "pos_1.txt").write_text("a fine film .\n", "utf-8")
    lines(root / "test.jsonl", *annotations)
    return f"eraser:{root}"


def annotation(docid: str, *spans: tuple[int, int], **more: Any) -> dict[str, Any]:
    groups = [[evidence(docid, *span)] for span in spans]
    found = {"annotation_id": docid, "classification": docid[:3].upper(), "evidences": groups, "query": "What?"}
    return {**found, **more}


def test_the_layout_of_eraser(tmp_path: Path) -> None:
    """Words are counted between spaces, over lines; a no-break space parts none, as in the published code."""
    data: Any = open_data(eraser(tmp_path, annotation("neg_1.txt", (1, 3), (5, 7)), annotation("pos_1.txt")))
    assert [(p.id, p.label) for p in data.passages] == [("neg_1.txt", "NEG"), ("pos_1.txt", "POS")]
    first = data[0]
    assert [first.text[a:b] for a, b in first.rationales] == ["dull  film", "and\u00a0slow ."] and not data[
        1
    ].rationales


@pytest.mark.parametrize(
    ("annotations", "message"),
    [
        ([annotation("neg_1.txt", (1, 99))], r"a rationale is \[start, end\] in 7 places"),
        ([annotation("gone.txt")], "test.jsonl:1: the document .*gone.txt cannot be read"),
        ([annotation("neg_1.txt", docids=["pos_1.txt"], evidences=[[evidence("neg_1.txt", 0, 1)]])], "of 2 documents"),
        ([annotation("neg_1.txt"), annotation("pos_1.txt", query="Who?")], "ask different questions"),
        ([{"annotation_id": "neg_1.txt"}], "test.jsonl:1 is no annotation of ERASER: KeyError"),
    ],
)
def test_annotations_that_are_none(annotations: list[dict[str, Any]], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        open_data(eraser(tmp_path, *annotations))
    with pytest.raises(InputError, match="ERASER has the splits train, val and test, not 'dev'"):
        open_data(f"{eraser(tmp_path)}:dev")


def test_tokens_of_a_rationale() -> None:
    """Pieces of words, of which a span cuts one; the space ahead of a word is no part of it; ends do not count."""
    text = "the sky is unlikely red."
    start = text.index("unlikely")
    found = tokenized(
        language_models.tokenizer(True),
        [Passage(text, 0, ((start - 1, start + 2), (text.index("red"), len(text))), "a"), Passage("red", 0, (), "b")],
    )
    words = language_models.tokenizer(True)
    tokens = words.convert_ids_to_tokens(found.encoded[0].ids)
    marked = [token for token, here in zip(tokens, found.rationales[0].tolist()) if here]
    assert "".join(marked).replace("Ġ", "|") in ("|unlikely|red.", "|un|red.", "|unlike|red.") and "Ġis" not in marked
    count = len(found.encoded[1].ids)
    assert found.counted[1].tolist() == [0 < i < count - 1 for i in range(found.counted.shape[1])]
    cut = tokenized(words, [Passage(text, 0, ((text.index("red"), len(text)),), "a")], longest=4)
    assert len(cut.encoded[0].ids) == 4 and not cut.rationales.any() and tokens[0] == "<s>"


def test_tokenizers_without_offsets_and_texts_without_tokens() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(InputError, match=r"Slow does not say where in a text its tokens lie .* Use a fast tokenizer"):
        tokenized(Slow(), [Passage("a", 0, (), "a")])
    with pytest.raises(InputError, match="the text a has no token: ' '"):
        tokenized(classified.tokenizer(), [Passage(" ", 0, (), "a")])
