"""Every method that can be exported gives in a file what `fxgrad.attribute` gives, for models of several kinds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.models.mlp_mixer import MlpMixer
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

import fxgrad
from fxgrad import ExportError, InputError
from fxgrad.data.models import randomize
from fxgrad.explainer.run import OnnxExplainer
from fxgrad.explainer.settings import OF_BLOCKS
from fxgrad.methods import Token
from tests.explainer.test_explainer import Words, built
from tests.helpers.sharing import converted

SMALL: dict[str, Any] = {"img_size": 32, "embed_dim": 12, "num_classes": 4}


def pictures(make: Callable[[], nn.Module]) -> tuple[nn.Module, tuple[Tensor]]:
    torch.manual_seed(0)
    model = make().eval().double()
    randomize(model)
    return model, (torch.randn(2, 3, 32, 32).double(),)


def vit() -> tuple[nn.Module, tuple[Tensor]]:
    return pictures(lambda: timm.create_model("vit_tiny_patch16_224", depth=2, num_heads=2, **SMALL))


def cnn() -> tuple[nn.Module, tuple[Tensor]]:
    def stage(inside: int, outside: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(inside, outside, 3, 2, 1), nn.BatchNorm2d(outside), nn.ReLU())

    ends = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)
    return pictures(lambda: nn.Sequential(stage(3, 6), stage(6, 6), *ends))


def swin() -> tuple[nn.Module, tuple[Tensor]]:
    sizes = {"depths": (2, 1), "num_heads": (1, 2), "window_size": 4, "patch_size": 2}
    return pictures(lambda: timm.create_model("swin_tiny_patch4_window7_224", **SMALL, **sizes))


def mixer() -> tuple[nn.Module, tuple[Tensor]]:
    return pictures(lambda: MlpMixer(patch_size=16, num_blocks=2, **SMALL))


def witness(libra: fxgrad.ConvertedModule, args: tuple[Tensor, ...], target: Any, **options: Any) -> Tensor:
    found = fxgrad.attribute(libra, args, target=target, **options)
    return found.tokens if found.anatomy.grid is None else found.patches


def equal(found: Any, wanted: Tensor, tolerance: float) -> bool:
    found = torch.as_tensor(found)
    assert found.shape == wanted.shape and found.dtype == wanted.dtype
    return bool((found - wanted).abs().max() <= tolerance * wanted.abs().max())


@pytest.mark.parametrize(
    ("make", "method"),
    [
        *((vit, method) for method in OF_BLOCKS),
        *((cnn, method) for method in ("fullgrad", "fullgrad_plus", "hirescam")),
        (swin, "fullgrad_plus"),
        (mixer, "hirescam"),
    ],
)
def test_a_file_gives_what_attribute_gives(make: Any, method: str, tmp_path: Path) -> None:
    _, args, libra = converted(make)
    described = fxgrad.export_explainer(libra, args, tmp_path / "e.pt2", method=method)
    x, target = torch.randn(3, 3, 32, 32).double(), torch.tensor([3, 0, 2])
    program = torch.export.load(tmp_path / "e.pt2").module()
    logits, attribution, *error = program(x, target)
    assert equal(logits, libra(x).detach(), 1e-12)
    assert equal(attribution, witness(libra, (x,), target, method=method), 1e-11)
    shares = fxgrad.attribute(libra, (x,), target=target, method=method).completeness_error
    assert described["outputs"][2:] == ["completeness_error"] * (shares is not None) and described["method"] == method
    assert all(e.shape == (3,) and float(e.max()) < 1e-10 for e in error)
    assert equal(program(x[:1], target[:1])[1], attribution[:1], 1e-11), "a batch of one"


@pytest.mark.parametrize("method", ["genatt", "fullgrad_plus"])
def test_onnx_gives_what_attribute_gives(method: str, tmp_path: Path) -> None:
    _, (x,), libra = converted(vit)
    libra, x = libra.float(), x.float()
    fxgrad.export_explainer(libra, (x,), tmp_path / "e.onnx", method=method, targets=2)
    x, target = torch.randn(3, 3, 32, 32), torch.tensor([[3, 1], [0, 1], [2, 2]])
    explainer = OnnxExplainer(tmp_path / "e.onnx", threads=1)
    assert explainer.metadata["targets"] == 2
    found = explainer(x.numpy(), target=target.numpy())
    wanted = torch.stack([witness(libra, (x,), own, method=method) for own in target.T], 1)
    assert equal(found["attribution"], wanted, 1e-5)


def test_a_text_and_a_language_model(tmp_path: Path) -> None:
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8}
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(vocab_size=30, num_labels=3, **sizes)).eval()
    randomize(model)
    args = torch.randint(30, (2, 6)), torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    libra = fxgrad.convert(model, args)
    described = fxgrad.export_explainer(libra, args, tmp_path / "e.pt2", method="genatt")
    assert described["axes"]["input_ids"] == {"0": "batch"} and described["fixed"]["input_ids"] == {"1": 6}
    target = torch.tensor([2, 0])
    _, attribution = torch.export.load(tmp_path / "e.pt2").module()(*args, target)
    assert equal(attribution, witness(libra, args, target, method="genatt"), 1e-5)

    words, ids = built(Words, torch.float32), torch.randint(20, (3, 6))
    libra = fxgrad.convert(words, (ids,))
    try:
        fxgrad.attribute(libra, (ids,), target=Token(4, 7), method="genatt")
    except InputError as error:
        with pytest.raises(InputError, match="genatt needs blocks") as refused:
            fxgrad.export_explainer(libra, (ids,), tmp_path / "e.pt2", method="genatt")
        assert str(refused.value) == str(error)


def test_layers_and_anatomy_are_chosen(tmp_path: Path) -> None:
    _, (x,), libra = converted(cnn)
    target = torch.tensor([3, 0])
    for options in ({"layer": "0.0"}, {"blocks": ["1"]}):
        method = "hirescam" if "layer" in options else "fullgrad_plus"
        described = fxgrad.export_explainer(libra, (x,), tmp_path / "e.pt2", method=method, **options)  # type: ignore[arg-type]
        attribution = torch.export.load(tmp_path / "e.pt2").module()(x, target)[1]
        assert equal(attribution, witness(libra, (x,), target, method=method, **options), 1e-11)
        assert described.get("layer") == options.get("layer")


def test_what_does_not_apply_is_refused_as_by_attribute(tmp_path: Path) -> None:
    for make in (cnn, mixer, swin):
        _, args, libra = converted(make)
        message = (
            r"genatt needs attention, and none of the model's \d blocks has an attention node of all tokens to all"
        )
        with pytest.raises(InputError, match=message) as refused:
            fxgrad.attribute(libra, args, target=0, method="genatt")
        with pytest.raises(InputError) as again:
            fxgrad.export_explainer(libra, args, tmp_path / "e.onnx", method="genatt")
        assert str(again.value) == str(refused.value) and not (tmp_path / "e.onnx").exists()
    _, args, libra = converted(vit)
    for options, message in (
        ({"method": "genatt", "pool": 4}, r"genatt maps patches, not pixels\. Leave out pool=4; input_x_gradient and"),
        ({"method": "fullgrad", "channels": None}, r"fullgrad maps patches, not pixels\. Leave out channels=None"),
        ({"layer": "blocks.0"}, r"input_x_gradient does not look at one layer\. Leave out layer='blocks.0'; hirescam,"),
        ({"grid": (2, 2)}, r"input_x_gradient is of the inputs\. Leave out grid; fullgrad, "),
    ):
        with pytest.raises(ExportError, match=message):
            fxgrad.export_explainer(libra, args, tmp_path / "e.pt2", **options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"grid is the sizes of the map of patches, such as \(14, 14\), not 4\."):
        fxgrad.export_explainer(libra, args, tmp_path / "e.pt2", method="fullgrad", grid=4)  # type: ignore[arg-type]


class Last(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.layers = nn.GRU(4, 4, batch_first=True), nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.rnn(x)[0]
        for layer in self.layers:
            x = x + layer(x).relu()
        return x[:, -1]


def test_constants_that_no_item_owns_are_refused(tmp_path: Path) -> None:
    x = torch.randn(2, 5, 4)
    libra = fxgrad.convert(Last().eval(), (x,))
    with pytest.raises(
        ExportError, match=r"fullgrad_plus counts what the constants of aten.gru.input at rnn, .*genatt"
    ):
        fxgrad.export_explainer(libra, (x,), tmp_path / "e.pt2", method="fullgrad_plus")


def test_several_policies_share_one_forward(tmp_path: Path) -> None:
    _, args, libra = converted(vit)
    policies = ["libragrad", "gradient"]
    described = fxgrad.export_explainer(libra, args, tmp_path / "both.pt2", method="fullgrad", policies=policies)
    assert described["outputs"] == ["logits"] + [
        f"{name}_{policy}" for policy in policies for name in ("attribution", "completeness_error")
    ]
    assert list(described["policies"]) == policies and "2411.16760" in described["policies"]["libragrad"]
    x, target = torch.randn(3, 3, 32, 32).double(), torch.tensor([3, 0, 2])
    program = torch.export.load(tmp_path / "both.pt2")
    _, ours, our_error, plain, plain_error = program.module()(x, target)
    assert equal(ours, witness(libra, (x,), target, method="fullgrad"), 1e-11)
    assert equal(plain, witness(libra.under("gradient"), (x,), target, method="fullgrad"), 1e-11)
    assert float(our_error.max()) < 1e-10 and float(plain_error.max()) > 1e-3
    softmaxes = [
        n for n in program.graph.nodes if "softmax.int" in str(n.target) or str(n.target) == "aten._softmax.default"
    ]
    assert len(softmaxes) == 2, "one of each of the two blocks"
    for wrong, message in (
        ([], r"policies is a list of policies, such as \['libragrad', 'gradient'\], not \[\]"),
        ("libragrad", r"policies is a list of policies"),
        (["gradient", "gradient"], r"policies has 'gradient' twice\. Leave out one\."),
    ):
        with pytest.raises(ExportError, match=message):
            fxgrad.export_explainer(libra, args, tmp_path / "e.pt2", policies=wrong)


@pytest.mark.parametrize(("weights", "share", "off"), [("float16", 0.5, 1e-2), ("int8", 0.25, 0.2)])
def test_weights_in_fewer_bits(weights: str, share: float, off: float, tmp_path: Path) -> None:
    """The map is that of the model with the rounded weights, as complete as before."""
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", depth=2, num_heads=2, **SMALL | {"embed_dim": 64}).eval()
    x = torch.randn(2, 3, 32, 32)
    libra = fxgrad.convert(model, (x,))
    described = fxgrad.export_explainer(libra, (x,), tmp_path / "e.onnx", weights=weights)
    size = sum(4 * t.numel() for t in model.parameters())
    assert (tmp_path / "e.onnx").stat().st_size < share * size + 2e5 and described["weights_kept_as"] == weights
    target = torch.tensor([3, 0])
    found = OnnxExplainer(tmp_path / "e.onnx", threads=1)(x.numpy(), target=target.numpy())
    assert found["completeness_error"].max() < 1e-4
    exact = fxgrad.attribute(libra, (x,), target=target).map
    assert 0 < np.abs(found["attribution"] - exact.numpy()).max() < off * float(exact.abs().max())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1 and parameter.numel() >= 1024:
                scale = parameter.flatten(1).abs().amax(1).div(127).reshape(-1, *[1] * (parameter.dim() - 1))
                rounded = parameter.half().float() if weights == "float16" else (parameter / scale).round() * scale
                parameter.copy_(rounded)
    rounded = fxgrad.attribute(fxgrad.convert(model, (x,)), (x,), target=target).map
    assert equal(found["attribution"], rounded, 1e-4)


def test_weights_are_refused_where_they_do_not_fit(tmp_path: Path) -> None:
    _, args, libra = converted(vit)
    for path, weights, message in (
        ("e.onnx", "int4", r"weights are kept as one of float32, float16, int8, not 'int4'\."),
        (
            "e.pt2",
            "int8",
            r"weights='int8' is for \.onnx; \.pt2 keeps those that the model has\. Convert model\.half\(\)",
        ),
        (
            "e.onnx",
            "float16",
            r"weights='float16' is for models in float32\. Leave it out, or convert model\.float\(\)",
        ),
    ):
        with pytest.raises(ExportError, match=message):
            fxgrad.export_explainer(libra, args, tmp_path / path, weights=weights)
