"""The benchmark page's tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from bench.speed.results import BOUND, BY_HAND, FORWARD, FXGRAD, PLAIN, Results, Row, Spread, exponent


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, numbers to the right.

    Example:
        >>> print(table(["a", "b"], [["x", "1"]]))
        | a | b |
        |---|--:|
        | x | 1 |
    """
    lines = [f"| {' | '.join(head)} |", "|---|" + "--:|" * (len(head) - 1)]
    return "\n".join(lines + [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows])


def ratio(spread: Spread | None, digits: int = 2) -> str:
    """A ratio and what it lies between.

    Example:
        >>> ratio(Spread(1.0, 0.9, 1.25)), ratio(None)
        ('1.00 (0.90 to 1.25)', '')
    """
    return f"{spread.median:.{digits}f} ({spread.low:.{digits}f} to {spread.high:.{digits}f})" if spread else ""


def seconds(spread: Spread) -> str:
    """A time, with the unit that suits it."""
    value = spread.median
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.3g} ms" if value >= 1e-3 else f"{value * 1e6:.3g} µs"


def number(value: float | None, form: str = ".2f") -> str:
    return "" if value is None else format(value, form)


def models(rows: list[Row]) -> str:
    head = [
        "model",
        "batch",
        "forward",
        "plain",
        "fxgrad",
        "fxgrad / plain",
        "floor",
        "plain's floor",
        "over the floor",
    ]
    head += ["peak / plain", "saved / plain", *(f"{name} / fxgrad" for name in BY_HAND)]
    return table(head, map(_model, rows)) + f"\n\nThe gradients agree to {BOUND:g} of the largest number in them."


def _model(row: Row) -> list[str]:
    cells = [row.name, str(row["batch"]), *(seconds(row.time(s)) for s in (FORWARD, PLAIN, FXGRAD))]
    cells += [ratio(row.ratio(FXGRAD, PLAIN)), number(row.info.get("floor")), number(row.info.get("floor_plain"))]
    cells += [ratio(row.over_floor), number(row.quotient("peak")), number(row.quotient("saved"))]
    return cells + [ratio(row.ratio(name, FXGRAD)) or _refused(row, name) for name in BY_HAND]


def _refused(row: Row, name: str) -> str:
    return "cannot" if row.info.get("verdicts", {}).get(name, "").startswith("cannot") else "not run"


def toolkits(results: Results) -> str:
    rows = []
    for row in [*results.axis("bars"), *results.axis("models")]:
        for name, verdict in row.info.get("verdicts", {}).items():
            if name in BY_HAND and not verdict.startswith("cannot"):
                continue
            policy = {"lxt, AttnLRP": ", attnlrp", "lxt, CP-LRP": ", cp-lrp"}.get(name, "")
            difference = row.info["differences"].get(name)
            short = verdict if len(verdict) < 110 else verdict[:107] + "..."
            beside = f"{FXGRAD}{policy}"
            cells = [name, row.name, short, number(difference, ".0e"), beside, ratio(row.ratio(name, beside))]
            rows.append(cells)
    head = ["toolkit", "model", "gradient", "difference", "beside", "its time / fxgrad's"]
    return table(head, sorted(rows)) + (
        "\n\nA toolkit that computes another gradient is timed all the same. lxt's are held against fxgrad under "
        "lxt's policies."
    )


GROWTH = (("tokens", "tokens"), ("batch", "batch"), ("depth", "blocks"))


def growth(results: Results) -> str:
    parts = []
    for axis, label in GROWTH:
        rows = results.axis(axis)
        if not rows:
            continue
        head = [label, "forward", "plain", "fxgrad", "fxgrad / plain", "over the floor", "peak", "peak / plain"]
        head += ["saved per block", "saved / plain", *(f"{name} / fxgrad" for name in BY_HAND)]
        parts.append(table(head, map(_grown, rows)))
        parts.append(_exponents(rows, label))
    return "\n\n".join(parts)


def _grown(row: Row) -> list[str]:
    cells = [f"{row['size']:,}", *(seconds(row.time(s)) for s in (FORWARD, PLAIN, FXGRAD))]
    cells += [ratio(row.ratio(FXGRAD, PLAIN)), ratio(row.over_floor)]
    cells += [megabytes(row["peak"][FXGRAD]), number(row.quotient("peak"))]
    cells += [megabytes(row["saved"][FXGRAD] / max(row["blocks"], 1)), number(row.quotient("saved"))]
    return cells + [ratio(row.ratio(name, FXGRAD)) or _refused(row, name) for name in BY_HAND]


def megabytes(count: float) -> str:
    return f"{count / 1e6:.3g} MB"


def _exponents(rows: list[Row], label: str, series: Sequence[str] = (FORWARD, PLAIN, FXGRAD)) -> str:
    """How everything grows along an axis."""
    if len({row["size"] for row in rows}) < 2:
        return ""

    def fitted(value: Callable[[Row], float]) -> str:
        return f"{exponent([row['size'] for row in rows], [value(row) for row in rows]):.2f}"

    parts = [f"{name} {fitted(lambda row, name=name: row.time(name).median)}" for name in series]  # type: ignore[misc]
    for figure in ("peak", "saved"):
        if all(figure in row.info for row in rows):
            for name in (n for n in series if all(n in row[figure] for row in rows)):
                parts.append(f"{figure} of {name} {fitted(lambda row, f=figure, n=name: row[f][n])}")  # type: ignore[misc]
    return f"Exponents in {label}, fitted: {', '.join(parts)}."


def targets(results: Results) -> str:
    head, cells, rows = ["targets", "model"], [], results.axis("targets")
    every = [*rows, *results.axis("targets of ViT-B")]
    names = list(dict.fromkeys(name for row in every for name in row.times))
    for row in every:
        times = [seconds(row.time(name)) if name in row.times else "" for name in names]
        ratios = [ratio(row.ratio(name, PLAIN)) for name in names if name != PLAIN]
        peaks = [megabytes(row["peak"][name]) if name in row["peak"] else "" for name in names]
        model = "ViT-B/16, batch 8" if "ViT-B" in row["axis"] else "ViT-Ti/16, batch 1"
        cells.append([str(row["size"]), model, *times, *ratios, *peaks])
    head += [*names, *(f"{name} / plain" for name in names if name != PLAIN), *(f"peak of {name}" for name in names)]
    note = f"Here {PLAIN} is one forward and K backwards. {_exponents(rows, 'targets', names)}"
    return table(head, cells) + "\n\n" + note if cells else ""
