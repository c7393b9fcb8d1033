"""What must hold, and whether it does."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from bench.speed.results import (
    BAR,
    BAR_1024,
    BAR_4096,
    BAR_TARGETS,
    CALLS,
    CONVERSION,
    FXGRAD,
    LOOP,
    PLAIN,
    SAME,
    VJP,
    Results,
    Row,
    Spread,
    exponent,
)


@dataclass(frozen=True)
class Bar:
    """One promise.

    Attributes:
        what: in words.
        bound: the number to keep.
        at_most: whether the measured one may be at most that; at least otherwise.
        value: measured, the median where there is a spread; None where it was not.
        spread: of the rounds, for what was measured in rounds.
        unit: "x" for ratios, "s", or "" for exponents.
        where: which row it comes from, where that needs saying.
    """

    what: str
    bound: float
    at_most: bool
    value: float | None
    spread: Spread | None = None
    unit: str = "x"
    where: str = ""

    @property
    def verdict(self) -> str:
        """ "met", "MISSED" or "not measured", by the number as it was measured, before any rounding.

        Example:
            >>> Bar("", 0.93, True, 0.9300001).verdict
            'MISSED'
        """
        if self.value is None:
            return "not measured"
        return "met" if (self.value <= self.bound if self.at_most else self.value >= self.bound) else "MISSED"

    @property
    def shown(self) -> str:
        """The number with three decimals, rounded against us.

        Example:
            >>> Bar("", 0.93, True, 0.9300001).shown, Bar("", 1.3, False, 1.2999).shown
            ('0.931', '1.299')
        """
        if self.value is None:
            return ""
        round_up = math.ceil if self.at_most else math.floor
        return f"{round_up(self.value * 1000) / 1000:.3f}{' s' if self.unit == 's' else ''}"


def bars(results: Results) -> Iterator[Bar]:
    """Every promise, with what was measured for it.

    Args:
        results: of a run; what is missing from it counts as not measured.

    Example:
        >>> {bar.verdict for bar in bars(Results({}, "", {}))}
        {'not measured'}
    """
    rows = results.rows
    for name, bound in ((BAR, 0.93), (BAR_1024, 0.8), (BAR_4096, 0.72)):
        yield _ratio(f"forward + backward, over plain: {name}", bound, rows.get(name), FXGRAD, PLAIN)
    row = rows.get(BAR)
    over = row.over_floor if row else None
    yield Bar(f"measured, over the floor: {BAR}", 1.15, True, over.median if over else None, over)
    yield Bar(f"peak extra memory, over plain: {BAR}", 0.65, True, row.quotient("peak") if row else None)
    yield _rivals(f"any baseline with the same gradient, over fxgrad: {BAR}", 1.3, [row] if row else [])
    yield _rivals("the same, in every row there is", 1.0, list(rows.values()))
    for what, name, bound in (("ViT-B/16", CONVERSION, 0.3), ("48 blocks", "conversion, 48 blocks", 0.8)):
        spread = rows[name].time(FXGRAD) if name in rows else None
        yield Bar(
            f"conversion beyond torch.export: {what}", bound, True, spread.median if spread else None, spread, "s"
        )  # fmt: skip
    yield Bar("conversion beyond torch.export, exponent in nodes", 1.1, True, _conversion_exponent(results), unit="")
    ten = rows.get(BAR_TARGETS)
    ours = VJP if ten and VJP in ten.times else LOOP
    yield _ratio("10 targets at once, over 10 plain backwards and 1 forward: ViT-B/16, batch 8", 0.9, ten, ours, PLAIN)
    yield _ratio("10 targets at once, over ten calls of fxgrad: ViT-B/16, batch 8", 0.6, ten, ours, CALLS)


def _ratio(what: str, bound: float, row: Row | None, series: str, to: str) -> Bar:
    spread = row.ratio(series, to) if row else None
    return Bar(what, bound, True, spread.median if spread else None, spread)


def _rivals(what: str, bound: float, rows: list[Row]) -> Bar:
    """The fastest of all rivals."""
    found: list[tuple[float, Spread, str]] = []
    for row in rows:
        for rival in row.rivals():
            spread = row.ratio(rival, FXGRAD)
            if spread:
                found.append((spread.median, spread, f"{rival}, {row.name}"))
        # lxt has another method's gradient, which fxgrad has under another policy.
        for rival, policy in (("lxt, AttnLRP", "attnlrp"), ("lxt, CP-LRP", "cp-lrp")):
            same = row.info.get("verdicts", {}).get(rival) == SAME
            spread = row.ratio(rival, f"{FXGRAD}, {policy}") if same else None
            if spread:
                found.append((spread.median, spread, f"{rival}, {row.name}"))
    if not found:
        return Bar(what, bound, False, None)
    value, spread, where = min(found, key=lambda f: f[0])
    below = sum(f[0] < bound for f in found)
    return Bar(what, bound, False, value, spread, where=f"fastest of {len(found)}: {where}; {below} below the bar")


def _conversion_exponent(results: Results) -> float | None:
    rows = [row for row in results.axis("conversion") if row.name != CONVERSION]
    if len({row["nodes"] for row in rows}) < 2:
        return None
    return exponent([row["nodes"] for row in rows], [row.time(FXGRAD).median for row in rows])
