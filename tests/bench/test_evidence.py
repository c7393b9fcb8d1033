"""The evidence's truths: what is known in closed form, and a planted shortcut."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_model, save_file

import fxgrad
from bench.evidence import analytic, labels, sanity, shapley, shortcut, trainings
from fxgrad.demo.canvases import canvas
from fxgrad.demo.independent import INDEPENDENT
from fxgrad.evaluate import Results, read
from fxgrad.metrics import Game, Replacing, coalitions


def test_shares_of_a_block_and_shapley_values_of_a_sum_are_exact_under_libragrad() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = analytic.errors(examples=5)
    assert max(found["libragrad"].values()) < 1e-12
    assert min(found["gradient"].values()) > 0.1
    # Without the attention's rule the block's shares are others, the sum has none.
    assert found["attnlrp"]["block"] > 1e-3 and found["attnlrp"]["sum"] < 1e-12


def test_the_sums_shapley_values_are_its_summands() -> None:
    """By every coalition, with a token that is left out at 0; no rule is used."""
    torch.manual_seed(0)
    model = analytic.Summed().double().eval()
    x = torch.randn(2, 1, analytic.TOKENS, analytic.WIDTH, dtype=torch.float64)
    removal = Replacing(lambda pictures: model(pictures[:, 0]), (analytic.TOKENS, 1))
    found = coalitions(removal, x, torch.tensor([0, 2]))
    each = model.each(x[:, 0]).detach()
    torch.testing.assert_close(found.shapley(), torch.stack([each[0, :, 0], each[1, :, 2]]), rtol=0, atol=1e-12)
    torch.testing.assert_close(found.banzhaf(), found.shapley(), rtol=0, atol=1e-12)


def test_a_policy_that_keeps_softmax_is_not_told_to_report_it() -> None:
    torch.manual_seed(0)
    block, x = analytic.Block().double().eval(), torch.randn(2, 9, 8, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = fxgrad.attribute(
            fxgrad.convert(block, (x,), rules="attnlrp"), (x,), target=1, method="input_x_gradient"
        )
    assert "under attnlrp, these ops keep their own gradient" in found.note
    assert "scaled_dot_product_attention" in found.note


def test_the_shortcut_is_in_a_corner_and_says_nothing_of_the_digits() -> None:
    found = [shortcut.marked(i) for i in range(300)]
    patches = {tuple(image[0][mask]) for image, _, mask in found}
    assert len(patches) == 10 and {int((np.array(p) > 0.5).sum()) for p in patches} == {16}
    corners = {tuple(np.argwhere(mask)[0]) for *_, mask in found}
    assert corners == {(0, 0), (0, 42), (42, 0), (42, 42)}
    sample = shortcut.Marked()[7]
    image, label, mask = shortcut.marked(7)
    assert sample.label == label and (np.asarray(sample.mask) > 127).sum() == mask.sum()
    assert np.abs(np.asarray(sample.image) / 255 - image[0]).max() < 0.5 / 255 + 1e-6


def test_interventions_tell_a_reader_of_the_patch_from_a_reader_of_its_surroundings() -> None:
    patterns = torch.stack([torch.from_numpy(shortcut.pattern(i)) for i in range(10)]) * 2 - 1

    class Reader(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            corners = [x[:, 0, y : y + 6, z : z + 6] for y in (0, 42) for z in (0, 42)]
            off = [(corner[:, None] - patterns).abs().mean((2, 3)) for corner in corners]
            return 0.1 - torch.stack(off).amin(0)

    class Blind(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, 0, 20:30, 20].cumsum(1)

    assert shortcut.intervene(Reader(), 60) == {"right": 1, "follows": 1, "kept": 1, "unmarked": 0}
    blind = shortcut.intervene(Blind(), 60)
    assert max(blind["right"], blind["follows"], blind["kept"]) < 0.5


def test_a_shortcut_is_trained_and_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shortcut, "MEASURED", 2)
    monkeypatch.setattr(shortcut, "HELDOUT", 10)
    monkeypatch.setattr(shortcut, "METHODS", ["input_x_gradient", "gradient"])
    args = [str(tmp_path), "--name", "mixer", "--steps", "2"]
    done = CliRunner().invoke(shortcut.main, args)
    assert done.exit_code == 0, done.output
    facts = json.loads((tmp_path / "shortcut.json").read_text())["mixer"]
    assert facts["steps"] == 2 and all(0 <= facts[key] <= 1 for key in ("right", "follows", "kept", "unmarked"))
    found = read(tmp_path / "mixer").values["fxgrad.demo.independent:mixer", "libragrad", "input_x_gradient"]
    assert len(found["pointing_game"]) == 2
    assert CliRunner().invoke(shortcut.main, args).output == ""


def made_up(differences: dict[str, float], canvases: int = 1) -> Results:
    """Architectures with three trainings each: libragrad is better by what is given, plus noise; canvases of a scan."""
    random = np.random.default_rng(0)
    values = {}
    for name, better in differences.items():
        for training in range(3):
            base = random.normal(size=60)
            for policy, gain in (("gradient", 0.0), ("libragrad", better), ("attnlrp", 0.0)):
                of = base + gain + random.normal(scale=0.3, size=60)
                column = {f"heldout/{i}": float(value) for i, value in enumerate(of)}
                values[f"{name}-{training}", policy, "attcat"] = {"srg_aopc": column}
    return Results(values, {}, {}, frozenset(), {f"heldout/{i}": f"scan {i // canvases}" for i in range(60)})


def test_the_registered_list_is_corrected_for_its_length() -> None:
    results = made_up({"better": 0.5, "alike": 0.0})
    found = trainings.compare(results)
    better, alike = found["better", "attcat", "srg_aopc"], found["alike", "attcat", "srg_aopc"]
    assert better.outcome == 1 and alike.outcome == 0 and len(better.ours) == 3
    assert better.difference.mean == pytest.approx(np.mean(better.ours) - np.mean(better.theirs))
    assert better.corrected == pytest.approx(min(1, 2 * better.difference.p))
    assert trainings.records(results, ["attnlrp"])["attnlrp"]["srg_aopc"] == (1, 1, 0)
    # Twenty canvases of one scan are no twenty independent witnesses.
    grouped = trainings.compare(made_up({"better": 0.5, "alike": 0.0}, canvases=20))["better", "attcat", "srg_aopc"]
    assert grouped.difference.mean == better.difference.mean and grouped.difference != better.difference


def test_a_training_is_evaluated_and_gathered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainings, "COUNT", 2)
    weights = tmp_path / "weights"
    weights.mkdir()
    torch.manual_seed(0)
    save_file(INDEPENDENT["mixer"]().state_dict(), weights / "mixer-4.safetensors", {"heldout_both": "0.5"})
    done = CliRunner().invoke(trainings.main, [str(weights), str(tmp_path / "store")])
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "store" / "trainings.json").read_text())["mixer-4"] == {"heldout_both": 0.5}
    found = trainings.gathered(tmp_path / "store")
    assert trainings.trainings(found) == {"mixer": ["mixer-4"]}
    for image, group in found.groups.items():
        number = int(image.rpartition("/")[2])
        assert group == f"scan {canvas(number).scans[number % 2]}"
    compared = trainings.compare(found)
    # A Mixer has no attention, and so no AttCAT.
    assert {method for _, method, _ in compared} == {"input_x_gradient", "fullgrad_plus"}
    assert ("mixer-4", "libragrad", "attcat") in found.refused


def test_correlations_with_a_game() -> None:
    values = torch.zeros(1, 8, dtype=torch.float64)
    for coalition in range(8):
        values[0, coalition] = sum((1.0, 5.0, 2.0)[i] for i in range(3) if coalition >> i & 1)
    players = torch.tensor([0, 0, 1, 2])
    found = shapley.correlations(torch.tensor([[0.5, 0.5, 5.0, 2.0]]), Game(values), players)
    assert {round(found[name][0], 12) for name in shapley.METRICS} == {1}
    ranks = shapley.correlations(torch.tensor([[0.0, 0.0, 99.0, 1.0]]), Game(values), players)
    assert ranks["shapley_rank"][0] == pytest.approx(1) and ranks["shapley"][0] < 1
    assert np.isnan(
        shapley.correlations(torch.ones(1, 4) * torch.tensor([0.5, 0.5, 1, 1]), Game(values), players)["shapley"][0]
    )


def test_players_are_neighbouring_patches() -> None:
    assert shapley.owners((8, 8)).bincount().tolist() == [4] * 16
    assert shapley.owners((8, 8)).view(8, 8)[:2, :2].unique().tolist() == [0]


def test_a_model_that_learned_random_labels_is_compared_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labels, "CANVASES", 4)
    weights = tmp_path / "vit-0.safetensors"
    save_file(INDEPENDENT["vit"]().state_dict(), weights)
    args = [str(tmp_path / "store"), f"vit={weights}", "--count", "2", "--steps", "12"]
    done = CliRunner().invoke(labels.main, args)
    assert done.exit_code == 0, done.output
    assert set(read(tmp_path / "store").values["vit-0", "libragrad", "attcat"]) == {"labels"}
    facts = json.loads((tmp_path / "store" / "labels.json").read_text())["vit"]
    other = INDEPENDENT["vit"]()
    load_model(other, tmp_path / "store" / "vit.safetensors")
    assert facts["remembered"] == labels.remembered(other.eval(), labels.relabelled(4))
    assert CliRunner().invoke(labels.main, args).output == ""


def test_random_labels_are_two_classes_of_which_none_is_likelier() -> None:
    found = labels.relabelled(400).labels
    assert (found[:, 0] != found[:, 1]).all() and found.flatten().bincount(minlength=10).min() > 55


def test_sanity_checks_are_measured_once(tmp_path: Path) -> None:
    args = [str(tmp_path), "fxgrad.demo.models:vit_tiny", "--count", "2"]
    done = CliRunner().invoke(sanity.main, args)
    assert done.exit_code == 0, done.output
    found = read(tmp_path).values
    # Raw attention does not see the head, so shuffling it changes nothing.
    assert min(found["vit_tiny", "any", "raw_attention"]["head"].values()) == pytest.approx(1)
    assert max(found["vit_tiny", "libragrad", "input_x_gradient"]["all"].values()) < 0.9
    assert CliRunner().invoke(sanity.main, args).output == ""


def test_games_are_played_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapley, "SIDE", 2)
    monkeypatch.setattr(shapley, "METHODS", ["input_x_gradient", "random"])
    args = [str(tmp_path), "fxgrad.demo.models:vit_tiny", "--count", "2"]
    done = CliRunner().invoke(shapley.main, args)
    assert done.exit_code == 0, done.output
    found = read(tmp_path)
    assert set(found.values["vit_tiny", "libragrad", "input_x_gradient"]) == set(shapley.METRICS)
    assert all(-1 <= v <= 1 for v in found.values["vit_tiny", "any", "random"]["shapley"].values())
    games = sorted((tmp_path / "games").iterdir())
    assert [game.name for game in games] == ["vit_tiny-digits-0.npy", "vit_tiny-digits-1.npy"]
    assert np.load(games[0]).shape == (16,)
    shown = canvas(0)
    assert found.groups["heldout/0"] == f"scan {shown.scans[0]}"
