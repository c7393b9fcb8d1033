"""LibraGrad by hand: the competitor that fxgrad is timed against, for three architectures.

What people do who have no compiler: find the modules that need another backward, and swap or hook them, one
architecture at a time. Three ways, each on a copy that shares the model's parameters:

    modules     swapped modules in ordinary PyTorch, `.detach()` on what is held
    functions   the same modules as fast as they get: an autograd.Function where PyTorch's own backward does too much,
                and attention weights written out, which CPUs like better than a fused kernel's backward
    hooks       the model's own modules; forward hooks remember, full backward hooks replace the gradient

Rules: attention weights, the gates of GELU and SiLU, 1/sigma and 1/rms are held, two factors share a product.
Source: LibraGrad, arXiv:2411.16760, section 3.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import timm.layers
import torch
import torch.nn.functional as F
from timm.models.mlp_mixer import MixerBlock, MlpMixer
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from transformers.activations import SiLUActivation
from transformers.models.llama import modeling_llama as llama

from bench.speed.held import DETACHED, FUNCTIONS, Rules, rms_scale, slope, through_layer_norm, widened

STYLES = ("modules", "functions", "hooks")

GELUS = (nn.GELU, timm.layers.GELU)
SILUS = (nn.SiLU, SiLUActivation)
LAYER_NORMS = (nn.LayerNorm, timm.layers.LayerNorm)
REWRITTEN = {*GELUS, *SILUS, *LAYER_NORMS, timm.layers.Attention}
REWRITTEN |= {llama.LlamaRMSNorm, llama.LlamaMLP, llama.LlamaAttention}
AS_THEY_ARE = {nn.Linear, nn.Conv2d, nn.Embedding, nn.Identity, nn.Dropout, nn.Sequential, nn.ModuleList}
AS_THEY_ARE |= {timm.layers.PatchEmbed, timm.layers.Mlp, Block, VisionTransformer, MixerBlock, MlpMixer}
AS_THEY_ARE |= {llama.LlamaRotaryEmbedding, llama.LlamaDecoderLayer, llama.LlamaModel, llama.LlamaForCausalLM}
"""Classes whose forward somebody has read: a hook sees modules, not what happens between them."""


def hooked(model: nn.Module, style: str = "modules") -> nn.Module:
    """Copy a model, patched so that its input gradient is LibraGrad's.

    Args:
        model: a timm VisionTransformer or MlpMixer, or transformers' LlamaForCausalLM, in eval mode and frozen.
        style: one of `STYLES`.

    Returns:
        A patched copy on the same parameters and buffers. Inputs and outputs are the model's, in value up to
        rounding. The model and its classes are left alone.

    Raises:
        ValueError: the model is in train mode or not frozen, or there is no such style.
        TypeError: the model has modules that no patch is known for.

    Example:
        >>> model = VisionTransformer(img_size=8, patch_size=4, embed_dim=8, depth=1, num_heads=2, num_classes=3)
        >>> x = torch.randn(1, 3, 8, 8, requires_grad=True)
        >>> logits = hooked(model.eval().requires_grad_(False))(x)
        >>> torch.autograd.grad(logits[0, 1], x)[0].shape
        torch.Size([1, 3, 8, 8])
    """
    if style not in STYLES:
        raise ValueError(f"there is no style {style!r}; choose from {', '.join(STYLES)}")
    if model.training or any(p.requires_grad for p in model.parameters()):
        # The patches give parameters no gradients, or wrong ones.
        raise ValueError("only for frozen models in eval mode: model.eval().requires_grad_(False)")
    unknown = {type(m) for m in model.modules()} - REWRITTEN - AS_THEY_ARE
    unknown |= {type(m) for m in model.modules() if isinstance(m, timm.layers.Attention) and m.gate is not None}
    if unknown:
        names = ", ".join(sorted(f"{c.__module__}.{c.__qualname__}" for c in unknown))
        raise TypeError(f"no patch is known for {names}")
    patched = shared_copy(model)
    if style == "hooks":
        for module in list(patched.modules()):
            _hook(module)
        return patched
    return _swap(patched, DETACHED if style == "modules" else FUNCTIONS)


def shared_copy(model: nn.Module) -> nn.Module:
    """Copy a model, but for its parameters and buffers.

    Args:
        model: any module.

    Returns:
        A copy of its modules, on the same tensors.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> shared_copy(layer).weight is layer.weight
        True
    """
    copied: nn.Module = copy.deepcopy(model, {id(t): t for t in [*model.parameters(), *model.buffers()]})
    return copied


# Style "modules" and "functions".


class Swapped(nn.Module):
    """Stands for `original`, whose parameters it uses."""

    def __init__(self, original: nn.Module, rules: Rules) -> None:
        super().__init__()
        self.original: Any = original
        self.rules = rules


class GELU(Swapped):
    """The gate is held."""

    def forward(self, x: Tensor) -> Tensor:
        return self.rules.gelu(x, getattr(self.original, "approximate", "none"))


class SiLU(Swapped):
    """The gate is held."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x.detach().sigmoid()


class LayerNorm(Swapped):
    """1/sigma is held."""

    def forward(self, x: Tensor) -> Tensor:
        return self.rules.layer_norm(x, self.original)


class ImageAttention(Swapped):
    """timm's. The weights are held, and nothing is recorded of queries and keys."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        layer, shape = self.original, (*x.shape[:2], -1, self.original.head_dim)
        # Values get a product of their own, so that its backward does nothing for queries and keys.
        weights, biases = layer.qkv.weight, layer.qkv.bias
        split = 2 * layer.attn_dim
        with torch.no_grad():
            qk = F.linear(x, weights[:split], None if biases is None else biases[:split]).view(shape).transpose(1, 2)
            q, k = qk.chunk(2, 1)
            q, k = layer.q_norm(q), layer.k_norm(k)
        v = F.linear(x, weights[split:], None if biases is None else biases[split:]).view(shape).transpose(1, 2)
        y = self.rules.attention(q, k, v, attn_mask, is_causal, layer.scale)
        return layer.proj(layer.norm(y.transpose(1, 2).flatten(2)))  # type: ignore[no-any-return]


class RMSNorm(Swapped):
    """1/rms is held."""

    def forward(self, x: Tensor) -> Tensor:
        wide = widened(x)
        return self.original.weight * (wide * rms_scale(wide, self.original)).to(x.dtype)  # type: ignore[no-any-return]


class GatedMLP(Swapped):
    """Llama's. The factors of the product, act(gate) and up, get half of its cotangent each."""

    def forward(self, x: Tensor) -> Tensor:
        layer = self.original
        y: Tensor = layer.down_proj(layer.act_fn(layer.gate_proj(x)) * layer.up_proj(x))
        if y.requires_grad:
            # Behind the linear layer, where the cotangent has fewer numbers, a half is the same half.
            y.register_hook(_halve)  # type: ignore[no-untyped-call]
        return y


class TextAttention(Swapped):
    """Llama's. The weights are held, and nothing is recorded of queries and keys."""

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        cache: object = None,
        **others: object,
    ) -> tuple[Tensor, None]:
        if cache is not None:
            raise NotImplementedError("attributions have no use for a cache; pass use_cache=False")
        layer, shape = self.original, (*hidden_states.shape[:2], -1, self.original.head_dim)
        with torch.no_grad():
            q, k = (p(hidden_states).view(shape).transpose(1, 2) for p in (layer.q_proj, layer.k_proj))
            q, k = llama.apply_rotary_pos_emb(q, k, *position_embeddings)
        v = layer.v_proj(hidden_states).view(shape).transpose(1, 2)
        y = self.rules.attention(q, k, v, attention_mask, attention_mask is None, layer.scaling)
        return layer.o_proj(y.transpose(1, 2).flatten(2)), None


SWAPS: dict[type[nn.Module], type[Swapped]] = {
    **dict.fromkeys(GELUS, GELU),
    **dict.fromkeys(SILUS, SiLU),
    **dict.fromkeys(LAYER_NORMS, LayerNorm),
    timm.layers.Attention: ImageAttention,
    llama.LlamaRMSNorm: RMSNorm,
    llama.LlamaMLP: GatedMLP,
    llama.LlamaAttention: TextAttention,
}


def _swap(module: nn.Module, rules: Rules) -> nn.Module:
    """The module with everything in it swapped that has a swap, innermost first."""
    for name, child in list(module.named_children()):
        setattr(module, name, _swap(child, rules))
    swap = SWAPS.get(type(module))
    return module if swap is None else swap(module, rules)


# Style "hooks".


def _halve(cotangent: Tensor) -> Tensor:
    return cotangent * 0.5


Correction = Callable[[Any, Tensor, Tensor, Tensor], Tensor]
"""(module, its input, its output, cotangent) -> what its input is to get."""


def _correct(module: nn.Module, correction: Correction) -> None:
    """Replace what the module's own backward has computed."""
    kept: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        kept[:] = inputs[0].detach(), output.detach()

    def replace(module: nn.Module, inflow: Any, cotangents: Any) -> tuple[Tensor]:
        return (correction(module, *kept, cotangents[0]),)

    module.register_forward_hook(keep)
    module.register_full_backward_hook(replace)


def _gate_correction(module: nn.Module, x: Tensor, y: Tensor, cotangent: Tensor) -> Tensor:
    return slope(x, y).mul_(cotangent)


def _layer_norm_correction(layer: nn.LayerNorm, x: Tensor, y: Tensor, cotangent: Tensor) -> Tensor:
    scale = torch.native_layer_norm(x, layer.normalized_shape, None, None, layer.eps)[2]
    return through_layer_norm(layer, scale, cotangent)


def _rms_norm_correction(layer: llama.LlamaRMSNorm, x: Tensor, y: Tensor, cotangent: Tensor) -> Tensor:
    return (widened(cotangent * layer.weight) * rms_scale(widened(x), layer)).to(x.dtype)


def _detach(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return output.detach()


def _hook(module: nn.Module) -> None:
    """Put hooks on a module, or on its parts, if it needs any."""
    if isinstance(module, GELUS + SILUS):
        _correct(module, _gate_correction)
    elif isinstance(module, LAYER_NORMS):
        _correct(module, _layer_norm_correction)
    elif isinstance(module, llama.LlamaRMSNorm):
        _correct(module, _rms_norm_correction)
    elif isinstance(module, timm.layers.Attention):
        for norm in (module.q_norm, module.k_norm):
            norm.register_forward_hook(_detach)
    elif isinstance(module, llama.LlamaAttention):
        for projection in (module.q_proj, module.k_proj):
            projection.register_forward_hook(_detach)
    elif isinstance(module, llama.LlamaMLP):
        # Half for each factor of the product, as in GatedMLP.
        module.down_proj.register_full_backward_pre_hook(lambda module, cotangents: (_halve(cotangents[0]),))  # type: ignore[index]
