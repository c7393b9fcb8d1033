"""Tables of decisions and measurements: as text, HTML in notebooks, JSON and Markdown."""

from __future__ import annotations

import html
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:  # commands that need no torch print tables, too
    from fxgrad.classify.decision import Classified, Refusal

RowType = TypeVar("RowType")


class Table(Sequence[RowType], Generic[RowType]):
    """A sequence of dataclass instances under a title: a text table for `str`, HTML in notebooks.

    Args:
        title: printed above the rows.
        rows: dataclass instances, all of one class, their fields plain data.
        shown: how many rows `str` prints; the others are only counted. HTML folds them, JSON has all rows.

    Example:
        >>> @dataclass
        ... class Point:
        ...     x: int
        ...     y: int
        >>> print(Table("Points", [Point(1, 2)]))
        Points
        x  y
        1  2
    """

    def __init__(self, title: str, rows: Sequence[RowType], shown: int = 40) -> None:
        self.title, self.rows, self.shown = title, tuple(rows), shown

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]

    def __iter__(self) -> Iterator[RowType]:
        return iter(self.rows)

    def __str__(self) -> str:
        return "\n".join([self.title, *_columns(self.rows[: self.shown]), *self._more()])

    def __repr__(self) -> str:
        return str(self)

    def _more(self) -> list[str]:
        left = len(self.rows) - self.shown
        return [f"... and {left} more rows"] if left > 0 else []

    def to_json(self) -> str:
        """The rows as a JSON list of objects, keys in the order of the fields. Same rows give the same text."""
        return json.dumps([asdict(row) for row in self.rows], indent=1)  # type: ignore[call-overload]

    def _repr_html_(self) -> str:
        """The rows that `str` prints, and the others folded."""
        left = self.rows[self.shown :]
        rest = folded(f"{len(left)} more rows", _html(left)) if left else ""
        return f"<h4>{html.escape(self.title)}</h4>{_html(self.rows[: self.shown])}{rest}"


@dataclass(frozen=True)
class ReportRow:
    """One node of the report: its op, kind and role, its backward, and its place in the user's code."""

    node: str
    op: str
    kind: str
    roles: str
    rule: str
    reason: str
    module_path: str
    source_line: str


@dataclass(frozen=True)
class SummaryRow:
    """All nodes of one op that have the same kind and backward, counted."""

    count: int
    op: str
    kind: str
    rule: str
    first_at: str


class Report(Table[ReportRow]):
    """One row per node that depends on the attributed inputs; `str` and notebooks group them by op and rule.

    Attributes:
        refusals: the outputs that cannot be balanced, and why.
        sizes: sentences about the inputs' sizes: which are free, which line of the model fixed or bounds the others.
    """

    refusals: tuple[Refusal, ...] = ()
    sizes: tuple[str, ...] = ()

    def summary(self) -> Table[SummaryRow]:
        """The rows, counted by op, kind and rule, most frequent first."""
        groups = Counter((r.op, r.kind, r.rule) for r in self.rows)
        first = {(r.op, r.kind, r.rule): r for r in reversed(self.rows)}
        rows = [SummaryRow(n, *key, first[key].module_path or first[key].node) for key, n in groups.most_common()]
        return Table(self.title, rows)

    def details(self) -> str:
        """Every row, what is known of the sizes, and why outputs cannot be balanced, as text."""
        refused = (refusal.message for refusal in self.refusals)
        return "\n".join([self.title, *_columns(self.rows), *self.sizes, *refused])

    def _repr_html_(self) -> str:
        """The summary and what cannot be balanced; every node and the conditions on sizes are folded."""
        left_out = (f"<pre>{html.escape(refusal.message)}</pre>" for refusal in self.refusals)
        nodes = folded(f"All {len(self.rows)} nodes", _html(self.rows))
        sizes = (
            folded("Sizes of the inputs", f"<pre>{html.escape(chr(10).join(self.sizes))}</pre>") if self.sizes else ""
        )
        return "".join([self.summary()._repr_html_(), *left_out, sizes, nodes])

    def __str__(self) -> str:
        names = ", ".join(refusal.output for refusal in self.refusals)
        left_out = [f"Without a balanced gradient, report.details() says why: {names}"] if names else []
        last = "Every node: report.details(), report.rows or report.to_json()"
        more = [f"and {len(self.sizes) - 6} more conditions on sizes: report.details()"] if len(self.sizes) > 6 else []
        return "\n".join([str(self.summary()), *self.sizes[:6], *more, *left_out, last])


def report(classified: Classified) -> Report:
    """The decisions as a table.

    Args:
        classified: what `fxgrad.classify.classify` returned.

    Returns:
        One row per node that depends on an attributed input, in the order of the graph; and the outputs that cannot
        be balanced.

    Example:
        >>> import fxgrad, torch
        >>> libra = fxgrad.convert(torch.nn.GELU().eval(), (torch.zeros(2, 3),))
        >>> libra.report[0].rule
        'hold_gate'
    """
    rows = [
        ReportRow(
            node=d.node,
            op=d.op,
            kind=d.kind.value,
            roles=f"{', '.join(o.role.label for o in d.operands)} -> {d.role.label}",
            rule=str(d.backward),
            reason=d.reason,
            module_path=d.place.module_path,
            source_line=d.place.source_line,
        )
        for d in classified.decisions.values()
    ]
    made = Report(f"{classified.table.name}: {len(rows)} nodes depend on the attributed inputs", rows)
    made.refusals = classified.refusals
    made.sizes = tuple(classified.captured.about_sizes())
    return made


def folded(heading: str, content: str) -> str:
    """HTML that is shown when its heading is clicked.

    Example:
        >>> folded("a < b", "<p>c</p>")
        '<details><summary>a &lt; b</summary><p>c</p></details>'
    """
    return f"<details><summary>{html.escape(heading)}</summary>{content}</details>"


def markdown(head: Sequence[object], rows: Iterable[Sequence[object]], sides: str = "") -> list[str]:
    """The lines of a table in Markdown.

    Args:
        head: the names of the columns.
        rows: cells, printed by `str`; None is an empty cell.
        sides: alignment of each column, l or r; by default the first left, the others right.

    Example:
        >>> print("\\n".join(markdown(["model", "error"], [["vit", 0.5], ["mixer", None]])))
        | model | error |
        | --- | ---: |
        | vit | 0.5 |
        | mixer |  |
    """
    sides = sides or "l" + "r" * (len(head) - 1)
    lines = [head, ["---:" if side == "r" else "---" for side in sides], *rows]
    return [f"| {' | '.join('' if cell is None else str(cell) for cell in line)} |" for line in lines]


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _cells(rows: Sequence[Any]) -> list[list[str]]:
    return [[_cell(getattr(row, f.name)) for f in fields(row)] for row in rows]


def _columns(rows: Sequence[Any]) -> list[str]:
    """The rows as aligned lines of text, a header first."""
    if not rows:
        return ["(no rows)"]
    lines = [[f.name for f in fields(rows[0])], *_cells(rows)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines]


def _html(rows: Sequence[Any]) -> str:
    if not rows:
        return "<p>(no rows)</p>"
    head = "".join(f"<th>{html.escape(f.name)}</th>" for f in fields(rows[0]))
    body = "".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in line) + "</tr>" for line in _cells(rows))
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
