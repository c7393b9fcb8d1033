"""What `fxgrad explain` found, and the files that it writes: a figure, a page, or a folder with a manifest."""

from __future__ import annotations

import html
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fxgrad.commands.explanation import Explanation, proof
from fxgrad.commands.grid import draw
from fxgrad.commands.manifest import entry, manifest
from fxgrad.commands.page import page
from fxgrad.data.models import LoadedModel
from fxgrad.methods.words import method_in_words, policy_in_words
from fxgrad.module.converted import ConvertedModule
from fxgrad.reading import read_image
from fxgrad.report import Table
from fxgrad.writing import write_text

LINES = 12
"""How many explanations are printed one by one."""


@dataclass(frozen=True)
class Style:
    """How maps are drawn: the title of figures; `pool`, `shared` and `cmap` as for `fxgrad.commands.grid.draw`."""

    title: str
    pool: int = 1
    shared: bool = False
    cmap: str | None = None


@dataclass(frozen=True)
class MapRow:
    """One map, for the page's table."""

    picture: str
    target: str
    logit: float
    method: str
    policy: str
    completeness_error: str


@dataclass(eq=False)
class Result:
    """Collects explanations, picture by picture, and writes them.

    Attributes:
        loaded: the model.
        modules: it converted, under each policy.
        style: how maps are drawn.
        output: where they go: a figure, a page, or a folder, in which each picture's figure is written at once.
        page: where a page goes as well.
        prompted: whether targets are prompts.
        kept: all explanations, unless a folder has them already.
        files: the picture of each explanation.
        entries: what the manifest says of each.
        lines: what is printed of each.
        rows: what the page's table says of each map.
    """

    loaded: LoadedModel
    modules: Sequence[ConvertedModule]
    style: Style
    output: Path
    page: Path | None = None
    prompted: bool = False
    kept: list[Explanation] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    entries: list[dict[str, Any]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    rows: list[MapRow] = field(default_factory=list)

    @property
    def _folder(self) -> bool:
        return not self.output.suffix

    def add(self, file: Path, found: Sequence[Explanation]) -> None:
        """Take the explanations of one picture; into a folder their figure is written at once."""
        figure = None
        if self._folder:
            before = Counter(path.stem for path in dict.fromkeys(self.files))[file.stem]
            figure = f"{file.stem}{f'-{before + 1}' if before else ''}.png"
            self.output.mkdir(exist_ok=True)
            self._draw(found, self.output / figure)
        if not self._folder or self.page:
            self.kept += found
        for one in found:
            self.files.append(file)
            self.entries.append(entry(one, file, figure))
            self.lines += self._lines(one)
            self.rows += _rows(one)

    def write(self) -> list[str]:
        """Write what is not written yet. Returns what was written, a folder as one."""
        about = manifest(self.loaded, self.entries)
        if self._folder:
            write_text(self.output / "manifest.json", json.dumps(about, indent=1))
        elif self.output.suffix == ".html":
            self._page(self.output, about)
        else:
            self._draw(self.kept, self.output, json.dumps(about))
        if self.page:
            self._page(self.page, about)
        return [f"{self.output}{'/' if self._folder else ''}", *([str(self.page)] if self.page else [])]

    def said(self) -> list[str]:
        """Lines of text: each explanation if they are few, else how many there are and the largest errors."""
        if len(self.files) <= LINES:
            return self.lines
        largest: dict[str, float] = {}
        for one in (one for made in self.entries for one in made["maps"]):
            if one["completeness_error"] is not None:
                largest[one["policy"]] = max(largest.get(one["policy"], 0.0), one["completeness_error"])
        counted = f"{len(set(self.files))} pictures, {len(self.files)} targets, {len(self.rows)} maps"
        return [counted, *([f"largest completeness error: {_errors(largest)}"] if largest else [])]

    def _lines(self, one: Explanation) -> list[str]:
        what = f"prompt {one.label!r}" if self.prompted else f"target {one.target} ({one.label})"
        lines = []
        for found in one.rows():
            errors = {a.rules: a.completeness_error for a in found if a.completeness_error is not None}
            lines.append(f"{one.name}: {what}, logit {one.logit:.4g}, {found[0].method}")
            lines += [f"completeness error: {_errors(errors)}"] if errors else []
        return lines

    def _draw(self, found: Sequence[Explanation], path: Path, about: str = "") -> None:
        style = self.style
        draw(found, path, title=style.title, pool=style.pool, shared=style.shared, cmap=style.cmap, about=about)

    def _page(self, path: Path, about: Mapping[str, Any]) -> None:
        first, x = self.kept[0], self.loaded.preprocess(read_image(self.files[0]))
        proofs = [(module.classified.table.name, proof(module, x, first.target)) for module in self.modules]
        sections = [
            ("All maps", Table(f"{len(self.rows)} maps", self.rows)._repr_html_()),
            *((f"Check of {name}: {first.name}, {first.label}", found._repr_html_()) for name, found in proofs),
            ("Conversion", self.modules[-1].report._repr_html_()),
            ("Manifest", f"<pre>{html.escape(json.dumps(about, indent=1))}</pre>"),
        ]
        write_text(path, page(self.style.title, self.kept, sections, pool=self.style.pool))


def _errors(of: Mapping[str, float]) -> str:
    return ", ".join(f"{policy} {error:#.2g}" for policy, error in of.items())


def _rows(one: Explanation) -> list[MapRow]:
    return [
        MapRow(
            one.name,
            one.label,
            one.logit,
            method_in_words(found.method),
            policy_in_words(found.rules),
            "" if found.completeness_error is None else f"{found.completeness_error:#.2g}",
        )
        for found in one.found
    ]
