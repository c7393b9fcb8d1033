"""Comparison with what nobody here wrote: captum, zennit, and models balanced by hand as LibraGrad's authors do it."""

from __future__ import annotations

from collections.abc import Callable

import captum.attr
import pytest
import torch
import torch.nn.functional as F
import zennit.attribution
import zennit.composites
import zennit.rules
import zennit.types
from captum.attr._core import deep_lift
from timm.layers import SwiGLU
from timm.models.mlp_mixer import MixerBlock
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import fxgrad


def randomised(model: nn.Module) -> nn.Module:
    """In float64, every parameter away from 0 and 1: norms' weights, biases and position embeddings, too.

    Frozen, as in a converted module: PyTorch's matmul picks its kernel by requires_grad, under no_grad, too.
    """
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.2)
    return model.double().eval().requires_grad_(False)


def assert_same(ours: Tensor, theirs: Tensor, bound: float = 1e-12) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= bound * theirs.abs().max()


def gradient(forward: Callable[[Tensor], Tensor], x: Tensor, target: int = 1) -> Tensor:
    """The gradient of one logit of every item of the batch."""
    x = x.detach().clone().requires_grad_()
    return torch.autograd.grad(forward(x)[:, target].sum(), x)[0]


def vision_transformer() -> nn.Module:
    return randomised(VisionTransformer(img_size=16, patch_size=8, embed_dim=32, depth=2, num_heads=4, num_classes=5))


# Captum on converted modules.


def test_captum_takes_a_converted_module() -> None:
    model, x = vision_transformer(), torch.randn(2, 3, 16, 16).double()
    converted = fxgrad.convert(model, (x,))
    wanted = gradient(converted, x)
    x = x.requires_grad_()
    assert_same(captum.attr.InputXGradient(converted).attribute(x, target=1), x * wanted)
    assert_same(captum.attr.Saliency(converted).attribute(x, target=1), wanted.abs())


# DeepLIFT's Rescale rule with reference 0 is the secant through 0. Without biases, the reference of every layer is 0
# as long as f(0) = 0; where it is not, the difference from the reference is the same up to the first activation.


@pytest.mark.parametrize(
    ("activation", "layers"),
    [
        (nn.ReLU, 3),
        (nn.LeakyReLU, 3),
        (nn.ELU, 3),
        (nn.Tanh, 3),
        (nn.GELU, 3),
        (nn.SiLU, 3),
        (nn.Sigmoid, 1),
        (nn.Softplus, 1),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
# Captum says so on every call: hooks on the activations are how it works.
@pytest.mark.filterwarnings("ignore:Setting forward, backward hooks and attributes on non-linear:UserWarning")
def test_captum_deep_lift(activation: type[nn.Module], layers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # Captum's list of activations ends before GELU; its Rescale rule itself asks for nothing but the module.
    monkeypatch.setitem(deep_lift.SUPPORTED_NON_LINEAR, activation, deep_lift.nonlinear)
    hidden = [m for i in range(layers) for m in (nn.Linear(8 if i else 6, 8, bias=False), activation())]
    model = nn.Sequential(*hidden, nn.Linear(8, 3, bias=False)).double().eval()
    # Larger than the 1e-10 below which captum takes the derivative for the secant.
    x = torch.randn(4, 6).double() * torch.tensor([[0.1], [0.5], [2.0], [10.0]])
    wanted = captum.attr.DeepLift(model).attribute(x.requires_grad_(), baselines=torch.zeros_like(x), target=1)
    assert_same(x * gradient(fxgrad.convert(model, (x,)), x), wanted)


# LRP-0 of a ReLU net without biases is Input x Gradient; so is a converted one, where nothing needs rewriting.


def test_zennit_epsilon() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=False),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.AvgPool2d(3),
        nn.Flatten(),
        nn.Linear(8 * 4, 5, bias=False),
    )
    model, x = model.double().eval(), torch.randn(2, 3, 14, 14).double()
    composite = zennit.composites.LayerMapComposite(
        [
            (zennit.types.Activation, zennit.rules.Pass()),
            (zennit.types.AvgPool, zennit.rules.Norm(stabilizer=1e-18)),
            (zennit.types.Linear, zennit.rules.Epsilon(epsilon=1e-18)),
        ]
    )
    one_hot = F.one_hot(torch.tensor([1, 1]), 5).double()
    with zennit.attribution.Gradient(model, composite) as attributor:
        _, relevance = attributor(x, lambda output: output * one_hot)
    found = gradient(fxgrad.convert(model, (x,)), x)
    assert_same(x * found, relevance)
    assert_same(found, gradient(model, x))


# Balanced by hand: the model's forward, spelled out with .detach() on what LibraGrad prunes.


def norm(x: Tensor, layer: nn.LayerNorm) -> Tensor:
    centre = x - x.mean(-1, keepdim=True)
    sigma = torch.sqrt(centre.square().mean(-1, keepdim=True) + layer.eps)
    return centre / sigma.detach() * layer.weight + layer.bias


def gelu(x: Tensor) -> Tensor:
    return x * (0.5 + 0.5 * torch.erf(x / 2**0.5)).detach()


def attention(x: Tensor, layer: nn.Module) -> Tensor:
    q, k, v = layer.qkv(x).unflatten(-1, (3, layer.num_heads, -1)).permute(2, 0, 3, 1, 4)
    weights = torch.softmax(q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5, -1)
    return layer.proj((weights.detach() @ v).transpose(1, 2).flatten(2))


def mlp(x: Tensor, layer: nn.Module) -> Tensor:
    return layer.fc2(gelu(layer.fc1(x)))


def balanced_vision_transformer(model: nn.Module, images: Tensor) -> Tensor:
    x = model.patch_embed.proj(images).flatten(2).transpose(1, 2)
    x = torch.cat([model.cls_token.expand(len(x), -1, -1), x], 1) + model.pos_embed
    for block in model.blocks:
        x = x + attention(norm(x, block.norm1), block.attn)
        x = x + mlp(norm(x, block.norm2), block.mlp)
    return model.head(norm(x, model.norm)[:, 0])


def balanced_swiglu(layer: nn.Module, x: Tensor) -> Tensor:
    a, b = layer.fc1_g(x), layer.fc1_x(x)
    gated = a * torch.sigmoid(a).detach()
    return layer.fc2((gated * b.detach() + gated.detach() * b) / 2)


def balanced_mixer_block(block: nn.Module, x: Tensor) -> Tensor:
    x = x + mlp(norm(x, block.norm1).transpose(1, 2), block.mlp_tokens).transpose(1, 2)
    return x + mlp(norm(x, block.norm2), block.mlp_channels)


HAND_BALANCED: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module, Tensor], Tensor], tuple[int, ...]]] = {
    "vision transformer": (vision_transformer, balanced_vision_transformer, (2, 3, 16, 16)),
    "SwiGLU": (lambda: randomised(SwiGLU(6, 8, 4)), balanced_swiglu, (3, 5, 6)),
    "Mixer block": (lambda: randomised(MixerBlock(6, 7)), balanced_mixer_block, (3, 7, 6)),
}


@pytest.mark.parametrize("name", HAND_BALANCED)
def test_hand_balanced(name: str) -> None:
    make, balanced, shape = HAND_BALANCED[name]
    model, x = make(), torch.randn(shape).double()
    converted = fxgrad.convert(model, (x,))
    with torch.no_grad():
        assert torch.equal(converted(x), model(x))
        assert_same(converted(x), balanced(model, x))
    for target in range(converted(x).shape[1]):
        ours = gradient(converted, x, target)
        assert_same(ours, gradient(lambda images: balanced(model, images), x, target))
    assert not torch.allclose(ours, gradient(model, x, target), rtol=1e-3), "the plain gradient is another one"
    report = fxgrad.check(converted, (x,), original=model)
    assert report.passed and report.completeness_error <= 1e-12
