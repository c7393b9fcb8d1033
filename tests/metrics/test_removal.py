"""Parts taken away: dropping tokens is what masking them in every attention computes, in the eager model."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxgrad
from fxgrad.data.models import randomize
from fxgrad.errors import InputError
from fxgrad.metrics import Dropping, Replacing, blurred

SDPA = F.scaled_dot_product_attention
SMALL: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": {},
    "vit_tiny_patch16_224 without fused attention": {},
    "deit_tiny_distilled_patch16_224": {},
    "vit_small_patch14_reg4_dinov2": {"patch_size": 16},
    "beitv2_base_patch16_224": {"global_pool": "token"},  # bias of positions
    "eva02_tiny_patch14_224": {"patch_size": 16, "global_pool": "token"},  # rotary embedding
    "vit_base_patch16_siglip_224": {},  # pools by attention
}


def small(name: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(
        name.split()[0],
        img_size=64,
        depth=1,
        num_classes=5,
        embed_dim=48,
        num_heads=3,
        **SMALL.get(name, {}),
        **options,
    )
    randomize(model)
    return model.double().eval()


@pytest.mark.parametrize("name", SMALL)
def test_dropped_tokens_are_masked_ones(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if "without fused" in name:
        monkeypatch.setattr("timm.layers.attention.use_fused_attn", lambda: False)
    model, x = small(name), torch.randn(3, 3, 64, 64).double()
    removal = Dropping(fxgrad.convert(model, (x,)), (4, 4))
    keep = torch.stack([torch.randperm(16)[:5] for _ in x])
    found = removal(removal.prepare(x), keep)
    allowed = torch.ones(3, removal.prefix + 16, dtype=torch.bool)
    allowed[:, removal.prefix :] = torch.zeros(3, 16, dtype=torch.bool).scatter_(1, keep, True)

    def masked(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, **options: Any) -> Tensor:
        assert k.shape[-2] == allowed.shape[1]
        bias = torch.zeros(3, 1, 1, k.shape[-2]).double().masked_fill(~allowed[:, None, None], -torch.inf)
        return SDPA(q, k, v, attn_mask=bias if attn_mask is None else attn_mask + bias, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", masked)
    if "without fused" in name:
        model = small("vit_tiny_patch16_224")
        for block in model.blocks:  # type: ignore[union-attr]
            block.attn.fused_attn = True  # type: ignore[union-attr]
    with torch.no_grad():
        torch.testing.assert_close(found, model(x), rtol=1e-10, atol=1e-10)


def test_the_mean_is_over_the_tokens_that_are_left() -> None:
    model, x = small("vit_tiny_patch16_224", class_token=False, global_pool="avg"), torch.randn(2, 3, 64, 64).double()
    removal = Dropping(fxgrad.convert(model, (x,)), (4, 4))
    with torch.no_grad():
        tokens = (model.patch_embed(x) + model.pos_embed)[:, [3, 7, 9]]  # type: ignore[operator, index]
        wanted = model.head(model.fc_norm(model.norm(model.blocks(tokens)).mean(1)))  # type: ignore[operator]
    found = removal(removal.prepare(x), torch.tensor([[9, 3, 7]] * 2))
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("model", "grid", "message"),
    [
        (lambda: Mixer(), (4, 4), "it has no attention"),
        (
            lambda: timm.create_model("test_vit", img_size=64),
            (8, 8),
            "no value ahead of its attention holds 64 of them",
        ),
        (lambda: Windows(), (4, 4), "takes the tokens apart"),
        (lambda: Turned(), (4, 4), "the pixels under dropped tokens still matter"),
    ],
)
def test_a_model_that_cannot_is_refused(model: Any, grid: tuple[int, int], message: str) -> None:
    x = torch.randn(2, 3, 64, 64)
    with pytest.raises(InputError, match=message):
        Dropping(fxgrad.convert(model().eval(), (x,)), grid)


class Mixer(nn.Module):
    """Mixes 16 tokens by a matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mix, self.head = nn.Conv2d(3, 8, 16, 16), nn.Linear(16, 16), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mix(self.stem(x).flatten(2)).mean(2))


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 16, 16), nn.Linear(8, 5)

    def attend(self, tokens: Tensor) -> Tensor:
        return SDPA(tokens[:, None], tokens[:, None], tokens[:, None])[:, 0]


class Windows(Attending):
    """Attends within windows of four tokens."""

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.stem(x).flatten(2).transpose(1, 2) + 0.0
        return self.head(self.attend(tokens.reshape(-1, 4, 8)).reshape(-1, 16, 8).mean(1))


class Turned(Attending):
    """Numbers its tokens from the last to the first."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attend(self.stem(x).flatten(2).transpose(1, 2).flip(1)).mean(1))


def test_pixels_are_replaced_by_zero_or_by_the_blurred_picture() -> None:
    x = torch.randn(2, 3, 4, 6)
    keep = torch.tensor([[0], [3]])
    mask = torch.zeros(2, 1, 4, 6, dtype=torch.bool)
    mask[0, :, :2, :3] = mask[1, :, 2:, 3:] = True
    for baseline, elsewhere in (("zero", torch.zeros_like(x)), ("blur", blurred(x))):
        removal = Replacing(nn.Flatten(), (2, 2), baseline)
        assert torch.equal(removal(removal.prepare(x), keep), torch.where(mask, x, elsewhere).flatten(1))
    with pytest.raises(InputError, match="there is no baseline 'grey': use 'zero' or 'blur'"):
        Replacing(nn.Flatten(), (2, 2), "grey")
    with pytest.raises(InputError, match=r"a picture of 4 x 6 pixels has no even grid of \(3, 3\)"):
        Replacing(nn.Flatten(), (3, 3)).prepare(x)


def test_the_blur_is_gaussian() -> None:
    from torchvision.transforms.functional import gaussian_blur

    x = torch.randn(1, 2, 30, 40)
    wanted = gaussian_blur(x, [13, 13], [2.0, 2.0])
    # Theirs mirrors at the border, ours goes on with the last pixel.
    torch.testing.assert_close(blurred(x)[..., 6:-6, 6:-6], wanted[..., 6:-6, 6:-6])
    assert torch.equal(blurred(x, 2.0), blurred(x))
