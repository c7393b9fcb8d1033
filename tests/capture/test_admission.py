"""What may enter, and that whatever may not is refused in words whose advice works."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxgrad

torchscript = pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c, self.h = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.h(self.c(x).relu().mean((2, 3)))


X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def scripted() -> Any:
    return torch.jit.script(Net().eval())


def traced() -> Any:
    return torch.jit.trace(Net().eval(), X)


def frozen() -> Any:
    return torch.jit.freeze(scripted())


def through_a_file(module: Any) -> Any:
    file = io.BytesIO()
    torch.jit.save(module, file)
    file.seek(0)
    return torch.jit.load(file)


@torchscript
@pytest.mark.parametrize("again", [lambda m: m, through_a_file], ids=["kept", "loaded"])
@pytest.mark.parametrize("make", [scripted, traced])
def test_torchscript_is_refused_and_the_way_out_works(make: Callable[[], Any], again: Callable[[Any], Any]) -> None:
    script = again(make())
    with pytest.raises(
        fxgrad.CaptureError,
        match=r"the model is TorchScript \(a Net that torch\.jit .*model\.load_state_dict\(script\.state_dict\(\)\)",
    ):
        fxgrad.convert(script, (X,))
    model = Net().eval()
    model.load_state_dict(script.state_dict())
    with torch.no_grad():
        assert torch.equal(fxgrad.convert(model, (X,))(X), model(X))
        torch.testing.assert_close(model(X), script(X))


@torchscript
def test_a_frozen_script_has_no_weights_to_copy() -> None:
    with pytest.raises(fxgrad.CaptureError, match=r"its weights are in its code.*before torch\.jit\.freeze"):
        fxgrad.convert(through_a_file(frozen()), (X,))


@torchscript
def test_a_scripted_submodule_is_named_by_its_path() -> None:
    model = nn.Sequential(nn.Identity(), scripted(), nn.Linear(2, 2)).eval()
    with pytest.raises(fxgrad.CaptureError, match=r"module '1' is TorchScript .* weights of 1\.state_dict\(\)"):
        fxgrad.convert(model, (X,))


@torchscript
def test_a_scripted_function_in_a_forward_is_traced_through() -> None:
    double = torch.jit.script(twice)

    class Uses(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return double(x).sin()

    libra = fxgrad.convert(Uses().eval(), (X,))
    assert torch.equal(libra(X), Uses()(X)) and fxgrad.check(libra.double(), (X.double(),)).passed


def twice(x: Tensor) -> Tensor:
    return x * 2


def script_file(path: Path) -> None:
    scripted().save(str(path))


def new_weights(path: Path) -> None:
    torch.save(Net().state_dict(), path)


def old_weights(path: Path) -> None:
    torch.save(Net().state_dict(), path, _use_new_zipfile_serialization=False)


def whole_module(path: Path) -> None:
    torch.save(Net(), path)


def safe_weights(path: Path) -> None:
    pytest.importorskip("safetensors.torch").save_file(Net().state_dict(), path)


@torchscript
@pytest.mark.parametrize(
    ("write", "says"),
    [
        (script_file, r"file\.bin is TorchScript, .*load_state_dict\(torch\.jit\.load\('.*'\)\.state_dict\(\)\)"),
        (new_weights, r"file\.bin is a file of torch\.save: weights .*load_state_dict\(torch\.load\('.*'\)\)"),
        (old_weights, r"file\.bin is a file of torch\.save: weights"),
        (whole_module, r"file\.bin is a file of torch\.save: weights or a pickled module, not a program"),
        (safe_weights, r"file\.bin is a file of safetensors: .*load_state_dict\(safetensors\.torch\.load_file\("),
    ],
)
def test_files_that_are_no_programs_are_named(write: Callable[[Path], None], says: str, tmp_path: Path) -> None:
    write(tmp_path / "file.bin")
    with pytest.raises(fxgrad.CaptureError, match=says) as caught:
        fxgrad.convert(tmp_path / "file.bin", (X,))
    assert "hostile" not in str(caught.value)


def test_what_is_no_module_is_refused() -> None:
    with pytest.raises(fxgrad.CaptureError, match=r"the model is a function; .* in the forward of a module"):
        fxgrad.convert(twice, (X,))  # type: ignore[arg-type]


def test_a_tensor_stands_for_the_tuple_of_it_everywhere() -> None:
    model = Net().eval()
    libra, wanted = fxgrad.convert(model, X), fxgrad.convert(model, (X,))
    assert torch.equal(libra(X), wanted(X))
    found = fxgrad.attribute(libra, X, target=1)
    assert torch.equal(found.pixels, fxgrad.attribute(wanted, (X,), target=1).pixels)
    assert fxgrad.check(libra, X, original=model).passed
    cotangents = torch.eye(2)[:, None].expand(2, 2, 2)
    assert torch.equal(
        fxgrad.vjp(libra, X, cotangents).gradients["x"], fxgrad.vjp(wanted, (X,), cotangents).gradients["x"]
    )
    program = torch.export.export(model, (X,))
    assert torch.equal(fxgrad.convert(program, X)(X), wanted(X))


def test_other_arguments_are_refused_with_the_way_to_pass_them() -> None:
    model = Net().eval()
    libra = fxgrad.convert(model, X)
    with pytest.raises(fxgrad.InputError, match=r"args is a dict, which may mean two things.*convert\(model, \(\), in"):
        fxgrad.convert(model, {"x": X})  # type: ignore[arg-type]
    assert torch.equal(fxgrad.convert(model, (), {"x": X})(X), libra(X))  # as it says
    with pytest.raises(fxgrad.InputError, match="args must be a tuple of the model's positional inputs, not int"):
        fxgrad.convert(model, 3)  # type: ignore[arg-type]
    for call in (fxgrad.convert, fxgrad.check, lambda m, *a: fxgrad.attribute(m, *a, target=1)):
        with pytest.raises(fxgrad.InputError, match=r"kwargs must be a dict .*, not Tensor.*one tuple: \(x, y\)"):
            call(model if call is fxgrad.convert else libra, X, X)


@pytest.mark.parametrize("other", [torch.float16, torch.bfloat16, torch.float64])
def test_inputs_of_another_dtype_than_the_weights_are_refused(other: torch.dtype) -> None:
    model = Net().eval()
    libra, x = fxgrad.convert(model, X), X.to(other)
    says = rf"input 'x' is {other}, but the weights are torch\.float32.*\.to\(torch\.float32\).*\.to\({other}\)"
    for call in (
        lambda: fxgrad.convert(model, x),
        lambda: libra(x),
        lambda: libra.unflattened()(x),
        lambda: fxgrad.attribute(libra, x, target=1),
        lambda: fxgrad.check(libra, x),
        lambda: fxgrad.vjp(libra, x, torch.ones(1, 2, 2)),
    ):
        with pytest.raises(fxgrad.InputError, match=says):
            call()
    with pytest.raises(fxgrad.InputError, match=rf"input 'x' is torch\.float32, but the weights are {other}"):
        fxgrad.convert(Net().to(other).eval(), X)
    assert libra.to(other)(x).dtype == other  # as it says


class Casts(nn.Module):
    """Takes any dtype of its first input; the second is a mask in float32, the weights are in half precision."""

    def __init__(self) -> None:
        super().__init__()
        self.h = nn.Linear(4, 2)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.h(x.to(self.h.weight.dtype)) + (mask * 2).to(x.dtype)


def test_what_the_model_takes_is_taken() -> None:
    model, x, mask = Casts().half().eval(), torch.randn(2, 4), torch.ones(2, 2)
    libra = fxgrad.convert(model, (x, mask))
    with torch.no_grad():
        assert torch.equal(libra(x, mask), model(x, mask))
    net = Net().eval()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert torch.equal(fxgrad.convert(net, X.bfloat16())(X.bfloat16()), net(X.bfloat16()))
        assert torch.equal(fxgrad.convert(net, X)(X), net(X))


def test_other_failures_stay_what_they_are() -> None:
    with pytest.raises(fxgrad.CaptureError, match="the model itself fails on the example inputs"):
        fxgrad.convert(Net().eval(), torch.ones(2, 5, 8, 8).half())


def test_what_torch_cannot_trace_is_named_with_a_way_out() -> None:
    class Sparse(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            matrix = torch.sparse_csr_tensor(torch.tensor([0, 1, 2]), torch.tensor([0, 1]), torch.ones(2).to(x), (2, 2))
            return matrix @ x

    with pytest.raises(fxgrad.CaptureError, match=r"cannot trace the model at test_admission\.py:\d+") as caught:
        fxgrad.convert(Sparse().eval(), (torch.randn(2, 3),))
    assert str(caught.value).endswith("or convert a submodule that does without it.")
