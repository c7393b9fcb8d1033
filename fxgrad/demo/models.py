"""Small models of eight architectures that read the demo's canvases, in timm's own classes.

Each factory is a MODEL of the command line: `fxgrad check fxgrad.demo.models:deit3`. `python -m fxgrad.demo.train NAME`
makes a model's weights; bench/measured/models.md has each model's accuracy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from timm.models import Beit, Eva, MlpMixer, VisionTransformer
from torch import nn

from fxgrad.demo.clip import COLOUR_CFG, DigitsClip
from fxgrad.demo.model import CLASS_NAMES, ready
from fxgrad.demo.model import digits_vit as vit

__all__ = [
    "ARCHITECTURES",
    "CLASS_NAMES",
    "MODELS",
    "beit2",
    "clip",
    "deit3",
    "eva02",
    "flexivit",
    "mixer",
    "siglip",
    "vit",
    "vit_medium",
    "vit_small",
    "vit_tiny",
]

Size = Mapping[str, Any]
"""Embedding dimension, depth, heads and MLP ratio, in the words of timm's VisionTransformer."""
READS: dict[str, Any] = {"img_size": 48, "patch_size": 6, "in_chans": 1, "num_classes": len(CLASS_NAMES)}
SIZE: Size = {"embed_dim": 80, "depth": 4, "num_heads": 4, "mlp_ratio": 4.0}
_LAYER_SCALE = 0.1
"""The initial layer scale of a shallow network: CaiT (Touvron et al., arXiv:2103.17239), section 2."""


def mixed(size: Size) -> dict[str, Any]:
    """A size in a Mixer's own words; its MLPs along tokens are narrow, there are 64 tokens only."""
    return {"num_blocks": size["depth"], "embed_dim": size["embed_dim"], "mlp_ratio": (0.8, size["mlp_ratio"])}


def vit_tiny(weights: bool = True) -> VisionTransformer:
    """ViT, two blocks of width 32; as `vit` otherwise."""
    return ready(VisionTransformer(**READS, embed_dim=32, depth=2, num_heads=1, mlp_ratio=2), "vit_tiny", weights)


def vit_small(weights: bool = True) -> VisionTransformer:
    """ViT, three blocks of width 48; as `vit` otherwise."""
    return ready(VisionTransformer(**READS, embed_dim=48, depth=3, num_heads=2, mlp_ratio=2), "vit_small", weights)


def vit_medium(weights: bool = True) -> VisionTransformer:
    """ViT, four blocks of width 64; as `vit` otherwise."""
    return ready(VisionTransformer(**READS, embed_dim=64, depth=4, num_heads=2, mlp_ratio=2), "vit_medium", weights)


def deit3(weights: bool = True, size: Size = SIZE) -> VisionTransformer:
    """DeiT III: layer scale, and a class token without a position; as `vit` otherwise.

    Source: Touvron et al., arXiv:2204.07118.
    """
    model = VisionTransformer(**READS, **size, no_embed_class=True, init_values=_LAYER_SCALE)
    return ready(model, "deit3", weights)


def beit2(weights: bool = True, size: Size = SIZE) -> Beit:
    """BEiT v2: relative position biases, layer scale, mean pooling; as `vit` otherwise.

    Source: Peng et al., arXiv:2208.06366.
    """
    model = Beit(**READS, **size, use_abs_pos_emb=False, use_rel_pos_bias=True, init_values=_LAYER_SCALE)
    return ready(model, "beit2", weights)


def eva02(weights: bool = True, size: Size = SIZE) -> Eva:
    """EVA-02: rotary positions, SwiGLU with a norm inside, mean pooling; as `vit` otherwise.

    Source: Fang et al., arXiv:2303.11331.
    """
    model = Eva(
        **READS,
        **{**size, "mlp_ratio": size["mlp_ratio"] * 2 / 3},  # SwiGLU has three matrices where an MLP has two
        swiglu_mlp=True,
        scale_mlp=True,
        use_rot_pos_emb=True,
        ref_feat_shape=(8, 8),
    )
    return ready(model, "eva02", weights)


def flexivit(weights: bool = True, size: Size = SIZE) -> VisionTransformer:
    """FlexiViT: trained at several patch sizes, used at 6; as `vit` otherwise.

    Source: Beyer et al., arXiv:2212.08013.
    """
    return ready(VisionTransformer(**READS, **size, no_embed_class=True), "flexivit", weights)


def siglip(weights: bool = True, size: Size = SIZE) -> VisionTransformer:
    """SigLIP's image tower: no class token, attention pooling; as `vit` otherwise.

    Source: Zhai et al., arXiv:2303.15343.
    """
    return ready(VisionTransformer(**READS, **size, class_token=False, global_pool="map"), "siglip", weights)


def mixer(weights: bool = True, size: Size = SIZE) -> MlpMixer:
    """MLP-Mixer: no attention, an MLP along the tokens; as `vit` otherwise.

    Source: Tolstikhin et al., arXiv:2105.01601.
    """
    return ready(MlpMixer(**READS, **mixed(size)), "mixer", weights)


def clip(weights: bool = True, size: Size = SIZE) -> DigitsClip:
    """CLIP on coloured canvases: from (N, 3, 48, 48) to logits of "a zero" ... "a nine"; see `DigitsClip`.

    Source: Radford et al., arXiv:2103.00020.
    """
    return ready(DigitsClip(size["embed_dim"], size["depth"]), "clip", weights, COLOUR_CFG)


Factory = Callable[..., nn.Module]
ARCHITECTURES: dict[str, Factory] = {
    "vit": vit,
    "deit3": deit3,
    "beit2": beit2,
    "eva02": eva02,
    "flexivit": flexivit,
    "siglip": siglip,
    "clip": clip,
    "mixer": mixer,
}
"""The eight of the paper, each at one size."""
MODELS: dict[str, Factory] = {**ARCHITECTURES, "vit_tiny": vit_tiny, "vit_small": vit_small, "vit_medium": vit_medium}
"""All models that are shipped: the eight, and ViT in three smaller sizes."""
