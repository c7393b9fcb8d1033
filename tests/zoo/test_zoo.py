"""The zoo's engine: what goes wrong with one model costs one row, and says so."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import runpy
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from fxgrad import zoo
from fxgrad.commands import cli
from fxgrad.errors import InputError
from fxgrad.zoo import rows, shrink, suites
from fxgrad.zoo.case import Built, Case, Limits
from fxgrad.zoo.measure import measure
from fxgrad.zoo.rows import Row
from tests.helpers.zoo_cases import crash, good, hang, hog, mistaken, refused

ROOT = Path(__file__).parents[2]
GOOD = Row("m:good", "m", forward_identical=True, completeness_error=2e-15, plain_error=0.5, kinds="linear 3; gate 1")


def case(build: Any) -> Case:
    return Case(f"m:{build.__name__}", "m", build)


# One model


@pytest.mark.parametrize(("name", "kind"), [("timm:test_vit", "attention"), ("timm:test_resnet", "piecewise_linear")])
def test_a_model_of_timm(name: str, kind: str) -> None:
    row = measure(zoo.named(name))
    assert row.passed and row.cause == "" and row.reason == ""
    assert row.forward_identical and row.batches == "1, 2"
    assert row.completeness_error is not None and row.completeness_error < 1e-12
    assert row.input == "3x128x128" and row.reduced == "160x160 pixels to 128x128"
    assert f"{kind} " in row.kinds and "aten." in row.worst_node and "timm " in row.versions
    assert row.parameters and row.nodes and row.seconds and row.capture_s and row.pass_s is not None
    assert row.plain_error is not None and (row.plain_error > 1e-3) == (name == "timm:test_vit")


def test_a_model_that_casts_down_by_itself() -> None:
    class Down(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.float().tanh().double() * 2

    row = measure(Case("m:down", "m", lambda: Built(Down().eval(), (torch.randn(2, 3),), {})))
    assert row.precision == "float32" and row.completeness_error is not None and 0 < row.completeness_error < 1e-6


def test_a_forward_that_differs() -> None:
    class Counts(nn.Module):
        calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return x + self.calls

    class Exports(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            try:
                x.detach().numpy()
            except Exception:  # it is traced
                return x.exp() * 2
            return x.exp()

    row = measure(Case("m:counts", "m", lambda: Built(Counts().eval(), (torch.randn(2, 3),), {})))
    assert "OwnForwardRandom" in row.reason and row.forward_identical is None
    row = measure(Case("m:exports", "m", lambda: Built(Exports().eval(), (torch.randn(2, 3),), {})))
    assert "OtherComputationError: the captured program does not compute what the model computes" in row.reason


def test_a_refusal_is_a_row() -> None:
    row = measure(case(refused))
    assert not row.passed and row.input == "3" and row.completeness_error is None
    assert row.reason.startswith("NotBalanceableError: under libragrad, 1 op(s) can only multiply")
    assert "| aten.softmax.int at the model itself" in row.reason and "\n" not in row.reason


def test_a_mistake_of_the_model_says_where() -> None:
    row = measure(case(mistaken))
    assert row.reason.startswith("ValueError: one line | and another | raised at ")
    assert "zoo_cases.py" in row.reason and row.cause == "ValueError: one line"


def test_inputs_by_keyword_and_integers() -> None:
    class Embedded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(5, 3)

        def forward(self, x: torch.Tensor, ids: torch.Tensor, scale: int = 1) -> dict[str, torch.Tensor]:
            return {"out": x * scale + self.table(ids)}

    kwargs = {"scale": 2, "ids": torch.tensor([[1, 2], [3, 4]]), "x": torch.randn(2, 2, 3)}
    row = measure(Case("m:embedded", "m", lambda: Built(Embedded().eval(), (), kwargs, "a note")))
    assert row.passed, row
    assert (row.input, row.batches, row.reduced) == ("2, 2x3", "1, 2", "a note")


# Processes


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No processes: what they cost is known, and importing torch in each takes seconds."""

    class Inline:
        case: Case | None = None
        usable = True

        def __init__(self, log: Path, **limits: Any) -> None:
            self.connection, other = multiprocessing.Pipe()
            self.process = SimpleNamespace(sentinel=other)

        def give(self, case: Case) -> None:
            self.case = case

        def look(self) -> Row:
            assert self.case
            row, self.case = measure(self.case), None
            return row

        def stop(self) -> None:
            self.connection.close()

    module = importlib.import_module("fxgrad.zoo.running")
    monkeypatch.setattr(module, "Worker", Inline)
    monkeypatch.setattr(module, "_LOOK", 0)


def test_what_goes_wrong_costs_one_row(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "zoo.csv"
    seen: list[str] = []

    def watch(row: Row | None, busy: Any) -> None:
        seen.append(row.model if row else "")
        assert row is None or zoo.read(file)[-1].model == row.model

    builds = [crash, hog, good]
    found = zoo.run([case(b) for b in builds], file, jobs=2, timeout=60, memory=1.2, watch=watch)
    assert [row.model for row in found] == [f"m:{b.__name__}" for b in builds]
    crashed, hogged, fine = found
    assert crashed.reason.startswith("Crashed: SIGSEGV: File ") and "zoo_cases.py" in crashed.reason
    assert hogged.reason.startswith("OutOfMemory: ") and hogged.reason.endswith(" GB, the limit is 1.2 GB")
    assert hogged.peak_mb is not None and 1100 < hogged.peak_mb < 2600
    assert fine.passed and fine.peak_mb
    assert sorted(filter(None, seen)) == sorted(row.model for row in found)
    assert "1 of 3 models pass" in zoo.summary(found) and "1 x Crashed: SIGSEGV" in zoo.summary(found)
    again = zoo.run([case(b) for b in builds], file, watch=lambda row, busy: pytest.fail("nothing is left to run"))
    assert [row.reason for row in again] == [row.reason for row in found]


def test_a_model_that_hangs(tmp_path: Path) -> None:
    (hung,) = zoo.run([case(hang)], tmp_path / "zoo.csv", timeout=0.5)
    assert hung.reason.startswith("TimedOut: not done after ") and hung.seconds and 0.5 < hung.seconds < 20


@pytest.mark.usefixtures("inline")
def test_retry_runs_again_what_failed(tmp_path: Path) -> None:
    file = tmp_path / "zoo.csv"
    old = [Row("m:good", "m", reason="E: of an older version"), Row("m:other", "m", reason="E: not asked for")]
    rows.append(file, old)
    assert zoo.run([case(good)], file)[0].reason == "E: of an older version"
    assert zoo.run([case(good)], file, retry=True)[0].passed
    assert [(row.model, row.passed) for row in zoo.read(file)] == [("m:other", False), ("m:good", True)]


def test_cases_that_cannot_be_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="m:good is asked for twice"):
        zoo.run([case(good), case(good)], tmp_path / "zoo.csv")
    with pytest.raises(InputError, match=r"cannot be sent to a worker process .* must be a function at the top of"):
        zoo.run([Case("m:lambda", "m", lambda: good())], tmp_path / "zoo.csv")


# The table


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    full = Row(
        "a:b",
        "f",
        7,
        "x; y",
        "3x4",
        "1, 2",
        "float32",
        9,
        1.5,
        0.5,
        True,
        1e-15,
        0.25,
        "n, o",
        "linear 1",
        'E: "q", r',
        2.5,
        8,
        "v",
    )
    rows.append(tmp_path / "t.csv", [full, Row("c:d", "f")])
    assert zoo.read(tmp_path / "t.csv") == [full, Row("c:d", "f")]


@pytest.mark.parametrize("cut", [1, 5, 30])
def test_a_line_that_was_cut_off_is_run_again(tmp_path: Path, cut: int) -> None:
    file = tmp_path / "t.csv"
    rows.append(file, [GOOD, Row("m:cut", "m", reason="E: so long a reason that thirty bytes of it do not matter")])
    file.write_bytes(file.read_bytes()[:-cut])
    assert [row.model for row in zoo.read(file)] == ["m:good"]
    rows.append(file, [Row("m:next", "m")])
    assert [row.model for row in zoo.read(file)] == ["m:good", "m:next"]


def test_a_header_that_was_cut_off(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text("model,fam")
    assert zoo.read(file) == []
    rows.append(file, [GOOD])
    assert zoo.read(file)[0].passed


def test_other_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    for text in ("name,size\na,1\n", "notes", "model\n"):
        file.write_text(text)
        with pytest.raises(InputError, match="is not a table of the zoo's, or an older one's: move it away"):
            zoo.read(file)
        assert file.read_text() == text
    file.write_text(",".join(rows.COLUMNS) + "\na,b\n")
    with pytest.raises(InputError, match=r"line 2 of .* has 2 columns, not 19: mend it"):
        zoo.read(file)
    with pytest.raises(InputError, match="cannot be read"):
        zoo.read(tmp_path)
    with pytest.raises(InputError, match="cannot be written"):
        rows.append(tmp_path, [GOOD])


def test_causes() -> None:
    ops = "2 op(s) have no rule: | aten.lstm.input has no row (4 x) | at stages.0 | aten.i0.default has no row (1 x) | at x"
    assert Row("m", "f", reason=f"NoRuleError: {ops}").cause == (
        "NoRuleError: aten.lstm.input has no row; aten.i0.default has no row"
    )
    assert Row("m", "f", forward_identical=False, completeness_error=0.0).cause == "the forward differs"
    inexact = Row(
        "m", "f", forward_identical=True, completeness_error=1e-3, worst_node="mul_2 aten.mul.Tensor share 1e-3 at x"
    )
    assert replace(inexact, precision="float32").cause == "not complete, float32 inside, worst at aten.mul.Tensor share"
    assert inexact.cause == "not complete, worst at aten.mul.Tensor share" and not inexact.passed
    assert not Row("m", "f", forward_identical=True, completeness_error=float("nan")).passed
    assert GOOD.cause == ""


def test_the_page() -> None:
    bad = Row(
        "m:bad",
        "m",
        reason="NoRuleError: 1 op(s) have no rule: | aten._x|y.default has no row (2 x)",
        versions="torch 2",
    )
    text = zoo.page({"one": [GOOD, bad], "two": [GOOD]})
    assert "**1 of 2 models convert, forward identical and complete.**" in text and "measured on torch 2." in text
    assert "| m m | 2 | 1 | 1 | 2.0e-15 | 5.0e-01 | linear, gate |" in text
    assert "| m:bad | NoRuleError: 1 op(s) have no rule: |" in text or "aten.\\_x\\|y.default has no row" in text
    assert '<summary>one: 1 of 2 (<a href="zoo/one.csv">all columns</a>)</summary>' in text
    assert "Not converted" not in zoo.page({"one": [GOOD]})


# The suites


def test_suites() -> None:
    timm, vision = zoo.suite("timm"), zoo.suite("torchvision")
    assert len(timm) > 1000 and timm[0].family == "vision_transformer" and timm[-1].package == "timm"
    names = {c.name: c.family for c in vision}
    assert len(names) == len(vision) > 90 and names["torchvision:resnet_fpn_backbone"] == "detection"
    assert names["torchvision:swin_t"] == "swin_transformer" and "torchvision:raft_large" not in names
    with pytest.raises(InputError, match="no suite 'tim'; there are timm-families, timm, torchvision, transformers"):
        zoo.suite("tim")


def test_the_smallest_of_every_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    families = {"a": ["resnet18", "resnet10t"], "b": ["test_vit"]}
    monkeypatch.setattr(suites, "_timm_families", lambda: families)
    monkeypatch.setattr("timm.list_models", lambda: ["resnet18", "resnet10t", "test_vit"])
    for expected in ("once: some minutes", ""):
        found = zoo.suite("timm-families")
        assert [(c.family, c.name) for c in found] == [("a", "timm:resnet10t"), ("b", "timm:test_vit")]
        err = capsys.readouterr().err
        assert expected in err and bool(err) == bool(expected)


def test_models_by_name() -> None:
    assert zoo.named("timm:vgg11").family == "vgg"
    with pytest.raises(InputError, match=r"timm has no model 'resnet19'. Close to it: timm:resnet18"):
        zoo.named("timm:resnet19")
    with pytest.raises(InputError, match="a model is PACKAGE:NAME, as in timm:resnet18; 'resnet18' is not"):
        zoo.named("resnet18")
    with pytest.raises(InputError, match="this needs absent, which cannot be imported: ModuleNotFoundError"):
        suites._need("absent.models")


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "vit_b_32", "lraspp_mobilenet_v3_large", "r3d_18"])
def test_torchvision_models_run(name: str) -> None:
    model, args, kwargs, *_ = zoo.named(f"torchvision:{name}").build()
    assert not model.training and args[0].shape[0] == 2 and max(args[0].shape[2:]) <= 128
    with torch.no_grad():
        model(*args, **kwargs)


@pytest.mark.parametrize(
    "name", ["bert", "llama", "t5", "mamba", "whisper", "clip", "clipseg", "deformable_detr", "deberta_v2", "xlnet"]
)
def test_transformers(name: str) -> None:
    row = measure(zoo.named(f"transformers:{name}"))
    assert row.passed, row


# Large models


def wide(blocks: int, side: int) -> nn.Module:
    return nn.Sequential(*(nn.Linear(side, side) for _ in range(blocks)), nn.Tanh(), nn.Linear(side, 2))


def test_a_large_model_is_cut_down_without_being_touched() -> None:
    before = psutil.Process().memory_info().rss
    model = shrink.reduce(partial(wide, 40, 4000), 40_000_000)  # 2.6 GB, were it written
    assert len(model) == 4 and shrink.count(model) == 2 * 4000 * 4001 + 2 * 4001
    assert psutil.Process().memory_info().rss - before < 4e8
    assert abs(model[0].weight.std().item() * 4000**0.5 - 1) < 0.1
    assert len(shrink.reduce(partial(wide, 40, 10), 150)) == 3  # one is kept where two are too many


def test_settings_make_blocks_differ() -> None:
    def strided() -> nn.Module:
        return nn.Sequential(
            *(nn.Conv2d(2, 2, 3, stride=s) for s in (1, 2, 1, 2, 1, 2, 1)), nn.ReLU(), nn.ReLU(), nn.ReLU()
        )

    assert [getattr(m, "stride", None) for m in shrink.reduce(strided, 1)] == [(1, 1), (2, 2), None, None, None]


def test_blocks_that_are_in_no_list() -> None:
    class Stage(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for i in range(5):
                self.add_module(f"b{i}", nn.Sequential(nn.Linear(2, 2)))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for block in self.children():
                x = block(x)
            return x

    model = shrink.reduce(Stage, 1)
    assert shrink.count(model) == 2 * 6 and model(torch.ones(1, 2)).shape == (1, 2)


class Picky(nn.Module):
    """Takes images of at least 192 pixels, and knows how many blocks it has."""

    def __init__(self, img_size: int = 384) -> None:
        super().__init__()
        if img_size == 224:
            raise ValueError("not this size")
        self.img_size = img_size
        self.blocks = nn.ModuleList(nn.Conv2d(3, 3, 1) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.shape[-1] == self.img_size >= 192
        for i in range(4):
            x = self.blocks[i](x)
        return x


def test_a_size_that_the_model_takes() -> None:
    build = partial(shrink.build_for_images, Picky, (3, 384, 384), fixed="img_size")
    assert build(Limits(), image_size=128)[1][0].shape == (2, 3, 192, 192)
    assert build(Limits(image_size=200), image_size=128).reduced == "384x384 pixels to 200x200"
    # It fails with fewer blocks, so it keeps all.
    built = build(Limits(parameters=20), image_size=384)
    assert built.reduced == "" and shrink.count(built.model) == 48
    with pytest.raises(AssertionError):
        shrink.build_for_images(Picky, (3, 160, 160), Limits(), image_size=128)


def test_a_video_model_on_a_smaller_grid() -> None:
    model, (clips,), _, reduced, _ = zoo.named("torchvision:mvit_v2_s").build()
    assert clips.shape == (2, 3, 16, 128, 128) and reduced == "224x224 pixels to 128x128; clips of 3x16x128x128"
    with torch.no_grad():
        assert model(clips[:1]).shape == (1, 400)


# The command line

FACTORIES = """
import torch
from torch import nn

def net():
    return nn.Linear(3, 4).eval(), (torch.randn(2, 3),), {}

def odd():
    class Odd(nn.Module):
        def forward(self, x):
            return x.softmax(-1)
    return Odd().eval(), (torch.randn(2, 3),), {}
"""


@pytest.mark.usefixtures("inline")
def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_cases.py").write_text(FACTORIES)
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli.main, ["zoo", "my_cases:net", "my_cases:odd", "--csv", "mine.csv"])
    assert result.exit_code == 1 and result.stderr == "", result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith("my_cases:net  identical, error ") and "my_cases:odd  NotBalanceableError: " in lines[1]
    assert lines[2:] == [
        "1 of 2 models pass",
        "1 x NotBalanceableError: aten.softmax.int",
        "    my_cases:odd",
    ]
    assert CliRunner().invoke(cli.main, ["zoo", "my_cases:net", "--csv", "mine.csv"]).exit_code == 0
    page = CliRunner().invoke(cli.main, ["zoo", "--summary", "mine.csv"])
    assert page.exit_code == 0 and "1 of 2 models convert" in page.stdout and "| my_cases:odd |" in page.stdout


def test_help_has_an_example() -> None:
    assert "\n    fxgrad zoo --suite timm-families" in CliRunner().invoke(cli.main, ["zoo", "--help"]).stdout


def test_the_command_refuses(tmp_path: Path) -> None:
    for arguments, message in [
        ([], "which models? Name some, as in timm:resnet18, or give --suite: timm-families, "),
        (["timm:nothing-like-it"], "timm has no model 'nothing-like-it'. Close to it: "),
        (["--summary", str(tmp_path / "absent.csv")], "absent.csv does not exist."),
    ]:
        result = CliRunner().invoke(cli.main, ["zoo", *arguments])
        assert result.exit_code == 2 and message in result.stderr and result.stderr.startswith("error: ")


def test_the_script(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["zoo.py", "--suite", "torchvision", "--list"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(ROOT / "bench" / "tables" / "zoo.py"), run_name="__main__")
    assert stopped.value.code == 0 and "torchvision:alexnet\n" in capsys.readouterr().out


def test_workers_end_with_their_parent(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(
        "import pathlib, time\n\ndef case():\n    pathlib.Path('started').touch()\n    time.sleep(100)\n"
    )
    command = [sys.executable, str(ROOT / "bench" / "tables" / "zoo.py"), "slow:case", "--csv", "t.csv"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
    while not (tmp_path / "started").exists():
        time.sleep(0.1)
        assert process.poll() is None
    children = psutil.Process(process.pid).children()
    process.kill()
    process.wait(timeout=30)
    assert process.returncode != 0 and not psutil.wait_procs(children, timeout=30)[1]


def test_models_by_source_and_with_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "triples.py").write_text(
        "import torch\n\ndef line(width=3):\n    return torch.nn.Linear(width, 2), (torch.randn(2, width),), {}\n"
    )
    monkeypatch.chdir(tmp_path)
    for spec, shape in (
        ("timm:test_vit?img_size=64", (2, 3, 64, 64)),
        ("hf:vit?hidden_size=24&num_hidden_layers=1&num_attention_heads=2&image_size=32", (2, 3, 32, 32)),
        ("triples:line?width=5", (2, 5)),
    ):
        case = suites.named(spec)
        built = case.build()
        assert (case.name, built.args[0].shape) == (spec, shape)
        built.model(*built.args)
