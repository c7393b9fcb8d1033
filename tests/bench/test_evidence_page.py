"""The page of the evidence: every number of it is computed again from the values of every picture."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from bench.evidence import page, trainings
from fxgrad.errors import InputError
from fxgrad.evaluate import Results, Store
from fxgrad.evaluate.values import read_values
from fxgrad.metrics import Interval


def of(model: str, cells: dict[tuple[str, str], dict[str, list[float]]]) -> Results:
    values = {
        (model, policy, method): {metric: dict(zip("abcd", column)) for metric, column in metrics.items()}
        for (policy, method), metrics in cells.items()
    }
    return Results(values, {}, {"settings": {}}, frozenset(), {image: f"scan {image}" for image in "abcd"})


@pytest.fixture
def small() -> page.Evidence:
    better = {"gradient": [0.0, 0.1, 0.0, 0.1], "libragrad": [0.9, 1.0, 0.9, 0.8], "attnlrp": [1.0, 1.1, 1.0, 0.9]}
    trained = of("vit-0", {(p, "attcat"): {"srg_aopc": column} for p, column in better.items()})
    trained.values["vit-0", "any", "sobel"] = {"srg_aopc": {"a": 0.25}}  # type: ignore[index]
    shapley = of("vit-0", {("libragrad", "fullgrad"): {"shapley": [0.5, 0.75, 0.5, 0.75]}})
    shortcut = of("vit", {("gradient", "genatt"): {"pointing_game": [1.0, 0.0, 1.0, 0.0]}})
    sanity = of("vit-0", {("libragrad", "attcat"): {"all": [0.125, 0.125, 0.125, 0.125]}})
    labels = of("vit-0", {("libragrad", "attcat"): {"labels": [0.25, 0.25, 0.25, 0.25]}})
    facts = {"right": 1.0, "follows": 0.5, "kept": 0.25, "unmarked": 0.5}
    with np.load(page.MEASURED.parent / "real.npz", allow_pickle=False) as table:
        real = dict(table)
    return page.Evidence(
        *(trained, shapley, shortcut, sanity, labels, {"vit-0": {"heldout_both": 0.875}}),
        *({"vit": {"remembered": 0.75}}, {"vit": facts}, real),
    )


def test_every_part_of_the_page_comes_from_the_values(small: page.Evidence) -> None:
    found = page.text(small)
    assert not re.search(r"\{\w+\}", found)
    assert "1 architectures, 1 training of each, 4 held-out canvases of 4 scans." in found
    assert re.search(r"\| vit \| AttCAT \| 0\.05 → 0\.90 \[\+0\.\d\d, \+[01]\.\d\d\]", found)
    assert "| Tells classes apart | own digit over the other | not shown | 0 / 0 / 0 |" in found
    assert "| Gradient-based methods get better, on every architecture | the registered ones | " in found
    assert "| attnlrp | 0 / 0 / 1 | 0 / 0 / 0 | 0 / 0 / 0 |" in found
    assert "| sobel | 0.25 [0.25, 0.25] |" in found
    assert re.search(r"\| fullgrad \|\s+\| 0\.62 \[0\.5\d?, 0\.\d\d\] \|", found)
    assert re.search(r"\| genatt \| 0\.50 \[0\.\d\d, \d\.\d\d\] \|", found)
    assert re.search(r"\| mosaics of photographs, Focus \| \d+ / \d+ / \d+ \|", found)
    assert "| everything shuffled | attcat |  | 0.12 [0.12, 0.12] |" in found
    assert "| trained on random labels | attcat |  | 0.25 [0.25, 0.25] |" in found and "(vit 75% of them)" in found
    assert "| vit | 100.0% | 50.0% | 25.0% | 50.0% |" in found and "| vit | 1 | 87.5% | 87.5% | 87.5% |" in found


@pytest.mark.parametrize(
    ("signs", "said"), [([1, 1], "holds"), ([1, 0], "partly"), ([1, -1], "not shown"), ([0], "not shown")]
)
def test_a_claim_holds_only_where_every_test_is_won(signs: list[int], said: str) -> None:
    cells = [trainings.Comparison((0.0,), (0.0,), Interval(s, s - 0.1, s + 0.1, 9, 0.001)) for s in signs]
    assert page.verdict("it", "them", page.counted(cells))[:3] == ["it", "them", said]


def test_values_are_taken_from_stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: page.Evidence) -> None:
    shutil.copy(page.MEASURED.parent / "real.npz", tmp_path)
    monkeypatch.setattr(page, "MEASURED", tmp_path / "measured")
    monkeypatch.setattr(page, "PAGE", tmp_path / "evidence.md")
    for part, folder in (
        ("trainings", "trainings/vit-0"),
        ("shapley", "shapley"),
        ("shortcut", "shortcut/vit"),
        ("sanity", "sanity"),
        ("labels", "labels"),
    ):
        store = Store(tmp_path / folder)
        store.note("settings", {})
        for (_, policy, method), metrics in getattr(small, part).values.items():
            for metric, column in metrics.items():
                store.add("vit-0", policy, {method: {metric: list(column.values())}}, list(column), 0, len(column))
        store.close()
    (tmp_path / "trainings" / "trainings.json").write_text('{"vit-0": {"heldout_both": 0.875}}')
    (tmp_path / "labels" / "labels.json").write_text('{"vit": {"remembered": 0.75}}')
    (tmp_path / "shortcut" / "shortcut.json").write_text(
        '{"vit": {"right": 1, "follows": 0.5, "kept": 0.25, "unmarked": 0.5}}'
    )
    done = CliRunner().invoke(page.main, [f"{part}={tmp_path / part}" for part in page.PARTS])
    assert done.exit_code == 0, done.output
    written = (tmp_path / "evidence.md").read_text()
    assert "0.05 → 0.90" in written and written == page.text(page.load(tmp_path / "measured"))


def test_more_trainings_are_added(tmp_path: Path) -> None:
    def stored(folder: str, model: str, value: float, **settings: object) -> None:
        store = Store(tmp_path / folder)
        store.note("settings", {"checkpoint": folder, **settings})
        store.add(model, "libragrad", {"attcat": {"iou": [value, value]}}, ["a", "b"], 0, 2, ["scan", "scan"])
        store.close()

    (tmp_path / "measured").mkdir()
    for folder, model, value in (("one", "vit-0", 0.25), ("two", "vit-1", 0.5), ("three", "vit-0", 0.75)):
        stored(folder, model, value)
        (tmp_path / folder / "sanity.json").write_text(f'{{"{model}": {value}}}')
        page.add("sanity", tmp_path / folder, tmp_path / "measured")
    (found,) = read_values(tmp_path / "measured" / "sanity.npz")
    assert {key[0]: dict(metrics["iou"]) for key, metrics in found.values.items()} == {
        "vit-1": {"a": 0.5, "b": 0.5}, "vit-0": {"a": 0.75, "b": 0.75},
    }  # fmt: skip
    assert found.groups == {"a": "scan", "b": "scan"}
    assert json.loads((tmp_path / "measured" / "sanity.json").read_text()) == {"vit-0": 0.75, "vit-1": 0.5}
    stored("four", "vit-2", 1.0, count=20)
    with pytest.raises(InputError, match=r"count was None, and is 20 now: values of different settings do not go"):
        page.add("sanity", tmp_path / "four", tmp_path / "measured")


def test_the_page_is_what_was_measured() -> None:
    assert page.PAGE.read_text("utf-8") == page.text(page.load(page.MEASURED)), "run `python -m bench.evidence.page`"
