"""What the command line names: models, preprocessing, class names, weights; and every way in which that fails."""

from __future__ import annotations

import argparse
import email.message
import sys
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image
from torch import nn

from fxgrad.data import reach
from fxgrad.data.models import load_model, randomize
from fxgrad.errors import CaptureError, InputError

FACTORIES = """
from torch import nn

CLASS_NAMES = ["ant", "bee", "cat"]

def bare():
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 3))

def described():
    model = bare()
    model.default_cfg = dict(input_size=(1, 6, 8), mean=(0.5,), std=(0.25,), crop_pct=1.0, num_classes=3,
                             label_names=("x", "y", "z"), interpolation="bilinear")
    return model

def five():
    model = described()
    model.num_classes = 5
    return model

def not_a_model():
    return "hello"

def broken():
    raise FileNotFoundError("the weights are missing\\nrun make weights")
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with a module of factories in it."""
    (tmp_path / "my_factories.py").write_text(FACTORIES)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("my_factories", None)


def test_timm_model_comes_with_everything() -> None:
    loaded = load_model("timm:test_vit")
    assert not loaded.model.training
    assert (loaded.name, loaded.weights, loaded.patch_size) == ("timm:test_vit", "random", 16)
    assert loaded.preprocess.size == (3, 160, 160)
    assert loaded.class_names is not None and loaded.class_names[985] == "daisy"
    assert loaded.example(4).shape == (4, 3, 160, 160)
    assert torch.equal(loaded.example(1, seed=3, scale=2.0), 2 * loaded.example(1, seed=3))
    assert loaded.model(loaded.preprocess(Image.new("L", (300, 200)))).shape == (1, 1000)


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_input_size_builds_timm_models_for_it(name: str) -> None:
    loaded = load_model(f"timm:{name}", input_size=(1, 96, 64))
    x = loaded.preprocess(Image.new("RGB", (300, 200)))
    assert x.shape == (1, 1, 96, 64)
    assert loaded.model(x).shape == (1, 1000)


def test_preprocessing_normalizes_and_inverts() -> None:
    loaded = load_model("timm:test_vit")
    pixels = np.linspace(0, 255, 160 * 160 * 3, dtype=np.uint8).reshape(160, 160, 3)
    seen = loaded.preprocess.invert(loaded.preprocess(Image.fromarray(pixels)))
    plain = torch.tensor(pixels).permute(2, 0, 1) / 255
    assert seen.min() >= 0 and seen.max() <= 1
    assert (seen - plain).abs().mean() < 0.05  # a resize and a crop of a smooth picture lie between


def test_factory_with_a_config(here: Path) -> None:
    before = list(sys.path)
    loaded = load_model("my_factories:described")
    assert sys.path == before
    assert loaded.class_names == ("x", "y", "z")
    assert loaded.patch_size == 1
    grey = loaded.preprocess(Image.new("RGB", (8, 6), (255, 255, 255)))
    assert torch.equal(grey, torch.full((1, 1, 6, 8), 2.0))


def test_factory_without_a_config(here: Path) -> None:
    loaded = load_model("my_factories:bare", input_size=(3, 4, 4))
    assert loaded.class_names == ("ant", "bee", "cat")
    picture = Image.new("RGB", (4, 4), (255, 0, 51))
    assert torch.allclose(loaded.preprocess(picture)[0, :, 0, 0], torch.tensor([1.0, 0.0, 0.2]))
    with pytest.raises(InputError, match=r"--input-size C H W"):
        load_model("my_factories:bare")


def test_class_names_must_fit_the_number_of_classes(here: Path) -> None:
    assert load_model("my_factories:five").class_names is None


def test_channels_that_no_picture_has(here: Path) -> None:
    loaded = load_model("my_factories:bare", input_size=(2, 4, 6))
    with pytest.raises(InputError, match="2 channels; a picture has 1, 3 or 4"):
        loaded.preprocess(Image.new("RGB", (4, 4)))
    rgba = load_model("my_factories:bare", input_size=(4, 3, 4)).preprocess(Image.new("RGB", (4, 4)))
    assert rgba.shape == (1, 4, 3, 4)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("resnet18", r"open_clip:NAME, or module.path:factory, .* 'resnet18' is none of these\. Try timm:resnet18, or"),
        ("timm:", "'timm:' is none of these.$"),
        ("timm:resnet19", r"timm has no model 'resnet19'\. Close to it: resnet1"),
        ("timm:zzzzqqqq", r"no model 'zzzzqqqq'\. timm\.list_models\(\) has all"),
        ("no.such.module:f", "no.such.module:f cannot be imported .* ModuleNotFoundError: No module named 'no'"),
        ("my_factories:nothing", "has no attribute 'nothing'"),
        ("my_factories:not_a_model", "returned str; it must return a torch.nn.Module"),
        ("my_factories:broken", "FileNotFoundError: the weights are missing$"),
    ],
)
def test_specs_that_name_no_model(here: Path, spec: str, message: str) -> None:
    with pytest.raises(CaptureError, match=message) as raised:
        load_model(spec, input_size=(3, 4, 4))
    assert "\n" not in str(raised.value)


def test_pretrained_is_for_timm(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CaptureError, match="for timm models"):
        load_model("my_factories:described", pretrained=True)
    with pytest.raises(CaptureError, match="without --checkpoint"):
        load_model("timm:test_vit", pretrained=True, checkpoint="w.safetensors")
    monkeypatch.setattr(timm.models, "is_model_pretrained", lambda name: False)
    with pytest.raises(CaptureError, match="no pretrained weights for test_vit"):
        load_model("timm:test_vit", pretrained=True)


@pytest.mark.parametrize("reachable", [False, True])
def test_hub_out_of_reach_is_one_line_that_names_the_way_out(monkeypatch: pytest.MonkeyPatch, reachable: bool) -> None:
    offline = []

    def refuse(*args: Any, **kwargs: Any) -> nn.Module:
        offline.append(huggingface_hub.constants.HF_HUB_OFFLINE)
        raise OSError("no such repository\nmore lines")

    before = huggingface_hub.constants.HF_HUB_OFFLINE
    monkeypatch.setattr(reach, "hub_reachable", lambda: reachable)
    monkeypatch.setattr(timm, "create_model", refuse)
    cause = "no such repository" if reachable else "out of reach"
    with pytest.raises(CaptureError, match=f"{cause}.*leave out --pretrained .*--checkpoint FILE") as raised:
        load_model("timm:test_vit", pretrained=True)
    assert "\n" not in str(raised.value)
    assert offline == [before or not reachable]
    assert before == huggingface_hub.constants.HF_HUB_OFFLINE


def test_one_question_to_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(error: Exception) -> Any:
        def urlopen(request: Any, timeout: float) -> Any:
            assert request.get_method() == "HEAD" and timeout <= 5
            raise error

        return urlopen

    monkeypatch.setattr("urllib.request.urlopen", answer(urllib.error.URLError("no route")))
    assert not reach.hub_reachable()
    forbidden = urllib.error.HTTPError("https://hub", 403, "forbidden", email.message.Message(), None)
    monkeypatch.setattr("urllib.request.urlopen", answer(forbidden))
    assert reach.hub_reachable()


def test_without_timm_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(CaptureError, match=r'pip install "fxgrad\[timm\]"'):
        load_model("timm:test_vit")


def test_a_model_that_timm_cannot_build() -> None:
    with pytest.raises(CaptureError, match="timm:test_vit cannot be built: "):
        load_model("timm:test_vit", input_size=(0, 160, 160))


def test_checkpoint(here: Path) -> None:
    wanted = {"1.weight": torch.rand(3, 48), "1.bias": torch.rand(3)}
    safetensors.torch.save_file(wanted, "w.safetensors")
    loaded = load_model("my_factories:bare", checkpoint="w.safetensors", input_size=(3, 4, 4))
    assert loaded.weights == "w.safetensors"
    assert all(torch.equal(loaded.model.state_dict()[key], value) for key, value in wanted.items())


@pytest.mark.parametrize(
    ("suffix", "packed"), [(".ckpt", lambda state: state), (".pth", lambda state: {"state_dict": state, "epoch": 3})]
)
def test_a_head_of_one_logit_and_a_backbone_s_checkpoint(suffix: str, packed: Any, here: Path) -> None:
    """As vit-shapley has them: keys behind "backbone.", and a head of as many classes as the data has."""
    wanted = timm.create_model("test_vit", num_classes=1).state_dict()
    torch.save(packed({f"backbone.{key}": value for key, value in wanted.items()}), f"w{suffix}")
    loaded = load_model("timm:test_vit", checkpoint=f"w{suffix}", strip_prefix="backbone.", num_classes=1)
    assert all(torch.equal(loaded.model.state_dict()[key], value) for key, value in wanted.items())
    assert loaded.model(loaded.example(3)).shape == (3, 1) and loaded.class_names is None
    for options, message in (
        (
            {"pretrained": True},
            "has a head that no pretrained weights are for. Leave out --pretrained, or give all weights",
        ),
        ({"spec": "my_factories:described"}, r"a factory takes arguments: my_factories:described\?num_classes=1"),
        ({"spec": "timm:test_vit?num_classes=1"}, "has num_classes already. Leave out --num-classes"),
    ):
        with pytest.raises(CaptureError, match=message):
            load_model(**{"spec": "timm:test_vit", "num_classes": 1, **options})


def test_checkpoints_that_do_not_fit(here: Path) -> None:
    def fail(path: str, message: str) -> None:
        with pytest.raises(CaptureError, match=message) as raised:
            load_model("my_factories:bare", checkpoint=path, input_size=(3, 4, 4))
        assert "\n" not in str(raised.value)

    fail("absent.safetensors", "absent.safetensors cannot be read as safetensors: .*No such file")
    torch.save({"1.weight": torch.rand(3, 48), "of": Path}, "pickle.pt")
    fail("pickle.pt", "pickle.pt cannot be read by torch.load with weights_only=True: .* save model.state_dict")
    torch.save({"state_dict": {}, "hyper_parameters": argparse.Namespace()}, "lightning.ckpt")
    fail("lightning.ckpt", r"weights_only=True: it has an object of argparse.Namespace\. Objects other than tensors")
    fail("my_factories.py", r"weights_only=True: it is not what torch.save writes\. Objects other than tensors")
    torch.save({"epoch": 3, "weights": {}}, "trainer.ckpt")
    fail("trainer.ckpt", "trainer.ckpt holds no state_dict, a dict of tensors, at its top or as 'state_dict'")
    torch.save({"net.1.weight": torch.rand(3, 48), "net.1.bias": torch.rand(3)}, "behind.pth")
    fail("behind.pth", "Its keys are the model's behind 'net.': --strip-prefix net.")
    safetensors.torch.save_file({"1.weight": torch.rand(3, 4), "head.bias": torch.rand(3)}, "w.safetensors")
    fail(
        "w.safetensors",
        r"1 missing \(1.bias, ...\); 1 unexpected \(head.bias, ...\); 1.weight is \(3, 4\), the model's \(3, 48\)",
    )


def test_randomize_leaves_nothing_at_zero() -> None:
    def build() -> nn.Module:
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.LayerNorm(5))
        nn.init.zeros_(model[0].bias)  # type: ignore[arg-type]
        model[0].register_parameter("cls_token", nn.Parameter(torch.zeros(1, 1, 4)))
        return model

    first, second = build(), build()
    second.load_state_dict(first.state_dict())
    convolution = first[0].weight.clone()  # type: ignore[index]
    randomize(first, seed=1)
    randomize(second, seed=1)
    for (name, a), b in zip(first.state_dict().items(), second.state_dict().values()):
        assert torch.equal(a, b)
        assert (a != 0).all() or name.endswith("num_batches_tracked")
        assert not name.endswith("running_var") or ((a > 0).all() and (a != 1).any())
    assert torch.equal(first[0].weight, convolution)  # type: ignore[index]
