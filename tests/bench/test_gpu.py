"""The GPU's script on the CPU: it keeps its time, outlives what fails, and its page says what was measured."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

if missing := [name for name in ("matplotlib", "timm", "transformers") if importlib.util.find_spec(name) is None]:
    pytest.skip(f"needs {', '.join(missing)}", allow_module_level=True)

import torch
from click.testing import CliRunner

from bench import gpu
from bench.speed import gpu_cases, gpu_page
from bench.speed.gpu_page import BARS, PEAK, bars, page
from bench.speed.workers import Job, Stage, supervise
from tests.helpers import failing_cases


@pytest.mark.parametrize(
    "name", ["bench.gpu", "bench.speed.workers", "bench.speed.gpu_attention", "bench.speed.gpu_page"]
)
def test_examples_run(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def supervised(*jobs: Job, seconds: float = 60, workers: int = 1) -> dict[str, dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    supervise([Stage(jobs, workers)], failing_cases.cases, seconds, rows.__setitem__)
    return rows


def test_a_failure_is_recorded_and_the_rest_goes_on() -> None:
    rows = supervised(Job("raises"), Job("dies"), Job("unprepared"), Job("dies before"), Job("hangs", most=1))
    pids = {name: row.get("pid") for name, row in rows.items()}
    assert rows["raises: second"]["error"].startswith("RuntimeError: out of memory (failing_cases.py:")
    assert pids["raises: first"] == pids["raises: third"] == pids["dies: first"]
    assert rows["dies: second"] == {"error": "its process ended with code 4"}
    assert rows["unprepared"]["error"].startswith("ValueError: no model")
    assert rows["dies before"] == {"error": "its process ended with code 3"}
    assert rows["hangs: second"] == {"error": "no answer within 1 s"}
    assert pids["dies: third"] != pids["dies: first"] and pids["hangs: third"] != pids["hangs: first"]


def test_the_budget_is_kept() -> None:
    rows = supervised(Job("hangs", least=0.5), Job("raises", least=5), seconds=2)
    assert list(rows) == ["hangs: first", "hangs: second", "raises"]
    assert rows["hangs: second"]["error"].startswith("no answer within ")
    assert rows["raises"] == {"skipped": "0 s were left, and it takes 5"}


def test_jobs_of_a_stage_share_its_workers() -> None:
    rows = supervised(Job("raises"), Job("raises"), workers=2)
    assert len(rows) == 3 and {"pid", "took"} == set(rows["raises: first"])


def test_a_smoke_run_from_the_command_line(tmp_path: Path) -> None:
    told = CliRunner().invoke(gpu.main, ["--smoke", "--only", "attention", "--out", str(tmp_path)])
    assert told.exit_code == 0, told.output
    found = json.loads((tmp_path / "gpu.json").read_text("utf-8"))
    rows = found["rows"]
    assert found["smoke"] and "full: 0.0 s" in told.output
    shape = "attention: float32 2 x 4 x 24 x 8"
    for road in ("own", "full", "blockwise"):
        assert rows[f"{shape}, {road}"]["seconds"] > 0 and rows[f"{shape}, {road}"]["off"] < 1e-6
    # Without a GPU its kernels fail, each by itself.
    assert "error" in rows[f"{shape}, swapped"] and "bfloat16" in list(rows)[-1]
    assert "A smoke run" in (tmp_path / "gpu.md").read_text("utf-8")
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"seconds": 5, "rows": {"FlexAttention": {"skipped": "no time"}}}))
    (tmp_path / "gpu.md").unlink()
    told = CliRunner().invoke(gpu.main, ["--page", str(tmp_path / "gpu.json"), "--page", str(other)])
    assert told.exit_code == 0, told.output
    text = (tmp_path / "gpu.md").read_text("utf-8")
    assert "| float32 2 x 4 x 24 x 8 |" in text and text.endswith("- FlexAttention: no time\n")


def test_what_the_command_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    told = CliRunner().invoke(gpu.main, ["--smoke", "--only", "atention"])
    assert (
        told.exit_code == 1
        and "no job begins with atention; there are attention, launches, ViT-B/16, 197 tokens," in told.output
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    told = CliRunner().invoke(gpu.main, [])
    assert (
        told.exit_code == 1 and "there is no GPU that PyTorch sees; --smoke tries the script on the CPU." in told.output
    )


def test_attention_as_one_node() -> None:
    rows = {f"launches: {name}": measure() for name, measure in gpu_cases.cases("cpu", True, "launches")}
    assert len(rows) == 4 and all(set(row) == {"plain", "own", "road"} for row in rows.values())
    assert "| float32 32 x 4 x 24 x 8 |" in gpu_page._launches(rows)


@pytest.mark.parametrize("job", ["ViT-B/16, 197 tokens", "model Swin-T"])
def test_cases_in_this_process(job: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FXGRAD_BENCH", "")
    threads = torch.get_num_threads()
    rows = {name: measure() for name, measure in gpu_cases.cases("cpu", True, job)}
    torch.set_num_threads(threads)
    assert all(row["identical"] for row in rows.values()) and len(rows) in (2, 4)
    if "model" in job:
        assert (
            list(rows) == list(gpu_cases.PRECISIONS)
            and rows["float32"]["completeness"] < 1e-5 < rows["float32"]["plain"]
        )
    else:
        assert all(set(row["times"]) == {"plain", "fxgrad"} == set(row["peak"]) for row in rows.values())


def test_every_bar_has_its_row() -> None:
    """The rows that the bars read are rows that the script measures."""
    names = {
        f"ViT-B/16, {tokens:,} tokens: batch {batch}, {dtype}"
        for tokens, sizes in gpu_cases.BATCHES.items()
        for batch, dtype in sizes
    }
    assert {bar.row for bar in BARS} <= names
    jobs = [job.name for stage in gpu_cases.stages(False) for job in stage.jobs]
    assert len(jobs) == len(set(jobs)) == 12 + len(gpu_cases.every_model())
    assert all(stage.workers == 1 for stage in gpu_cases.stages(False) if not stage.jobs[0].name.startswith("model"))


def measured(fxgrad: float, peak: float = 0.5, identical: bool = True) -> dict[str, Any]:
    times = {"plain": [1.0, 1.0], "fxgrad": [fxgrad, fxgrad], "fxgrad, CUDA graph": [0.3, 0.3]}
    peaks = {"plain": 100.0, "fxgrad": 100 * peak}
    return {"times": times, "peak": peaks, "kernels": {"plain": ["flash_fwd"]}, "identical": identical, "took": 1.0}


def test_the_page_judges_by_what_was_measured() -> None:
    rows = {bar.row: measured(0.7) for bar in BARS}
    assert {bar.verdict for bar in bars(rows)} == {"met"}
    rows[BARS[0].row] = measured(1.01, peak=PEAK + 0.01, identical=False)
    verdicts = {bar.what: bar.verdict for bar in bars(rows)}
    assert sum(v == "MISSED" for v in verdicts.values()) == 4
    assert verdicts["outputs that differ from the original's in a bit"] == "MISSED"
    found = {"machine": {"versions": {}}, "when": "2026-01-01", "smoke": False, "seconds": 9.0, "rows": rows}
    rows["tiles"] = {"skipped": "3 s were left, and it takes 15"}
    text = page(found)
    assert (
        "| fxgrad over plain, eager: ViT-B/16, 197 tokens: batch 64, bfloat16 | <= 0.92 | 1.010 (1.01 to 1.01) | **MISSED** |"
        in text
    )
    assert f"- {BARS[0].row}, plain: `flash_fwd`" in text and text.endswith("- tiles: 3 s were left, and it takes 15\n")


def test_a_road_over_pytorchs_own() -> None:
    own = {
        "kernel": "flash_attention",
        "forward": 1e-3,
        "copies": 1e-4,
        "seconds": 4e-3,
        "value only": 4e-3,
        "off": 1e-3,
    }
    rows = {"attention: a, own": own, "attention: a, triton": {"seconds": 1e-3, "off": 2e-3}}
    rows["attention: a, swapped"] = {"error": "no"}
    assert (
        "| a | flash_attention | 1 ms | 100 µs | 4 ms | 4 ms | 0.25 (2e-03) | failed | triton |"
        in gpu_page._attention(rows)
    )
