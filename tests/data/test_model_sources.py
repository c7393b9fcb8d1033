"""Where models come from: specs with arguments, factories, timm, torchvision; against the packages' own functions."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from PIL import Image

from fxgrad.data.models import load_model
from fxgrad.data.resizing import resizing
from fxgrad.data.specs import wanted_of
from fxgrad.errors import CaptureError

PHOTO = Image.effect_noise((90, 70), 90).convert("RGB")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with a module of one factory."""
    (tmp_path / "made.py").write_text(
        "from torch import nn\n\n"
        "def net(width=4, act='relu', sides=(2, 2)):\n"
        "    act = {'relu': nn.ReLU(), 'gelu': nn.GELU()}[act]\n"
        "    layers = [nn.Conv2d(3, width, sides, sides), act, nn.Flatten(), nn.LazyLinear(3)]\n"
        "    return nn.Sequential(*layers)\n"
    )
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("made", None)


def test_specs() -> None:
    wanted = wanted_of("a.b:make?width=8&act=gelu&sides=2,3&ratio=0.5&on=True&path=x=y")
    assert (wanted.source, wanted.name) == ("a.b", "make")
    expected = {"width": 8, "act": "gelu", "sides": (2, 3), "ratio": 0.5, "on": True, "path": "x=y"}
    assert dict(wanted.options) == expected
    for spec in ("a:b?", "a:b?c", "a:b?c=1&c=2", "a:b?1=2", "a:b?=2"):
        with pytest.raises(CaptureError, match=r"options follow the name as \?OPTION=VALUE&OPTION=VALUE, each once"):
            wanted_of(spec)


def test_factories_take_arguments() -> None:
    model = load_model("made:net?width=6&act=gelu&sides=2,4", input_size=(3, 4, 8)).model
    assert model[0].out_channels == 6 and model[0].kernel_size == (2, 4) and "GELU" in str(model[1])  # type: ignore[index]
    with pytest.raises(CaptureError, match=r"made:net cannot be imported and called with depth: TypeError: .*'depth'"):
        load_model("made:net?depth=6", input_size=(3, 4, 8))


def test_timm_takes_arguments() -> None:
    loaded = load_model("timm:test_vit?img_size=96&num_classes=37&global_pool=avg")
    assert loaded.preprocess.size == (3, 96, 96) and loaded.preprocess(PHOTO).shape == (1, 3, 96, 96)
    assert loaded.model(loaded.example()).shape == (2, 37) and loaded.class_names is None
    assert loaded.model.global_pool == "avg"
    wide = load_model("timm:test_resnet?img_size=64,96&in_chans=1")
    assert wide.preprocess.size == (1, 64, 96) and wide.model.conv1[0].in_channels == 1  # type: ignore[union-attr,index]
    features = load_model("timm:test_vit?num_classes=0")
    assert features.class_names is None and features.model(features.example()).shape == (2, 64)


def test_timm_s_weights_are_those_of_its_own_seed() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        wanted = timm.create_model("test_vit").state_dict()
    found = load_model("timm:test_vit", seed=5).model.state_dict()
    assert all(torch.equal(found[key], value) for key, value in wanted.items())


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("timm:test_vit?img_size=tall", {}, "img_size is a number of pixels, or HEIGHT,WIDTH; not 'tall'"),
        ("timm:test_vit?img_size=96", {"input_size": (3, 64, 64)}, "and --input-size 3 64 64 differ. Keep one"),
        ("timm:test_vit?pretrained=True", {}, "pretrained is no option here. Weights come with --pretrained or"),
        ("timm:test_vit?nonsense=1", {}, "timm:test_vit.nonsense=1 cannot be built: TypeError: .*'nonsense'"),
        ("torchvision:resnet19", {}, r"torchvision has no model 'resnet19'\. Close to it: resnet18"),
        ("torchvision:resnet18@gold", {}, "no weights 'gold' of resnet18; it has IMAGENET1K_V1"),
        ("torchvision:resnet18@IMAGENET1K_V1", {"pretrained": True}, "names its weights already. Leave out --pretra"),
        ("torchvision:fcn_resnet50", {}, "is no classifier of pictures. fxgrad zoo torchvision:fcn_resnet50 checks it"),
        ("torchvision:resnet18?weights=DEFAULT", {}, "weights is no option here. Weights come with --pretrained or"),
        ("torchvision:resnet18?depth=3", {}, "torchvision:resnet18.depth=3 cannot be built: TypeError: .*'depth'"),
        ("torchvision:resnet18", {"input_size": (1, 64, 64)}, "takes 3 channels, not 1"),
        ("torchvision:resnet18?num_classes=5", {"pretrained": True}, "no pretrained weights are for"),
        ("made:net", {"pretrained": True, "input_size": (3, 4, 4)}, "a factory brings its own. Leave it out"),
    ],
)
def test_what_is_refused(spec: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(CaptureError, match=message):
        load_model(spec, **options)


def test_torchvision_comes_with_its_preprocessing_and_classes() -> None:
    loaded = load_model("torchvision:resnet18")
    weights = torchvision.models.ResNet18_Weights.DEFAULT
    assert loaded.described_weights == "random weights (seed 0)"
    assert loaded.class_names == tuple(weights.meta["categories"])
    assert torch.equal(loaded.preprocess(PHOTO)[0], weights.transforms()(PHOTO))
    assert (loaded.preprocess.interpolation, loaded.preprocess.crop) == ("bilinear", 224 / 256)
    other = load_model("torchvision:resnet18?num_classes=5", input_size=(3, 64, 96))
    assert other.class_names is None and other.model(other.preprocess(PHOTO)).shape == (1, 5)
    assert other.preprocess(PHOTO).shape == (1, 3, 64, 96)


def test_other_sizes_are_resized_as_torchvision_does() -> None:
    transform = torchvision.models.ResNet18_Weights.DEFAULT.transforms()
    ours = resizing((3, 224, 224), tuple(transform.mean), tuple(transform.std), "bilinear", 224 / 256)
    assert torch.allclose(ours(PHOTO)[0], transform(PHOTO), atol=1e-6)


def test_torchvision_s_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = torchvision.models.mobilenet_v3_small().state_dict()
    asked = []

    def download(url: str, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        asked.append(url)
        return wanted

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", download)
    for spec, pretrained in (("mobilenet_v3_small", True), ("mobilenet_v3_small@IMAGENET1K_V1", False)):
        loaded = load_model(f"torchvision:{spec}", pretrained)
        assert loaded.weights == "IMAGENET1K_V1"
        assert all(torch.equal(loaded.model.state_dict()[key], value) for key, value in wanted.items())
    assert asked == [torchvision.models.MobileNet_V3_Small_Weights.IMAGENET1K_V1.url] * 2

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError("name or service not known")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    with pytest.raises(CaptureError, match=r"cannot be had \(OSError: name or.* or give --checkpoint FILE.pth"):
        load_model("torchvision:mobilenet_v3_small", pretrained=True)


def test_a_lightning_checkpoint_of_torchvision_s_model(here: Path) -> None:
    wanted = torchvision.models.mobilenet_v3_small(num_classes=4).state_dict()
    torch.save({"state_dict": {f"net.{k}": v for k, v in wanted.items()}, "epoch": 3}, "last.ckpt")
    options: dict[str, Any] = {"checkpoint": "last.ckpt", "num_classes": 4}
    loaded = load_model("torchvision:mobilenet_v3_small", strip_prefix="net.", **options)
    assert loaded.described_weights == "last.ckpt weights"
    assert all(torch.equal(loaded.model.state_dict()[key], value) for key, value in wanted.items())
    with pytest.raises(CaptureError, match=r"Its keys are the model's behind 'net.': --strip-prefix net."):
        load_model("torchvision:mobilenet_v3_small", **options)
    with pytest.raises(CaptureError, match=r"last.ckpt has no keys behind 'model.': they begin like net\."):
        load_model("torchvision:mobilenet_v3_small", strip_prefix="model.", **options)
    torch.save({"a.weight": torch.zeros(1), "weight": torch.zeros(1)}, "two.pth")
    with pytest.raises(CaptureError, match=r"two.pth has a.weight and, without 'a.', the same again"):
        load_model("torchvision:mobilenet_v3_small", strip_prefix="a.", checkpoint="two.pth")


def test_a_checkpoint_is_read_before_the_model_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm, "create_model", lambda *a, **k: pytest.fail("built"))
    with pytest.raises(CaptureError, match=r"absent.pth cannot be read"):
        load_model("timm:test_vit", checkpoint="absent.pth")
