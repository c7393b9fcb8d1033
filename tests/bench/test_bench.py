"""The speed benchmark's parts, on next to nothing. Nothing here asserts how long anything takes."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

if missing := [name for name in ("matplotlib", "timm", "transformers") if importlib.util.find_spec(name) is None]:
    pytest.skip(f"needs {', '.join(missing)}", allow_module_level=True)

import fxgrad
from bench.speed import page, plots, results
from bench.speed.bars import Bar, bars
from bench.speed.baselines import vjp
from bench.speed.floor import count
from bench.speed.measure import Turns, conversion, peak_bytes, saved_bytes
from bench.speed.models import BASE, LARGE, SMALL, Case, Shape, cases, vit
from bench.speed.results import BAR, BY_HAND, CONVERSION, FORWARD, FXGRAD, PLAIN, SAME, Results, Row, Spread
from bench.speed.series import series

WIDTH, TOKENS, BATCH = 32, 5, 3
TINY = Case("tiny", "models", 0, "vit", vit(Shape(WIDTH, 1, 2), 2), (BATCH, 3, 32, 32), blocks=1, tokens=TOKENS - 1)


@pytest.fixture(scope="module")
def tiny() -> tuple[fxgrad.ConvertedModule, torch.Tensor]:
    model, x = TINY.build()
    return fxgrad.convert(model, (x[:2],)), x


def test_floor_of_a_vision_transformer_by_hand(tiny: tuple[fxgrad.ConvertedModule, torch.Tensor]) -> None:
    converted, x = tiny
    patches, head = (TOKENS - 1) * 3 * 16 * 16 * WIDTH, 1000 * WIDTH
    linear, attention = TOKENS * WIDTH**2, TOKENS**2 * WIDTH
    counted = count(converted, (x,))
    assert counted.forward == BATCH * (patches + 12 * linear + 2 * attention + head)
    assert counted.backward == BATCH * (patches + 10 * linear + 2 * attention + head)
    plain = count(converted.under("gradient"), (x,))
    assert plain.backward == BATCH * (patches + 12 * linear + 5 * attention + head)
    assert counted.floor < plain.floor


class Products(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.matmul(torch.softmax(torch.matmul(x, x.mT), -1), x)


def test_floor_of_products_counts_what_receives_a_cotangent() -> None:
    x = torch.randn(2, 4, 3)
    converted = fxgrad.convert(Products().eval(), (x,))
    assert count(converted, (x,)).forward == 2 * (4 * 4 * 3) * 2
    assert count(converted, (x,)).backward == 4 * 4 * 3 * 2  # of two operands of two products, the value alone
    assert count(converted.under("gradient"), (x,)).backward == 4 * (4 * 4 * 3) * 2


def test_floor_of_convolutions_and_causal_attention() -> None:
    model, x = nn.Conv2d(4, 6, 3, groups=2).eval(), torch.randn(2, 4, 5, 5)
    counted = count(fxgrad.convert(model, (x,)), (x,))
    assert counted.forward == counted.backward == 2 * 6 * 3 * 3 * (2 * 3 * 3)

    class Causal(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True)

    x = torch.randn(1, 2, 4, 8)
    assert count(fxgrad.convert(Causal().eval(), (x,)), (x,)).forward == 2 * (2 * 10 * 8)


def test_floor_refuses_what_it_cannot_count() -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 3, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.conv_tbc(x, self.weight.permute(0, 1, 2), torch.zeros(3))

    x = torch.randn(6, 2, 3)
    converted = fxgrad.convert(Wide().eval(), (x,), dynamic_shapes=({},))
    with pytest.raises(NotImplementedError, match="conv_tbc"):
        count(converted, (x,))


def test_exponent_of_a_known_power_law() -> None:
    sizes = [64, 256, 1024, 4096]
    assert results.exponent(sizes, [3e-5 * n**1.7 for n in sizes]) == pytest.approx(1.7)
    with pytest.raises(ValueError, match="two sizes"):
        results.exponent([2, 2], [1.0, 2.0])


def test_turns_pair_what_they_time() -> None:
    order: list[str] = []
    turns = Turns({name: lambda name=name: order.append(name) for name in "abc"}, frozenset("b"), every=2)
    turns.interleave(rounds=3)
    assert [len(turns.times[name]) for name in "abc"] == [3, 3, 3]
    assert [t is None for t in turns.times["b"]] == [False, True, False]
    # The last is always the one that pytest-benchmark would time; the others take turns to be first.
    assert "".join(order) == "abc" + "ac" + "abc"


def test_pytest_benchmark_times_the_last(benchmark: object) -> None:
    turns = Turns({"other": lambda: None, "target": lambda: None})
    if getattr(benchmark, "disabled", False):
        pytest.skip("pytest-benchmark is switched off, as xdist does")
    turns.interleave(2, benchmark)
    assert {name: len(seconds) for name, seconds in turns.times.items()} == {"other": 2, "target": 2}


def test_a_row_compares_the_baselines_and_measures_memory() -> None:
    model, x = TINY.build()
    s = series(TINY, model, x)
    assert list(s.runs) == [FORWARD, PLAIN, *BY_HAND, FXGRAD]
    assert s.verdicts == dict.fromkeys(BY_HAND, SAME) and not s.sparse
    kept = {name: saved_bytes(s.runs[name], [x, *model.parameters()]) for name in (PLAIN, FXGRAD)}
    assert 0 < kept[FXGRAD] < kept[PLAIN]
    assert all(peak_bytes(s.runs[name]) > kept[name] for name in kept)


def test_saved_bytes_count_a_storage_once() -> None:
    x = torch.randn(10, requires_grad=True)
    weight = torch.randn(10)
    assert saved_bytes(lambda: vjp(lambda x: (x * weight).sum(), x, torch.tensor(1.0)), [x, weight]) == 0
    assert saved_bytes(lambda: vjp(lambda x: ((y := x * weight) * y).sum(), x, torch.tensor(1.0)), [x, weight]) == 40


def test_conversion_takes_the_exports_time_out() -> None:
    found = conversion(nn.Sequential(nn.Linear(3, 3), nn.GELU()).eval(), torch.zeros(2, 3))
    assert found.nodes == 6 and found.export > 0 and found.beyond > 0


def test_case_names_are_unique_and_models_are_timms() -> None:
    names = [case.name for case in cases()]
    assert len(set(names)) == len(names) and BAR in names
    assert (SMALL.width, BASE.width, LARGE.depth) == (384, 768, 24)


def tiny_json(folder: Path) -> Path:
    """What a run with two rows and a conversion leaves."""
    times = {FORWARD: [1.0, 1.1], PLAIN: [2.0, 2.2], FXGRAD: [1.8, 1.99], BY_HAND[0]: [2.5, 2.6], "zennit": [9.0, None]}
    verdicts = {BY_HAND[0]: SAME, "zennit": "another gradient", "lxt, CP-LRP": "cannot: ValueError: no | map"}
    row = {
        "batch": 1, "tokens": 4, "blocks": 2, "times": times, "floor": 1.8, "floor_plain": 2.1, "nodes": 30,
        "peak": {PLAIN: 100, FXGRAD: 80}, "saved": {PLAIN: 50, FXGRAD: 20}, "verdicts": verdicts,
        "differences": {BY_HAND[0]: 1e-7, "zennit": 0.5},
    }  # fmt: skip
    rows = [
        {**row, "name": BAR, "axis": "bars", "size": 196},
        {**row, "name": "4 tokens", "axis": "tokens", "size": 4},
        {**row, "name": "16 tokens", "axis": "tokens", "size": 16},
        {"name": CONVERSION, "axis": "conversion", "size": 12, "nodes": 300, "times": {"torch.export": [5.0], FXGRAD: [0.2]}},
    ]  # fmt: skip
    found = {
        "machine_info": {"cpu": {"brand_raw": "A CPU", "flags": ["x"]}, "node": "secret", "threads": 2, "versions": {"torch": "2"}},
        "commit_info": {}, "datetime": "2026-01-02T03:04:05",
        "benchmarks": [{"fullname": "a", "stats": {"data": [1.0] * 99, "median": 1.0}, "extra_info": row} for row in rows],
    }  # fmt: skip
    results.trim(found)
    path = folder / "benchmarks.json"
    path.write_text(json.dumps(found))
    return path


def test_page_from_a_tiny_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tiny_json(tmp_path)
    assert "secret" not in path.read_text() and '"data"' not in path.read_text()
    target = tmp_path / "benchmarks.md"
    monkeypatch.setattr(sys, "argv", ["page.py", str(path), str(target)])
    page.main()
    assert "MISSED" in capsys.readouterr().out
    text = target.read_text()
    # 0.9 and 1.99 / 2.2: the median is 0.9022..., shown rounded up.
    assert re.search(rf"plain: {BAR} +\| <= 0.93 \| 0.903 \(0.90 to 0.90\) \| met \|", text)
    assert re.search(r"peak extra memory.*<= 0.65 \| 0.800 \| \*\*MISSED\*\* \|", text)
    assert "| not measured |" in text and "There was no GPU" in text
    assert "cannot: ValueError: no / map" in text
    for image in re.findall(r"\]\((\S+\.svg)\)", text):
        assert (tmp_path / image).stat().st_size < 100_000
    columns = {line.count("|") for line in text.splitlines() if line.startswith("| what")}
    assert columns == {5}


def test_another_run_replaces_rows(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    old, new = tiny_json(tmp_path), tiny_json(tmp_path / "new")
    newer = json.loads(new.read_text())
    newer["benchmarks"] = newer["benchmarks"][:1]
    newer["benchmarks"][0]["extra_info"]["floor"] = 3.0
    new.write_text(json.dumps(newer))
    page.merge(old, [new])
    rows = results.read(old).rows
    assert len(rows) == 4 and rows[BAR]["floor"] == 3.0 and rows["4 tokens"]["floor"] == 1.8


@pytest.mark.parametrize(
    ("bound", "at_most", "value", "verdict", "shown"),
    [
        (0.93, True, 0.93, "met", "0.930"),
        (0.93, True, 0.93004, "MISSED", "0.931"),
        (1.3, False, 1.29996, "MISSED", "1.299"),
        (1.3, False, None, "not measured", ""),
    ],
)
def test_a_bar_is_not_rounded_in_our_favour(
    bound: float, at_most: bool, value: float | None, verdict: str, shown: str
) -> None:
    bar = Bar("", bound, at_most, value)
    assert (bar.verdict, bar.shown) == (verdict, shown)


def test_rivals_are_those_with_the_same_gradient() -> None:
    times = {FXGRAD: [1.0], BY_HAND[0]: [1.5], "zennit": [0.5], "fxgrad, attnlrp": [1.0], "lxt, AttnLRP": [0.9]}
    verdicts = {BY_HAND[0]: SAME, "zennit": "another gradient", "lxt, AttnLRP": SAME}
    row = Row("r", {"name": "r", "axis": "models", "size": 0, "times": times, "verdicts": verdicts})
    assert row.rivals() == [BY_HAND[0]]
    anywhere = next(bar for bar in bars(Results({}, "", {"r": row})) if bar.what.startswith("the same"))
    assert (
        anywhere.value == 0.9
        and anywhere.where == "fastest of 2: lxt, AttnLRP, r; 1 below the bar"
        and anywhere.verdict == "MISSED"
    )
    assert row.ratio("lxt, AttnLRP", FXGRAD) == Spread(0.9, 0.9, 0.9)


@pytest.mark.parametrize("name", ["bars", "floor", "measure", "models", "page", "plots", "results", "series", "tables"])
def test_examples_run(name: str) -> None:
    assert doctest.testmod(importlib.import_module(f"bench.speed.{name}")).failed == 0


def test_without_rows_there_is_nothing_to_plot(tmp_path: Path) -> None:
    assert plots.plots(Results({}, "", {}), tmp_path) == []
    assert "not measured" in page.page(Results({}, "2026-01-01", {}))
