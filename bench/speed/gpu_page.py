"""bench/measured/gpu.md, from what `bench/gpu.py` measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from bench.speed.bars import Bar
from bench.speed.results import Spread
from bench.speed.tables import megabytes, number, ratio, seconds, table

Rows = Mapping[str, Mapping[str, Any]]

INTRODUCTION = """# On a GPU, measured

A balanced input gradient on a GPU: forward and backward to the input, on frozen models with random weights, beside the
plain gradient. What is compared runs in one process, in turns, and ratios are taken round by round: the median, and the
least and the most in parentheses. Below 1 is less than the plain gradient. What failed, or did not fit into the time,
is listed at the end."""


class Where(NamedTuple):
    """A bar: the row, the series over which, and what may be at most."""

    row: str
    series: str
    to: str
    bound: float


BARS = (
    Where("ViT-B/16, 197 tokens: batch 64, bfloat16", "fxgrad", "plain", 0.92),
    Where("ViT-B/16, 197 tokens: batch 64, float32", "fxgrad", "plain", 0.92),
    Where("ViT-B/16, 4,097 tokens: batch 1, bfloat16", "fxgrad", "plain", 0.75),
    Where("ViT-B/16, 4,097 tokens: batch 1, float32", "fxgrad", "plain", 0.75),
    Where("ViT-B/16, 197 tokens: batch 1, bfloat16", "fxgrad, CUDA graph", "plain", 0.35),
)
PEAK = 0.65
"""Peak memory over the plain gradient's, batch 64 and 197 tokens."""


def page(found: Mapping[str, Any]) -> str:
    """The page, in Markdown.

    Args:
        found: what is in gpu.json.

    Example:
        >>> empty = {"machine": {"versions": {}}, "when": "2026-01-01", "smoke": False, "seconds": 0, "rows": {}}
        >>> page(empty)[:26]
        '# On a GPU, measured\\n\\nA ba'
    """
    rows: Rows = {name: row for name, row in found["rows"].items() if "error" not in row and "skipped" not in row}
    parts = [
        INTRODUCTION,
        _machine(found),
        "## What must hold",
        _bars(rows),
        _section("Attention, the gradient of the value alone", _attention(found["rows"])),
        _section("Attention as one node, forward and backward", _launches(rows)),
        _section("Forward and gradient, over plain", _over_plain(rows)),
        _section("Compiled", _compiled(rows)),
        _section("Same forward, complete gradient", _models(rows)),
        _section("Other toolkits", _toolkits(rows)),
        _section("Cuts of the Triton kernel", _tiles(rows)),
        _section("Not measured", _missing(found["rows"])),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _section(title: str, text: str) -> str:
    return f"## {title}\n\n{text}" if text else ""


def _machine(found: Mapping[str, Any]) -> str:
    machine = found["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    smoke = "**A smoke run of small models on a CPU: its numbers mean nothing.** " if found["smoke"] else ""
    return (
        f"{smoke}Written by `make gpu` on {found['when'][:10]} in {found['seconds']:.0f} s: "
        f"{machine.get('gpu') or 'no GPU'}, CUDA {machine.get('cuda', 'none')}, {machine.get('cores', '?')} cores of "
        f"{machine.get('processor', '?')}; Python {machine.get('python', '?')}, {versions}."
    )


def spread(row: Mapping[str, Any] | None, series: str, to: str) -> Spread | None:
    """One series over another, round by round; None where the row lacks one.

    Example:
        >>> spread({"times": {"a": [2.0, 6.0], "b": [1.0, 2.0]}}, "a", "b")
        Spread(median=2.5, low=2.0, high=3.0)
    """
    times = (row or {}).get("times", {})
    if series not in times or to not in times:
        return None
    return Spread.of([a / b for a, b in zip(times[series], times[to]) if a is not None and b is not None])


def bars(rows: Rows) -> Iterator[Bar]:
    """Every promise, with what was measured for it.

    Example:
        >>> {bar.verdict for bar in bars({})}
        {'not measured'}
    """
    for where in BARS:
        measured = spread(rows.get(where.row), where.series, where.to)
        what = f"{where.series} over {where.to}, eager: {where.row}"
        yield Bar(what, where.bound, True, measured.median if measured else None, measured)
    timed = [(spread(row, "fxgrad", "plain"), name) for name, row in rows.items() if name.startswith("ViT-B/16")]
    found = [(measured.median, name, measured) for measured, name in timed if measured]
    value, name, measured = max(found) if found else (None, "", None)
    yield Bar("the same, in every row of ViT-B/16", 1.0, True, value, measured, where=name)
    peak = (rows.get(BARS[0].row) or {}).get("peak", {})
    value = peak["fxgrad"] / peak["plain"] if peak else None
    yield Bar(f"peak memory over plain: {BARS[0].row}", PEAK, True, value)
    checked = [row for row in rows.values() if "identical" in row]
    different = sum(not row["identical"] for row in checked)
    yield Bar("outputs that differ from the original's in a bit", 0, True, different if checked else None, unit="")


def _bars(rows: Rows) -> str:
    lines = []
    for bar in bars(rows):
        low_high = f" ({bar.spread.low:.2f} to {bar.spread.high:.2f})" if bar.spread else ""
        verdict = f"**{bar.verdict}**" if bar.verdict == "MISSED" else bar.verdict
        lines.append(
            [bar.what + (f"; {bar.where}" if bar.where else ""), f"<= {bar.bound:g}", bar.shown + low_high, verdict]
        )
    return table(["what", "bar", "measured", ""], lines)


def _attention(rows: Rows) -> str:
    """One line per shape; times of the roads, over PyTorch's own backward."""
    shapes: dict[str, dict[str, Mapping[str, Any]]] = {}
    for name, row in rows.items():
        job, _, case = name.partition(": ")
        if case and job in ("attention", "FlexAttention"):
            shape, _, road = case.rpartition(", ")
            shapes.setdefault(shape, {})[road] = row
    if not shapes:
        return ""
    roads = [road for road in dict.fromkeys(r for found in shapes.values() for r in found) if road != "own"]
    lines = []
    for shape, found in shapes.items():
        own = found.get("own", {})
        keys = ("forward", "copies", "seconds", "value only")
        cells = [shape, own.get("kernel", ""), *(_time(own.get(key)) for key in keys)]
        lines.append(cells + [_road(found.get(road, {}), own.get("seconds")) for road in roads] + [fastest(found)])
    note = (
        "Batch x heads (of queries / of keys) x tokens x width. *Copies*: of q and k, which a road keeps. *Own*: "
        "PyTorch's fused backward for all three operands, and for the value alone, which runs the same products. A "
        "road: its time over own, and the relative error of its gradient against float64; `full` runs behind a kernel "
        "that allows it."
    )
    head = ["attention", "kernel", "forward", "copies", "own", "own, value only", *roads, "fastest"]
    return table(head, lines) + "\n\n" + note


def _launches(rows: Rows) -> str:
    lines = []
    for name, row in rows.items():
        if name.startswith("launches"):
            over = (f"{row[series] / row['plain']:.2f}" for series in ("own", "road"))
            lines.append([name.removeprefix("launches: "), _time(row["plain"]), *over])
    note = "Weights held, by PyTorch's own backward and by a road. `fused.SMALL` is where the second takes over."
    return table(["attention", "plain", "own / plain", "road / plain"], lines) + f"\n\n{note}" if lines else ""


def fastest(found: Mapping[str, Mapping[str, Any]]) -> str:
    """The road that takes the least time, of those about as exact as PyTorch's own backward.

    Args:
        found: road -> its row, for one shape.

    Example:
        >>> rows = {"own": {"seconds": 2.0, "value only": 1.9, "off": 1e-3}, "a": {"seconds": 1.0, "off": 9.0}}
        >>> fastest(rows), fastest({**rows, "b": {"seconds": 1.5, "off": 2e-3}})
        ('own', 'b')
    """
    allowed = 4 * found.get("own", {}).get("off", 0.0)
    exact = {road: row for road, row in found.items() if row.get("off", float("inf")) <= allowed}
    return min(exact, key=lambda road: exact[road].get("value only", exact[road]["seconds"]), default="")


def _time(value: float | None) -> str:
    return "" if value is None else seconds(Spread(value, value, value))


def _road(row: Mapping[str, Any], own: float | None) -> str:
    if "seconds" not in row:
        return "failed" if "error" in row else "no" if "skipped" in row else ""
    over = f"{row['seconds'] / own:.2f}" if own else _time(row["seconds"])
    return f"{over} ({row['off']:.0e})"


def _over_plain(rows: Rows) -> str:
    lines, kernels = [], []
    for name, row in rows.items():
        if "kernels" not in row:
            continue
        cells = [name, *(_median(row, series) for series in ("plain", "fxgrad"))]
        cells += [ratio(spread(row, "fxgrad", "plain"))]
        cells += [ratio(spread(row, f"{series}, CUDA graph", "plain")) for series in ("plain", "fxgrad")]
        peak = row["peak"]
        cells += [megabytes(peak["plain"]), number(peak["fxgrad"] / peak["plain"] if peak["plain"] else None)]
        lines.append([*cells, "yes" if row["identical"] else "**no**"])
        for series, found in row["kernels"].items():
            if found:
                kernels.append(f"- {name}, {series}: {', '.join(f'`{kernel}`' for kernel in found)}")
    if not lines:
        return ""
    head = ["", "plain", "fxgrad", "fxgrad / plain", "plain, CUDA graph / plain", "fxgrad, CUDA graph / plain"]
    text = table([*head, "plain's peak", "peak / plain", "same outputs"], lines)
    listed = "\n\nKernels of attention, forward and backward:\n\n" + "\n".join(kernels) if kernels else ""
    return text + listed


def _median(row: Mapping[str, Any], series: str) -> str:
    times = [t for t in row["times"].get(series, []) if t is not None]
    return seconds(Spread.of(times)) if times else ""


def _compiled(rows: Rows) -> str:
    lines = []
    for name, row in rows.items():
        if not name.startswith("compiled"):
            continue
        cells = [name, *(_median(row, s) for s in ("plain", "fxgrad", "plain, compiled", "fxgrad, compiled"))]
        cells += [ratio(spread(row, "fxgrad, compiled", to)) for to in ("plain, compiled", "plain")]
        took = row["compile seconds"]
        cells += [", ".join(f"{took[s]:.0f} s" for s in ("plain", "fxgrad") if s in took)]
        lines.append([*cells, "; ".join(f"{k}: {v}" for k, v in row["refused"].items())])
    head = ["", "plain", "fxgrad", "plain, compiled", "fxgrad, compiled", "compiled / compiled", "compiled / plain"]
    return table([*head, "compile time", "cannot"], lines) if lines else ""


def _models(rows: Rows) -> str:
    lines = [
        [name.removeprefix("model "), "identical" if row["identical"] else "**DIFFERS**",
         f"{row['completeness']:.1e}", f"{row['plain']:.1e}", row["worst"]]
        for name, row in rows.items() if "completeness" in row
    ]  # fmt: skip
    head = ["model and precision", "forward", "completeness error", "plain gradient's", "least balanced node"]
    return table(head, lines) if lines else ""


def _toolkits(rows: Rows) -> str:
    lines = []
    for name, row in rows.items():
        if name.startswith("toolkits"):
            for toolkit, verdict in row["verdicts"].items():
                policy = {"lxt, AttnLRP": ", attnlrp", "lxt, CP-LRP": ", cp-lrp"}.get(toolkit, "")
                beside = f"fxgrad{policy}"
                short = verdict if len(verdict) < 110 else verdict[:107] + "..."
                model = name.partition(": ")[2]
                lines.append([toolkit, model, short, beside, ratio(spread(row, toolkit, beside))])
    return table(["toolkit", "model", "gradient", "beside", "its time / fxgrad's"], sorted(lines)) if lines else ""


def _tiles(rows: Rows) -> str:
    lines = [
        [name.removeprefix("tiles: "), _time(row["seconds"]), f"{row['off']:.0e}"]
        for name, row in rows.items() if name.startswith("tiles")
    ]  # fmt: skip
    return table(["attention, keys rows warps stages", "time", "error"], lines) if lines else ""


def _missing(rows: Rows) -> str:
    return "\n".join(
        f"- {name}: {row.get('skipped') or row['error']}"
        for name, row in rows.items()
        if "skipped" in row or "error" in row
    )
