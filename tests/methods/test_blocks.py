"""Which modules are blocks, and which of them methods use: those that all of the target's gradient passes through."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer

import fxgrad
from fxgrad.data.models import randomize
from fxgrad.methods import anatomy

SHARES = ("hirescam", "fullgrad_plus")


def paths(libra: fxgrad.ConvertedModule) -> list[str]:
    return [block.path for block in anatomy(libra.classified).blocks]


def test_modules_that_are_numbered_by_name() -> None:
    torch.manual_seed(0)
    model = VisionTransformer(16, 8, num_layers=3, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=4)
    model = model.double().eval()
    randomize(model)
    x = torch.randn(2, 3, 16, 16).double()
    libra = fxgrad.convert(model, (x,))
    assert paths(libra) == [f"encoder.layers.encoder_layer_{i}" for i in range(3)]
    for method in SHARES:
        found = fxgrad.attribute(libra, (x,), target=1, method=method)
        assert found.completeness_error is not None and found.completeness_error < 1e-10, method
        assert found.copies == (3 if method == "fullgrad_plus" else 1)
    hooked, seen = libra.unflattened(), []
    last = hooked.get_submodule("encoder.layers.encoder_layer_2")
    last.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    (g,) = torch.autograd.grad(hooked(x.clone().requires_grad_())[:, 1].sum(), seen)
    wanted = (seen[0] * g).sum(2).detach()
    assert torch.allclose(fxgrad.attribute(libra, (x,), target=1, method="hirescam").map, wanted, atol=1e-12)


class Stage(nn.Module):
    def __init__(self, skip: bool) -> None:
        super().__init__()
        self.skip, self.conv, self.norm = skip, nn.Conv2d(4, 4, 3, 1, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.skip + self.norm(self.conv(x)).relu()


class Stages(nn.Module):
    """Modules of one type, numbered by name; `around` passes the data by one of them."""

    def __init__(self, around: bool = False, skip: bool = True) -> None:
        super().__init__()
        self.around, self.stem, self.head = around, nn.Conv2d(3, 4, 3), nn.Linear(4, 2)
        self.s1, self.s2 = Stage(skip), Stage(skip)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.s2(self.s1(x))
        return self.head((y + x if self.around else y).mean((2, 3)))


@pytest.mark.parametrize("skip", [True, False])
def test_a_name_with_a_number_is_a_block_if_all_data_passes_through_it(skip: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 6, 6).double()
    libra = fxgrad.convert(Stages(skip=skip).double().eval(), (x,))
    assert paths(libra) == ["s1", "s2"]
    found = fxgrad.attribute(libra, (x,), target=1, method="fullgrad_plus")
    assert found.copies == 2 and found.completeness_error < 1e-10  # type: ignore[operator]
    assert paths(fxgrad.convert(Stages(around=True).double().eval(), (x,))) == []


class Detector(nn.Module):
    """Pictures to a class and a box for each of some queries, by an encoder, a decoder and two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.queries = nn.Conv2d(3, 8, 4, 4), nn.Parameter(torch.randn(1, 3, 8))
        self.encoder = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True) for _ in range(2))
        self.decoder = nn.ModuleList(nn.TransformerDecoderLayer(8, 2, 16, batch_first=True) for _ in range(2))
        self.classes = nn.Linear(8, 4)
        self.boxes = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        memory = self.stem(x).flatten(2).mT
        for block in self.encoder:
            memory = block(memory)
        y = self.queries.expand(len(x), -1, -1)
        for block in self.decoder:
            y = block(y, memory)
        return self.classes(y), self.boxes(y)


def test_the_last_block_that_the_target_reaches() -> None:
    torch.manual_seed(0)
    model = Detector().double().eval()
    randomize(model)
    x = torch.randn(2, 3, 16, 12).double()
    libra = fxgrad.convert(model, (x,))
    for output in (0, 1):
        for method in (*SHARES, "gradcam", "attcat"):
            found = fxgrad.attribute(libra, (x,), target=lambda y, k=output: y[k][:, 1, 2], method=method)
            assert found.patches.shape == (2, 4, 3), method
            if method in SHARES:
                assert found.completeness_error is not None and found.completeness_error < 1e-10, method
                assert bool((found.map != 0).any())
