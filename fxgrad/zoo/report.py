"""bench/measured/architectures.md, from the tables of the zoo: what converts, by family, and every model by name."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median
from typing import TypeVar

from fxgrad.report import markdown
from fxgrad.zoo.rows import Row, bar

Key = TypeVar("Key")
_HEADER = f"""# Architectures, measured

Every model below was converted under `libragrad` in float64, with random weights, and biases, norms, tokens and running
statistics randomised. The forward is compared bit for bit with the original's (without MultiheadAttention's fast path,
as the README says), at batches of one and two where the batch is dynamic. *Error* is the relative completeness error
for one random cotangent over all outputs; the bar is {bar("float64"):.0e}, or {bar("float32"):.0e} where the model's
own code computes in float32 inside. A model that does not run in float64 is run with torch's default dtype set to
float64, else in float32, as said beside it. *Plain* is the unrewritten gradient's error. Models beyond a size were
measured with fewer blocks of each sort, or on smaller inputs, as said beside them; the code that runs is the same.
"""


def page(suites: Mapping[str, Sequence[Row]]) -> str:
    """The page as Markdown.

    Args:
        suites: name of a suite -> its rows.

    Example:
        >>> text = page({"mine": [Row("my:net", "nets", forward_identical=True, completeness_error=1e-15)]})
        >>> [line for line in text.splitlines() if line.startswith("| my")][0]
        '| my nets | 1 | 1 | 1 | 1.0e-15 |  |  |'
    """
    every = [row for suite in suites.values() for row in suite]
    rows = [row for row in every if row.counted]
    models = _by(rows, lambda row: row.model)
    good = sum(all(row.passed for row in measured) for measured in models.values())
    versions = sorted({v for row in every for v in row.versions.split(", ") if v})
    lines = [
        _HEADER,
        f"Written by `fxgrad zoo --summary`; measured on {', '.join(versions)}.",
        "",
        f"**{good} of {len(models)} models convert, forward identical and complete.**",
        "",
        *_reasons("Not converted, or beyond the bar", rows),
        *_reasons("Not counted: the model itself fails or is random", [row for row in every if not row.counted]),
        "## Families",
        "",
        *_families(rows),
        "## Every model",
        "",
    ]
    for name, measured in suites.items():
        lines += _suite(name, measured)
    return "\n".join(lines)


def _families(rows: Sequence[Row]) -> list[str]:
    lines: list[list[object]] = []
    for (package, family), measured in sorted(_by(rows, lambda r: (r.model.partition(":")[0], r.family)).items()):
        models = _by(measured, lambda row: row.model).values()
        errors = [r.completeness_error for r in measured if r.completeness_error is not None]
        plain = [r.plain_error for r in measured if r.plain_error is not None]
        cells = [
            f"{package} {family}",
            len(models),
            sum(all(r.completeness_error is not None for r in m) for m in models),
            sum(all(r.forward_identical is True for r in m) for m in models),
            _number(max(errors, default=None)),
            _number(median(plain) if plain else None),
            ", ".join(_kinds(measured)),
        ]
        lines.append(cells)
    head = ["family", "models", "converted", "forward identical", "worst error", "plain, median", "kinds"]
    return [*markdown(head, lines, "lrrrrrl"), ""]


def _reasons(title: str, rows: Sequence[Row]) -> list[str]:
    causes = _by([row for row in rows if row.cause], lambda row: row.cause)
    if not causes:
        return []
    ranked = sorted(causes.items(), key=lambda item: (-len(item[1]), item[0]))
    lines = [[", ".join(sorted({r.model for r in failed})), _plain_text(cause)] for cause, failed in ranked]
    return [f"## {title}", "", *markdown(["models", "reason"], lines, "ll"), ""]


def _suite(name: str, rows: Sequence[Row]) -> list[str]:
    head = ["model", "input", "parameters", "notes", "nodes", "forward", "error", "plain"]
    lines: list[list[object]] = []
    for row in sorted(rows, key=lambda r: r.model):
        forward = {True: "identical", False: "DIFFERS", None: "-"}[row.forward_identical]
        errors = [_number(row.completeness_error), _number(row.plain_error)]
        inside = f"{row.precision} inside" if row.precision not in ("", "float64") else ""
        if row.reason:
            forward = row.reason.partition(":")[0]
        cells: list[object] = [
            row.model,
            row.input,
            _millions(row.parameters),
            "; ".join(filter(None, [row.reduced, inside])),
            row.nodes,
            forward,
            *errors,
        ]
        lines.append(cells)
    passed, counted = sum(row.passed for row in rows), sum(row.counted for row in rows)
    return [
        f'<details><summary>{name}: {passed} of {counted} (<a href="zoo/{name}.csv">all columns</a>)</summary>',
        "",
        *markdown(head, lines, "llrlrlrr"),
        "",
        "</details>",
        "",
    ]


def _kinds(rows: Iterable[Row]) -> list[str]:
    """Names of the kinds, the most frequent first."""
    counts: Counter[str] = Counter()
    for row in rows:
        for kind, number in re.findall(r"(\w+) (\d+)", row.kinds):
            counts[kind] += int(number)
    return [kind.replace("_", " ") for kind, _ in counts.most_common()]


def _by(rows: Iterable[Row], key: Callable[[Row], Key]) -> dict[Key, list[Row]]:
    groups: dict[Key, list[Row]] = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return groups


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"


def _millions(value: int | None) -> str:
    return "" if value is None else f"{value / 1e6:.1f} M"


def _plain_text(text: str) -> str:
    """The text, escaped for a Markdown table."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_")
