"""Methods of one layer and of blocks on maps with one, two and three axes, in windows, and at coarse resolutions."""

from __future__ import annotations

import pytest
import torch
from captum.attr import LayerGradCam
from torch import Tensor, nn
from transformers import SwinConfig, SwinForImageClassification

import fxgrad
from fxgrad.data.models import randomize
from fxgrad.methods import anatomy
from fxgrad.methods.placing import resample

SHAPES = {1: (2, 2, 12), 2: (2, 2, 12, 8), 3: (2, 2, 4, 12, 8)}


class Net(nn.Module):
    """Convolutions of any number of axes, in blocks or as layers."""

    def __init__(self, rank: int, blocks: bool) -> None:
        super().__init__()
        make, norm = getattr(nn, f"Conv{rank}d"), getattr(nn, f"BatchNorm{rank}d")
        layers = [make(2, 4, 3, 2, 1), norm(4), nn.GELU(), make(4, 6, 3, 1, 1), nn.GELU()]
        self.blocks = nn.Sequential(*layers) if blocks else None
        self.a, self.b = (None, None) if blocks else (nn.Sequential(*layers[:3]), layers[3])
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.blocks(x) if self.blocks is not None else self.b(self.a(x))  # type: ignore[misc]
        return self.head(y.flatten(2).mean(2))


@pytest.mark.parametrize("blocks", [True, False])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_maps_with_any_number_of_axes(rank: int, blocks: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(SHAPES[rank]).double()
    model = Net(rank, blocks).double().eval()
    libra = fxgrad.convert(model, (x,))
    layer = "blocks.3" if blocks else "b"
    module = libra.unflattened()
    wanted = LayerGradCam(module, module.get_submodule(layer)).attribute(x, target=1, relu_attributions=True)[:, 0]
    found = fxgrad.attribute(libra, (x,), target=1, method="gradcam", layer=layer)
    assert torch.allclose(found.patches, wanted, rtol=1e-10, atol=1e-12) and wanted.abs().max() > 0
    assert found.patches.dim() == rank + 1 and found.pixels.shape == (2, *SHAPES[rank][2:])
    high = fxgrad.attribute(libra, (x,), target=1, method="hirescam", layer=layer)
    assert high.completeness_error is not None and high.completeness_error < 1e-10
    if blocks:
        for method in ("fullgrad", "fullgrad_plus"):
            full = fxgrad.attribute(libra, (x,), target=1, method=method)
            assert full.patches.dim() == rank + 1
            assert full.completeness_error is not None and full.completeness_error < 1e-10


def test_maps_of_a_volume_on_another_grid_keep_their_total() -> None:
    maps = torch.rand(2, 4, 6, 5).double()
    coarse = resample(maps, (2, 3, 5))
    assert torch.allclose(coarse, nn.functional.avg_pool3d(maps[:, None], (2, 2, 1), divisor_override=1)[:, 0])
    assert torch.allclose(resample(maps, (3, 4, 7)).sum((1, 2, 3)), maps.sum((1, 2, 3)))


def test_a_layer_without_an_axis_of_tokens() -> None:
    x = torch.randn(2, 2, 12).double()
    libra = fxgrad.convert(Net(1, False).double().eval(), (x,))
    for method in ("gradcam", "hirescam"):
        with pytest.raises(fxgrad.InputError, match=rf"{method} looks at .* 'head' of shape \(2, 3\) has no axis"):
            fxgrad.attribute(libra, (x,), target=1, method=method, layer="head")


@pytest.fixture(scope="module")
def swin() -> tuple[fxgrad.ConvertedModule, Tensor]:
    torch.manual_seed(0)
    config = SwinConfig(
        image_size=64, patch_size=4, window_size=4, embed_dim=8, depths=[1, 1, 2], num_heads=[2, 2, 4], num_labels=5
    )
    model = SwinForImageClassification(config).double().eval()
    randomize(model)
    x = torch.randn(2, 3, 64, 64).double()
    return fxgrad.convert(model, (x,)), x


@pytest.mark.parametrize("layer", [None, "swin.encoder.layers.2.blocks.1.layernorm_before", "swin.layernorm"])
def test_stages_of_tokens_at_coarse_resolutions(layer: str | None, swin: tuple[fxgrad.ConvertedModule, Tensor]) -> None:
    libra, x = swin
    assert anatomy(libra.classified).grid == (16, 16)
    module = libra.unflattened()
    seen: list[Tensor] = []
    if layer is None:
        hooked = module.get_submodule("swin.encoder.layers.2.blocks.0.layernorm_before")
        hooked.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    else:
        module.get_submodule(layer).register_forward_hook(lambda module, inputs, output: seen.append(output))
    y = module(x.clone().requires_grad_()).logits[:, 1]
    (g,) = torch.autograd.grad(y.sum(), seen)
    cam = (seen[0] * g.mean(1, keepdim=True)).sum(2).relu().detach().reshape(2, 4, 4)
    wanted = cam.repeat_interleave(4, 1).repeat_interleave(4, 2) / 16
    found = fxgrad.attribute(libra, (x,), target=1, method="gradcam", layer=layer)
    assert torch.allclose(found.patches, wanted, rtol=1e-9, atol=1e-12) and wanted.abs().max() > 0
    high = fxgrad.attribute(libra, (x,), target=1, method="hirescam", layer=layer)
    # The residual connection passes by what stands before the attention.
    around = layer is not None and layer.endswith("layernorm_before")
    assert ("some of the flow does not pass through the layer that you name" in high.note) is around
    wanted = (seen[0] * g).sum(2).detach().reshape(2, 4, 4).repeat_interleave(4, 1).repeat_interleave(4, 2) / 16
    assert torch.allclose(high.patches, wanted, rtol=1e-9, atol=1e-12)


class Block(nn.Module):
    """A layer in windows of 2 x 2 tokens, or without them, which is the same."""

    def __init__(self, windows: bool) -> None:
        super().__init__()
        self.windows, self.layer = windows, nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        if not self.windows:
            return x + self.layer(x).relu()
        b, h, w, c = x.shape
        y = x.reshape(b, h // 2, 2, w // 2, 2, c).transpose(2, 3).reshape(-1, 4, c)
        y = self.layer(y).relu().reshape(b, h // 2, w // 2, 2, 2, c)
        return x + y.transpose(2, 3).reshape(b, h, w, c)


class Windows(nn.Module):
    def __init__(self, windows: bool) -> None:
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(3, 8, 4, 4), nn.ModuleList(Block(windows) for _ in range(2))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).permute(0, 2, 3, 1)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((1, 2)))


def test_sources_inside_of_windows_go_to_their_tokens() -> None:
    torch.manual_seed(0)
    plain, windows = (Windows(w).double().eval() for w in (False, True))
    windows.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 16, 24).double()
    both = [fxgrad.convert(m, (x,)) for m in (plain, windows)]
    for method in ("fullgrad", "fullgrad_plus", "hirescam"):
        wanted, found = (fxgrad.attribute(c, (x,), target=1, method=method) for c in both)
        assert torch.allclose(found.patches, wanted.patches, rtol=1e-9, atol=1e-12), method
        assert found.patches.shape == (2, 4, 6) and found.completeness_error < 1e-10  # type: ignore[operator]


@pytest.mark.parametrize("rank", [1, 2])
def test_a_network_without_blocks_is_mapped_on_its_last_feature_map(rank: int) -> None:
    conv, pool = ((nn.Conv1d, nn.AdaptiveAvgPool1d), (nn.Conv2d, nn.AdaptiveAvgPool2d))[rank - 1]

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.pool, self.last = conv(2, 4, 3), conv(4, 6, 3, 2), pool(1), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.relu(self.second(torch.relu(self.first(x))))
            return self.last(self.pool(h).flatten(1))  # type: ignore[no-any-return]

    torch.manual_seed(0)
    model, x = Plain().double().eval(), torch.randn(3, 2, *[9] * rank, dtype=torch.float64)
    found = fxgrad.attribute(fxgrad.convert(model, (x,)), (x,), target=1, method="fullgrad")
    assert found.grid == (3,) * rank and found.map.shape == (3, 3**rank)
    assert found.total is not None and torch.allclose(found.total, model(x)[:, 1])
