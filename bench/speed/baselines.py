"""Who else computes an input gradient or a relevance, under one interface: what the speed benchmark runs.

    step = baseline.build(kind, model, example)     # a Refusal, where that toolkit cannot
    gradient = step(x, cotangent)

`compare` runs them all on one input and says whether each has the gradient that fxgrad has. Kinds of models: "vit" and
"mixer" (timm's; x is images), "torchvision-vit" (images), "llama" (transformers'; x is embedded tokens).
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

import fxgrad
from bench.speed.hook_baseline import hooked, shared_copy
from bench.speed.lxt_patches import in_place, lxt_patches

KINDS = ("vit", "mixer", "torchvision-vit", "llama")

Step = Callable[[Tensor, Tensor], Tensor]
"""(x, cotangent of the output) -> gradient, or relevance, in the shape of x."""


@dataclass(frozen=True)
class Refusal:
    """Why a baseline has no step for a model: its own error, in one line."""

    reason: str


@dataclass(frozen=True)
class Baseline:
    """One way to an input gradient.

    Attributes:
        name: for tables.
        make: (kind, model, example) -> its step; raises what the toolkit raises.
        policy: the policy of fxgrad that has the same gradient, if all is well.
        relevance: whether the step returns x * gradient.
    """

    name: str
    make: Callable[[str, nn.Module, Tensor], Step]
    policy: str = "libragrad"
    relevance: bool = False

    def build(self, kind: str, model: nn.Module, example: Tensor) -> Step | Refusal:
        """The step for a model, tried once.

        Args:
            kind: one of `KINDS`.
            model: of that kind, in eval mode and frozen; it is left as it was.
            example: what it takes, (batch, ...): images (B, C, H, W), embedded tokens (B, T, width).

        Returns:
            The step, or a refusal with the toolkit's own error.

        Raises:
            ValueError: there is no such kind, or the model's parameters require gradients.

        Example:
            >>> from timm.models.mlp_mixer import MlpMixer
            >>> model = MlpMixer(3, img_size=8, patch_size=4, num_blocks=1, embed_dim=8).eval().requires_grad_(False)
            >>> x = torch.randn(1, 3, 8, 8)
            >>> BASELINES[0].name, BASELINES[0].build("mixer", model, x)(x, torch.ones(1, 3)).shape
            ('plain autograd', torch.Size([1, 3, 8, 8]))
        """
        if kind not in KINDS:
            raise ValueError(f"there is no kind {kind!r}; choose from {', '.join(KINDS)}")
        if any(p.requires_grad for p in model.parameters()):
            raise ValueError("baselines are compared on frozen models: model.requires_grad_(False)")
        with torch.no_grad():
            cotangent = torch.ones_like(adapted(kind, model)(example))
        try:
            step = self.make(kind, model, example)
            step(example, cotangent)
        except Exception as error:  # whatever it is that a toolkit raises, that is the finding
            return Refusal(f"{type(error).__name__}: {' '.join(str(error).split())}")
        return step


@dataclass(frozen=True)
class Row:
    """A baseline beside fxgrad.

    Attributes:
        baseline, kind, policy: what was compared, and with which policy.
        difference: max |theirs - ours| / max |ours|; None after a refusal.
        verdict: "same gradient", "another gradient", "another gradient: the plain one", or "cannot: " and the reason.
    """

    baseline: str
    kind: str
    policy: str
    difference: float | None
    verdict: str

    def __str__(self) -> str:
        difference = "" if self.difference is None else f"{self.difference:.1e}"
        return f"{self.kind:16} {self.baseline:28} {self.policy:10} {difference:>8}  {self.verdict}"


def compare(
    kind: str,
    model: nn.Module,
    x: Tensor,
    cotangent: Tensor,
    baselines: Sequence[Baseline] | None = None,
    bound: float = 1e-6,
) -> list[Row]:
    """Hold every baseline against fxgrad, under the policy that it should agree with.

    Args:
        kind: one of `KINDS`.
        model: of that kind, in eval mode and frozen. Best in float64; but Llama's norms are in float32 whatever the
            model is in, so that there nobody agrees to more than float32's digits.
        x: its input, as for `Baseline.build`.
        cotangent: in the shape of its output.
        baselines: which; all of them if None.
        bound: largest relative difference that counts as rounding, or as a toolkit's epsilon.

    Returns:
        One row per baseline, in their order.

    Raises:
        ValueError: as `Baseline.build`.
        fxgrad.FxgradError: the model cannot be converted.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2)).double().eval().requires_grad_(False)
        >>> x, cotangent = torch.randn(1, 3).double(), torch.ones(1, 2).double()
        >>> [row.verdict for row in compare("mixer", model, x, cotangent, BASELINES[:2])]
        ['another gradient: the plain one', 'same gradient']
    """
    converted = fxgrad.convert(adapted(kind, model), (x,))
    ours: dict[str, Tensor] = {}
    rows = []
    for baseline in BASELINES if baselines is None else baselines:
        step = baseline.build(kind, model, x)
        if isinstance(step, Refusal):
            rows.append(Row(baseline.name, kind, baseline.policy, None, f"cannot: {step.reason}"))
            continue
        found = step(x, cotangent)
        differences = []
        for policy in (baseline.policy, "gradient"):
            if policy not in ours:
                ours[policy] = vjp(converted.under(policy), x, cotangent)
            differences.append(_relative(found, x * ours[policy] if baseline.relevance else ours[policy]))
        verdict = "another gradient: the plain one" if differences[1] <= bound else "another gradient"
        verdict = "same gradient" if differences[0] <= bound else verdict
        rows.append(Row(baseline.name, kind, baseline.policy, differences[0], verdict))
    return rows


def _relative(found: Tensor, expected: Tensor) -> float:
    """The largest difference over the largest number; where a gradient is zero, over the smallest that there is."""
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(torch.finfo(expected.dtype).tiny))


# From a model to x -> Tensor.


class Logits(nn.Module):
    """transformers' model as a function of its embedded tokens, (batch, tokens, width) -> (batch, tokens, words)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.train(model.training)

    def forward(self, embedded: Tensor) -> Tensor:
        return self.model(inputs_embeds=embedded, use_cache=False).logits  # type: ignore[no-any-return]


def adapted(kind: str, model: nn.Module) -> nn.Module:
    """The model as a module that takes one tensor and returns one.

    Args:
        kind: one of `KINDS`.
        model: of that kind.

    Example:
        >>> adapted("vit", nn.Identity())
        Identity()
    """
    return Logits(model) if kind == "llama" else model


def vjp(function: Callable[[Tensor], Tensor], x: Tensor, cotangent: Tensor) -> Tensor:
    """The gradient of <cotangent, function(x)>.

    Args:
        function: differentiable; a model, say.
        x: of any shape; it is left without a gradient.
        cotangent: in the shape of function(x).

    Returns:
        A tensor in the shape of x.

    Example:
        >>> vjp(torch.square, torch.tensor([1.0, 3.0]), torch.ones(2))
        tensor([2., 6.])
    """
    x = x.detach().requires_grad_()
    return torch.autograd.grad(function(x), x, cotangent)[0]


# The baselines: (kind, model, example) -> step.


def _plain(kind: str, model: nn.Module, example: Tensor) -> Step:
    return partial(vjp, adapted(kind, model))


def _fxgrad(policy: str, kind: str, model: nn.Module, example: Tensor) -> Step:
    return partial(vjp, fxgrad.convert(adapted(kind, model), (example,), rules=policy))


def _hooked(style: str, kind: str, model: nn.Module, example: Tensor) -> Step:
    return partial(vjp, adapted(kind, hooked(model, style)))


def _zennit(kind: str, model: nn.Module, example: Tensor) -> Step:
    """EpsilonPlus: rules for linear layers, convolutions and torch.nn's activations; the rest as autograd has it."""
    import zennit.composites

    registered = adapted(kind, shared_copy(model))
    zennit.composites.EpsilonPlus().register(registered)

    def step(x: Tensor, cotangent: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        y = registered(x)
        return torch.autograd.grad(y, x, y.detach() * cotangent)[0]

    return step


class Contracted(nn.Module):
    """(x, cotangent) -> <cotangent, model(x)>, (batch,): captum attributes one number per example."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, cotangent: Tensor) -> Tensor:
        output: Tensor = self.model(x)
        return (output * cotangent).flatten(1).sum(1)


def _captum(method: str, kind: str, model: nn.Module, example: Tensor) -> Step:
    import captum.attr

    # LRP writes to the weights while it runs, so that a copy must have its own.
    contracted = Contracted(adapted(kind, copy.deepcopy(model)))
    attribute = getattr(captum.attr, method)(contracted).attribute

    def step(x: Tensor, cotangent: Tensor) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # DeepLift warns of its own hooks, every time
            found: Tensor = attribute(x.detach().requires_grad_(), additional_forward_args=(cotangent,))
        return found.detach()

    return step


def _lxt(policy: str, kind: str, model: nn.Module, example: Tensor) -> Step:
    patches, function = lxt_patches(policy, kind, model), adapted(kind, model)

    def step(x: Tensor, cotangent: Tensor) -> Tensor:
        with in_place(patches):
            return vjp(function, x, cotangent)

    return step


BASELINES = (
    Baseline("plain autograd", _plain),
    Baseline("fxgrad", partial(_fxgrad, "libragrad")),
    Baseline("swapped modules", partial(_hooked, "modules")),
    Baseline("swapped modules, tuned", partial(_hooked, "functions")),
    Baseline("full backward hooks", partial(_hooked, "hooks")),
    Baseline("zennit, EpsilonPlus", _zennit, relevance=True),
    Baseline("captum, InputXGradient", partial(_captum, "InputXGradient"), relevance=True),
    Baseline("captum, DeepLift", partial(_captum, "DeepLift"), relevance=True),
    Baseline("captum, LRP", partial(_captum, "LRP"), relevance=True),
    Baseline("fxgrad, attnlrp", partial(_fxgrad, "attnlrp"), "attnlrp"),
    Baseline("lxt, AttnLRP", partial(_lxt, "attnlrp"), "attnlrp"),
    Baseline("fxgrad, cp-lrp", partial(_fxgrad, "cp-lrp"), "cp-lrp"),
    Baseline("lxt, CP-LRP", partial(_lxt, "cp-lrp"), "cp-lrp"),
)
"""In the order of the table: LibraGrad's gradient first, then other methods', then lxt's two beside fxgrad's."""
