"""The explainer's program gives what autograd gives: in plain PyTorch, and in onnxruntime without PyTorch."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F
from transformers import BertConfig, BertForSequenceClassification

import fxgrad
from fxgrad import ExportError, InputError
from fxgrad.data.models import randomize
from fxgrad.explainer.compute import _one_hot
from fxgrad.explainer.decompositions import DECOMPOSITIONS
from fxgrad.explainer.plain import plain_attention
from fxgrad.explainer.run import OnnxExplainer
from tests.helpers.sharing import converted


class Pictures(nn.Module):
    """A little of everything that pictures meet: convolutions, poolings, norms, attention, a class token."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        self.patches = nn.Conv2d(8, 8, 2, 2)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.block = nn.TransformerEncoderLayer(8, 2, 16, activation="gelu", batch_first=True, norm_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(self.patches(self.stem(x)), 2, 1, 1, count_include_pad=False)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x.flatten(2).mT], 1)
        return self.head(self.block(x)[:, 0])


class Words(nn.Module):
    """Token ids to a logit for every next token, causally."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.qkv, self.gate, self.out = nn.Linear(8, 24), nn.Linear(8, 8), nn.Linear(8, 20)
        self.norm = nn.RMSNorm(8)

    def forward(self, ids: Tensor) -> dict[str, Tensor]:
        x = self.embedding(ids)
        q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in self.qkv(self.norm(x)).chunk(3, -1))
        x = x + F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + F.silu(self.gate(x)) * x
        return {"logits": self.out(x), "hidden": x}


def built(cls: type[nn.Module], dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    model = cls().eval().to(dtype)
    randomize(model)
    return model


def doubles() -> tuple[nn.Module, tuple[Tensor]]:
    return built(Pictures, torch.float64), (torch.randn(2, 3, 32, 32).double(),)


def by_autograd(libra: fxgrad.ConvertedModule, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Logits, and x * gradient as it is, of one target an item."""
    leaf = x.clone().requires_grad_()
    logits = libra(leaf)
    (gradient,) = torch.autograd.grad(logits.gather(1, target[:, None]).sum(), leaf)
    return logits.detach(), x * gradient


def relative(found: Any, wanted: Tensor) -> float:
    found = torch.as_tensor(found)
    assert found.shape == wanted.shape and found.dtype == wanted.dtype
    return float((found - wanted).abs().max() / wanted.abs().max())


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> tuple[fxgrad.ConvertedModule, Path]:
    """A converted model in float32, and its explainer for onnxruntime."""
    libra = fxgrad.convert(built(Pictures, torch.float32), (torch.randn(2, 3, 32, 32),))
    path = tmp_path_factory.mktemp("pictures") / "explainer.onnx"
    how = {"size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bicubic", "crop": None}
    fxgrad.export_explainer(libra, (torch.randn(2, 3, 32, 32),), path, metadata={"preprocessing": how})
    return libra, path


def load(path: Path) -> nn.Module:
    return torch.export.load(path).module()


def test_pt2_gives_what_autograd_gives_in_float64(tmp_path: Path) -> None:
    model, args, libra = converted(doubles)
    described = fxgrad.export_explainer(libra, args, tmp_path / "e.pt2")
    x, target = torch.randn(5, 3, 32, 32).double(), torch.tensor([0, 3, 2, 2, 1])
    logits, attribution, error = load(tmp_path / "e.pt2")(x, target)
    wanted = by_autograd(libra, x, target)
    assert relative(logits, wanted[0]) < 1e-12
    assert relative(attribution, wanted[1].sum(1)) < 1e-12
    assert error.shape == (5,) and bool((error < 1e-12).all())
    assert described["outputs"] == ["logits", "attribution", "completeness_error"]
    extra = {"explainer.json": ""}
    program = torch.export.load(tmp_path / "e.pt2", extra_files=extra)
    # The sources cost no second forward: what multiplies with a weight is a layer, or its backward.
    targets = [node.target for node in program.graph.nodes]
    assert targets.count(torch.ops.aten.addmm.default) == 4 and targets.count(torch.ops.aten.convolution.default) == 2
    assert json.loads(extra["explainer.json"])["policy"] == "libragrad"
    assert set(program.state_dict) <= set(model.state_dict())
    for wrong in (-1, 4, -5, 2**40):
        with pytest.raises(RuntimeError, match=r"index .* is out of bounds for dimension 1 with size 4"):
            program.module()(x, torch.tensor([0, wrong, 3, 0, 0]))


def test_completeness_error_is_that_of_check(tmp_path: Path) -> None:
    x = torch.randn(1, 3, 32, 32).double()
    plain = converted(doubles, "gradient")[2]
    fxgrad.export_explainer(plain, (x,), tmp_path / "e.pt2")
    _, _, error = load(tmp_path / "e.pt2")(x.expand(3, -1, -1, -1), torch.tensor([2, 0, 3]))
    for target, found in zip((2, 0, 3), error):
        wanted = fxgrad.check(plain, (x,), cotangent=F.one_hot(torch.tensor([target]), 4).double())
        assert wanted.completeness_error > 1e-3
        assert float(found) == pytest.approx(wanted.completeness_error, rel=1e-9)


def test_options(tmp_path: Path) -> None:
    _, (x,), libra = converted(doubles)
    file = tmp_path / "e.pt2"
    fxgrad.export_explainer(libra, (x,), file, targets=2, pool=5, completeness=False)
    target = torch.tensor([[0, 1], [3, 2]])
    _, attribution = load(file)(x, target)
    wanted = torch.stack([by_autograd(libra, x, t)[1].sum(1) for t in target.T], 1)
    assert relative(attribution, F.avg_pool2d(wanted, 5, ceil_mode=True, divisor_override=1)) < 1e-12
    fxgrad.export_explainer(libra, (x,), file, method="gradient", channels=None)
    _, attribution = load(file)(x, target[:, 0])  # and no completeness error, for these are no shares
    assert relative(x * attribution, by_autograd(libra, x, target[:, 0])[1]) < 1e-12


def test_onnx_gives_what_autograd_gives(pictures: tuple[fxgrad.ConvertedModule, Path]) -> None:
    libra, path = pictures
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert [o.version for o in model.opset_import if not o.domain] == [18]
    shapes = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in model.graph.input]
    assert shapes == [["batch", 3, 32, 32], ["batch"]]
    explainer = OnnxExplainer(path, threads=1)
    x, target = torch.randn(5, 3, 32, 32), torch.tensor([0, 3, 2, 2, 1])
    found = explainer(x.numpy(), target=target.numpy())
    logits, attribution = by_autograd(libra, x, target)
    assert relative(found["logits"], logits) < 1e-5
    assert relative(found["attribution"], attribution.sum(1)) < 1e-5
    assert found["completeness_error"].shape == (5,) and found["completeness_error"].max() < 1e-4
    weights = sum(t.numel() * t.element_size() for t in libra.state_dict().values())
    assert path.stat().st_size < 1.1 * weights + 2e5
    for wrong in (-1, 4, -5, 2**40):
        with pytest.raises(
            ExportError, match=r"there is no such target: target is .*indices into the logits, from 0 on"
        ):
            explainer(x.numpy(), np.array([0, wrong, 3, 0, 0]))


def test_a_gpu_that_reads_something_gives_no_number() -> None:
    """Where nothing ends the run, an index that is not found again makes the cotangent NaN."""
    graph = make_fx(lambda target, logits: _one_hot(target, logits))(torch.tensor([2]), torch.zeros(1, 3))
    for node in graph.graph.find_nodes(op="call_function", target=torch.ops.aten.gather.default):
        node.target = lambda values, axis, index: torch.zeros_like(index)  # what a GPU may read
    graph.recompile()
    assert graph(torch.tensor([0]), torch.zeros(1, 3)).tolist() == [[1, 0, 0]]
    assert bool(graph(torch.tensor([-1]), torch.zeros(1, 3)).isnan().all())
    assert bool(graph(torch.tensor([3]), torch.zeros(1, 3)).isnan().all())


def test_onnx_runs_without_torch(pictures: tuple[fxgrad.ConvertedModule, Path]) -> None:
    libra, path = pictures
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import numpy as np, onnxruntime as ort\n"
        "session = ort.InferenceSession(sys.argv[1])\n"
        "x = np.linspace(-1, 1, 3072, dtype=np.float32).reshape(1, 3, 32, 32)\n"
        "print(session.run(['attribution'], {'x': x, 'target': np.array([2])})[0].tolist())"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    x = torch.linspace(-1, 1, 3072).reshape(1, 3, 32, 32)
    assert relative(json.loads(done.stdout), by_autograd(libra, x, torch.tensor([2]))[1].sum(1)) < 1e-5


def test_tokens_in_onnx(tmp_path: Path) -> None:
    ids = torch.randint(20, (2, 6))
    shapes = ({0: torch.export.Dim("batch"), 1: torch.export.Dim("length")},)
    libra = fxgrad.convert(built(Words, torch.float32), (ids,), dynamic_shapes=shapes)
    described = fxgrad.export_explainer(libra, (ids,), tmp_path / "e.onnx")
    assert described["fixed"] == {}
    explainer = OnnxExplainer(tmp_path / "e.onnx", threads=1)
    assert explainer.metadata["axes"]["ids"] == {"0": "batch", "1": "sequence"}
    ids, target = torch.randint(20, (3, 9)), torch.tensor([[8, 4], [5, 19], [0, 0]])
    found = explainer(ids.numpy(), target.numpy())
    tokens = libra.embed(ids)
    picked = libra.forward_from(tokens, ids)["logits"][(torch.arange(3), *target.T)]
    picked.sum().backward()
    wanted = torch.stack([x * x.grad for x in tokens.values()]).sum((0, -1)).detach()
    assert relative(found["attribution"], wanted) < 1e-5
    assert found["completeness_error"].max() < 1e-4
    assert np.abs(found["attribution"][1, 6:]).max() == 0  # what comes after the token that is explained
    for wrong in ([-1, 3], [9, 3], [2, -1], [2, 20]):
        with pytest.raises(
            ExportError, match=r"there is no such target: target is .*indices into the logits, from 0 on"
        ):
            explainer(ids.numpy(), np.array([wrong, [0, 0], [0, 0]]))


def test_a_text_encoder_keeps_its_free_length(tmp_path: Path) -> None:
    config = BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, num_labels=3
    )
    model = BertForSequenceClassification(config).eval()
    randomize(model)
    ids = torch.randint(30, (2, 6))
    libra = fxgrad.convert(model, (ids, torch.ones_like(ids)))
    for ending in ("pt2", "onnx"):
        described = fxgrad.export_explainer(libra, (ids, torch.ones_like(ids)), tmp_path / f"e.{ending}")
        assert described["axes"]["input_ids"] == {"0": "batch", "1": "sequence"} and described["fixed"] == {}
    program, session = torch.export.load(tmp_path / "e.pt2").module(), OnnxExplainer(tmp_path / "e.onnx", threads=1)
    for length in (4, 9):
        ids, target = torch.randint(30, (3, length)), torch.tensor([2, 0, 1])
        mask = torch.ones_like(ids)
        mask[0, 3:] = 0
        wanted = fxgrad.attribute(libra, (ids, mask), target=target, method="input_x_gradient").tokens
        assert wanted is not None
        _, attribution, error = program(ids, mask, target)
        found = session(ids.numpy(), mask.numpy(), target=target.numpy())
        assert relative(attribution, wanted) < 1e-5 and relative(found["attribution"], wanted) < 1e-5
        assert error.max() < 1e-4 and found["completeness_error"].max() < 1e-4


def test_pictures_of_free_size(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 1, 1), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    libra = fxgrad.convert(model.eval(), (torch.randn(1, 3, 16, 16),))
    described = fxgrad.export_explainer(libra, (torch.randn(1, 3, 16, 16),), tmp_path / "e.pt2")
    assert described["axes"]["input"] == {"0": "batch", "2": "input_2", "3": "input_3"} and described["fixed"] == {}
    x = torch.randn(2, 3, 10, 21)
    logits, attribution, _ = torch.export.load(tmp_path / "e.pt2").module()(x, torch.tensor([0, 1]))
    wanted = by_autograd(libra, x, torch.tensor([0, 1]))
    assert relative(logits, wanted[0]) < 1e-5 and relative(attribution, wanted[1].sum(1)) < 1e-5


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({}, (2, 2, 5, 4)),
        ({"is_causal": True}, (2, 2, 5, 4)),
        ({"scale": 0.3, "attn_mask": torch.randn(2, 1, 5, 5)}, (2, 2, 5, 4)),
        ({"attn_mask": torch.tensor([[True] * 5, [False] * 5] + [[True, False] * 2 + [True]] * 3)}, (2, 2, 5, 4)),
        ({"enable_gqa": True}, (2, 1, 5, 4)),
    ],
)
def test_plain_attention(options: dict[str, Any], shape: tuple[int, ...]) -> None:
    q, k, v = torch.randn(2, 2, 5, 4), torch.randn(shape), torch.randn(shape)
    wanted = F.scaled_dot_product_attention(q, k, v, **options)
    torch.testing.assert_close(plain_attention(q, k, v, **options), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "op",
    [
        lambda x: F.conv2d(x, torch.ones(6, 2, 3, 2), None, (3, 2), (1, 0), (2, 1), 2),
        lambda x: F.conv1d(x.flatten(2), torch.ones(2, 4, 3), None, 4),
        lambda x: F.conv_transpose2d(x, torch.ones(4, 3, 3, 3), None, 2, 1, 1),
        lambda x: F.max_pool2d(x, 3, 2, 1),
        lambda x: F.max_pool2d(x, 2, 2, ceil_mode=True),
        lambda x: F.avg_pool2d(x, 3, 2, 1),
        lambda x: F.avg_pool2d(x, 2, 2, ceil_mode=True),
        lambda x: F.avg_pool2d(x, (3, 2), (1, 2), (1, 0), count_include_pad=False),
        lambda x: F.avg_pool2d(x, 3, 3, divisor_override=2),
    ],
)
def test_decompositions(op: Any) -> None:
    """Each makes of a cotangent what PyTorch's own backward makes of it."""
    x = torch.randn(2, 4, 9, 11)

    def gradient(x: Tensor) -> Tensor:
        leaf = x.detach().requires_grad_()
        y = op(leaf)
        (found,) = torch.autograd.grad(y, leaf, torch.linspace(-1, 1, y.numel()).reshape(y.shape))
        return found

    graph = make_fx(gradient, dict(DECOMPOSITIONS))(x)
    targets = {n.target for n in graph.graph.nodes}
    assert not targets & set(DECOMPOSITIONS), targets
    torch.testing.assert_close(graph(x), gradient(x), rtol=1e-5, atol=1e-6)


class Odd(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.special.i0(x).flatten(1) * x.flatten(1)


class Narrowing(nn.Module):
    """Ends as ConvNeXt does: pictures with their channels last in memory, averaged to one pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.head = nn.Conv2d(3, 6, 4, 4), nn.LayerNorm(6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 0, 0))  # as Swin does, up to whole windows
        y = self.norm(self.stem(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.head(self.norm(F.adaptive_avg_pool2d(y, 1).permute(0, 2, 3, 1)).flatten(1))


def test_padding_and_a_global_mean_in_onnx(tmp_path: Path) -> None:
    model = Narrowing().eval()
    randomize(model)
    libra = fxgrad.convert(model, (torch.randn(2, 3, 16, 16),))
    fxgrad.export_explainer(libra, (torch.randn(2, 3, 16, 16),), tmp_path / "e.onnx")
    x, target = torch.randn(3, 3, 16, 16), torch.tensor([2, 0, 1])
    found = OnnxExplainer(tmp_path / "e.onnx")(x.numpy(), target.numpy())
    leaf = x.requires_grad_()
    (gradient,) = torch.autograd.grad(libra(leaf).gather(1, target[:, None]).sum(), leaf)
    wanted = (x * gradient).sum(1).detach().numpy()
    np.testing.assert_allclose(found["attribution"], wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def test_refusals(tmp_path: Path) -> None:
    x = torch.randn(2, 4)
    libra = fxgrad.convert(nn.Linear(4, 3).eval(), (x,))
    with pytest.raises(ExportError, match=r"e.txt must end in one of .onnx, .pt2, .aoti: the ending says"):
        fxgrad.export_explainer(libra, (x,), tmp_path / "e.txt")
    with pytest.raises(
        ExportError, match=r"there is no method 'shap'. Choose one of input_x_gradient, gradient, fullg"
    ):
        fxgrad.export_explainer(libra, (x,), tmp_path / "e.pt2", method="shap")
    with pytest.raises(ExportError, match=r"no output 'scores' of floating dtype.*it has output. Name the one"):
        fxgrad.export_explainer(libra, (x,), tmp_path / "e.pt2", output="scores")
    for wrong, message in (
        ({"targets": 0}, "targets is the number of targets per example, at least 1, not 0"),
        ({"targets": -1}, "at least 1, not -1"),
        ({"pool": "two"}, "pool is the side of the blocks to sum over, at least 1, not 'two'"),
        ({"channels": "all"}, "channels is an axis of the input, \"auto\" or None, not 'all'"),
        (
            {"metadata": {"a": {1}}},
            "metadata is a dict of JSON values; this one is not: Object of type set is not JSON",
        ),
    ):
        options: dict[str, Any] = wrong
        with pytest.raises(ExportError, match=message):
            fxgrad.export_explainer(libra, (x,), tmp_path / "e.pt2", **options)
    assert not (tmp_path / "e.pt2").exists()
    with pytest.raises(InputError, match="Convert it again with an example"):
        fxgrad.export_explainer(libra, (x[0],), tmp_path / "e.pt2")
    with pytest.raises(ExportError, match="cannot be written: there is no such folder"):
        fxgrad.export_explainer(libra, (x,), tmp_path / "nowhere" / "e.pt2")


def test_an_op_that_onnx_lacks_is_named_with_its_place(tmp_path: Path) -> None:
    x = torch.randn(2, 4)
    libra = fxgrad.convert(Odd().eval(), (x,), on_unknown="native")
    with pytest.raises(ExportError) as refused:
        fxgrad.export_explainer(libra, (x,), tmp_path / "e.onnx", completeness=False)
    first, place, advice = str(refused.value).splitlines()
    assert first == "ONNX has no form of prims.bessel_i0.default:"
    assert "test_explainer.py:" in place and "torch.special.i0(x)" in place
    assert advice.endswith("export to .pt2 or .aoti, which take every op.")


@pytest.mark.skipif(shutil.which("g++") is None, reason="AOTInductor needs a C++ compiler")
def test_an_aoti_package_runs_at_another_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def said(caught: pytest.ExceptionInfo[RuntimeError]) -> str:
        """What the package says of wrong inputs: PyTorch 2.11 raises a bare error, and writes the reason to stderr."""
        return str(caught.value) + capfd.readouterr().err

    libra = fxgrad.convert(
        nn.Sequential(nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 3)).double().eval(), (torch.randn(2, 4).double(),)
    )
    file = tmp_path / "e.aoti"
    fxgrad.export_explainer(libra, (torch.randn(2, 4).double(),), file)
    x, target = torch.randn(7, 4).double(), torch.arange(7) % 3
    with file.open("rb") as opened:
        package = torch._inductor.aoti_load_package(opened)
    assert package.get_metadata()["policy"] == "libragrad"
    logits, attribution, error = package(x, target)
    leaf = x.requires_grad_()
    wanted = libra(leaf)
    (gradient,) = torch.autograd.grad(wanted.gather(1, target[:, None]).sum(), leaf)
    torch.testing.assert_close(logits, wanted.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(attribution, (x * gradient).detach(), rtol=1e-12, atol=1e-12)
    assert error.max() < 1e-10
    for wrong in (-1, 3):
        with pytest.raises(RuntimeError) as caught:
            package(x.detach(), torch.full((7,), wrong))
        assert "index out of bounds" in said(caught)
    monkeypatch.setenv("AOTI_RUNTIME_CHECK_INPUTS", "1")
    with file.open("rb") as opened:
        package = torch._inductor.aoti_load_package(opened)
    torch.testing.assert_close(package(x[:1].detach(), target[:1])[0], logits[:1], rtol=1e-12, atol=1e-12)
    wrong_inputs = [
        ((x.detach(), target.int()), "unmatched dtype"),
        ((x[:, :3].detach().contiguous(), target), "unmatched dim"),
        ((x.detach().T.contiguous().T, target), "unmatched stride"),
    ]
    if torch.__version__ >= (2, 12):  # an older one does not compare the inputs' batches; docs/export.md says so
        wrong_inputs.append(((x.detach(), target[:3]), "expected size"))
    for inputs, message in wrong_inputs:
        with pytest.raises(RuntimeError) as caught:
            package(*inputs)
        assert message in said(caught)


def test_aoti_says_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inductor = importlib.import_module("torch._inductor")
    x = torch.randn(2, 4)
    libra = fxgrad.convert(nn.Linear(4, 3).eval(), (x,))

    def no_compiler(*args: Any, **kwargs: Any) -> str:
        raise RuntimeError("g++ not found")

    monkeypatch.setattr(inductor, "aoti_compile_and_package", no_compiler)
    with pytest.raises(
        ExportError, match=r"cannot compile the explainer: RuntimeError: g\+\+ not found. It needs a C\+\+"
    ):
        fxgrad.export_explainer(libra, (x,), tmp_path / "e.aoti")
    monkeypatch.delattr(inductor, "aoti_compile_and_package")
    with pytest.raises(ExportError, match=r"this PyTorch has no AOTInductor packages. Export to .pt2 or .onnx."):
        fxgrad.export_explainer(libra, (x,), tmp_path / "e.aoti")


@pytest.mark.parametrize(
    "said",
    ["You marked batch as dynamic but your code specialized it", "Not all values of batch = L['x'].size()[0] in"],
)
def test_a_size_that_torch_fixes_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    def refuse(*_args: object) -> None:
        raise RuntimeError(f"Constraints violated (batch)! {said}")

    libra = fxgrad.convert(nn.Linear(4, 3).eval(), (torch.randn(2, 4),))
    monkeypatch.setattr(sys.modules["fxgrad.explainer.tracing"], "_exported", refuse)
    with pytest.raises(ExportError, match=r"the size of batch is free in the model, but torch .* with that size fixed"):
        fxgrad.export_explainer(libra, (torch.randn(2, 4),), tmp_path / "e.pt2")


@pytest.mark.parametrize("policy", ["attnlrp", "cp-lrp"])
def test_shared_attention_in_a_file(tmp_path: Path, policy: str) -> None:
    """Policies that weigh the operands of the fused attention."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = nn.Linear(4, 12)

        def forward(self, x: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(*self.qkv(x).chunk(3, -1)).sum(1)

    x, target = torch.randn(3, 5, 4, dtype=torch.float64), torch.tensor([0, 3, 1])
    libra = fxgrad.convert(Attention().double().eval(), (x[:2],), rules=policy)
    fxgrad.export_explainer(libra, (x[:2],), tmp_path / "e.pt2", completeness=False)
    logits, attribution = load(tmp_path / "e.pt2")(x, target)
    wanted = by_autograd(libra, x, target)
    assert relative(logits, wanted[0]) < 1e-12 and relative(attribution, wanted[1]) < 1e-12


def test_a_recurrent_layer_is_explained_without_an_error(tmp_path: Path) -> None:
    x = torch.randn(2, 5, 4)

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(4, 6, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.rnn(x)[0][:, -1]

    libra = fxgrad.convert(Last().eval(), (x,))
    with pytest.raises(ExportError, match=r"constants of aten.gru.input at rnn, .* Pass completeness=False."):
        fxgrad.export_explainer(libra, (x,), tmp_path / "e.pt2")
    fxgrad.export_explainer(libra, (x,), tmp_path / "e.pt2", completeness=False)
    x, target = torch.randn(3, 5, 4), torch.tensor([5, 0, 2])
    logits, attribution = load(tmp_path / "e.pt2")(x, target)
    wanted = by_autograd(libra, x, target)
    assert relative(logits, wanted[0]) < 1e-5 and relative(attribution, wanted[1]) < 1e-5
