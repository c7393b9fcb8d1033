"""torch.onnx.export takes an explainer as it was traced: without a second decomposition, which takes longer than all else."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn
from torch.export import ExportedProgram

import fxgrad
from fxgrad.explainer.lowered import Lowered, lowered, onnx_fixes_sizes

MODELS: dict[str, Callable[[], nn.Module]] = {
    "vit": lambda: timm.create_model("vit_tiny_patch16_224", depth=2, img_size=32),
    "resnet": lambda: timm.create_model("resnet10t"),
    "convnext": lambda: timm.create_model("convnext_atto", depths=(1, 1, 1, 1)),
    "swin": lambda: timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=56, depths=(2, 2), num_heads=(3, 6), window_size=7
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_exporter_decomposes_nothing(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    side = {"vit": 32, "swin": 56}.get(name, 64)
    model, x = MODELS[name]().eval(), torch.randn(2, 3, side, side)
    libra = fxgrad.convert(model, x)
    given: list[ExportedProgram] = []
    again: list[Any] = []
    own, whole = torch.onnx.export, ExportedProgram.run_decompositions
    monkeypatch.setattr(
        torch.onnx, "export", lambda program, *a, **k: (given.append(program), own(program, *a, **k))[1]
    )
    monkeypatch.setattr(
        ExportedProgram, "run_decompositions", lambda self, *a: (again.append(self), whole(self, *a))[1]
    )
    fxgrad.export_explainer(libra, x, tmp_path / "own.onnx")
    assert [type(program) for program in given] == [Lowered], "one export of one program"
    assert not again


def test_what_is_not_in_the_ops_of_the_exporter_is_decomposed() -> None:
    class Net(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(x) + 1

    program = lowered(torch.export.export(Net(), (torch.ones(3),)))
    done = program.run_decompositions({torch.ops.aten.relu.default: lambda x: x.clamp(min=0)})
    assert "clamp" in str(done.graph) and "relu" in str(program.graph)


def test_sizes_are_fixed_where_a_strided_convolution_sees_free_ones() -> None:
    def fixes(model: nn.Module, side: int) -> bool:
        return onnx_fixes_sizes(fxgrad.convert(model.eval(), torch.randn(2, 3, side, side)).classified.captured.graph)

    assert fixes(MODELS["resnet"](), 64)
    assert not fixes(MODELS["vit"](), 32), "its only picture size is known"
    assert not fixes(nn.Conv2d(3, 4, 3, padding=1), 8)
