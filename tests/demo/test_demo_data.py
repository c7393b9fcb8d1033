"""The demo's canvases and the model that reads them."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import timm.data
import torch
from click.testing import CliRunner
from safetensors import safe_open
from safetensors.torch import load_file
from sklearn.datasets import load_digits

from fxgrad.demo import CLASS_NAMES, Canvas, batches, canvas, digits_vit, preprocess, split_scans
from fxgrad.demo import model as model_module
from fxgrad.demo import train as train_module
from fxgrad.demo.canvases import COLOURS, SIZES, _enlarged
from fxgrad.demo.model import checkpoint
from fxgrad.demo.train import RECIPES, SEED, evaluate, main, train
from fxgrad.errors import CaptureError


@pytest.fixture(scope="module")
def canvases() -> list[Canvas]:
    return [canvas(seed) for seed in range(200)]


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_a_canvas_depends_on_its_number_and_split_only(split: str) -> None:
    once, again, other = canvas(5, split), canvas(5, split), canvas(6, split)
    assert np.array_equal(once.image, again.image) and np.array_equal(once.masks, again.masks)
    assert (once.labels, once.scans) == (again.labels, again.scans)
    assert not np.array_equal(once.image, other.image)


def test_splits_number_their_canvases_apart() -> None:
    assert not np.array_equal(canvas(5, "train").image, canvas(5, "heldout").image)


def test_splits_share_no_scan_and_cover_all() -> None:
    train_scans, heldout = split_scans("train"), split_scans("heldout")
    assert not set(train_scans) & set(heldout)
    assert sorted([*train_scans, *heldout]) == list(range(1797))
    # Different indices are different pictures only if no scan occurs twice.
    assert len(np.unique(load_digits().data, axis=0)) == 1797
    assert set(load_digits().target[heldout]) == set(range(10))


def test_shapes_types_and_range(canvases: list[Canvas]) -> None:
    for c in canvases:
        assert c.image.shape == (1, 48, 48) and c.image.dtype == np.float32
        assert c.masks.shape == (2, 48, 48) and c.masks.dtype == np.bool_
        assert c.image.min() >= 0 and c.image.max() <= 1
        assert c.target.shape == (10,) and c.target.dtype == np.float32


def test_two_digits_of_different_classes_from_the_right_split(canvases: list[Canvas]) -> None:
    classes = load_digits().target
    for c in canvases:
        assert c.labels[0] != c.labels[1]
        assert np.flatnonzero(c.target).tolist() == sorted(c.labels)
        assert tuple(classes[list(c.scans)]) == c.labels
        assert set(c.scans) <= set(split_scans("heldout"))
    assert {label for c in canvases for label in c.labels} == set(range(10))


def test_masks_cover_the_digits_and_do_not_overlap(canvases: list[Canvas]) -> None:
    for c in canvases:
        assert not (c.masks[0] & c.masks[1]).any()
        for mask in c.masks:
            assert mask.sum() >= 30
            assert max(np.ptp(np.nonzero(mask), axis=1)) < SIZES[1]
            assert c.image[0][mask].min() > 0.05 and c.image[0][mask].mean() > 0.5


def test_a_mask_is_its_scans_ink(canvases: list[Canvas]) -> None:
    for c in canvases[:50]:
        for mask, scan in zip(c.masks, c.scans, strict=True):
            glyphs = [_enlarged(size)[scan] > 0.3 for size in range(SIZES[0], SIZES[1] + 1)]
            assert any(np.array_equal(_trimmed(mask), _trimmed(glyph)) for glyph in glyphs)


def _trimmed(mask: np.ndarray) -> np.ndarray:
    rows, columns = np.nonzero(mask)
    return mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]


def test_most_canvases_carry_clutter_as_bright_as_digits(canvases: list[Canvas]) -> None:
    bright = [((c.image[0] > 0.5) & ~c.masks.any(0)).sum() for c in canvases]
    assert np.mean(np.array(bright) > 10) > 0.8


def test_scans_are_scaled_as_torch_scales_them() -> None:
    scans = torch.from_numpy(load_digits().images / 16).float()[:, None]
    for size in (14, 19, 22):
        expected = torch.nn.functional.interpolate(scans, (size, size), mode="bilinear")[:, 0]
        torch.testing.assert_close(torch.from_numpy(_enlarged(size)), expected, rtol=0, atol=1e-5)


def test_colours_change_nothing_but_the_colours(canvases: list[Canvas]) -> None:
    inks = {name: np.array(ink, np.float32)[:, None] for name, ink in COLOURS.items()}
    for number, grey in enumerate(canvases[:30]):
        c = canvas(number, colours=True)
        assert c.image.shape == (3, 48, 48) and c.image.dtype == np.float32
        assert (c.labels, c.scans) == (grey.labels, grey.scans) and np.array_equal(c.masks, grey.masks)
        assert grey.colours == () and set(c.colours) <= set(COLOURS)
        for mask, colour in zip(c.masks, c.colours):
            # Where the digit is bright, strokes aside and noise averaged out, its ink's proportions are to be seen.
            bright = mask & (grey.image[0] > 0.6)
            expected = inks[colour] * grey.image[:, bright].mean()
            assert abs(c.image[:, bright].mean(1, keepdims=True) - expected).max() < 0.05
    assert {name for number in range(30) for name in canvas(number, colours=True).colours} == set(COLOURS)


def test_batches_repeat_for_a_seed_and_never_within_it() -> None:
    first, second = islice(batches(4, seed=3), 2)
    again = next(batches(4, seed=3))
    assert first[0].shape == (4, 1, 48, 48) and first[1].shape == (4, 10)
    assert first[0].dtype == first[1].dtype == np.float32
    assert np.array_equal(first[0], again[0]) and np.array_equal(first[1], again[1])
    assert not np.array_equal(first[0], second[0])
    assert (first[1].sum(axis=1) == 2).all()


def test_arguments_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match="unknown split 'test': use one of 'train', 'heldout'"):
        canvas(0, "test")
    with pytest.raises(ValueError, match="seed must be 0 or more, got -1"):
        canvas(-1)
    with pytest.raises(ValueError, match="size=0"):
        next(batches(0))
    with pytest.raises(ValueError, match=r"got \(2, 48, 48\)"):
        preprocess(np.zeros((2, 48, 48), np.float32))
    with pytest.raises(ValueError, match="steps must be 1 or more"):
        train(steps=0)
    with pytest.raises(ValueError, match="unknown model 'resnet': use one of vit, deit3, "):
        train("resnet")
    with pytest.raises(ValueError, match="count must be 1 or more"):
        evaluate(digits_vit(), count=0)


def test_the_model_reads_scans_it_has_never_seen() -> None:
    score = evaluate(digits_vit(), count=300)
    # Naming no digit at all has an accuracy of 0.8, so the others must hold as well.
    assert score.accuracy > 0.97 and score.recall > 0.92 and score.exact_match > 0.85


def test_timm_finds_the_models_preprocessing() -> None:
    model = digits_vit()
    assert not model.training and vars(model)["default_cfg"]["label_names"] == CLASS_NAMES
    config = timm.data.resolve_model_data_config(model)
    assert config["input_size"] == (1, 48, 48) and config["crop_pct"] == 1.0
    image = canvas(0).image
    expected = (image - config["mean"][0]) / config["std"][0]
    assert np.array_equal(preprocess(image).numpy(), expected[None].astype(np.float32))


def test_weights_are_small_and_say_where_they_come_from() -> None:
    assert checkpoint("vit").stat().st_size <= 1_500_000
    with safe_open(checkpoint("vit"), "pt") as weights:
        facts = weights.metadata()
    assert (int(facts["steps"]), int(facts["seed"])) == (RECIPES["vit"].steps, SEED)
    assert float(facts["accuracy"]) > 0.97
    assert {"recall", "exact_match", "heldout_canvases"} <= set(facts)


def test_missing_weights_name_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_module, "checkpoint", lambda name: Path(f"no/{name}.safetensors"))
    with pytest.raises(CaptureError) as refused:
        digits_vit()
    assert str(refused.value) == (
        "no/vit.safetensors is missing: `python -m fxgrad.demo.train vit` makes it in minutes."
    )
    assert not digits_vit(weights=False).training


def test_training_repeats_and_its_command_writes_what_it_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_module, "HELDOUT_CANVASES", 20)
    monkeypatch.setattr(train_module, "_THREADS", torch.get_num_threads())
    out = tmp_path / "weights.safetensors"
    result = CliRunner().invoke(main, ["--steps", "2", "--seed", "1", "--out", str(out)])
    assert result.exit_code == 0, result.output
    expected, written = train(steps=2, seed=1).state_dict(), load_file(out)
    assert all(torch.equal(expected[name].half(), written[name]) for name in expected)


def test_the_command_checks_where_to_write_first(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["--out", str(tmp_path / "absent" / "w.safetensors")])
    assert result.exit_code == 2 and "there is no directory" in result.output
