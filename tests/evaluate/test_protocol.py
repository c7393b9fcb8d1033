"""Protocols: what their parts ask for, what the command line may change, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from click.testing import CliRunner

from fxgrad.commands.cli import main
from fxgrad.data import open_data
from fxgrad.errors import InputError
from fxgrad.evaluate import Plan, read
from fxgrad.evaluate.methods import attributes
from fxgrad.evaluate.protocol import protocol
from fxgrad.evaluate.run import chosen_metrics
from fxgrad.metrics import METRICS
from fxgrad.table.loading import load
from tests.data.test_coco import box, coco
from tests.data.test_data import LEFT, paint, picture
from tests.evaluate.test_settings import PLAN
from tests.helpers import evaluated

LIBRAGRAD = protocol("libragrad")
OWN = """
title = "Mine"
[policies]
"balanced" = "libragrad"
[common]
count = 2
steps = 0
chunk = 2
[parts.squares]
about = "squares"
data = "tests.evaluate.test_settings:squares"
policies = ["libragrad"]
methods = ["input_x_gradient"]
measures = ["average_precision"]
"""


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, ["evaluate", *arguments])
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize("name", LIBRAGRAD.parts)
def test_every_part_is_a_plan_of_methods_policies_and_metrics_that_there_are(name: str) -> None:
    plan = Plan(("timm:test_vit",), **LIBRAGRAD.parts[name].settings)
    attributes(plan.methods, plan.options)
    assert all(load(policy) for policy in plan.policies)
    assert chosen_metrics(METRICS.values(), plan.measures)
    assert name in LIBRAGRAD.described(LIBRAGRAD.parts[name], plan)


@pytest.mark.parametrize("name", LIBRAGRAD.parts)
def test_every_part_s_data_is_a_data_set(name: str, tmp_path: Path) -> None:
    """The data sets are not here; that they are looked for tells that they are known, and take what they are given."""
    spec = LIBRAGRAD.parts[name].settings["data"].replace("ROOT", str(tmp_path))
    if spec.startswith(("hub:", "imagenet-hard:")):  # which would ask the hub
        assert len(spec.split(":")) == (3 if spec.startswith("hub:") else 2)
        return
    with pytest.raises(InputError, match=r"annotations .* cannot be read|there are no pictures in"):
        open_data(spec)


def test_the_paper_s_settings() -> None:
    parts = {name: part.settings for name, part in LIBRAGRAD.parts.items()}
    for name in ("imagenet", "imagenet-hard", "mura", "pet"):
        assert (parts[name]["seed"], parts[name]["count"], parts[name]["shuffle"]) == (43, 1000, "numpy")
        assert parts[name]["fractions"][0] == 0 and len(parts[name]["fractions"]) == 10
    assert (parts["imagenet-s"]["seed"], parts["imagenet-s"]["count"], parts["imagenet-s"]["maps"]) == (
        42,
        5000,
        "cubic",
    )
    assert parts["mura"]["data"].endswith(":train") and parts["pet"]["data"].endswith(":train")
    assert parts["mura"]["num_classes"] == 1 and parts["completeness"]["count"] == 100
    assert LIBRAGRAD.policies["AliLRP"] == "libragrad-without-gated-activation"
    assert LIBRAGRAD.policies["DecompX"] == "libragrad-without-product"


def test_show_says_what_it_runs_and_what_is_given_counts_first() -> None:
    code, said, _ = run(
        "--protocol", "libragrad:imagenet", "timm:test_vit", "--show", "--target", "second", "--count", "7"
    )
    assert code == 0 and said.startswith("LibraGrad's experiments, part imagenet: faithfulness on ImageNet")
    assert "pictures: hub:mrm8488/ImageNet1K-val:train, the first 7, shuffle numpy, seed 43, mode RGB" in said
    assert "attributed: the probability of the second" in said
    assert "libragrad-without-gated-activation (AliLRP, without activation)" in said
    code, said, _ = run("--protocol", "libragrad:mura", "timm:test_vit", "--show", "--all-pictures")
    assert "hub:KhalfounMehdi/MURA:train, all, shuffle" in said and "the margin of the label" in said


def test_a_protocol_of_ones_own_runs(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(OWN)
    arguments = ["--protocol", f"{tmp_path / 'mine.toml'}:squares", PLAN.models[0], "--store", str(tmp_path / "store")]
    code, page, said = run(*arguments, "--input-size", "1", "48", "48")
    assert code == 0, said
    assert "Mine, part squares: squares." in said and "policies: libragrad (balanced)" in said
    assert "average_precision" in page and "srg_aopc (" not in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--protocol", "libragrad"],
            "choose a part of the protocol libragrad: imagenet, imagenet-logit, .* --show says",
        ),
        (["--protocol", "libragrad:cifar"], "there is no part 'cifar' of the protocol libragrad: imagenet, "),
        (["--protocol", "other:imagenet"], "there is no protocol 'other'. There is libragrad; or give a .toml file"),
        (["--protocol", "no.toml:a"], "the protocol no.toml cannot be read: FileNotFoundError"),
        (["--protocol", "libragrad:coco"], "say where the data is: --data coco:ROOT, with its folder for ROOT"),
        (["--show"], "--show says what --protocol NAME:PART runs: libragrad"),
        (["--measure", "sgr_*"], r"no metric is called 'sgr_\*'. There are srg_aopc, "),
    ],
)
def test_what_is_refused(arguments: list[str], message: str, tmp_path: Path) -> None:
    code, _, said = run("timm:test_vit", *arguments, "--store", str(tmp_path / "store"))
    assert code == 2
    with pytest.raises(InputError, match=message):
        raise InputError(said)


def test_settings_that_a_plan_has_not(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(OWN.replace("steps = 0", "stepps = 0"))
    with pytest.raises(
        InputError, match=r"mine.toml \[parts.squares\]: a plan has no setting 'stepps'. It has checkpoint,"
    ):
        protocol(str(tmp_path / "mine.toml"))
    (tmp_path / "mine.toml").write_text("title = ")
    with pytest.raises(InputError, match=r"mine.toml cannot be read: TOMLDecodeError"):
        protocol(str(tmp_path / "mine.toml"))


def wide() -> torch.nn.Module:
    """The small model with ImageNet's classes."""
    model = evaluated.model()
    model.head = torch.nn.Linear(8, 1000)
    return model


WIDE = ["tests.evaluate.test_protocol:wide", "--input-size", "1", "48", "48"]


def layout(name: str, root: Path) -> tuple[str, list[str], list[str]]:
    """A tiny data set in the published layout: its spec, a model with its options, and ids of the samples."""
    if name == "mura":
        studies = ("XR_HAND/patient00001/study1_positive", "XR_HAND/patient00002/study1_negative")
        for study in studies:
            picture(root / "train" / study / "image1.png")
        state = timm.create_model("test_vit", num_classes=1, img_size=32).state_dict()
        torch.save({f"backbone.{key}": value for key, value in state.items()}, root / "w.ckpt")
        ids = [f"train/{study}/image1.png" for study in studies]
        model = ["timm:test_vit", "--input-size", "3", "32", "32", "--checkpoint", str(root / "w.ckpt")]
        return f"mura:{root}:train", model, ids
    if name == "imagenet-s":
        for folder, stem in (("n01440764", "ILSVRC2012_val_00000300"), ("n01443537", "ILSVRC2012_val_00000236")):
            picture(root / "validation" / folder / f"{stem}.JPEG")
            paint(root / "validation-segmentation" / folder / f"{stem}.png", np.where(LEFT[..., None], [1, 0, 0], 0))
        return f"imagenet-s:{root}:names", WIDE, ["validation/n01440764/ILSVRC2012_val_00000300.JPEG"]
    coco(root, {22: [box(0, 0, 19, 19)], 24: [box(20, 0, 39, 19)]})
    return f"coco:{root}", WIDE, ["000000000001/elephant", "000000000001/zebra"]


@pytest.mark.parametrize(
    ("name", "measured"),
    [("mura", "srg_aopc"), ("imagenet-s", "average_precision"), ("coco", "own_over_other")],
)
def test_a_part_runs_on_a_data_set_in_its_published_layout(name: str, measured: str, tmp_path: Path) -> None:
    spec, model, ids = layout(name, tmp_path)
    small = ["--policy", "libragrad", "--method", "input_x_gradient", "--chunk", "2", "--count", "2"]
    store = ["--store", str(tmp_path / "store")]
    code, _, said = run("--protocol", f"libragrad:{name}", *model, "--data", spec, *small, *store)
    assert code == 0, said
    column = read(tmp_path / "store").values[model[0], "libragrad", "input_x_gradient"][measured]
    assert sorted(i for i, value in column.items() if not math.isnan(value)) == sorted(ids)
