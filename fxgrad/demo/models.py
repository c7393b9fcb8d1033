"""Small models of eight architectures that read the demo's canvases, in timm's own classes.

Each factory is a MODEL of the command line: `fxgrad check fxgrad.demo.models:deit3`. `python -m fxgrad.demo.train NAME`
makes a model's weights; bench/measured/models.md has each model's accuracy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from timm.layers.mlp import GluMlp
from timm.models import Beit, Eva, MlpMixer, VisionTransformer
from torch import nn

from fxgrad.demo.clip import COLOUR_CFG, DigitsClip
from fxgrad.demo.model import CLASS_NAMES, ready
from fxgrad.demo.model import digits_vit as vit

__all__ = [
    "ARCHITECTURES",
    "CLASS_NAMES",
    "INDEPENDENT",
    "MODELS",
    "beit2",
    "clip",
    "deit3",
    "eva02",
    "flexivit",
    "gmixer",
    "mixer",
    "siglip",
    "vit",
    "vit_medium",
    "vit_small",
    "vit_tiny",
]

_READS: dict[str, Any] = {"img_size": 48, "patch_size": 6, "in_chans": 1, "num_classes": len(CLASS_NAMES)}
_SIZE: dict[str, Any] = {"embed_dim": 80, "depth": 4, "num_heads": 4}
_LAYER_SCALE = 0.1
"""The initial layer scale of a shallow network: CaiT (Touvron et al., arXiv:2103.17239), section 2."""


def vit_tiny(weights: bool = True) -> VisionTransformer:
    """ViT, two blocks of width 32; as `vit` otherwise."""
    return ready(VisionTransformer(**_READS, embed_dim=32, depth=2, num_heads=1, mlp_ratio=2), "vit_tiny", weights)


def vit_small(weights: bool = True) -> VisionTransformer:
    """ViT, three blocks of width 48; as `vit` otherwise."""
    return ready(VisionTransformer(**_READS, embed_dim=48, depth=3, num_heads=2, mlp_ratio=2), "vit_small", weights)


def vit_medium(weights: bool = True) -> VisionTransformer:
    """ViT, four blocks of width 64; as `vit` otherwise."""
    return ready(VisionTransformer(**_READS, embed_dim=64, depth=4, num_heads=2, mlp_ratio=2), "vit_medium", weights)


def deit3(weights: bool = True) -> VisionTransformer:
    """DeiT III: layer scale, and a class token without a position; as `vit` otherwise.

    Source: Touvron et al., arXiv:2204.07118.
    """
    model = VisionTransformer(**_READS, **_SIZE, no_embed_class=True, init_values=_LAYER_SCALE)
    return ready(model, "deit3", weights)


def beit2(weights: bool = True) -> Beit:
    """BEiT v2: relative position biases, layer scale, mean pooling; as `vit` otherwise.

    Source: Peng et al., arXiv:2208.06366.
    """
    model = Beit(**_READS, **_SIZE, use_abs_pos_emb=False, use_rel_pos_bias=True, init_values=_LAYER_SCALE)
    return ready(model, "beit2", weights)


def eva02(weights: bool = True) -> Eva:
    """EVA-02: rotary positions, SwiGLU with a norm inside, mean pooling; as `vit` otherwise.

    Source: Fang et al., arXiv:2303.11331.
    """
    model = Eva(
        **_READS,
        **_SIZE,
        mlp_ratio=4 * 2 / 3,  # SwiGLU has three matrices where an MLP has two
        swiglu_mlp=True,
        scale_mlp=True,
        use_rot_pos_emb=True,
        ref_feat_shape=(8, 8),
    )
    return ready(model, "eva02", weights)


def flexivit(weights: bool = True) -> VisionTransformer:
    """FlexiViT: trained at several patch sizes, used at 6; as `vit` otherwise.

    Source: Beyer et al., arXiv:2212.08013.
    """
    return ready(VisionTransformer(**_READS, **_SIZE, no_embed_class=True), "flexivit", weights)


def siglip(weights: bool = True) -> VisionTransformer:
    """SigLIP's image tower: no class token, attention pooling; as `vit` otherwise.

    Source: Zhai et al., arXiv:2303.15343.
    """
    return ready(VisionTransformer(**_READS, **_SIZE, class_token=False, global_pool="map"), "siglip", weights)


def mixer(weights: bool = True) -> MlpMixer:
    """MLP-Mixer: no attention, an MLP along the tokens; as `vit` otherwise.

    Source: Tolstikhin et al., arXiv:2105.01601.
    """
    return ready(MlpMixer(**_READS, num_blocks=4, embed_dim=80, mlp_ratio=(0.8, 4.0)), "mixer", weights)


def gmixer(weights: bool = False) -> MlpMixer:
    """gMixer: MLP-Mixer with SwiGLU; as `mixer` otherwise. Trained from scratch only, so no weights are shipped.

    Source: timm's gmixer_24_224; Shazeer, arXiv:2002.05202, for SwiGLU.
    """
    # Half of a gated MLP's hidden units are gates, so it has fewer parameters.
    gated: dict[str, Any] = {"mlp_layer": GluMlp, "act_layer": nn.SiLU, "mlp_ratio": (0.8, 4.0)}
    return ready(MlpMixer(**_READS, num_blocks=4, embed_dim=80, **gated), "gmixer", weights)


def clip(weights: bool = True) -> DigitsClip:
    """CLIP on coloured canvases: from (N, 3, 48, 48) to logits of "a zero" ... "a nine"; see `DigitsClip`.

    Source: Radford et al., arXiv:2103.00020.
    """
    return ready(DigitsClip(), "clip", weights, COLOUR_CFG)


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
INDEPENDENT: dict[str, Factory] = {**ARCHITECTURES, "gmixer": gmixer}
"""The eight and the paper's own Mixer: models that can be trained from scratch."""
