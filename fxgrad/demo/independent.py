"""The paper's architectures at half the size, each to be trained from scratch: independent witnesses.

No weights are shipped. `python -m fxgrad.demo.train vit --from-scratch FOLDER` makes them, and each factory is a MODEL
of the command line: `fxgrad check fxgrad.demo.independent:vit --checkpoint FOLDER/vit-0.safetensors`.
"""

from __future__ import annotations

from collections.abc import Callable

from timm.layers.mlp import GluMlp
from timm.models import Beit, Eva, MlpMixer, VisionTransformer
from torch import nn

from fxgrad.demo import models
from fxgrad.demo.clip import DigitsClip
from fxgrad.demo.model import ready
from fxgrad.demo.models import READS, Size, mixed

HALF: Size = {"embed_dim": 64, "depth": 4, "num_heads": 2, "mlp_ratio": 2.0}


def vit() -> VisionTransformer:
    """ViT."""
    return ready(VisionTransformer(**READS, **HALF), "vit", weights=False)


def deit3() -> VisionTransformer:
    """DeiT III; see `models.deit3`."""
    return models.deit3(False, HALF)


def beit2() -> Beit:
    """BEiT v2; see `models.beit2`."""
    return models.beit2(False, HALF)


def eva02() -> Eva:
    """EVA-02; see `models.eva02`."""
    return models.eva02(False, HALF)


def flexivit() -> VisionTransformer:
    """FlexiViT; see `models.flexivit`."""
    return models.flexivit(False, HALF)


def siglip() -> VisionTransformer:
    """SigLIP's image tower; see `models.siglip`."""
    return models.siglip(False, HALF)


def clip() -> DigitsClip:
    """CLIP on coloured canvases; see `models.clip`."""
    return models.clip(False, HALF)


def mixer() -> MlpMixer:
    """MLP-Mixer; see `models.mixer`."""
    return models.mixer(False, HALF)


def gmixer() -> MlpMixer:
    """gMixer: MLP-Mixer with SwiGLU, the paper's Mixer.

    Source: timm's gmixer_24_224; Shazeer, arXiv:2002.05202, for SwiGLU.
    """
    # Half of a gated MLP's hidden units are gates.
    ratios = {"mlp_ratio": (1.0, 2 * HALF["mlp_ratio"])}
    model = MlpMixer(**READS, **{**mixed(HALF), **ratios}, mlp_layer=GluMlp, act_layer=nn.SiLU)
    return ready(model, "gmixer", weights=False)


INDEPENDENT: dict[str, Callable[[], nn.Module]] = {
    f.__name__: f for f in (vit, deit3, beit2, eva02, flexivit, siglip, clip, mixer, gmixer)
}
"""The paper's eight, and its own Mixer."""
