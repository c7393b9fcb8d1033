"""Baselines: against SciPy's filters and plain loops; measured whatever methods are asked for."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
import torch
from PIL import Image

from fxgrad.data import Batch, Sample, collate, mask_of, open_data
from fxgrad.data.models import load_model
from fxgrad.evaluate import evaluate
from fxgrad.evaluate.baselines import ALWAYS, BASELINES, Drawn, drawn
from fxgrad.evaluate.page import pages
from tests.helpers import evaluated

DIGITS, PREPROCESS = open_data("digits"), load_model("fxgrad.demo:digits_vit").preprocess
PICTURES = collate([DIGITS[i] for i in range(4)], PREPROCESS)
BRIGHT = np.stack([np.asarray(DIGITS[i].image, np.float32) / 255 for i in range(4)])


def made(name: str, pictures: Batch = PICTURES) -> Drawn:
    return drawn(name, pictures, PREPROCESS, (8, 8))


def test_pictures_are_filtered_as_scipy_does() -> None:
    ones = np.ones_like(BRIGHT)
    mean = [scipy.ndimage.uniform_filter(b, (0, 7, 7), mode="constant") for b in (BRIGHT, ones)]
    edges = np.stack([np.hypot(*(scipy.ndimage.sobel(one, axis, mode="nearest") for axis in (0, 1))) for one in BRIGHT])
    for name, wanted in (("brightness", BRIGHT), ("local_mean", mean[0] / mean[1]), ("sobel", edges)):
        found = made(name)
        np.testing.assert_allclose(found.pixels.numpy(), wanted, atol=2e-6)
        np.testing.assert_allclose(found.patches.numpy(), wanted.reshape(4, 8, 6, 8, 6).sum((2, 4)), atol=1e-4)
        assert found.known.all()


def test_the_centre_is_the_middle() -> None:
    one = made("centre").pixels[0]
    far = [[math.hypot(y - 23.5, x - 23.5) for x in range(48)] for y in range(48)]
    torch.testing.assert_close(one, 1 - torch.tensor(far) / math.hypot(23.5, 23.5))


def test_oracles_are_the_share_of_each_patch_that_the_masks_cover() -> None:
    own, other = (masks.numpy().reshape(4, 8, 6, 8, 6).mean((2, 4)) for masks in (PICTURES.masks, PICTURES.others))
    np.testing.assert_allclose(made("oracle").patches.numpy(), own, atol=1e-6)
    np.testing.assert_allclose(made("oracle_minus_other").patches.numpy(), own - other, atol=1e-6)
    assert made("oracle").pixels.shape == (4, 48, 48)


def test_there_is_no_oracle_of_a_picture_without_a_mask() -> None:
    picture = Image.new("L", (48, 48))
    whole = mask_of(np.ones((48, 48), np.bool_))
    masks = [(None, None), (whole, None), (None, whole), (whole, whole)]
    pictures = collate([Sample(picture, 0, own, str(i), other) for i, (own, other) in enumerate(masks)], PREPROCESS)
    assert made("oracle", pictures).known.tolist() == [False, True, False, True]
    assert made("oracle_minus_other", pictures).known.tolist() == [False, False, False, True]


def test_baselines_are_measured_whatever_is_asked_for(tmp_path: Path) -> None:
    plan = replace(evaluated.plan(count=2), methods=("saliency", "brightness"), policies=("gradient",))
    results = evaluate(plan, str(tmp_path))
    assert {m for _, policy, m, *_ in results.done if policy == "any"} == {"random", *BASELINES} == set(ALWAYS)
    srg = {m: column["srg_aopc"].values() for (*_, m), column in results.values.items()}
    # The squares have a mask each, but there is no second object.
    assert all(math.isfinite(v) for v in srg["oracle"]) and "oracle_minus_other" not in srg
    text = pages([results])["results.md"]
    assert all(f"| {name} |  | 0." in text or f"| {name} |  | -0." in text for name in ("random", "oracle", "centre"))


def test_the_digits_know_their_other_digit_and_their_scan() -> None:
    for i in range(4):
        sample = DIGITS[i]
        assert sample.mask is not None and sample.other is not None
        both = np.asarray(sample.mask, bool) & np.asarray(sample.other, bool)
        assert not both.any() and sample.other.getextrema() == (0, 255)
    assert PICTURES.groups == tuple(DIGITS[i].group for i in range(4)) and PICTURES.groups[0].startswith("scan ")
    assert not (PICTURES.masks & PICTURES.others).any() and PICTURES.others.flatten(1).any(1).all()
    alone = collate([Sample(DIGITS[0].image, 0, None, "a")], PREPROCESS)
    assert alone.groups == ("a",) and not alone.others.any()


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_are_finite_and_named(name: str) -> None:
    found = made(name)
    assert found.pixels.shape == (4, 48, 48) and found.patches.shape == (4, 8, 8)
    assert found.pixels.isfinite().all() and BASELINES[name].__doc__
