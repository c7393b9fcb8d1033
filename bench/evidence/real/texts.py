"""Documents with one decisive sentence: what a sentence encoder's classifier should point to.

The texts are the first sentences of docstrings of Python's standard library, which every machine has. The subject of
the module is the class. A document is a sentence of its class, at a random place among those of three other classes.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np

SUBJECTS = {
    "files": "os os.path shutil pathlib tempfile glob fileinput filecmp zipfile tarfile",
    "numbers": "math cmath decimal fractions statistics random numbers",
    "network": "socket ssl http.client http.server http.cookiejar urllib.request ftplib smtplib imaplib socketserver",
    "concurrency": "threading multiprocessing.pool asyncio queue concurrent.futures subprocess signal selectors",
    "time": "datetime calendar time zoneinfo sched",
    "mail": "email.message email.headerregistry email.policy email.utils email.mime.multipart mailbox",
    "testing": "unittest unittest.mock doctest pdb trace traceback warnings",
    "language": "ast inspect dis symtable tokenize importlib.abc importlib.util codeop",
}
"""Subject -> modules."""

LONGEST, SHORTEST = 30, 5
"""Words of a sentence."""


@dataclass(frozen=True)
class Document:
    """Sentences of which one is of the class asked for.

    Attributes:
        sentences: in order.
        planted: index of the sentence of the target's class.
        target: the class.
    """

    sentences: tuple[str, ...]
    planted: int
    target: int

    @property
    def text(self) -> str:
        return " ".join(self.sentences)

    @property
    def span(self) -> tuple[int, int]:
        """The first character of the planted sentence, and the one behind its last."""
        start = sum(len(sentence) + 1 for sentence in self.sentences[: self.planted])
        return start, start + len(self.sentences[self.planted])


def sentences(modules: str) -> list[str]:
    """The first sentences of the docstrings in some modules, sorted, each once."""
    found = {line for name in modules.split() for line in _of(importlib.import_module(name))}
    return sorted(line for line in found if SHORTEST <= len(line.split()) <= LONGEST)


def _of(module: ModuleType) -> Iterator[str]:
    for _, member in inspect.getmembers(module):
        origin = getattr(member, "__module__", None) or module.__name__
        if origin.partition(".")[0].lstrip("_") not in module.__name__:
            continue
        inside = [value for _, value in inspect.getmembers(member)] if inspect.isclass(member) else []
        for value in (member, *inside):
            own = value.__doc__ if inspect.isroutine(value) or inspect.isclass(value) else None
            if first := _first(own):
                yield first


def _first(docstring: object) -> str:
    """The first sentence of a docstring in words only; empty if it has none."""
    if not isinstance(docstring, str):
        return ""
    paragraph = " ".join(inspect.cleandoc(docstring).partition("\n\n")[0].split())
    sentence = re.match(r"[A-Z][^.`\"<>{}|\\=]*[a-z]\.(?= |$)", paragraph)
    return sentence.group() if sentence else ""


def corpus(seed: int = 0) -> tuple[list[list[str]], list[list[str]]]:
    """Sentences to train on and held-out ones, half and half, for each class; those of two classes are in neither."""
    found = [sentences(modules) for modules in SUBJECTS.values()]
    counts: dict[str, int] = {}
    for line in (line for lines in found for line in lines):
        counts[line] = counts.get(line, 0) + 1
    generator = np.random.default_rng(seed)
    trained, held = [], []
    for lines in found:
        own = [line for line in lines if counts[line] == 1]
        order = generator.permutation(len(own))
        trained.append([own[i] for i in order[::2]])
        held.append([own[i] for i in order[1::2]])
    return trained, held


def documents(held: Sequence[Sequence[str]], count: int, others: int = 3, seed: int = 1) -> list[Document]:
    """Documents of held-out sentences; each class is the target equally often, and no sentence is planted twice.

    Args:
        held: sentences of each class.
        count: of all documents.
        others: sentences of as many other classes in each.
        seed: of the draws.
    """
    generator = np.random.default_rng(seed)
    orders = [generator.permutation(len(lines)) for lines in held]
    found = []
    for number in range(count):
        target = number % len(held)
        rest = generator.permutation([c for c in range(len(held)) if c != target])[:others]
        lines = [held[c][int(generator.integers(len(held[c])))] for c in rest]
        planted = int(generator.integers(others + 1))
        lines.insert(planted, held[target][orders[target][number // len(held)]])
        found.append(Document(tuple(lines), planted, target))
    return found
