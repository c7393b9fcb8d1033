"""Trainings without the teacher: their canvases, their models, and going on after a stop."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open
from safetensors.torch import load_file

import fxgrad
from bench import gpu_train
from fxgrad.data.models import load_model
from fxgrad.demo import loop, split_scans, train
from fxgrad.demo.independent import INDEPENDENT, gmixer
from fxgrad.demo.models import ARCHITECTURES, MODELS


def test_validation_is_a_part_of_train_that_is_not_fitted() -> None:
    fit, validation = set(split_scans("fit")), set(split_scans("validation"))
    assert not fit & validation and fit | validation == set(split_scans("train"))
    assert not (fit | validation) & set(split_scans("heldout"))


def test_a_stopped_training_goes_on_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_SAVED_EVERY", 2)
    # FlexiViT's loss draws a patch size at each step, so the generator's state counts too.
    whole = train.train("flexivit", 5, seed=1, from_scratch=True).state_dict()
    state = tmp_path / "state"
    with pytest.raises(KeyboardInterrupt), monkeypatch.context() as stopping:

        def stop(self: loop.Training, path: Path, save=loop.Training._save) -> None:  # type: ignore[no-untyped-def]
            save(self, path)
            if self.done == 4:
                raise KeyboardInterrupt

        stopping.setattr(loop.Training, "_save", stop)
        train.train("flexivit", 5, seed=1, from_scratch=True, state=state)
    torch.rand(7)
    resumed = train.train("flexivit", 5, seed=1, from_scratch=True, state=state).state_dict()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    with pytest.raises(ValueError, match=r"state of another training: .*'seed': 1.* and not .*'seed': 2"):
        train.train("flexivit", 5, seed=2, from_scratch=True, state=state)


def test_seeds_share_no_weights() -> None:
    one, other = (train.train("mixer", 1, seed=seed, from_scratch=True) for seed in (0, 1))
    pair = torch.stack([m.blocks[0].mlp_tokens.fc1.weight.flatten() for m in (one, other)])
    assert abs(pair.corrcoef()[0, 1].item()) < 0.05


def test_all_are_the_shipped_architectures_at_half_the_size() -> None:
    for name in ARCHITECTURES:
        half, whole = INDEPENDENT[name](), MODELS[name](weights=False)
        assert type(half) is type(whole)
        assert [n for n, _ in half.named_parameters()] == [n for n, _ in whole.named_parameters()]
        sizes = [sum(p.numel() for p in model.parameters()) for model in (half, whole)]
        assert 0.3 < sizes[0] / sizes[1] < 0.7


def test_gmixer_converts_and_is_complete() -> None:
    assert set(INDEPENDENT) - set(ARCHITECTURES) == {"gmixer"}
    torch.manual_seed(0)
    model, x = gmixer().double(), torch.randn(2, 1, 48, 48, dtype=torch.float64)
    libra = fxgrad.convert(model, (x,))
    assert fxgrad.check(libra, (x,), original=model).passed
    assert "gated_activation" in {d.kind for d in libra.classified.decisions.values()}


def test_the_command_trains_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "HELDOUT_CANVASES", 20)
    monkeypatch.setattr(train, "_THREADS", torch.get_num_threads())
    args = ["gmixer", "--steps", "1", "--seed", "3", "--seed", "4", "--from-scratch", str(tmp_path / "new")]
    done = CliRunner().invoke(train.main, args)
    assert done.exit_code == 0, done.output
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["gmixer-3.safetensors", "gmixer-4.safetensors"]
    with safe_open(tmp_path / "new" / "gmixer-4.safetensors", "pt") as file:
        facts = file.metadata()
    assert facts["name"] == "gmixer" and facts["seed"] == "4" and 0 <= float(facts["validation_both"]) <= 1
    loaded = load_model(
        "fxgrad.demo.independent:gmixer", checkpoint=str(tmp_path / "new" / "gmixer-3.safetensors")
    ).model
    written = load_file(tmp_path / "new" / "gmixer-3.safetensors")
    assert all(torch.equal(tensor.half(), written[key]) for key, tensor in loaded.state_dict().items())
    assert CliRunner().invoke(train.main, args).output == ""
    refused = CliRunner().invoke(train.main, ["vit_tiny", "--from-scratch", str(tmp_path)])
    assert refused.exit_code == 2 and "there is no model vit_tiny: use all, vit, deit3" in refused.output
    several = CliRunner().invoke(train.main, ["vit", "--seed", "1", "--seed", "2"])
    assert several.exit_code == 2 and "several are for --from-scratch" in several.output
    both = CliRunner().invoke(train.main, ["vit", "--from-scratch", str(tmp_path), "--out", str(tmp_path / "w")])
    assert both.exit_code == 2 and "leave out --out and --results" in both.output


def test_many_trainings_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "HELDOUT_CANVASES", 20)
    monkeypatch.setattr(train, "_THREADS", torch.get_num_threads())

    def here(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        """The command in this process, for speed."""
        assert command[:3] == [sys.executable, "-m", "fxgrad.demo.train"]
        done = CliRunner().invoke(train.main, command[3:])
        return subprocess.CompletedProcess(command, done.exit_code, done.output, str(done.exception or ""))

    monkeypatch.setattr(subprocess, "run", here)
    args = [str(tmp_path), "--device", "cpu", "--steps", "1", "--seeds", "1", "--name", "gmixer", "--jobs", "1"]
    done = CliRunner().invoke(gpu_train.main, args)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "gmixer-0.safetensors").exists() and "gmixer-0, " in done.output and "ok: " in done.output
    assert "there already" in CliRunner().invoke(gpu_train.main, args).output
    failed = CliRunner().invoke(gpu_train.main, [*args, "--seeds", "2", "--device", "nowhere"])
    assert failed.exit_code == 1 and "FAILED: " in failed.output and "not every training came" in failed.output
