"""Quantised weights are constants; quantised activations are refused, with advice that works."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxgrad

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(4, 16, generator=GENERATOR, dtype=torch.float64)
CODES = torch.randint(-128, 128, (8, 16), generator=GENERATOR, dtype=torch.int8)
SCALE = torch.rand(8, 1, generator=GENERATOR, dtype=torch.float64) / 50
INT32 = torch.randint(-(2**31), 2**31 - 1, (8, 2), generator=GENERATOR, dtype=torch.int32)


quiet = pytest.mark.filterwarnings(
    "ignore:.*:DeprecationWarning", "ignore:.*:UserWarning", "ignore:.*:FutureWarning", "ignore:.*:SyntaxWarning"
)


class First(nn.Module):
    """A layer of given tensors: parameters without gradient where `parameters` says so, else buffers."""

    def __init__(self, weight: Callable[[Any], Tensor], parameters: bool = False, **tensors: Tensor) -> None:
        super().__init__()
        self.dequantised = weight
        for name, tensor in tensors.items():
            if parameters:
                self.register_parameter(name, nn.Parameter(tensor, requires_grad=False))
            else:
                self.register_buffer(name, tensor)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.dequantised(self))


def followed(first: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(first, nn.GELU(), nn.LayerNorm(8).double(), nn.Linear(8, 3).double()).eval()


def gradient(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(f(x)[:, 1].sum(), x)[0]


def by_shifts(layer: Any) -> Tensor:
    """As in GPTQ: eight 4-bit codes in each int32, with a zero point."""
    codes = (layer.packed[:, :, None] >> torch.arange(0, 32, 4)) & 15
    return (codes.reshape(8, 16).double() - 7) * layer.scale


def interleaved(layer: Any) -> Tensor:
    """As in AWQ: the codes of each int32 in another order."""
    codes = (layer.packed[:, :, None] >> (torch.tensor([0, 2, 4, 6, 1, 3, 5, 7]) * 4)) & 15
    return codes.flatten(1)[:, layer.order].double() * layer.scale


def by_codebook(layer: Any) -> Tensor:
    """As NF4: indices into a table of numbers, times the scale of each block."""
    codes = torch.stack([layer.packed & 15, layer.packed >> 4], -1).flatten(1).long()
    return (layer.table[codes].reshape(8, 4, 4) * layer.scale[:, None]).reshape(8, 16)


BYTES = (INT32.view(torch.uint8))[:, :8]
WEIGHTS: dict[str, tuple[Callable[[Any], Tensor], dict[str, Tensor]]] = {
    "int8": (lambda m: m.codes.to(m.scale.dtype) * m.scale, {"codes": CODES, "scale": SCALE}),
    "int8 promoted": (lambda m: m.codes * m.scale, {"codes": CODES, "scale": SCALE}),
    "uint8": (lambda m: (m.codes.double() - 128) * m.scale, {"codes": CODES.view(torch.uint8), "scale": SCALE}),
    "float8": (
        lambda m: m.codes.double() * m.scale,
        {"codes": CODES.float().div(9).to(torch.float8_e4m3fn), "scale": SCALE},
    ),
    "shifts": (by_shifts, {"packed": INT32, "scale": SCALE}),
    "interleaved": (interleaved, {"packed": INT32, "scale": SCALE, "order": torch.randperm(16, generator=GENERATOR)}),
    "codebook": (by_codebook, {"packed": BYTES, "scale": SCALE, "table": torch.linspace(-1, 1, 16).double() ** 3}),
}


@pytest.mark.parametrize("parameters", [False, True], ids=["buffers", "parameters"])
@pytest.mark.parametrize("weight", WEIGHTS)
def test_weights_that_forward_dequantises_are_constants(weight: str, parameters: bool, tmp_path: Path) -> None:
    dequantised, tensors = WEIGHTS[weight]
    first = First(dequantised, parameters, **tensors)
    model = followed(first)
    libra = fxgrad.convert(model, (X,))
    report = fxgrad.check(libra, (X,), original=model)
    assert report.passed and report.completeness_error < 1e-10
    assert torch.equal(libra(X[:1]), model(X[:1]))
    assert set(libra.state_dict()) == set(model.state_dict())
    assert all(libra.state_dict()[k].dtype == v.dtype for k, v in model.state_dict().items())

    plain = nn.Linear(16, 8, bias=False).double()
    plain.weight.data = dequantised(first)
    wanted = gradient(fxgrad.convert(followed(plain), (X,)), X)
    assert torch.allclose(gradient(libra, X), wanted, rtol=0, atol=1e-10)
    assert torch.allclose(gradient(libra.under("gradient"), X), gradient(model, X), rtol=0, atol=1e-10)

    fxgrad.save(libra, tmp_path / "libra.pt2")
    loaded = fxgrad.load(tmp_path / "libra.pt2")
    assert set(loaded.state_dict()) == set(model.state_dict())
    for twin in (loaded, copy.deepcopy(libra)):
        assert torch.equal(twin(X), libra(X)) and torch.equal(gradient(twin, X), gradient(libra, X))


def test_a_scale_that_hangs_on_the_parameter() -> None:
    first = First(lambda m: m.codes * m.codes.scale, True, codes=CODES)
    first.codes.scale = SCALE
    model = followed(first)
    libra = fxgrad.convert(model, (X,))
    assert fxgrad.check(libra, (X,), original=model).passed
    assert not model._forward_pre_hooks
    same = fxgrad.convert(followed(First(*WEIGHTS["int8"][:1], **WEIGHTS["int8"][1])), (X,))
    assert torch.allclose(gradient(libra, X), gradient(same, X), rtol=0, atol=1e-10)


def test_a_scale_after_the_product_and_a_constant_under_no_grad() -> None:
    class After(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("codes", CODES)
            self.register_buffer("scale", SCALE[:, 0])

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                codes = self.codes.to(x.dtype)
            return F.linear(x, codes) * self.scale

    model = followed(After())
    libra = fxgrad.convert(model, (X,))
    assert fxgrad.check(libra, (X,), original=model).passed
    same = fxgrad.convert(followed(First(*WEIGHTS["int8"][:1], **WEIGHTS["int8"][1])), (X,))
    assert torch.allclose(gradient(libra, X), gradient(same, X), rtol=0, atol=1e-10)


class Words(nn.Module):
    def __init__(self, late: bool) -> None:
        super().__init__()
        self.late, self.last = late, nn.Linear(16, 3).double()
        self.register_buffer("table", CODES)
        self.register_buffer("scale", SCALE)

    def forward(self, ids: Tensor) -> Tensor:
        if self.late:
            words = F.embedding(ids, self.table).double() * F.embedding(ids, self.scale)
        else:
            words = F.embedding(ids, self.table.double() * self.scale)
        return self.last(torch.tanh(words)).mean(1)


def test_embeddings_of_integers() -> None:
    ids = torch.tensor([[3, 1, 7], [0, 0, 5]])
    torch.manual_seed(0)
    late, early = Words(True).eval(), Words(False).eval()
    early.load_state_dict(late.state_dict())
    found, names = [], []
    for model in (late, early):
        libra = fxgrad.convert(model, (ids,))
        names.append(list(libra.embed(ids)))
        assert torch.equal(libra.forward_from(libra.embed(ids), ids), model(ids))
        assert fxgrad.check(libra, (ids,), original=model).completeness_error < 1e-10
        found.append(fxgrad.attribute(libra, (ids,), target=1))
    assert names == [["embedding", "embedding@1"], ["embedding"]]  # codes and scales, each looked up
    assert found[0].completeness_error < 1e-10
    for one in found:
        tokens = torch.stack(list(one.maps.values())).sum(0)
        assert tokens.shape == (2, 3) and torch.allclose(tokens.sum(1) + one.apart, one.total, atol=1e-10)


PACKED = {
    "_weight_int4pack_mm_for_cpu": lambda x, w: torch._weight_int4pack_mm_for_cpu(x, *w),
    "_weight_int8pack_mm": lambda x, w: torch._weight_int8pack_mm(x, *w),
}


@pytest.mark.parametrize("op", PACKED)
def test_kernels_for_packed_weights_show_their_matrix(op: str) -> None:
    """The matrix from the unit vectors; the witness is the weight that was packed."""
    generator = torch.Generator().manual_seed(0)
    dtype = torch.bfloat16
    codes = torch.randint(0, 16, (64, 64), generator=generator, dtype=torch.int32)
    if op == "_weight_int4pack_mm_for_cpu":
        scales = (torch.rand(2, 64, 2, generator=generator) / 16).to(dtype)
        packed = torch._convert_weight_to_int4pack_for_cpu(codes, 2)
        weights: list[Any] = [packed, 32, scales]
        scale, zero = (scales[..., i].T.repeat_interleave(32, 1).float() for i in (0, 1))
        wanted = (codes - 8) * scale + zero
    else:
        scales = (torch.rand(64, generator=generator) / 16).to(dtype)
        weights = [codes.to(torch.int8), scales]
        wanted = codes * scales.float()[:, None]

    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for i, w in enumerate(weights):
                self.register_buffer(f"w{i}", w) if isinstance(w, Tensor) else setattr(self, f"w{i}", w)

        def forward(self, x: Tensor) -> Tensor:
            return PACKED[op](x, [getattr(self, f"w{i}") for i in range(len(weights))])

    x = torch.randn(5, 64, generator=generator).to(dtype)
    model = Packed().eval()
    libra = fxgrad.convert(model, (x,))
    report = fxgrad.check(libra, (x,), original=model)
    assert report.passed and report.tolerance == 0.2, report
    units = torch.eye(64).to(dtype)
    leaf = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(libra(leaf), leaf, units[:5])
    assert torch.allclose(found.float(), wanted[:5], atol=0.02, rtol=0.02)


class Integers(nn.Module):
    """Every step of a quantised layer, by hand."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.register_buffer("codes", CODES)

    def forward(self, x: Tensor) -> Tensor:
        scale = x.abs().amax(-1, keepdim=True) / 127
        if self.how == "int8":
            return ((x / scale).round().to(torch.int8).double() @ self.codes.T.double()) * scale
        if self.how == "int32":
            return ((x / scale).round().int() @ self.codes.T.int()).double() * scale
        if self.how == "float8":
            return x.to(torch.float8_e4m3fn).double() @ self.codes.T.double()
        return torch.fake_quantize_per_tensor_affine(x.float(), 0.1, 0, -128, 127).double() @ self.codes.T.double()


@pytest.mark.parametrize("how", ["int8", "int32", "float8"])
def test_activations_in_integers_are_refused(how: str) -> None:
    model = followed(Integers(how))
    with pytest.raises(
        fxgrad.CaptureError,
        match=r"(?s)quantises its activations: it computes in integers or 8-bit floats, which have no gradient:\n"
        r"  aten\.\S+ at 0, \S*test_quantised\.py:\d+: .*Convert the float model, or dequantise: "
        r"model\.dequantize\(\) .*Layers of which only the weight is quantised convert as they are",
    ):
        fxgrad.convert(model, (X,))
    assert fxgrad.convert(model, (X,), on_unknown="native")(X).equal(model(X))


def test_fake_quantised_activations_are_refused() -> None:
    with pytest.raises(fxgrad.CaptureError, match=r"fake_quantize|quantises its activations.*") as refusal:
        fxgrad.convert(followed(Integers("fake")), (X,))
    assert "Convert the float model" in str(refusal.value)


def test_what_is_only_looked_at_or_detached_may_be_integers() -> None:
    class Looks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            near = (x * 9).round().to(torch.int8)
            mask = (x > 0).to(torch.uint8)
            return x * mask + (x - near / 9).detach() + x * (near == 3)

    model = Looks().eval()
    libra = fxgrad.convert(model, (X,))
    assert fxgrad.check(libra, (X,), original=model).completeness_error < 1e-10


def test_a_rounded_activation_is_a_constant_and_the_message_says_so() -> None:
    class Rounds(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x * 9).round() / 9

    with pytest.raises(fxgrad.CaptureError, match=r"What the model rounds \(round, floor, sign\) counts as a constant"):
        fxgrad.convert(Rounds().eval(), (X,))

    class Straight(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.gelu(x + ((x * 9).round() / 9 - x).detach())

    libra = fxgrad.convert(Straight().eval(), (X,))
    report = fxgrad.check(libra, (X,), original=Straight().eval())
    assert report.passed and report.sources  # what rounding adds is a source


@quiet
def test_quantised_tensors_are_refused_and_dequantize_is_the_way_out() -> None:
    codes = torch.quantize_per_tensor(torch.randn(8, 16, generator=GENERATOR), 0.1, 0, torch.qint8)
    first = First(lambda m: m.q.dequantize().double(), q=codes)
    with pytest.raises(fxgrad.CaptureError, match=r"0\.q is a quantised tensor \(torch\.qint8\).*\.dequantize\(\)"):
        fxgrad.convert(followed(first), (X,))
    first.q = codes.dequantize()
    assert fxgrad.check(fxgrad.convert(followed(first), (X,)), (X,)).passed


@quiet
def test_quantised_modules_are_refused_and_the_advice_works() -> None:
    quantisation = pytest.importorskip("torch.ao.quantization")
    model = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    dynamic = quantisation.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    with pytest.raises(
        fxgrad.CaptureError,
        match=r"^0 is a quantised Linear of PyTorch.*integers, which have no gradient\. Convert the float model.*"
        r"its weight\(\)\.dequantize\(\) and its bias\(\)\.",
    ):
        fxgrad.convert(dynamic, (X.float(),))
    for i in (0, 2):
        layer = nn.Linear(dynamic[i].in_features, dynamic[i].out_features).eval()
        layer.weight.data, layer.bias.data = dynamic[i].weight().dequantize(), dynamic[i].bias()
        dynamic[i] = layer
    assert fxgrad.check(fxgrad.convert(dynamic, (X.float(),)), (X.float(),)).passed


@quiet
def test_fake_quantised_modules_are_refused_and_the_advice_works() -> None:
    quantisation = pytest.importorskip("torch.ao.quantization")
    model = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    model.qconfig = quantisation.get_default_qat_qconfig("fbgemm")
    prepared = quantisation.prepare_qat(model.train()).eval()
    with pytest.raises(fxgrad.CaptureError, match=r"FusedMovingAvgObsFakeQuantize, which rounds .*torch\.nn\.Identity"):
        fxgrad.convert(prepared, (X.float(),))
    for module in list(prepared.modules()):
        for name, child in module.named_children():
            if hasattr(child, "fake_quant_enabled"):
                setattr(module, name, nn.Identity().eval())
    assert fxgrad.check(fxgrad.convert(prepared, (X.float(),)), (X.float(),)).passed


def test_pickled_copies_of_integer_weights() -> None:
    libra = fxgrad.convert(followed(First(*WEIGHTS["uint8"][:1], True, **WEIGHTS["uint8"][1])), (X,))
    assert torch.equal(pickle.loads(pickle.dumps(libra))(X), libra(X))


class Scaled(Tensor):
    """A weight as integers and scales, of a tensor class of its own, as torchao's are."""

    data_8: Tensor
    scale: Tensor

    @staticmethod
    def __new__(cls, data_8: Tensor, scale: Tensor) -> Any:
        return Tensor._make_wrapper_subclass(cls, data_8.shape, dtype=scale.dtype)  # type: ignore[attr-defined]

    def __init__(self, data_8: Tensor, scale: Tensor) -> None:
        self.data_8, self.scale = data_8, scale

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["data_8", "scale"], None

    @classmethod
    def __tensor_unflatten__(cls, parts: dict[str, Tensor], *_: Any) -> Any:
        return cls(parts["data_8"], parts["scale"])

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return cls(args[0].data_8, args[0].scale)
        plain = [a.data_8.to(a.scale.dtype) * a.scale if isinstance(a, cls) else a for a in args]
        return func(*plain, **(kwargs or {}))


def test_a_weight_of_a_tensor_class_is_taken_apart(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), nn.GELU(), nn.Linear(4, 2)).eval()
    whole = torch.randint(-9, 9, (4, 6), dtype=torch.int8)
    plain = copy.deepcopy(model)
    plain[0].weight.data = whole * 0.1
    model[0].weight = nn.Parameter(Scaled(whole, torch.tensor(0.1)), requires_grad=False)
    x = torch.randn(3, 6)
    libra = fxgrad.convert(model, (x,))
    assert all(isinstance(tensor, Tensor) for tensor in libra.state)
    fxgrad.save(libra, tmp_path / "libra.pt2")
    for module in (libra, fxgrad.load(tmp_path / "libra.pt2")):
        assert torch.equal(module(x), model(x))
    found, wanted = (fxgrad.attribute(m, (x,), target=1).map for m in (libra, fxgrad.convert(plain, (x,))))
    assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-6)
