"""What can be captured, what cannot, and that the model is left as it was."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxgrad
from fxgrad.capture.export import capture
from fxgrad.graph.places import place_of


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.nn.functional.gelu(self.norm(self.first(x))))


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x * 2
        return x


def test_state_inputs_and_places() -> None:
    captured = capture(Net().eval(), (torch.zeros(2, 4),))
    assert captured.state == ("first.weight", "first.bias", "norm.weight", "norm.bias", "last.weight", "last.bias")
    (x,) = captured.inputs
    assert (x.name, x.shape, x.dtype, x.attributed) == ("x", (None, 4), torch.float32, True)
    gelu = next(n for n in captured.graph.nodes if n.target is torch.ops.aten.gelu.default)
    norm = next(n for n in captured.graph.nodes if n.target is torch.ops.aten.layer_norm.default)
    assert place_of(norm).module_path == "norm"
    assert "test_capture.py:" in place_of(gelu).source_line
    assert "gelu(self.norm(self.first(x)))" in place_of(gelu).source_line


def test_views_do_not_depend_on_strides() -> None:
    captured = capture(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).eval(), (torch.zeros(2, 3, 4),))
    assert "aten.view" not in str(captured.graph)


class Rows(nn.Module):
    """Every row of every image: one copy for two images, but a view of one."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1).reshape(-1, 4, 3)


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_reshaped_values_have_the_strides_of_eager_mode(batch: int) -> None:
    libra, x = fxgrad.convert(Rows().eval(), (torch.zeros(2, 3, 4, 4),)), torch.randn(batch, 3, 4, 4)
    with torch.no_grad():
        assert libra(x).stride() == Rows()(x).stride()


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("other", [1, 3])
def test_batch_is_dynamic_whatever_the_example(batch: int, other: int) -> None:
    model = Net().eval()
    libra = fxgrad.convert(model, (torch.randn(batch, 4),))
    x = torch.randn(other, 4)
    with torch.no_grad():
        assert torch.equal(libra(x), model(x))


def test_model_is_left_untouched() -> None:
    model = Net().eval()
    model.first.weight.requires_grad_(False)
    before = copy.deepcopy(model)
    keys = set(vars(model))
    x = torch.randn(2, 4, requires_grad=True)
    libra = fxgrad.convert(model, (x,))
    libra.requires_grad_(True)
    libra(x).sum().backward()
    for (name, a), b in zip(model.named_parameters(), before.parameters()):
        assert torch.equal(a, b) and a.requires_grad == b.requires_grad and a.grad is None, name
    assert set(vars(model)) == keys and not model._forward_hooks and not model.training
    assert torch.backends.mha.get_fastpath_enabled()


def test_train_mode_is_refused() -> None:
    model = Net().eval()
    model.norm.train()
    with pytest.raises(
        fxgrad.CaptureError, match=r"train mode \(norm; modules in all: 1\).*Call model\.eval\(\) first"
    ):
        fxgrad.convert(model, (torch.zeros(2, 4),))
    assert model.norm.training


def test_the_side_of_a_branch_that_the_example_does_not_take_is_refused_with_its_line() -> None:
    libra = fxgrad.convert(Branches().eval(), (torch.ones(2, 4),))
    with pytest.raises(fxgrad.InputError, match=r"reads its data at .*test_capture\.py:\d+: if x\.sum"):
        libra(-torch.ones(2, 4))


def test_wrong_example_inputs_are_named_as_such() -> None:
    with pytest.raises(
        fxgrad.CaptureError, match=r"the model itself fails on the example inputs \(\(2, 5\)\): RuntimeError"
    ):
        fxgrad.convert(Net().eval(), (torch.zeros(2, 5),))
    with pytest.raises(fxgrad.InputError, match=r"forward\(x: .*\).* does not take these inputs: too many positional"):
        fxgrad.convert(Net().eval(), (torch.zeros(2, 4), torch.zeros(2, 4)))
    with pytest.raises(fxgrad.InputError, match="missing a required argument: 'x'"):
        fxgrad.convert(Net().eval())


class Sum(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sum() * 0.5


def test_integer_inputs_that_nothing_looks_up_are_refused() -> None:
    with pytest.raises(
        fxgrad.CaptureError,
        match=r"no input is a floating-point tensor, nor token ids that an embedding looks up \(x\).*Convert the part",
    ):
        fxgrad.convert(Sum().eval(), (torch.zeros(2, 3, dtype=torch.long),))


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        return x * self.seen


def test_writing_to_state_is_refused() -> None:
    model = Counter().eval()
    with pytest.raises(fxgrad.CaptureError, match=r"writes to its own state or inputs while it runs \(seen\)"):
        fxgrad.convert(model, (torch.ones(2, 4),))
    assert model.seen == 0


def test_constant_outputs_are_refused() -> None:
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.zeros_like(x)

    with pytest.raises(fxgrad.CaptureError, match="no output depends on a floating-point input"):
        fxgrad.convert(Constant().eval(), (torch.ones(2, 4),))


def test_identity() -> None:
    x = torch.randn(2, 3).double()
    libra = fxgrad.convert(nn.Identity().eval(), (x,))
    report = fxgrad.check(libra, (x,), original=nn.Identity())
    assert report.passed and report.completeness_error == 0 and len(report.ledger) == 0


def test_converted_twice_is_refused() -> None:
    libra = fxgrad.convert(Net().eval(), (torch.zeros(2, 4),))
    with pytest.raises(fxgrad.CaptureError, match=r"converted already, with rules='libragrad'\. Convert the original"):
        fxgrad.convert(libra, (torch.zeros(2, 4),))


def test_exported_programs_and_files(tmp_path: Path) -> None:
    model, x = Net().eval(), torch.randn(3, 4)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    torch.export.save(program, tmp_path / "net.pt2")
    for source in (program, tmp_path / "net.pt2", str(tmp_path / "net.pt2")):
        libra = fxgrad.convert(source)
        with torch.no_grad():
            assert torch.equal(libra(x), model(x))
        assert list(libra.state_dict()) == list(model.state_dict())
        assert fxgrad.check(libra).passed


def test_unreadable_program(tmp_path: Path) -> None:
    (tmp_path / "bad.pt2").write_bytes(b"not a program")
    with pytest.raises(fxgrad.CaptureError, match=r"bad\.pt2 is not a program that torch\.export\.save wrote"):
        fxgrad.convert(tmp_path / "bad.pt2")


def test_multihead_attention_without_its_fused_path() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="gelu").double().eval()
    x = torch.randn(2, 5, 8).double()
    libra = fxgrad.convert(layer, (x,))
    report = fxgrad.check(libra, (x,))
    assert report.passed and report.completeness_error < 1e-12
    assert "aten.scaled_dot_product_attention.default" in {row.op for row in libra.report}


class Sighted(nn.Module):
    """Part of it runs without gradients, part with explicit ones of its own."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            seen = torch.tanh(x) * 2
        with torch.enable_grad():
            return seen * x + torch.sin(x)


def test_what_the_model_computes_without_gradients_is_a_constant() -> None:
    model, x = Sighted().eval(), torch.randn(3, 4).double().requires_grad_()
    (wanted,) = torch.autograd.grad(model(x).sum(), x)
    with torch.no_grad():  # whatever mode the caller is in
        libra = fxgrad.convert(model, (x,))
    (found,) = torch.autograd.grad(libra.under("gradient")(x).sum(), x)
    torch.testing.assert_close(found, wanted)
    assert fxgrad.check(libra, (x.detach(),), original=model).passed


class Frozen(nn.Module):
    """A backbone that it runs without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = nn.Sequential(nn.Linear(4, 8), nn.GELU()), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            features = self.backbone(x)
        return self.head(features)


def test_through_no_grad() -> None:
    model, x = Frozen().double().eval(), torch.randn(3, 4).double()
    with pytest.raises(fxgrad.CaptureError, match=r"no output depends .* through_no_grad=True would attribute"):
        fxgrad.convert(model, (x,))
    libra = fxgrad.convert(model, (x,), through_no_grad=True)
    report = fxgrad.check(libra, (x,), original=model)
    assert report.passed and report.inputs != 0


def test_core_aten_programs(tmp_path: Path) -> None:
    """Of a program that is decomposed to the end already, norms and softmax attention are still found."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="gelu").double().eval()
    model = nn.Sequential(layer, nn.GroupNorm(5, 5)).double().eval()
    x = torch.randn(2, 5, 8).double()
    core = torch.export.export(model, (x,)).run_decompositions()
    report = fxgrad.check(fxgrad.convert(core), (x,))
    assert report.passed and report.completeness_error < 1e-13
    assert {"composed", "attention"} <= {row.kind for row in report.ledger}


class Clears(nn.Module):
    """Writes to its input, as a model in evaluation may that masks what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x[:, 0] = 0
        return self.linear(x.mul_(2)).tanh()


def test_a_model_that_writes_to_its_input_works_on_a_copy() -> None:
    model, x = Clears().double().eval(), torch.randn(2, 4).double()
    given = x.clone()
    libra = fxgrad.convert(model, (given,))
    assert torch.equal(libra(given), model(x.clone())) and torch.equal(given, x)
    assert fxgrad.check(libra, (x.clone(),), original=model).passed
    leaf = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(libra.under("gradient")(leaf).sum(), leaf)
    (wanted,) = torch.autograd.grad(model(leaf.clone()).sum(), leaf)
    torch.testing.assert_close(found, wanted)
    assert not found[:, 0].any()
    for size in (1, 3):
        assert torch.equal(libra(torch.ones(size, 4).double()), model(torch.ones(size, 4).double()))


def test_data_is_taken_as_a_constant() -> None:
    """`.data`, as old code takes a tensor without its gradient."""

    class Shortcut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            short = x[:, ::2]
            return self.linear(x).tanh() + torch.cat([short.data[:, :1], torch.zeros_like(short[:, 1:])], 1)

    model, x = Shortcut().double().eval(), torch.randn(2, 4).double()
    libra = fxgrad.convert(model, (x,))
    assert fxgrad.check(libra, (x,), original=model).passed
    leaf = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(libra.under("gradient")(leaf).sum(), leaf)
    torch.testing.assert_close(found, torch.autograd.grad(model(leaf).sum(), leaf)[0])
