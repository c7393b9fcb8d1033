"""How to build every layer that torch.nn, timm.layers and torchvision.ops publish, and what to feed it.

A recipe is written `of(*arguments, shape="2 3 4, 2 3", **options)`: the class is called with the arguments
and the options, the module with random inputs of these shapes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import timm.layers
import torch
from torch import Tensor, nn

import fxgrad


@dataclass(frozen=True)
class Recipe:
    """How to build a layer, and what to expect of it.

    Attributes:
        build: from the class to a module.
        inputs: shapes of its random inputs, or the inputs themselves.
        error: that refuses the layer.
        multiplies: though refused as an output, it must convert as a factor.
        bound: on the completeness error. Layers that compute in float32 inside keep no more.
        skip: why the class is no layer that could be converted.
    """

    build: Callable[[Any], nn.Module]
    inputs: tuple[Any, ...]
    error: type[Exception] | None = None
    bound: float = 1e-10
    skip: str = ""
    multiplies: bool = False


REFUSED = fxgrad.NotBalanceableError
Recipes = dict[str, Recipe]


class Called(nn.Module):
    """A function of modules and inputs, as a module: for layers that take or return more than tensors."""

    def __init__(self, function: Callable[..., Any], *operands: nn.Module) -> None:
        super().__init__()
        self.function = function
        self.operands = nn.ModuleList(operands)

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*self.operands, *inputs)


class Several(nn.Module):
    """Modules side by side, each on inputs of its own."""

    def __init__(self, modules: Sequence[nn.Module], counts: Sequence[int]) -> None:
        super().__init__()
        self.branches, self.counts = nn.ModuleList(modules), counts

    def forward(self, *inputs: Tensor) -> list[Any]:
        rest = iter(inputs)
        return [branch(*itertools.islice(rest, n)) for branch, n in zip(self.branches, self.counts)]


def of(
    *args: Any, shape: str = "", error: type[Exception] | None = None, bound: float = 1e-10, **kwargs: Any
) -> Recipe:
    shapes = tuple(tuple(int(n) for n in one.split()) for one in shape.split(","))
    return Recipe(lambda cls: cls(*args, **kwargs), shapes, error, bound)


def gate(*args: Any, shape: str) -> Recipe:
    return replace(of(*args, shape=shape, error=REFUSED), multiplies=True)


def called(function: Callable[..., Any], *args: Any, shape: str, **kwargs: Any) -> Recipe:
    """The class called with these arguments, then used by a function of (module, *inputs)."""
    plain = of(*args, shape=shape, **kwargs)
    return Recipe(lambda cls: Called(function, plain.build(cls)), plain.inputs)


def several(*recipes: Recipe) -> Recipe:
    """All of them in one graph, which is faster than one by one."""
    return Recipe(
        lambda cls: Several([r.build(cls) for r in recipes], [len(r.inputs) for r in recipes]),
        tuple(i for r in recipes for i in r.inputs),
    )


def no_layer(reason: str) -> Recipe:
    return Recipe(nn.Identity, (), skip=reason)


def each(names: str, recipe: Recipe) -> Recipes:
    return dict.fromkeys(names.split(), recipe)


LINE, IMAGE, VOLUME = "2 4 9", "2 4 8 8", "2 4 4 4 4"
SPACES = {1: LINE, 2: IMAGE, 3: VOLUME}
ROWS, TOKENS = "2 6 8", "2 5 8"


def spatial(name: str, *args: Any, **kwargs: Any) -> Recipes:
    """One recipe for the layer in each number of dimensions."""
    return {f"{name}{d}d": of(*args, shape=shape, **kwargs) for d, shape in SPACES.items()}


def unpooled(dims: int, shape: str) -> Recipe:
    """An unpooling needs the indices of a pooling."""
    pool = getattr(nn, f"MaxPool{dims}d")
    return Recipe(
        lambda cls: Called(lambda pool, unpool, x: unpool(*pool(x)), pool(2, return_indices=True), cls(2)),
        of(shape=shape).inputs,
    )


def rotary(*args: Any, **kwargs: Any) -> Recipe:
    """A table of rotations, applied."""
    return called(lambda m, x: timm.layers.apply_rot_embed_cat(x, m.get_embed()), *args, shape="2 3 4 8", **kwargs)


RECURRENT = {"input_size": 3, "hidden_size": 4}
IDS = torch.tensor([[1, 2, 3], [4, 0, 6]])

TORCH: Recipes = {
    # activation
    **each("ReLU RReLU Hardtanh ReLU6 Sigmoid Hardsigmoid Tanh SiLU Mish Hardswish ELU CELU SELU", of(shape=ROWS)),
    **each("Hardshrink LeakyReLU LogSigmoid Softplus Softshrink Softsign Tanhshrink PReLU", of(shape=ROWS)),
    "Threshold": of(0.25, -2.0, shape=ROWS),
    "GELU": several(of(shape=ROWS), of("tanh", shape=ROWS)),
    "GLU": several(of(shape=ROWS), of(1, shape=ROWS)),
    **each("Softmin Softmax LogSoftmax", gate(-1, shape=ROWS)),
    "Softmax2d": gate(shape=IMAGE),
    "MultiheadAttention": no_layer("has tests of its own"),
    # normalization
    "LocalResponseNorm": of(3, shape=IMAGE),
    # An autograd.Function of old, which torch.export cannot trace; LocalResponseNorm does the same.
    "CrossMapLRN2d": of(3, shape=IMAGE, error=fxgrad.CaptureError),
    "LayerNorm": several(of(8, shape=ROWS), of((6, 8), elementwise_affine=False, shape=ROWS)),
    "GroupNorm": of(2, 4, shape=IMAGE),
    "RMSNorm": of(8, shape=ROWS),
    # pooling
    **spatial("MaxPool", 2),
    **spatial("AvgPool", 2),
    **spatial("LPPool", 2, 2),
    **spatial("AdaptiveMaxPool", 3),
    **spatial("AdaptiveAvgPool", 3),
    **{f"MaxUnpool{d}d": unpooled(d, shape) for d, shape in {**SPACES, 1: "2 4 8"}.items()},
    "MaxPool2d": several(of(3, 2, 1, shape=IMAGE), of(2, dilation=2, ceil_mode=True, shape="2 4 9 9")),
    "LPPool2d": several(
        of(2, 3, shape=IMAGE),
        # To the third power, a negative mean has no root.
        Recipe(lambda cls: nn.Sequential(nn.Softplus(), cls(3, 2)), of(shape=IMAGE).inputs),
    ),
    "FractionalMaxPool2d": of(2, output_size=3, _random_samples=torch.full((2, 4, 2), 0.3).double(), shape=IMAGE),
    "FractionalMaxPool3d": of(2, output_size=2, _random_samples=torch.full((2, 4, 3), 0.3).double(), shape=VOLUME),
    # batchnorm, instancenorm
    **spatial("BatchNorm", 4),
    **spatial("LazyBatchNorm"),
    "BatchNorm1d": several(of(4, shape="2 4"), of(4, shape=LINE)),
    "SyncBatchNorm": of(4, shape=IMAGE),
    **spatial("InstanceNorm", 4, affine=True),
    **spatial("LazyInstanceNorm", affine=True),
    "InstanceNorm2d": several(of(4, shape=IMAGE), of(4, affine=True, track_running_stats=True, shape=IMAGE)),
    # padding
    **spatial("CircularPad", 1),
    **spatial("ConstantPad", 1, 0.5),
    **spatial("ReflectionPad", 1),
    **spatial("ReplicationPad", 1),
    **spatial("ZeroPad", 1),
    # upsampling
    "Upsample": several(
        *(of(scale_factor=2, mode="nearest", shape=shape) for shape in SPACES.values()),
        *(of(scale_factor=1.5, mode="nearest-exact", shape=shape) for shape in SPACES.values()),
        of(size=7, mode="linear", shape=LINE),
        of(scale_factor=1.5, mode="bilinear", align_corners=True, shape=IMAGE),
        of(scale_factor=1.5, mode="bicubic", shape=IMAGE),
        of(size=(5, 6, 7), mode="trilinear", shape=VOLUME),
    ),
    **each("UpsamplingNearest2d UpsamplingBilinear2d", of(scale_factor=2, shape=IMAGE)),
    # distance
    "PairwiseDistance": several(of(shape="2 6, 2 6"), of(1, shape="2 6, 2 6")),
    "CosineSimilarity": of(shape="2 6, 2 6"),
    # pixelshuffle, channelshuffle, fold, flatten
    **each("PixelShuffle PixelUnshuffle ChannelShuffle Unfold", of(2, shape=IMAGE)),
    "Fold": of((4, 5), 2, shape="2 12 12"),
    "Flatten": of(shape=IMAGE),
    "Unflatten": of(1, (2, 2), shape=IMAGE),
    # linear
    "Identity": of(shape="2 3"),
    "Linear": of(8, 5, shape=ROWS),
    "LazyLinear": of(5, shape=ROWS),
    "Bilinear": of(3, 4, 5, shape="2 3, 2 4"),
    # conv
    **spatial("Conv", 4, 6, 3, padding=1, groups=2),
    **spatial("LazyConv", 6, 3),
    **spatial("ConvTranspose", 4, 6, 3, stride=2),
    **spatial("LazyConvTranspose", 6, 3),
    "Conv2d": several(
        *(of(4, 6, 3, padding=2, padding_mode=m, shape=IMAGE) for m in ("zeros", "reflect", "replicate", "circular"))
    ),
    # rnn
    **each("RNNBase RNNCellBase", no_layer("a base class without a forward")),
    "RNN": several(
        of(**RECURRENT, shape="5 2 3"),
        of(**RECURRENT, nonlinearity="relu", batch_first=True, num_layers=2, bidirectional=True, shape="2 5 3"),
    ),
    "LSTM": several(
        of(**RECURRENT, shape="5 2 3"),
        of(**RECURRENT, num_layers=2, bidirectional=True, batch_first=True, shape="2 5 3"),
        of(**RECURRENT, proj_size=2, bias=False, shape="5 2 3"),
    ),
    "GRU": several(of(**RECURRENT, shape="5 2 3"), of(**RECURRENT, num_layers=2, bidirectional=True, shape="5 2 3")),
    "RNNCell": several(of(3, 4, shape="2 3, 2 4"), of(3, 4, nonlinearity="relu", shape="2 3, 2 4")),
    "LSTMCell": called(lambda m, x, h, c: m(x, (h, c)), 3, 4, shape="2 3, 2 4, 2 4"),
    "GRUCell": of(3, 4, shape="2 3, 2 4"),
    # sparse: what comes behind is attributed to the embeddings.
    "Embedding": Recipe(lambda cls: nn.Sequential(cls(7, 4), nn.GELU()), (IDS,)),
    "EmbeddingBag": Recipe(lambda cls: nn.Sequential(cls(7, 4), nn.GELU()), (IDS,)),
    # transformer
    **dict.fromkeys(nn.modules.transformer.__all__, no_layer("has a test of its own")),
    # dropout
    **each("Dropout Dropout2d AlphaDropout FeatureAlphaDropout", of(shape=IMAGE)),
    "Dropout1d": of(shape=LINE),
    "Dropout3d": of(shape=VOLUME),
}

FP32 = 1e-4  # computed in float32 whatever the dtype
PATCHES = Recipe(lambda cls: cls(nn.Conv2d(4, 5, 2, 2), 8, 2, in_chans=4, embed_dim=6), of(shape=IMAGE).inputs)

TIMM: Recipes = {
    # activations
    **each("GELU GELUTanh HardMish HardSigmoid HardSwish Mish PReLU QuickGELU Sigmoid Swish Tanh", of(shape=ROWS)),
    # norm, norm_act, evo_norm, filter_response_norm, inplace_abn, split_batchnorm
    **each("LayerNorm RmsNorm SimpleNorm LayerNormAct RmsNormAct", of(8, shape=ROWS)),
    **each("LayerNormFp32 RmsNormFp32 SimpleNormFp32 LayerNormActFp32 RmsNormActFp32", of(8, shape=ROWS, bound=FP32)),
    **each("LayerNorm2d RmsNorm2d SimpleNorm2d LayerNormAct2d RmsNormAct2d", of(4, shape=IMAGE)),
    **each("LayerNorm2dFp32 RmsNorm2dFp32 SimpleNorm2dFp32", of(4, shape=IMAGE, bound=FP32)),
    **each("LayerNormAct2dFp32 RmsNormAct2dFp32", of(4, shape=IMAGE, bound=FP32)),
    **each("GroupNorm1 GroupNorm1Act", of(4, shape=IMAGE)),
    "GroupNorm": of(4, 2, shape=IMAGE),
    "GroupNormAct": of(4, group_size=2, shape=IMAGE),
    **each("BatchNormAct2d FrozenBatchNormAct2d SyncBatchNormAct SplitBatchNorm2d", of(4, shape=IMAGE)),
    **each("EvoNorm2dB0 EvoNorm2dB1 EvoNorm2dB2", of(4, shape=IMAGE)),
    **each("EvoNorm2dS0 EvoNorm2dS0a EvoNorm2dS1 EvoNorm2dS1a EvoNorm2dS2 EvoNorm2dS2a", of(4, groups=2, shape=IMAGE)),
    **each("FilterResponseNormAct2d FilterResponseNormTlu2d", of(4, shape=IMAGE)),
    "InplaceAbn": no_layer("needs the package inplace_abn"),
    # pooling
    "AdaptiveAvgMaxPool2d": of(shape=IMAGE),
    "SelectAdaptivePool2d": several(
        *(of(pool_type=kind, flatten=True, shape=IMAGE) for kind in ("fast", "avg", "max", "avgmax", "catavgmax"))
    ),
    "AvgPool2dSame": of(3, 2, shape=IMAGE),
    "BlurPool2d": of(4, shape=IMAGE),
    "LsePlus1d": of(shape="2 1 8"),
    "LsePlus2d": of(flatten=False, shape=IMAGE),
    "SimPool1d": of(8, shape=TOKENS),
    "SimPool2d": of(4, shape=IMAGE),
    "AttentionPool2d": of(4, 4, 6, embed_dim=8, num_heads=2, shape="2 4 4 4"),
    "RotAttentionPool2d": of(4, 6, embed_dim=8, num_heads=2, ref_feat_size=4, shape="2 4 4 4"),
    **each("AttentionPoolLatent AttentionPoolPrr", of(8, num_heads=2, shape=TOKENS)),
    # attention over tokens and pictures
    "Attention": several(
        of(8, num_heads=2, shape=TOKENS), of(8, num_heads=2, qk_norm=True, norm_layer=nn.LayerNorm, shape=TOKENS)
    ),
    **each("AttentionRope DiffAttention", of(8, num_heads=2, shape=TOKENS)),
    "Attention2d": of(4, num_heads=2, shape=IMAGE),
    "MultiQueryAttention2d": of(4, num_heads=2, key_dim=4, value_dim=4, query_strides=2, kv_stride=2, shape=IMAGE),
    "MultiQueryAttentionV2": of(4, num_heads=2, key_dim=4, value_dim=4, shape=IMAGE),
    "NonLocalAttn": of(4, shape=IMAGE),
    "BatNonLocalAttn": of(8, block_size=2, groups=2, rd_ratio=0.5, shape="2 8 8 8"),
    # channel attention
    **each("EffectiveSEModule EffectiveSqueezeExcite SEModule SqueezeExcite SelectiveKernel", of(4, shape=IMAGE)),
    **each("CecaModule CircularEfficientChannelAttn EcaModule EfficientChannelAttn SplitAttn", of(4, shape=IMAGE)),
    "GatherExcite": of(4, use_mlp=False, shape=IMAGE),
    "GlobalContext": several(of(4, shape=IMAGE), of(4, fuse_add=True, fuse_scale=False, shape=IMAGE)),
    # convolutions
    "CondConv2d": of(4, 6, num_experts=3, shape=f"{IMAGE}, 2 3"),
    **each("Conv2dSame StdConv2d StdConv2dSame ScaledStdConv2d ScaledStdConv2dSame", of(4, 6, 3, 2, shape=IMAGE)),
    **each("ConvBnAct ConvNormAct ConvNormActAa SeparableConv2d SeparableConvNormAct", of(4, 6, 3, shape=IMAGE)),
    "MixedConv2d": of(4, 6, [3, 5], shape=IMAGE),
    # mlp, classifier
    **each("Mlp GatedMlp GluMlp SwiGLU", of(8, 12, shape=TOKENS)),
    "ConvMlp": of(4, 6, shape=IMAGE),
    "GlobalResponseNormMlp": several(of(4, 6, shape="2 8 8 4"), of(4, 6, use_conv=True, shape=IMAGE)),
    "ClassifierHead": of(4, 3, shape=IMAGE),
    "NormMlpClassifierHead": of(4, 3, hidden_size=6, shape=IMAGE),
    "ClNormMlpClassifierHead": of(4, 3, hidden_size=6, shape="2 8 8 4"),
    "Linear": of(8, 5, shape=TOKENS),
    # shapes, drops, scales
    "DepthToSpace": of(2, shape=IMAGE),
    "SpaceToDepth": of(4, shape=IMAGE),
    **each("DropBlock2d DropPath", of(0.5, shape=IMAGE)),
    **each("PatchDropout PatchDropoutWithIndices", of(0.5, shape=TOKENS)),
    "LayerScale": of(8, shape=TOKENS),
    "LayerScale2d": of(4, shape=IMAGE),
    # patches and positions
    **each("PatchEmbed PatchEmbedWithSize", of(8, 2, 4, 6, shape=IMAGE)),
    **each("HybridEmbed HybridEmbedWithSize", PATCHES),
    "PatchEmbedInterpolator": no_layer("resamples another layer's weights"),
    **each("RelPosBias RelPosBiasTf RelPosMlp", of((2, 2), 3, shape="2 3 4 4")),
    "FourierEmbed": of(8, 2, shape=IMAGE),
    "RotaryEmbedding": called(
        lambda m, x: timm.layers.apply_rot_embed(x, *m.get_embed()),
        *(8,),
        in_pixels=False,
        feat_shape=(2, 2),
        shape="2 3 4 8",
    ),
    "RotaryEmbeddingCat": rotary(8, in_pixels=False, feat_shape=(2, 2)),
    "RotaryEmbeddingDinoV3": rotary(8, feat_shape=(2, 2)),
    "RotaryEmbeddingMixed": called(
        lambda m, x: timm.layers.apply_rot_embed_cat(x, m.get_embed((2, 2))[0]), 12, 2, 3, shape="2 3 4 4"
    ),
    "RotaryEmbeddingMRope": no_layer("gives tables for positions, for an attention to apply"),
    "TestTimePoolHead": no_layer("wraps a whole model"),
    # named in tables only
    "HardMishMe": of(shape=ROWS),
}

# Of timm.layers.get_attn, by the name that configurations use.
ATTN: Recipes = {
    **each("se ese eca ecam ceca gc gca cbam lcbam coord scoord ela strip sk splat nl", of(16, shape="2 16 8 8")),
    "ge": of(16, use_mlp=False, shape="2 16 8 8"),
    **each("lambda bottleneck", of(16, feat_size=(8, 8), shape="2 16 8 8")),
    "halo": of(16, block_size=4, halo_size=1, shape="2 16 8 8"),
    "bat": of(16, block_size=2, shape="2 16 8 8"),
}

BOXES = torch.tensor([[0.0, 1, 1, 6, 6], [1, 0, 0, 7, 5]]).double()
VISION: Recipes = {
    "DeformConv2d": no_layer("has a test of its own"),
    **each("RoIAlign PSRoIAlign", called(lambda m, x: m(x, BOXES), 2, 1.0, 2, shape=IMAGE)),
    **each("RoIPool PSRoIPool", called(lambda m, x: m(x, BOXES), 2, 1.0, shape=IMAGE)),
    "MultiScaleRoIAlign": no_layer("sorts boxes by size, which depends on the data"),
    "FeaturePyramidNetwork": called(
        lambda m, x, y: list(m({"fine": x, "coarse": y}).values()), [4, 6], 5, shape="2 4 8 8, 2 6 4 4"
    ),
    "StochasticDepth": of(0.5, "row", shape=IMAGE),
    "FrozenBatchNorm2d": of(4, shape=IMAGE),
    "Conv2dNormActivation": of(4, 6, shape=IMAGE),
    "Conv3dNormActivation": of(4, 6, shape=VOLUME),
    "SqueezeExcitation": of(4, 2, shape=IMAGE),
    "MLP": of(8, [6, 5], shape=TOKENS),
    "Permute": of([0, 2, 3, 1], shape=IMAGE),
    "DropBlock2d": of(0.5, 3, shape=IMAGE),
    "DropBlock3d": of(0.5, 3, shape=VOLUME),
}
