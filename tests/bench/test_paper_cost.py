"""The page on what the paper's protocol costs: its estimate follows from its own tables."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench.tables import paper_cost
from bench.tables.paper_cost import MODELS, PARTS, Cost, forward_flops, page

PAGE = Path(__file__).parents[2] / "bench" / "measured" / "paper-cost.md"


def rows(text: str, first: str) -> dict[str, list[str]]:
    """The cells of a table's rows by their first one, from the table whose heading begins with `first`."""
    table = text.split(f"| {first} |", 1)[1].split("\n\n")[0]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    return {row[0]: row[1:] for row in cells}


def test_a_forward_pass_is_that_of_the_textbook() -> None:
    """12 blocks of a ViT-tiny: per token 2 * 12 * width^2 for its matrices, and 4 * tokens * width for attention."""
    tokens, width = 197, 192
    blocks = 12 * tokens * (24 * width**2 + 4 * tokens * width)
    stem_and_head = 2 * 196 * 768 * width + 2 * width * 1000
    assert forward_flops(paper_cost.SMALL) == blocks + stem_and_head


def test_hours_are_passes_times_a_model_s_own_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paper_cost, "MODELS", {"ViT-tiny": paper_cost.SMALL})
    text = page([Cost("imagenet", 3000, 100.0, 2.0), Cost("imagenet-s", 5000, 10.0, 1.0)], tflops=0.001)
    hours = (3000 * 100 + 5000 * 10) * forward_flops(paper_cost.SMALL) / 1e9 / 3600
    assert rows(text, "model")["ViT-tiny"][2] == f"{hours:.1f}" and f"All models together: {hours:.0f} " in text


def test_the_written_page_agrees_with_itself() -> None:
    text = PAGE.read_text("utf-8")
    parts, models = rows(text, "part"), rows(text, "model")
    assert set(parts) == set(PARTS) and set(models) == set(MODELS)
    passes = sum(float(pictures.replace(",", "")) * float(each) for pictures, each, *_ in parts.values())
    rate = float(re.findall(r"at ([0-9.]+) TFLOP/s", text)[0])
    for name, (tag, flops, hours, _) in models.items():
        assert tag == f"`{MODELS[name]}`"
        assert float(hours) == pytest.approx(passes * float(flops) / 1e3 / rate / 3600, rel=0.05, abs=0.1)
