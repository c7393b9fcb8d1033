"""Write docs/which-method.md from the tables of docs/evidence.md and bench/measured/real.md: `make docs`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from bench.evidence.trainings import METRICS
from fxgrad.methods import METHODS
from fxgrad.report import markdown

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "which-method.md"
TEMPLATE = Path(__file__).with_name("choosing.md")
PRINTED = {
    "Input x Gradient of tokens": "input_x_gradient",
    "Input x Gradient": "input_x_gradient",
    "Grad-CAM+": "gradcam_plus",
    "XGrad-CAM+": "xgradcam_plus",
    "HiResCAM, last block": "hirescam",
    "FullGrad": "fullgrad",
    "FullGrad+": "fullgrad_plus",
    "AttCAT": "attcat",
    "GenAtt": "genatt",
    "Grad-SAM": "gradsam",
    "TokenTM": "tokentm",
    "raw attention": "raw_attention",
    "attention rollout": "rollout",
    "random": "random",
}
"""The names of methods on bench/measured/real.md -> ours."""

Cells = Mapping[str, str]
Pair = tuple[str, str]
"""Under the plain gradient, and under libragrad; the same where a method takes no gradient."""


def page() -> str:
    """The Markdown page."""
    evidence = (ROOT / "docs" / "evidence.md").read_text("utf-8")
    real = (ROOT / "bench" / "measured" / "real.md").read_text("utf-8")
    columns = _columns(evidence, real)
    return TEMPLATE.read_text("utf-8").format(
        side_by_side="\n".join(_side_by_side(columns)),
        **_best(columns),
        **_registered(evidence),
        **_by_focus(real),
        **_by_policy(evidence),
        fullgrad_error=_complete(real),
    )


def table(text: str, heading: str) -> list[Cells]:
    """The first table after a heading: one dict of cells per row, italics and intervals left in."""
    lines = text.split(f"\n{heading}", 1)[1].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|"))
    rows: list[list[str]] = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return [dict(zip(rows[0], row)) for row in rows[2:]]


def number(cell: str) -> float:
    """The mean of a cell such as "0.83 [0.69, 0.91]"."""
    return float(cell.split()[0])


def _columns(evidence: str, real: str) -> dict[str, dict[str, Pair]]:
    """Column -> method -> its numbers."""
    return {
        "Shapley": _ours(table(evidence, "## Computed truth"), "gradient", "libragrad"),
        "patch": _ours(_after(evidence, "## Planted truth"), "gradient", "libragrad"),
        "Focus": _printed(table(real, "### Focus\n"), "Focus, plain"),
        "words": _printed(table(real, "### Average precision of the tokens"), "AP, plain"),
        "head shuffled": _ours(
            [row for row in table(evidence, "## Sanity checks") if "the head shuffled" in row.values()],
            "gradient",
            "libragrad",
        ),
    }


def _after(evidence: str, heading: str) -> list[Cells]:
    """The second table after a heading."""
    return table(evidence.split(f"\n{heading}", 1)[1], "How often the largest attribution lies on the patch")


def _ours(rows: Sequence[Cells], plain: str, balanced: str) -> dict[str, Pair]:
    pairs = {row["method"].replace(" ", "_"): (row[plain], row[balanced]) for row in rows}
    return {name: pair for name, pair in pairs.items() if name in METHODS}


def _printed(rows: Sequence[Cells], plain: str) -> dict[str, Pair]:
    named = [(PRINTED.get(row["method"].strip("*")), row) for row in rows]
    return {name: (row[plain], row["libragrad"] or row[plain]) for name, row in named if name}


def _side_by_side(columns: Mapping[str, Mapping[str, Pair]]) -> Iterator[str]:
    shapley = columns["Shapley"]
    order = sorted((name for name in METHODS if name in shapley), key=lambda name: -number(shapley[name][1]))
    rows = [[f"`{name}`", *(_cell(column.get(name)) for column in columns.values())] for name in order]
    yield from markdown(["method", *columns], rows)
    others = [f"`{name}`" for name in METHODS if name not in shapley]
    if others:
        yield from ("", f"Not measured: {', '.join(others)}.")


def _cell(pair: Pair | None) -> str:
    if pair is None:
        return ""
    plain, balanced = (cell.split()[0] for cell in pair)
    return plain if pair[0] == pair[1] else f"{plain} → {balanced}"


def _best(columns: Mapping[str, Mapping[str, Pair]]) -> dict[str, str]:
    """The methods that come out first, so that no name on the page is a guess."""
    shapley, focus, words = (columns[name] for name in ("Shapley", "Focus", "words"))
    first, third = _highest(shapley, 2), _highest(words, 3)
    everything = {(name, side): number(pair[side]) for name, pair in focus.items() for side in (0, 1)}
    name, side = max(everything, key=lambda key: everything[key])
    balanced = _highest(focus, 1)[0]
    return {
        "shapley_best": " or ".join(f"`{n}`" for n in first),
        "shapley_best_numbers": ", ".join(shapley[n][1] for n in first),
        "shapley_input": shapley["input_x_gradient"][1],
        "mosaic_best": f"`{name}`, under {('the plain `gradient`', '`libragrad`')[side]}",
        "mosaic_best_number": focus[name][side],
        "mosaic_balanced": f"`{balanced}`",
        "mosaic_balanced_number": focus[balanced][1],
        "text_best": ", ".join(f"`{n}`" for n in third[:-1]) + f" or `{third[-1]}`",
        "text_best_numbers": ", ".join(words[n][1] for n in third),
        "text_random": words["random"][0],
    }


def _highest(column: Mapping[str, Pair], count: int) -> list[str]:
    return sorted(column, key=lambda name: -number(column[name][1]))[:count]


def _registered(evidence: str) -> dict[str, str]:
    claims = table(evidence, "## What it says of the paper's claims")
    mixers = next(row["won / tied / lost"] for row in claims if row["by"] == "MLP-Mixer and gMixer")
    won, tied, lost = map(int, mixers.split(" / "))
    rows = [row for row in table(evidence, "## The registered tests") if row["method"] == "Input x Gradient"]
    cells = [row[metric] for row in rows for metric in METRICS.values() if row[metric]]
    return {
        "input_won": str(sum("▲" in cell for cell in cells)),
        "input_tests": str(len(cells)),
        "registered": next(row["won / tied / lost"] for row in claims if row["by"] == "the registered ones"),
        "others": next(row["won / tied / lost"] for row in claims if row["by"] == "AttnLRP and CP-LRP"),
        "mixer_won": str(won),
        "mixer_tests": str(won + tied + lost),
    }


def _by_focus(real: str) -> dict[str, str]:
    rows = {row["method"]: row for row in table(real, "### Focus\n") if row["difference"]}
    lost = [PRINTED[name] for name, row in rows.items() if row["difference"].endswith("▼")]
    return {
        "focus_tests": str(len(rows)),
        "focus_won": str(sum(row["difference"].endswith("▲") for row in rows.values())),
        "focus_lost": str(len(lost)),
        "plain_better": ", ".join(f"`{name}`" for name in lost[:-1]) + f" and `{lost[-1]}`",
        "pixel_focus": rows["Input x Gradient, by pixel"]["libragrad"],
        "patch_focus": rows["Input x Gradient, summed by patch"]["libragrad"],
        "token_focus": rows["Input x Gradient of tokens"]["libragrad"],
    }


def _by_policy(evidence: str) -> dict[str, str]:
    rows = {row["method"]: row for row in table(evidence, "## Computed truth")}
    row = rows["fullgrad plus"]
    return {"without_norms": row["libragrad-without-normalization"], "with_norms": row["libragrad"]}


def _complete(real: str) -> str:
    lines = real.split("\n## Completeness\n", 1)[1].splitlines()
    row = next(line for line in lines if line.startswith("| 224 x 224 | float32 | libragrad |"))
    return row.strip("|").split("|")[-2].strip()


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
