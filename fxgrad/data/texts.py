"""Data sets of texts with rationales: what people marked as the reason of a label."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fxgrad.errors import InputError

Span = tuple[int, int]
"""The characters from the first number to before the second."""


@dataclass(frozen=True)
class Passage:
    """One text with its label and rationale.

    Attributes:
        text: the text.
        label: the number or the name of the class; None if it is not known.
        rationales: the marked pieces of the text; () if nothing is marked.
        id: unique name in its data set, independent of the order.
        group: as in `Sample`.
    """

    text: str
    label: int | str | None
    rationales: tuple[Span, ...]
    id: str
    group: str = ""


class Texts(Protocol):
    """A data set of texts, as `Data` is one of pictures.

    Attributes:
        class_names, multilabel: as in `Data`; the names of those labels that are names.
        of_texts: true.
    """

    @property
    def of_texts(self) -> bool: ...
    @property
    def class_names(self) -> Sequence[str] | None: ...
    @property
    def multilabel(self) -> bool: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Passage: ...


class Passages:
    """A list of texts; labels that are names are numbered in the order of the names.

    Args:
        passages: the texts.

    Raises:
        InputError: there are none, or two have the same id.

    Example:
        >>> found = Passages([Passage("good", "pos", ((0, 4),), "1"), Passage("bad", "neg", ((0, 3),), "2")])
        >>> len(found), found.class_names, found[0].text
        (2, ['neg', 'pos'], 'good')
    """

    multilabel = False
    of_texts = True

    def __init__(self, passages: Sequence[Passage]) -> None:
        if not passages:
            raise InputError("the data set has no texts.")
        self.ids = [passage.id for passage in passages]
        if twice := [one for one, count in Counter(self.ids).items() if count > 1]:
            raise InputError(f"two texts have the id {twice[0]!r}. Give each its own.")
        self.passages = passages
        names = sorted({passage.label for passage in passages if isinstance(passage.label, str)})
        self.class_names: Sequence[str] | None = names or None

    def __len__(self) -> int:
        return len(self.passages)

    def __getitem__(self, index: int) -> Passage:
        return self.passages[index]


def rationales(file: str) -> Passages:
    """A file of JSON lines: {"text": ..., "label": ..., "rationales": [[start, end], ...]}.

    Spans are characters of the text. A label is the number or the name of a class. "id" and "group" may be left out,
    then a text is called by the number of its line; so may the label, for runs that attribute the predicted class.

    Args:
        file: the path.

    Raises:
        InputError: the file cannot be read, or a line is none of these.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "reviews.jsonl")
        >>> _ = path.write_text('{"text": "a fine film", "label": "pos", "rationales": [[2, 6]]}')
        >>> rationales(str(path))[0]
        Passage(text='a fine film', label='pos', rationales=((2, 6),), id='reviews.jsonl:1', group='')
    """
    path = Path(file)
    return Passages([_passage(line, f"{path.name}:{number}") for number, line in _lines(path)])


def eraser(root: str, split: str = "test") -> Passages:
    """One split of a data set in ERASER's layout: a text in docs/DOCID, and annotations in SPLIT.jsonl.

    An annotation has annotation_id, classification and evidences, groups of {"docid", "start_token", "end_token"};
    these count the words between spaces and line ends. The text is the document; questions are not read.

    Args:
        root: the folder.
        split: train, val or test.

    Raises:
        InputError: there is no such split, a file cannot be read, an annotation is none, or is of several documents; or
            annotations ask different questions, so that a document alone has no class.

    Source: DeYoung et al., ERASER, ACL 2020, arXiv:1911.03429; the layout of eraserbenchmark.com.
    """
    if split not in ("train", "val", "test"):
        raise InputError(f"ERASER has the splits train, val and test, not {split!r}.")
    path = Path(root, f"{split}.jsonl")
    annotations = [(f"{path.name}:{number}", line) for number, line in _lines(path)]
    if len({line.get("query") for _, line in annotations}) > 1:
        raise InputError(
            f"the annotations of {path} ask different questions (query), so that a document alone has no class. Write "
            "texts with their questions as JSON lines, and use rationales:FILE.jsonl."
        )
    return Passages([_annotated(Path(root), line, where) for where, line in annotations])


def _lines(path: Path) -> list[tuple[int, Mapping[str, Any]]]:
    """The objects of a file of JSON lines, with the numbers of their lines."""
    try:
        lines = path.read_text("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}.") from error
    found: list[tuple[int, Mapping[str, Any]]] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{path.name}:{number} is no JSON: {error}.") from error
        if not isinstance(value, dict):
            raise InputError(f"{path.name}:{number} is a {type(value).__name__}, and no object of JSON.")
        found.append((number, value))
    return found


def _passage(line: Mapping[str, Any], where: str) -> Passage:
    text, label, spans = line.get("text"), line.get("label"), line.get("rationales", [])
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"{where} has no text.")
    if isinstance(label, bool) or not isinstance(label, (int, str, type(None))):
        raise InputError(f"{where}: a label is the number or the name of a class, not {label!r}.")
    if not isinstance(spans, list):
        raise InputError(f"{where}: rationales are a list of [start, end], not {spans!r}.")
    pairs = tuple(_span(span, len(text), where) for span in spans)
    return Passage(text, label, pairs, str(line.get("id", where)), str(line.get("group", "")))


def _span(span: Any, length: int, where: str) -> Span:
    whole = isinstance(span, (list, tuple)) and len(span) == 2 and all(type(end) is int for end in span)
    if not whole or not 0 <= span[0] < span[1] <= length:
        raise InputError(f"{where}: a rationale is [start, end] in {length} places, start first; not {span!r}.")
    return span[0], span[1]


def _annotated(root: Path, line: Mapping[str, Any], where: str) -> Passage:
    """The document of an annotation, with its evidences as spans."""
    try:
        name, label = str(line["annotation_id"]), line["classification"]
        evidences = [evidence for group in line.get("evidences") or [] for evidence in group]
        documents = {str(e["docid"]) for e in evidences} | {str(d) for d in line.get("docids") or []} or {name}
        words = [(e["start_token"], e["end_token"]) for e in evidences]
    except (KeyError, TypeError) as error:
        raise InputError(f"{where} is no annotation of ERASER: {error!r}.") from error
    if len(documents) > 1:
        raise InputError(f"{where} is of {len(documents)} documents, {', '.join(sorted(documents))}: only one is read.")
    path = root / "docs" / documents.pop()
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{where}: the document {path} cannot be read: {error}.") from error
    places = [word.span() for word in re.finditer(r"[^ \n]+", text) if not word.group().isspace()]
    spans = [_span([start, end], len(places), where) for start, end in words]
    marked = tuple((places[start][0], places[end - 1][1]) for start, end in spans)
    return Passage(text, label if isinstance(label, int) else str(label), marked, name)
