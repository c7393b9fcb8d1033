"""The speed benchmark's competitors: what they compute, what they refuse, and that they leave the model alone."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

if missing := [name for name in ("timm", "torchvision", "transformers") if importlib.util.find_spec(name) is None]:
    pytest.skip(f"needs {', '.join(missing)}", allow_module_level=True)

import timm
import torchvision
import transformers
from timm.models.mlp_mixer import MlpMixer
from transformers.models.llama import modeling_llama

import fxgrad
from bench.speed import lxt_patches
from bench.speed.baselines import BASELINES, KINDS, Baseline, Refusal, Row, adapted, compare, vjp
from bench.speed.hook_baseline import STYLES, hooked
from tests.helpers.lxt_gradients import float64_throughout

BY_NAME = {baseline.name: baseline for baseline in BASELINES}
HOOKS = ("swapped modules", "swapped modules, tuned", "full backward hooks")


def randomised(model: nn.Module) -> nn.Module:
    """In float64 and frozen, every parameter away from 0 and 1."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.double().eval().requires_grad_(False)


def vit(**options: object) -> nn.Module:
    size = {"img_size": 32, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 5}
    return randomised(timm.create_model("vit_tiny_patch16_224", **{**size, **options}))


def mixer(num_blocks: int = 2) -> nn.Module:
    return randomised(MlpMixer(num_classes=5, img_size=32, patch_size=8, num_blocks=num_blocks, embed_dim=32))


def torchvision_vit(num_layers: int = 2) -> nn.Module:
    size = {"num_layers": num_layers, "num_heads": 4, "hidden_dim": 32, "mlp_dim": 48, "num_classes": 5}
    return randomised(torchvision.models.VisionTransformer(16, 8, **size))


def llama(**options: object) -> nn.Module:
    size = {"vocab_size": 30, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "attention_bias": True}
    return randomised(transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**size, **heads, **options})))


MODELS: dict[str, tuple[Callable[..., nn.Module], tuple[int, ...]]] = {
    "vit": (vit, (2, 3, 32, 32)),
    "mixer": (mixer, (2, 3, 32, 32)),
    "torchvision-vit": (torchvision_vit, (2, 3, 16, 16)),
    "llama": (llama, (2, 6, 32)),
}


def difference(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.abs().max())


def case(kind: str, **options: object) -> tuple[nn.Module, Tensor, Tensor]:
    """A model, its input, and a cotangent of its output."""
    make, shape = MODELS[kind]
    model, x = make(**options), torch.randn(shape).double()
    with torch.no_grad():
        return model, x, torch.randn_like(adapted(kind, model)(x))


# LibraGrad by hand.


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("vit", {}),
        ("vit", {"qk_norm": True, "scale_attn_norm": True, "qkv_bias": False, "global_pool": "avg"}),
        ("vit", {"act_layer": "gelu_tanh"}),
        ("vit", {"act_layer": nn.SiLU, "reg_tokens": 1}),
        ("mixer", {}),
        ("llama", {}),
        ("llama", {"attn_implementation": "eager", "num_key_value_heads": 4}),
        ("llama", {"attention_bias": False, "mlp_bias": True}),
    ],
    ids=str,
)
def test_gradient_is_libragrads(kind: str, options: dict[str, object]) -> None:
    if options.get("act_layer") == "gelu_tanh":
        options = {"act_layer": lambda: nn.GELU(approximate="tanh")}
    model, x, cotangent = case(kind, **options)
    with float64_throughout():
        ours = vjp(fxgrad.convert(adapted(kind, model), (x,)), x, cotangent)
        assert difference(vjp(adapted(kind, model), x, cotangent), ours) > 1e-2, "the plain gradient is another one"
        for style in STYLES:
            patched = adapted(kind, hooked(model, style))
            with torch.no_grad():
                assert difference(patched(x), adapted(kind, model)(x)) <= 1e-13
            assert difference(vjp(patched, x, cotangent), ours) <= 1e-12, style


@pytest.mark.parametrize("style", STYLES)
def test_zero_gets_the_limit(style: str) -> None:
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.GELU(), nn.Linear(4, 2)).eval().requires_grad_(False)
    found = vjp(hooked(model, style), torch.zeros(1, 3), torch.ones(1, 2))
    assert torch.allclose(found, model[2].weight.sum(0) / 2 @ model[0].weight)


@pytest.mark.parametrize("style", STYLES)
def test_bfloat16(style: str) -> None:
    model, x, cotangent = case("vit")
    exact = vjp(hooked(model, style), x, cotangent)
    found = vjp(hooked(model.bfloat16(), style), x.bfloat16(), cotangent.bfloat16())
    assert found.dtype == torch.bfloat16
    assert difference(found.double(), exact) < 0.1


@pytest.mark.parametrize("kind", ["vit", "mixer", "llama"])
@pytest.mark.parametrize("style", STYLES)
def test_original_is_left_alone(kind: str, style: str) -> None:
    model, x, cotangent = case(kind)
    parts = [(type(m), *m._forward_hooks, *m._backward_hooks, *m._backward_pre_hooks) for m in model.modules()]
    function = adapted(kind, model)
    with torch.no_grad():
        output = function(x)
    before = vjp(function, x, cotangent)
    patched = hooked(model, style)
    vjp(adapted(kind, patched), x, cotangent)
    with torch.no_grad():
        assert torch.equal(function(x), output)
    assert torch.equal(vjp(function, x, cotangent), before)
    assert [(type(m), *m._forward_hooks, *m._backward_hooks, *m._backward_pre_hooks) for m in model.modules()] == parts
    assert {id(p) for p in patched.parameters()} == {id(p) for p in model.parameters()}, "shared"
    assert not any(p.requires_grad for p in model.parameters())


def test_hooked_refuses() -> None:
    with pytest.raises(
        ValueError, match=r"only for frozen models in eval mode: model\.eval\(\)\.requires_grad_\(False\)"
    ):
        hooked(nn.Linear(2, 2).eval())
    with pytest.raises(ValueError, match="only for frozen models in eval mode"):
        hooked(nn.Linear(2, 2).requires_grad_(False))
    with pytest.raises(ValueError, match="no style 'lambda'; choose from modules, functions, hooks"):
        hooked(nn.Linear(2, 2), "lambda")
    with pytest.raises(TypeError, match=r"^no patch is known for torch\.nn\.modules\.activation\.Tanh$"):
        hooked(nn.Sequential(nn.Linear(2, 2), nn.Tanh()).eval().requires_grad_(False))
    gated = timm.layers.Attention(8, 2, gated=True).eval().requires_grad_(False)
    with pytest.raises(TypeError, match=r"^no patch is known for timm\.layers\.attention\.Attention$"):
        hooked(gated)
    model, x, _ = case("llama")
    with pytest.raises(NotImplementedError, match="pass use_cache=False"):
        hooked(model, "functions")(inputs_embeds=x, use_cache=True)


# The registry: every baseline on every kind.

PLAIN, OTHER, SAME = "another gradient: the plain one", "another gradient", "same gradient"
UNPATCHED = (
    "cannot: TypeError: no patch is known for torch.nn.modules.activation.MultiheadAttention, "
    "torch.nn.modules.linear.NonDynamicallyQuantizableLinear, torchvision.models.vision_transformer.Encoder, "
    "torchvision.models.vision_transformer.EncoderBlock, torchvision.models.vision_transformer.MLPBlock, "
    "torchvision.models.vision_transformer.VisionTransformer"
)
NO_RULE = (
    "cannot: TypeError: Module of type <class 'torch.nn.modules.{}'> has no rule defined and nodefault rule exists"
)
NO_MAP = "cannot: ValueError: timm.models.{} not yet supported. Supported models are: "
EVERYWHERE = {
    "plain autograd": PLAIN,
    "fxgrad": SAME,
    **dict.fromkeys(HOOKS, SAME),
    "zennit, EpsilonPlus": OTHER,
    "captum, InputXGradient": PLAIN,
    "captum, DeepLift": PLAIN,
}
VERDICTS: dict[str, dict[str, str]] = {
    "vit": {
        "captum, LRP": NO_RULE.format("linear.Identity"),
        "lxt, AttnLRP": NO_MAP.format("vision_transformer"),
        "lxt, CP-LRP": NO_MAP.format("vision_transformer"),
    },
    "mixer": {
        "captum, LRP": NO_RULE.format("linear.Identity"),
        "lxt, AttnLRP": NO_MAP.format("mlp_mixer"),
        "lxt, CP-LRP": NO_MAP.format("mlp_mixer"),
    },
    "torchvision-vit": {
        **dict.fromkeys(HOOKS, UNPATCHED),
        # It hooks MultiheadAttention, an activation by zennit's list, as if that had one input.
        "zennit, EpsilonPlus": "cannot: RuntimeError: hook 'backward' has returned an incorrect number of values",
        "captum, LRP": NO_RULE.format("normalization.LayerNorm"),
        "lxt, AttnLRP": "cannot: NotImplementedError: lxt has no map for attnlrp in torchvision.models.vision_transformer",
        "lxt, CP-LRP": SAME,
    },
    "llama": {
        "captum, LRP": NO_RULE.format("sparse.Embedding"),
        "lxt, AttnLRP": SAME,
        "lxt, CP-LRP": SAME,
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_compare(kind: str) -> None:
    for package in ("captum", "lxt", "zennit"):
        pytest.importorskip(package)
    shallow = {"vit": "depth", "mixer": "num_blocks", "torchvision-vit": "num_layers", "llama": "num_hidden_layers"}
    model, x, cotangent = case(kind, **{shallow[kind]: 1})
    if kind == "llama":
        lxt_patches.lxt_patches("attnlrp", kind, model)  # imports lxt, whose float32 is meant below, too
    with float64_throughout():
        before = vjp(adapted(kind, model), x, cotangent)
        # A policy of fxgrad's beside itself, converted twice, takes a while and says little; the first stands for all.
        baselines = [b for b in BASELINES if b.name not in ("fxgrad, attnlrp", "fxgrad, cp-lrp")]
        rows = {row.baseline: row for row in compare(kind, model, x, cotangent, baselines)}
        assert torch.equal(vjp(adapted(kind, model), x, cotangent), before), "the model is left as it was"
    assert list(rows) == [b.name for b in baselines]
    for name, verdict in {**EVERYWHERE, **VERDICTS[kind]}.items():
        row = rows[name]
        assert row.verdict.startswith(verdict) if verdict.startswith("cannot") else row.verdict == verdict, row
        assert (row.difference is None) == verdict.startswith("cannot")
        if verdict == SAME and row.difference is not None:
            # lxt's identity rule divides by x + 1e-10; that is the one difference that is not rounding.
            assert row.difference <= (1e-6 if name.startswith("lxt") else 1e-12), row
        elif row.difference is not None:
            assert row.difference > 1e-2, row


def test_row_as_text() -> None:
    assert str(Row("fxgrad", "vit", "libragrad", 3e-16, SAME)).split() == [
        "vit",
        "fxgrad",
        "libragrad",
        "3.0e-16",
        "same",
        "gradient",
    ]
    assert str(Row("lxt, CP-LRP", "vit", "cp-lrp", None, "cannot: so")).split() == [
        "vit",
        "lxt,",
        "CP-LRP",
        "cp-lrp",
        "cannot:",
        "so",
    ]


def test_build_refuses() -> None:
    def make(kind: str, model: nn.Module, example: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        raise KeyError("two\n  lines")

    frozen, x = nn.Linear(2, 2).requires_grad_(False), torch.zeros(1, 2)
    assert Baseline("broken", make).build("vit", frozen, x) == Refusal("KeyError: 'two\\n lines'")
    with pytest.raises(ValueError, match="no kind 'gpt'; choose from vit, mixer, torchvision-vit, llama"):
        BASELINES[0].build("gpt", frozen, x)
    with pytest.raises(ValueError, match=r"compared on frozen models: model\.requires_grad_\(False\)"):
        BASELINES[0].build("vit", nn.Linear(2, 2), x)


@pytest.mark.parametrize(("kind", "policy"), [("llama", "attnlrp"), ("llama", "cp-lrp"), ("torchvision-vit", "cp-lrp")])
def test_lxt_is_in_place_during_a_step_only(kind: str, policy: str) -> None:
    pytest.importorskip("lxt")
    classes = (
        modeling_llama.LlamaMLP,
        modeling_llama.LlamaRMSNorm,
        nn.Dropout,
        nn.LayerNorm,
        nn.GELU,
        nn.MultiheadAttention,
    )
    registry = modeling_llama.ALL_ATTENTION_FUNCTIONS

    def state() -> list[object]:
        return [dict(vars(c)) for c in classes] + [dict(vars(modeling_llama)), dict(registry)]

    before = state()
    model, x, cotangent = case(kind)
    patches = lxt_patches.lxt_patches(policy, kind, model)
    assert patches and state() == before
    with pytest.raises(KeyError), lxt_patches.in_place(patches):
        assert state() != before
        raise KeyError
    assert state() == before
    step = BY_NAME["lxt, AttnLRP" if policy == "attnlrp" else "lxt, CP-LRP"].build(kind, model, x)
    assert not isinstance(step, Refusal)
    assert difference(step(x, cotangent), vjp(adapted(kind, model), x, cotangent)) > 1e-2
    assert state() == before


@pytest.mark.parametrize("name", ["baselines", "held", "hook_baseline", "lxt_patches"])
def test_examples_run(name: str) -> None:
    assert doctest.testmod(importlib.import_module(f"bench.speed.{name}")).failed == 0
