"""How complete every policy is, and how far it is from the packages that publish such rules.

python -m bench.tables.policies --out bench/measured/policies.md

writes the page. The exit status is 1 if a bar is missed. Packages that are not installed have no rows.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import transformers as tr
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import fxgrad
from bench.speed.script import ONLY, main
from fxgrad.data.models import randomize
from fxgrad.module.converted import ConvertedModule
from fxgrad.report import markdown
from fxgrad.table.loading import presets

BAR, BAR_IN_FLOAT32 = 1e-11, 1e-6
LOW, HIGH = -2.118, 2.641
TINY = 1e-30
"""The stabilizer of other packages' rules, where ours have none."""
LAYERS = ("epsilon", "gamma", "alpha-beta", "z-plus", "z-box")
COMPLETE = ("libragrad", "cp-lrp", "gamma", "relp", "freeze")
"""The policies that are complete on every model."""
LANGUAGE = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
GPT2 = {"vocab_size": 50, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2}


def convolutional(bias: bool = True, average: bool = True) -> nn.Module:
    """Three convolutions, a maximum, an average if it is wanted, and a head, for pictures of 14 x 14."""
    average_or_not, features = (nn.AvgPool2d(3), 16) if average else (nn.Identity(), 144)
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 3, bias=bias), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1, bias=bias), nn.ReLU()),
        *(nn.MaxPool2d(2), nn.Conv2d(6, 16, 3, padding=1, stride=2, bias=bias), nn.ReLU()),
        *(average_or_not, nn.Flatten(), nn.Linear(features, 5, bias=bias)),
    )


def perceptron(bias: bool = True) -> nn.Module:
    """Three layers, for the same pictures."""
    layers = [nn.Linear(588, 32, bias=bias), nn.Linear(32, 32, bias=bias), nn.Linear(32, 5, bias=bias)]
    return nn.Sequential(nn.Flatten(), layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])


def transformer() -> nn.Module:
    """Two blocks, for pictures of 16 x 16."""
    return VisionTransformer(img_size=16, patch_size=8, embed_dim=32, depth=2, num_heads=4, num_classes=5)


def gpt2() -> nn.Module:
    """Two blocks of GPT-2."""
    return tr.GPT2LMHeadModel(tr.GPT2Config(**GPT2, bos_token_id=0, eos_token_id=1))


def llama() -> nn.Module:
    """Two blocks of Llama."""
    return tr.LlamaForCausalLM(tr.LlamaConfig(**LANGUAGE))


def picture(size: int) -> Tensor:
    """One random picture within the bounds of the box."""
    generator = torch.Generator().manual_seed(5)
    return torch.randn(1, 3, size, size, generator=generator, dtype=torch.float64).clamp(LOW, HIGH)


MODELS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "convnet": (convolutional, {"input": picture(14)}),
    "ViT": (transformer, {"x": picture(16)}),
    "GPT-2": (gpt2, {"input_ids": torch.tensor([[5, 9, 2, 30, 7]]), "use_cache": False}),
    "Llama": (llama, {"input_ids": torch.tensor([[5, 9, 2, 30, 7]]), "use_cache": False}),
}


def random(make: Callable[[], nn.Module]) -> nn.Module:
    """A model with random parameters, the same in every run, that float32 can hold; in float64."""
    torch.manual_seed(0)
    model = make()
    randomize(model)
    return model.double().eval().requires_grad_(False)


def completeness(only: str) -> Iterator[tuple[list[Any], bool]]:
    """A row for each policy: its relative completeness error on every model; and whether it keeps the bar."""
    made = {name: (random(make), example) for name, (make, example) in MODELS.items()}
    converted = {name: fxgrad.convert(model, kwargs=example) for name, (model, example) in made.items()}
    for policy in presets():
        if only not in policy:
            continue
        errors = [
            fxgrad.check(libra.under(policy), kwargs=made[name][1]).completeness_error
            for name, libra in converted.items()
        ]
        bars = [BAR_IN_FLOAT32 if name == "Llama" else BAR for name in MODELS]
        kept = policy not in COMPLETE or all(error <= bar for error, bar in zip(errors, bars))
        yield [f"`{policy}`", *(f"{error:.1e}" for error in errors)], kept


class Agreement(NamedTuple):
    """One row of the second table: a package, a model, and the largest difference by policy."""

    package: str
    model: str
    found: dict[str, float]


def difference(libra: ConvertedModule, x: Tensor, relevance: Tensor) -> float:
    """The largest difference of x times our gradient from another package's relevance, relative to the largest."""
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(libra(leaf).amax(), leaf)
    return float((x * gradient - relevance).abs().max() / relevance.abs().max())


def zennit_of(policy: str, model: nn.Module, x: Tensor) -> Tensor:
    """Relevance by zennit."""
    from zennit import attribution, composites, rules, types

    bounds = (torch.tensor(bound, dtype=x.dtype) for bound in (LOW, HIGH))
    chosen = {
        "epsilon": rules.Epsilon(1e-6),
        "gamma": rules.Gamma(0.25, TINY),
        "alpha-beta": rules.AlphaBeta(2, 1, TINY),
        "z-plus": rules.ZPlus(TINY),
        "z-box": rules.ZPlus(TINY),
    }[policy]
    layers = [(types.Activation, rules.Pass()), (types.AvgPool, rules.Norm(TINY)), (types.Linear, chosen)]
    first = [(types.Linear, rules.ZBox(*bounds, TINY))] if policy == "z-box" else []
    composite = composites.SpecialFirstLayerMapComposite(layers, first)
    one_hot = F.one_hot(model(x).argmax(1), 5).to(x.dtype)
    with attribution.Gradient(model, composite) as attributor:
        relevance: Tensor = attributor(x, lambda output: output * one_hot)[1]
    return relevance


def autolrp_of(policy: str, model: nn.Module, x: Tensor) -> Tensor:
    """Relevance by autolrp, which starts from 1 instead of the output's value."""
    import autolrp  # type: ignore[import-not-found,unused-ignore]

    rule = {
        "epsilon": "epsilon",
        "gamma": ("gamma", {"gamma": 0.25}),
        "alpha-beta": ("alpha_beta", {"alpha": 2.0, "beta": 1.0}),
        "z-plus": "zplus",
        "z-box": "zplus",
    }[policy]
    rules = {**autolrp.BASE, **dict.fromkeys(("AddmmBackward", "MmBackward", "ConvolutionBackward"), rule)}
    rules |= {"input_conv": ("zbox", {"low": LOW, "high": HIGH})} if policy == "z-box" else {}
    leaf = autolrp.tensor(x)
    y = model(leaf)[0, int(model(x).argmax())]
    y.lrp(config=autolrp.LRPConfig(rule=rules, eps=1e-6 if policy == "epsilon" else TINY))
    relevance: Tensor = leaf.relevance.as_subclass(Tensor) * float(y)
    return relevance


class Block(nn.Module):
    """A transformer's block, and a head that reads its last token; attention as it is given."""

    def __init__(self, attend: Callable[..., Tensor]) -> None:
        super().__init__()
        self.attend = attend
        self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(2))
        self.qkv, self.up, self.down, self.head = nn.Linear(8, 24), nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, 8) to (batch, 5)."""
        q, k, v = self.qkv(self.norms[0](x)).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        x = x + self.attend(q, k, v).transpose(1, 2).flatten(2)
        found: Tensor = self.head((x + self.down(F.gelu(self.up(self.norms[1](x)))))[:, -1])
        return found


def written_out(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention by PyTorch's softmax."""
    return F.softmax(q @ k.mT / 2, dim=-1) @ v


def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention in one op, found when it is called, so that it can be patched."""
    return F.scaled_dot_product_attention(q, k, v)


def of_gim() -> Iterator[Agreement]:
    """gim-explain's context, with its own halves in written-out attention."""
    import gim  # type: ignore[import-not-found,unused-ignore]
    from gim.context.attention import scale_grad  # type: ignore[import-not-found,unused-ignore]

    def halved(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return written_out(scale_grad(q, 1 / 4), scale_grad(k, 1 / 4), scale_grad(v, 1 / 2))

    x = picture(14)[0, :, :5, :8].contiguous()
    for about, attend, ours, temperature in (
        ("attention written out, with its halves", halved, written_out, 2),
        ("the same, ours with fused attention", halved, fused, 2),
        ("fused attention, where it has no temperature: ours at 1", fused, fused, 1),
    ):
        theirs, model = random(partial(Block, attend)), random(partial(Block, ours))
        leaf = x.clone().requires_grad_()
        with gim.GIM(theirs):
            (gradient,) = torch.autograd.grad(theirs(leaf).amax(), leaf)
        libra = fxgrad.convert(model, (x,)).under("gim", temperature=temperature)
        yield Agreement("gim-explain", about, {"gim": difference(libra, x, x * gradient)})


def agreements() -> Iterator[Agreement]:
    """Every package that is installed, on the models that it has the same convention for."""
    models = {"convolutional": convolutional, "perceptron": perceptron}
    bare = {
        "convolutional, no biases, no average": partial(convolutional, bias=False, average=False),
        "perceptron, no biases": partial(perceptron, bias=False),
    }
    x = picture(14)
    for package, relevance, made in (("zennit", zennit_of, models), ("autolrp", autolrp_of, bare)):
        for name, make in made.items() if importlib.util.find_spec(package) else ():
            model = random(make)
            libra = fxgrad.convert(model, (x,))
            policies = (
                LAYERS[:-1] if name in bare and "perceptron" in name else LAYERS
            )  # autolrp's box: for convolutions
            yield Agreement(package, name, {p: difference(libra.under(p), x, relevance(p, model, x)) for p in policies})
    if importlib.util.find_spec("gim"):
        yield from of_gim()


def page(only: str) -> tuple[str, bool]:
    """The page, and whether all bars are kept."""
    complete, agreed = list(completeness(only)), list(agreements())
    rows = [
        [a.package, a.model, *(f"{a.found[p]:.1e}" if p in a.found else None for p in (*LAYERS, "gim"))] for a in agreed
    ]
    kept = all(value <= BAR for a in agreed for value in a.found.values()) and all(kept for _, kept in complete)
    text = [
        "# Policies, measured", "",
        "In float64, on small random models; `make policies` writes this page. "
        "[What the policies are](../../docs/policies.md).", "",
        "## Completeness", "",
        "The relative completeness error of `fxgrad.check`. "
        f"Bar for {', '.join(f'`{name}`' for name in COMPLETE)}: {BAR:.0e}; on Llama, whose own code computes norms in "
        f"float32, {BAR_IN_FLOAT32:.0e}. [Where the others are complete](../../docs/policies.md).", "",
        *markdown(["policy", *MODELS], [cells for cells, _ in complete]), "",
        "## Agreement with other packages", "",
        "The largest difference of x times our gradient from their relevance, relative to the largest. "
        f"Bar: {BAR:.0e}.", "",
        "- autolrp takes a bias's share away by its size before any rule, and divides an average's relevance evenly:",
        "  so models without these are compared. Its box is for convolutions.",
        "- gim-explain halves the products of fused attention only, and has a temperature in written-out attention",
        "  only; the paper, and `gim`, have both in both.",
        "- lxt's AttnLRP and CP-LRP are compared in `tests/table/test_policies.py`.", "",
        *markdown(["package", "model", *LAYERS, "gim"], rows, "ll" + "r" * (len(LAYERS) + 1)),
    ]  # fmt: skip
    return "\n".join(text) + "\n", kept


if __name__ == "__main__":
    main(page, __doc__, {"--only": ONLY})
