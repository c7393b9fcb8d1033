"""The file of values: what is written is read, plainly, and gives the same page; groups; degenerate maps."""

from __future__ import annotations

import math
import sqlite3
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from fxgrad import metrics
from fxgrad.commands.cli import main
from fxgrad.errors import InputError
from fxgrad.evaluate import Results, Store, evaluate, read
from fxgrad.evaluate.baselines import ALWAYS
from fxgrad.evaluate.compare import compare, degenerate, differences, labelled
from fxgrad.evaluate.page import pages
from fxgrad.evaluate.values import read_values, write_values
from tests.helpers import evaluated

MODEL = evaluated.MODEL


def made(seed: int, model: str = "m") -> Results:
    rng = np.random.default_rng(seed)
    keys = [
        (model, policy, method) for policy in ("gradient", "libragrad", "cp-lrp") for method in ("saliency", "attcat")
    ]
    values = {
        key: {m: {f"{i}": float(v) for i, v in enumerate(rng.normal(size=30))} for m in ("srg_aopc", "iou")}
        for key in keys
    }
    values[model, "cp-lrp", "attcat"] = dict(values[model, "libragrad", "attcat"])
    values[model, "libragrad", "saliency"]["iou"]["3"] = math.nan
    groups = {f"{i}": f"scan {i // 3}" for i in range(30)}
    facts = {"settings": {"data": f"set {seed}"}, f"removal of {model}": "dropped"}
    return Results(values, {(model, "any", "rollout"): "it has no attention"}, facts, frozenset(), groups)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    runs = [made(0), made(1, "n")]
    write_values(runs, tmp_path / "a.npz")
    write_values(runs, tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    for run, found in zip(runs, read_values(tmp_path / "a.npz")):
        assert (found.refused, found.facts, found.groups) == (run.refused, run.facts, run.groups)
        assert found.values.keys() == run.values.keys()
        for key, columns in run.values.items():
            for metric, column in columns.items():
                again = found.values[key][metric]
                assert list(again) == sorted(column) and len(again) == 30
                assert dict(again) == pytest.approx(column, rel=2**-15, nan_ok=True)


def test_numpy_alone_reads_it(tmp_path: Path) -> None:
    """A mean of the page, without fxgrad."""
    run = made(0)
    write_values([run], tmp_path / "values.npz")
    with np.load(tmp_path / "values.npz", allow_pickle=False) as found:
        keys = [tuple(key) for key in found["0/keys"]]
        row = found["0/values"][found["0/rows"][keys.index(("m", "gradient", "attcat", "iou"))]]
        # Two columns of the same numbers have one row.
        assert len(found["0/values"]) == len(keys) - 2 and row.dtype == np.float32
    assert float(row.mean()) == pytest.approx(compare(run, "m", "iou")["gradient", "attcat"].value.mean, abs=1e-5)


def test_every_interval_of_the_page_comes_from_it(tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    plan = replace(evaluated.plan(count=4), methods=("saliency", "hirescam"))
    evaluate(plan, store)
    command = ["evaluate", "--summary", "--store"]
    values, out = tmp_path / "values.npz", tmp_path / "results.md"
    done = CliRunner().invoke(main, [*command, store, "--values", str(values), "--out", str(out)])
    assert done.output == f"wrote {values}\nwrote {out}\n"
    again = CliRunner().invoke(main, [*command, str(values)])
    assert again.output == out.read_text("utf-8") == pages(read_values(values))["results.md"]
    for key, columns in read(store).values.items():
        for metric, column in columns.items():
            known = {image: value for image, value in column.items() if not math.isnan(value)}
            found = {
                image: value for image, value in read_values(values)[0].values[key][metric].items() if image in known
            }
            assert found == pytest.approx(known, rel=2**-15)


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"values.csv: the values go to an .npz file"):
        write_values([], tmp_path / "values.csv")
    (tmp_path / "bad.npz").write_bytes(b"no archive")
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    for name in ("bad.npz", "other.npz", "missing.npz"):
        with pytest.raises(InputError, match=f"{name} is no file of values, as `fxgrad evaluate --values"):
            read_values(tmp_path / name)


def test_groups_are_stored_and_resampled_whole(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.add("m", "gradient", {"saliency": {"iou": [0.0, 0.0, 1.0, 1.0]}}, list("abcd"), 0, 4, ["x", "x", "y", "d"])
    store.close()
    results = read(tmp_path)
    assert results.groups == {"a": "x", "b": "x", "c": "y"}
    values = torch.tensor([[0.0], [0.0], [1.0], [1.0]])
    wanted = metrics.bootstrap(values, groups=["x", "x", "y", "d"])[0]
    assert compare(results, "m", "iou")["gradient", "saliency"].value == wanted != metrics.bootstrap(values)[0]


def test_stores_without_groups_are_read(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.add("m", "gradient", {"saliency": {"iou": [0.5]}}, ["a"], 0, 1)
    store.close()
    with sqlite3.connect(tmp_path / "shard-0.sqlite") as file:
        file.execute("DROP TABLE groups")
    file.close()
    assert read(tmp_path).groups == {} and read(tmp_path).values["m", "gradient", "saliency"]["iou"] == {"a": 0.5}


def test_trainings_of_one_model_are_told_apart() -> None:
    runs = [
        replace(
            made(seed), facts={"settings": {"checkpoint": f"weights/m-{seed}.safetensors"}, "removal of m": "dropped"}
        )
        for seed in range(2)
    ]
    assert {model for model, *_ in labelled(runs[1]).values} == {"m-1"}
    found = pages(runs)
    assert list(found) == ["results.md", "results/m-0.md", "results/m-1.md"]
    assert "30 pictures; tokens dropped." in found["results/m-1.md"]


def test_the_balanced_gradient_is_compared_with_every_policy() -> None:
    results = made(0)
    found = differences(results, "m", "iou")
    assert set(found) == {(p, m) for p in ("gradient", "cp-lrp") for m in ("saliency", "attcat")}
    columns = [torch.tensor(list(results.values["m", p, "attcat"]["iou"].values())) for p in ("libragrad", "gradient")]
    (wanted,) = metrics.paired(*(c[:, None] for c in columns), groups=[f"{i // 3}" for i in range(30)])
    assert found["gradient", "attcat"].mean == pytest.approx(wanted.mean)
    text = pages([results])["results.md"]
    assert "libragrad against each other policy, methods won / tied / lost:" in text
    assert "<summary>srg_aopc: libragrad minus each other policy</summary>" in text


def test_maps_that_are_rounding_noise_are_marked_and_not_ranked() -> None:
    results = made(0)
    for policy, agreement in (("gradient", 0.3), ("libragrad", 1.0)):
        results.values["m", policy, "attcat"]["float64_agreement"] = {"0": agreement, "1": agreement}  # type: ignore[index]
    assert degenerate(results, "m") == {("gradient", "attcat"): 0.3}
    found = compare(results, "m", "iou")
    assert found["gradient", "attcat"].degenerate and str(found["gradient", "attcat"]).endswith("] ⌀")
    assert found["libragrad", "attcat"].outcome is None and not found["libragrad", "attcat"].degenerate
    assert found["libragrad", "saliency"].outcome is not None
    assert ("gradient", "attcat") not in differences(results, "m", "iou")
    text = pages([results])["results.md"]
    assert (
        "Rounding noise, by the rank correlation of the maps with those in float64: attcat under gradient (0.3)."
        in text
    )
    assert "float64_agreement" not in text.replace("`float64_agreement`", "")


class ClassToken(evaluated.Tiny):
    """Reads the first token, so that the others reach the output through the last block's LayerNorm only."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2) + self.position
        x = torch.cat([self.position[:, :1].expand(len(x), -1, -1), x], 1)
        for block in self.blocks:
            x = block(x)
        return self.head(x[:, 0])


def test_hirescam_with_the_plain_gradient_is_rounding_noise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    model = ClassToken()
    for block in model.blocks:
        block.norm.eps = 1e-12  # type: ignore[union-attr, operator]
    monkeypatch.setattr(evaluated, "noisy", lambda: model, raising=False)
    name = f"{evaluated.MODULE}:noisy"
    plan = replace(evaluated.plan(count=4), models=(name,), methods=("hirescam", "fullgrad"), steps=0)
    results = evaluate(plan, str(tmp_path))
    assert list(degenerate(results, name)) == [("gradient", "hirescam")]
    agreement = {key[1:]: list(c["float64_agreement"].values()) for key, c in results.values.items()}
    assert min(v for key, found in agreement.items() if key != ("gradient", "hirescam") for v in found) > 0.99
    assert {method for policy, method in agreement if policy == "any"} == set(ALWAYS) - {"oracle_minus_other"}


class Single(evaluated.Tiny):
    """Computes in float32, whatever it is given."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.double().float())


def test_a_model_without_a_float64_twin_is_said_to_have_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluated, "single", Single, raising=False)
    name = f"{evaluated.MODULE}:single"
    plan = replace(evaluated.plan(count=2), models=(name,), methods=("gradient",), policies=("gradient",), steps=0)
    results = evaluate(plan, str(tmp_path))
    assert all("float64_agreement" not in columns for columns in results.values.values())
    assert "2 pictures; tokens dropped; no maps in float64 to compare with: " in pages([results])["results.md"]
