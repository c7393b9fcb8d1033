"""Runs at scale: the same results after any interruption and with any number of processes; the store; the page."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import fxgrad
from fxgrad import metrics
from fxgrad.commands.cli import main
from fxgrad.data import collate
from fxgrad.data.models import load_model
from fxgrad.errors import InputError
from fxgrad.evaluate import METRICS, POLICIES, Plan, Results, Store, evaluate, read
from fxgrad.evaluate.baselines import ALWAYS
from fxgrad.evaluate.bench import Bench
from fxgrad.evaluate.page import compare, pages
from fxgrad.evaluate.run import _refuse_missing
from tests.helpers import evaluated

ROOT = Path(__file__).parents[2]
MODEL, FLAT = evaluated.MODEL, f"{evaluated.MODULE}:flat"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """One process, undisturbed."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return evaluate(evaluated.plan(), str(tmp_path_factory.mktemp("whole")))
    finally:
        torch.set_num_threads(threads)


def torchrun(folder: Path, *options: str) -> str:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *options]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [*command, "-m", evaluated.MODULE, str(folder / "store")],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_two_processes_give_what_one_gives(whole: Results, tmp_path: Path) -> None:
    torchrun(tmp_path)
    results = read(tmp_path / "store")
    assert (results.values, results.refused, results.done) == (whole.values, whole.refused, whole.done)
    assert {p.name for p in (tmp_path / "store").iterdir()} == {"shard-0.sqlite", "shard-1.sqlite"}


def test_a_killed_worker_loses_nothing(whole: Results, tmp_path: Path) -> None:
    (tmp_path / "kill").mkdir()
    log = torchrun(tmp_path, "--max-restarts", "1")
    assert "exitcode: -9" in log and (tmp_path / "kill" / "done").exists()
    assert read(tmp_path / "store").values == whole.values


def test_an_interrupted_run_goes_on_where_it_was(whole: Results, tmp_path: Path) -> None:
    def stop(done: int, total: int, what: str) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(evaluated.plan(), str(tmp_path), watch=stop)
    assert len(read(tmp_path).done) == len(ALWAYS) + 2 * 3 + len(ALWAYS)
    seen: list[tuple[int, int, str]] = []
    results = evaluate(evaluated.plan(), str(tmp_path), watch=lambda *now: seen.append(now))
    assert seen[0] == (0, 8, f"{MODEL}, gradient") and seen[-1] == (8, 8, "")
    close(results.values, whole.values)
    before = [p.read_bytes() for p in tmp_path.iterdir()]
    evaluate(evaluated.plan(), str(tmp_path), watch=lambda *now: seen.append(now))
    assert seen[-1] == (0, 0, "") and before == [p.read_bytes() for p in tmp_path.iterdir()]


def test_a_run_may_grow(whole: Results, tmp_path: Path) -> None:
    evaluate(replace(evaluated.plan(count=4), methods=("fullgrad",), policies=("libragrad",)), str(tmp_path))
    close(evaluate(evaluated.plan(), str(tmp_path)).values, whole.values)


def close(one: Any, other: Any) -> None:
    """Other threads round otherwise."""
    if isinstance(one, Mapping):
        assert one.keys() == other.keys()
        for key in one:
            close(one[key], other[key])
    else:
        assert one == pytest.approx(other, rel=1e-4, abs=1e-5)


def test_the_numbers_are_those_of_the_metrics_by_hand(whole: Results) -> None:
    """The first chunk again, from the parts."""
    data, plan = evaluated.squares(), evaluated.plan()
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:2].tolist()
    loaded = load_model(MODEL, input_size=(1, 48, 48))
    batch = collate([data[i] for i in order], loaded.preprocess)
    libra = fxgrad.convert(loaded.model, (batch.x,))
    found = fxgrad.attribute(libra, (batch.x,), target=batch.labels, method="input_x_gradient", grid=(4, 4))
    column = whole.values[MODEL, "libragrad", "input_x_gradient"]

    def check(metric: str, values: torch.Tensor) -> None:
        close([column[metric][i] for i in batch.ids], values.tolist())

    check("average_precision", metrics.average_precision(found.pixels, batch.masks))
    curves = [
        metrics.removal_curve(
            metrics.Dropping(libra, (4, 4)), batch.x, found.tokens, batch.labels, most_first=first, multilabel=True
        )
        for first in (True, False)
    ]
    answer = metrics.answer(libra(batch.x).detach(), batch.labels, multilabel=True)
    for metric, values in metrics.faithfulness(answer, *curves).items():
        check(metric, values)
    pixels = metrics.Replacing(libra, (48, 48), "blur")
    scores = found.pixels.flatten(1)
    for metric, values in metrics.deletion_insertion(
        pixels, batch.x, scores, batch.labels, steps=plan.steps, multilabel=True
    ).items():
        check(metric, values)
    own = answer_of(libra, batch.x, batch.labels)
    error = (found.total - own).abs()  # type: ignore[operator]
    assert max(column["completeness"][i] for i in batch.ids) == pytest.approx(float(error.max()), abs=1e-6)


def answer_of(libra: torch.nn.Module, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return libra(x).detach().gather(1, labels[:, None])[:, 0]


def test_every_metric_is_measured_and_balance_is_complete(whole: Results) -> None:
    alone = {"own_over_other"}  # the squares have no second object
    assert set(whole.values[MODEL, "libragrad", "fullgrad"]) == set(METRICS) - alone
    assert "completeness" not in whole.values[MODEL, "any", "random"]
    errors = {
        p: whole.values[MODEL, p, "fullgrad"]["completeness_relative"].values() for p in ("gradient", "libragrad")
    }
    assert max(errors["libragrad"]) < 1e-4 < min(errors["gradient"])
    assert whole.facts[f"removal of {MODEL}"] == "dropped" and not whole.refused


def test_policies_with_the_same_rules_are_measured_once_and_have_one_column(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policies = ("gradient", "libragrad", "cp-lrp")  # no product in the model, where the two would differ
    plan = replace(evaluated.plan(count=4), methods=("saliency",), policies=policies)
    measured: list[str] = []
    original = Bench._measured

    def counted(self: Bench, *args: Any) -> Any:
        measured.append(args[2])
        return original(self, *args)

    monkeypatch.setattr(Bench, "_measured", counted)
    results = evaluate(plan, str(tmp_path))
    assert measured == ["gradient", "gradient", "libragrad"] * 2  # once for the methods of no policy
    assert len(results.done) == 2 * (3 + len(ALWAYS))
    assert results.values[MODEL, "cp-lrp", "saliency"] == results.values[MODEL, "libragrad", "saliency"]
    text = pages([results])["results.md"]
    assert "The same numbers as libragrad, and so no column: cp-lrp." in text
    assert "| method | gradient | libragrad |" in text and "| metric | libragrad |" in text


def test_a_policy_with_other_parameters_is_another_policy(tmp_path: Path) -> None:
    policies = ("gradient", "gamma", "gamma (gamma = 5)")
    results = evaluate(replace(evaluated.plan(count=2), methods=("saliency",), policies=policies), str(tmp_path))
    own = [results.values[MODEL, policy, "saliency"] for policy in policies]
    assert own[1] != own[2] and "gamma (gamma = 5)" in pages([results])["results.md"]


def test_what_a_model_lacks_is_noted_with_the_reason(tmp_path: Path) -> None:
    plan = replace(evaluated.plan(count=2), models=(FLAT,), methods=("rollout", "saliency"), policies=("gradient",))
    evaluated.flat = lambda: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48 * 48, 10))  # type: ignore[attr-defined]
    results = evaluate(plan, str(tmp_path))
    assert [key for key in results.values if key[1] != "any"] == [(FLAT, "gradient", "saliency")]
    ((key, reason),) = ((key, reason) for key, reason in results.refused.items() if key[2] == "rollout")
    assert key == (FLAT, "any", "rollout") and "rollout needs" in reason
    text = pages([results])["results.md"]
    assert f"- rollout (any): {reason}" in text
    assert "tokens replaced by the blurred picture (the model cannot run on fewer tokens: it has no attention)." in text


def test_other_settings_or_weights_do_not_mix(tmp_path: Path) -> None:
    plan = replace(evaluated.plan(count=2), methods=("saliency",), policies=("gradient",))
    evaluate(plan, str(tmp_path))
    with pytest.raises(InputError, match=r"another run: settings was {'seed': 0} and is now {'seed': 1}"):
        evaluate(replace(plan, seed=1), str(tmp_path))
    original, evaluated.model = evaluated.model, lambda: evaluated.Tiny()
    try:
        with pytest.raises(InputError, match=f"weights of {MODEL} was"):
            evaluate(replace(plan, count=4), str(tmp_path))
    finally:
        evaluated.model = original


def test_bfloat16_is_about_the_same(whole: Results, tmp_path: Path) -> None:
    plan = replace(evaluated.plan(count=2), methods=("fullgrad",), policies=("libragrad",), dtype="bfloat16")
    half = evaluate(plan, str(tmp_path)).values[MODEL, "libragrad", "fullgrad"]["insertion"]
    full = whole.values[MODEL, "libragrad", "fullgrad"]["insertion"]
    assert len(half) == 2 and half == pytest.approx({image: full[image] for image in half}, rel=0.05)


def test_files_from_several_machines_are_merged_and_the_first_one_counts(tmp_path: Path) -> None:
    for shard, value in ((0, 0.25), (1, 0.75)):
        store = Store(tmp_path, shard)
        store.add("m", "gradient", {"saliency": {"iou": [value, math.nan]}}, ["a", f"b{shard}"], shard, shard + 1)
        store.close()
    column = read(tmp_path).values["m", "gradient", "saliency"]["iou"]
    assert column["a"] == 0.25 and list(column) == ["a", "b0", "b1"] and math.isnan(column["b1"])
    (tmp_path / "other.sqlite").write_bytes(b"not a database at all, but long enough to look like one" * 20)
    with pytest.raises(InputError, match=r"other.sqlite is not a file of results: .* Move it away"):
        read(tmp_path)
    with pytest.raises(
        InputError, match="there are no results in nowhere: run `fxgrad evaluate MODEL --store nowhere`"
    ):
        read("nowhere")


def test_results_that_lie_on_another_machine_are_missed(whole: Results) -> None:
    half = replace(whole, done=frozenset(unit for unit in whole.done if unit[3] == 0))
    with pytest.raises(InputError, match="9 units of work are not in here, but in those of other machines"):
        _refuse_missing(evaluated.plan(), 8, half, "here")
    _refuse_missing(evaluated.plan(), 8, whole, "here")


def test_the_page_says_who_wins() -> None:
    pictures = [str(i) for i in range(20)]

    def column(shift: float) -> dict[str, dict[str, float]]:
        return {
            "iou": {p: 0.1 * (i % 3) + shift for i, p in enumerate(pictures)},
            "deletion": dict.fromkeys(pictures, shift),
        }

    values = {
        ("m", "gradient", "saliency"): column(0.0),
        ("m", "libragrad", "saliency"): column(0.5),
        ("m", "gradient", "gradcam"): column(0.5),
        ("m", "libragrad", "gradcam"): column(0.5),
        ("m", "any", "random"): column(0.0),
    }
    results = Results(values, {}, {}, frozenset())
    found = compare(results, "m", "iou")
    assert {key: cell.outcome for key, cell in found.items() if key[0] == "libragrad"} == {
        ("libragrad", "saliency"): 1,
        ("libragrad", "gradcam"): 0,
    }
    lines = pages([results])["results.md"].splitlines()
    assert "| iou | 1 / 1 / 0 |" in lines and "| deletion | 0 / 1 / 1 |" in lines  # less is better there
    assert "| method | gradient | libragrad | any |" in lines
    assert "| saliency | 0 [0, 0] | 0.5 [0.5, 0.5] ▼ |  |" in lines


def test_several_models_have_an_overview_and_a_page_each() -> None:
    def run(model: str, better: float) -> Results:
        column = lambda shift: {"average_precision": {str(i): 0.1 * (i % 3) + shift for i in range(20)}}  # noqa: E731
        values = {(model, "gradient", "saliency"): column(0.0), (model, "libragrad", "saliency"): column(better)}
        return Results(
            {**values, (model, "any", "random"): column(0.0)}, {}, {"settings": {"data": model}}, frozenset()
        )

    found = pages([run("nets:one", 0.5), run("nets:two", 0.0)], "all")
    assert list(found) == ["all.md", "all/one.md", "all/two.md"]
    lines = found["all.md"].splitlines()
    assert "| metric | [one](all/one.md) | [two](all/two.md) |" in lines
    assert "| average_precision | 1 / 0 / 0 | 0 / 1 / 0 |" in lines
    assert "| saliency | 0.095 → 0.595 ▲ | 0.095 → 0.095 |" in lines and "| random | 0.095 | 0.095 |" in lines
    assert "data nets:one" in found["all.md"] and "data nets:two" in found["all.md"]
    assert "data nets:two" not in found["all/one.md"] and "## nets:one" in found["all/one.md"]


def test_command_line(tmp_path: Path) -> None:
    store, out = str(tmp_path / "store"), str(tmp_path / "results.md")
    common = [
        "evaluate",
        MODEL,
        "--data",
        evaluated.DATA,
        "--count",
        "2",
        "--chunk",
        "2",
        "--steps",
        "0",
        "--input-size",
        "1",
        "48",
        "48",
    ]
    chosen = [*common, "--method", "smoothgrad", "--option", "smoothgrad.samples=2", "--policy", "gradient"]
    done = CliRunner().invoke(main, [*chosen, "--store", store, "--out", out])
    assert (done.exit_code, done.stdout) == (0, f"wrote {out}\n"), done.output
    printed = CliRunner().invoke(main, ["evaluate", "--summary", "--store", store])
    assert printed.stdout == Path(out).read_text("utf-8")
    assert "2 pictures; tokens dropped." in printed.stdout and "options smoothgrad.samples=2" in printed.stdout
    for wrong, message in (
        (["evaluate"], "there is nothing to evaluate: name at least one model"),
        ([*common, "--option", "smoothgrad.sample=2"], "'smoothgrad.sample=2' is not METHOD.OPTION=VALUE"),
        (["mura" if given == evaluated.DATA else given for given in common], "'mura' should be mura:ROOT"),
        ([*common, "--data", "mura"], "--data is given more than once, and only one can count. Give it once."),
    ):
        failed = CliRunner().invoke(main, [*wrong, "--store", str(tmp_path / "none")])
        assert failed.exit_code == 2 and message in failed.stderr


def test_plans_that_make_no_sense() -> None:
    with pytest.raises(InputError, match="removal is one of auto, drop, zero, blur, hide, mask, pad, not 'cut'"):
        Plan(("m",), ("saliency",), removal="cut")
    with pytest.raises(InputError, match="fractions ascend between 0 and 1"):
        Plan(("m",), ("saliency",), fractions=(0.5, 0.1))
    with pytest.raises(InputError, match="chunk and count are at least 1"):
        Plan(("m",), ("saliency",), count=0)
    assert POLICIES[0] == "gradient"


def test_metrics_and_methods_of_ones_own_are_measured_stored_and_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same share by hand, from the attribution itself; the page knows which way is better without the code."""
    (tmp_path / "mine_too.py").write_text(
        "from fxgrad.methods import METHODS, method\n"
        "from fxgrad.metrics import Metric\n"
        "spread = Metric('spread', 'lower', lambda m: m.maps.flatten(2).std(2))\n"
        "nothing = Metric('nothing', 'higher', lambda m: None)\n"
        "@method(takes_gradient=False)\n"
        "def flipped(problem, seed=0):\n"
        "    return METHODS['random'](problem, seed)\n"
    )
    monkeypatch.chdir(tmp_path)
    inside = metrics.Metric("inside", "higher", lambda m: (m.maps * m.masks).sum((2, 3)) / m.maps.sum((2, 3)))
    methods = ("saliency", "mine_too:flipped")
    plan = replace(evaluated.plan(count=4), methods=methods, metrics=("mine_too:spread", "mine_too:nothing"), steps=0)
    seen: list[int] = []
    results = evaluate(plan, "store", metrics=[inside], watch=lambda done, total, what: seen.append(total))
    again = evaluate(plan, "store", metrics=[inside], watch=lambda done, total, what: seen.append(total))
    assert seen[-1] == 0 and again.values == results.values
    assert {key for key in results.values if key[2] not in ALWAYS} == {
        (MODEL, "gradient", "saliency"),
        (MODEL, "libragrad", "saliency"),
        (MODEL, "any", "mine_too:flipped"),
    }
    column = results.values[MODEL, "libragrad", "saliency"]
    shares = {"completeness", "completeness_relative", "completeness_of_shares"}
    without = {"deletion", "insertion", "own_over_other", *shares}
    assert set(column) == set(METRICS) - without | {"inside", "spread"}
    data, loaded = evaluated.squares(), load_model(MODEL, input_size=(1, 48, 48))
    batch = collate([data[int(i)] for i in column["inside"]], loaded.preprocess)
    libra = fxgrad.convert(loaded.model, (batch.x,))
    maps = fxgrad.attribute(libra, (batch.x,), target=batch.labels, method="saliency").pixels
    close(list(column["inside"].values()), ((maps * batch.masks).sum((1, 2)) / maps.sum((1, 2))).tolist())
    close(list(column["spread"].values()), maps.flatten(1).std(1).tolist())
    text = pages([read("store")])["results.md"]
    assert "spread (lower is better)" in text and "inside (higher is better)" in text
    assert "| inside | " in text and "| spread | " in text and "mine_too:flipped" in text
    outcome = compare(results, MODEL, "spread")["libragrad", "saliency"].outcome
    theirs = results.values[MODEL, "gradient", "saliency"]["spread"]
    less = all(column["spread"][i] < theirs[i] for i in theirs)
    more = all(column["spread"][i] > theirs[i] for i in theirs)
    assert outcome == (1 if less else -1 if more else outcome)
    with pytest.raises(InputError, match="holds results of another run: settings was "):
        evaluate(plan, "store")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere:metric", "a metric of your own is module.path:metric; 'nowhere:metric' is not: ModuleNotFoundError"),
        (
            "fxgrad.metrics:iou",
            r"fxgrad.metrics:iou is a function, and no fxgrad.metrics.Metric\(name, better, function\)",
        ),
        ("iou", "a metric of your own is module.path:metric; 'iou' is not"),
    ],
)
def test_metrics_that_there_are_not(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        evaluate(replace(evaluated.plan(count=2), metrics=(name,)), str(tmp_path))


def test_metrics_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is a metric 'iou' already. Give this one another name"):
        evaluate(evaluated.plan(count=2), str(tmp_path), metrics=[metrics.METRICS["iou"]])
    with pytest.raises(InputError, match="of the metric mine, higher or lower is better, not 'more'"):
        metrics.Metric("mine", "more", lambda m: None)  # type: ignore[arg-type]
    flat = metrics.Metric("flat", "higher", lambda m: m.maps.sum((0, 2, 3)))
    with pytest.raises(
        InputError, match=rf"the metric flat must return .*, \({len(ALWAYS)}, 2\) here, .*; it returned \(2,\)"
    ):
        evaluate(
            replace(evaluated.plan(count=2), methods=("saliency", "gradient", "gradcam", "hirescam")),
            str(tmp_path / "flat"),
            metrics=[flat],
        )
    with pytest.raises(InputError, match=r"a method of your own is module.path:function; 'nowhere:mine' is not"):
        evaluate(replace(evaluated.plan(count=2), methods=("nowhere:mine",)), str(tmp_path))


def test_a_store_s_file_is_never_seen_half_made(tmp_path: Path) -> None:
    """Another process reads the folder over and over, while files are made in it."""
    reader = (
        "import sys\nfrom fxgrad.evaluate import read\nprint('ready', flush=True)\n"
        "while True:\n    if len(read(sys.argv[1], facts_only=True).facts) == 60: break\n"
    )
    command = [sys.executable, "-c", reader, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "ready\n", process.stderr.read()
        for shard in range(60):
            store = Store(tmp_path, shard)
            store.note(f"fact {shard}", shard)
            store.close()
        assert process.wait(60) == 0, process.stderr.read()
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".sqlite"]
