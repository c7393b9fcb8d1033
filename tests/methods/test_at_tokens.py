"""Methods of the inputs that are taken at the tokens, against plain autograd from the first block on, and captum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from captum.attr import IntegratedGradients
from torch import Tensor

import fxgrad
from tests.helpers import balanced_vit
from tests.helpers.balanced_vit import TOKENS, trace
from tests.methods.test_methods import cam, layer, xcam

CLASSES = torch.tensor([3, 1])
POLICIES = {"libragrad": True, "gradient": False}
Model = tuple[balanced_vit.ViT, Tensor, fxgrad.ConvertedModule]


@pytest.fixture(scope="module")
def model() -> Model:
    vit, x = balanced_vit.vit()
    return vit, x, fxgrad.convert(vit, (x,))


def gradient_at(model: Model, policy: str) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The tokens of the first block, and a function from other tokens to the target's gradient there."""
    vit, x, _ = model
    balanced = POLICIES[policy]

    def gradient(tokens: Tensor) -> Tensor:
        t = trace(vit, x, CLASSES, balanced, tokens)
        return t.gradients([t.h[0]])[0]

    return trace(vit, x, CLASSES, balanced).h[0].detach(), gradient


def attributed(model: Model, policy: str, method: str, **options: Any) -> fxgrad.methods.Attribution:
    return fxgrad.attribute(model[2].under(policy), (model[1],), target=CLASSES, method=method, at="tokens", **options)


@pytest.mark.parametrize("policy", POLICIES)
def test_input_x_gradient_is_that_of_the_first_block(policy: str, model: Model) -> None:
    h, gradient = gradient_at(model, policy)
    found = attributed(model, policy, "input_x_gradient")
    wanted = (h * gradient(h)).sum(2)
    assert found.map.shape == (2, TOKENS) and not found.of_pixels
    assert float((found.map - wanted).abs().max()) <= 1e-14 * float(wanted.abs().max())
    assert (found.completeness_error < 1e-12) == POLICIES[policy]  # type: ignore[operator]


def test_input_x_gradient_is_what_a_hook_on_the_rewritten_module_sees(model: Model) -> None:
    _, x, libra = model
    module = libra.unflattened()
    seen: list[Tensor] = []

    def keep(_: torch.nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        (tokens,) = (*args, *kwargs.values())
        tokens.retain_grad()
        seen.append(tokens)

    module.get_submodule("blocks.0").register_forward_pre_hook(keep, with_kwargs=True)
    module(x.clone().requires_grad_()).gather(1, CLASSES[:, None]).sum().backward()
    assert seen[0].grad is not None
    wanted = (seen[0] * seen[0].grad).sum(2).detach()
    found = attributed(model, "libragrad", "input_x_gradient").map
    assert float((found - wanted).abs().max()) <= 1e-14 * float(wanted.abs().max())


@pytest.mark.parametrize("rule", ["gausslegendre", "riemann_right"])
def test_integrated_gradients_are_captum_s_on_the_blocks(rule: str, model: Model) -> None:
    vit = model[0]
    h = gradient_at(model, "gradient")[0]

    def value(tokens: Tensor) -> Tensor:
        for block in vit.blocks:
            tokens = block(tokens)
        return vit.head(vit.norm(tokens)[:, 0]).gather(1, CLASSES.repeat(len(tokens) // 2)[:, None])[:, 0]  # type: ignore[no-any-return]

    theirs = IntegratedGradients(value).attribute(h, n_steps=7, method=rule)
    found = attributed(model, "gradient", "integrated_gradients", n_steps=7, rule=rule)
    assert torch.allclose(found.map, theirs.sum(2).double(), rtol=1e-6, atol=1e-9)
    assert found.apart is not None and torch.allclose(found.apart, value(torch.zeros_like(h)), rtol=1e-12)
    assert found.total is not None and torch.allclose(found.total, found.map.sum(1) + found.apart)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("along", [False, True])
def test_integrated_gradients_are_a_mean_along_the_line(policy: str, along: bool, model: Model) -> None:
    h, gradient = gradient_at(model, policy)
    steps = [(k + 1) / 5 for k in range(5)]
    wanted = torch.stack([(s if along else 1) * (h * gradient(s * h)).sum(2) for s in steps]).mean(0)
    options = {"n_steps": 5, "rule": "riemann_right", "along": along}
    found = attributed(model, policy, "integrated_gradients", **options)
    assert torch.allclose(found.map, wanted, rtol=1e-10, atol=1e-12)
    assert (found.total is None) == along


@pytest.mark.parametrize("policy", POLICIES)
def test_smoothgrad_is_the_mean_over_noisy_tokens(policy: str, model: Model) -> None:
    h, gradient = gradient_at(model, policy)
    generator = torch.Generator().manual_seed(4)
    total, spans = torch.zeros_like(h), h.amax((1, 2), keepdim=True) - h.amin((1, 2), keepdim=True)
    for _ in range(3):
        total += gradient(h + 0.2 * spans * torch.randn(h.shape, generator=generator)) / 3
    found = attributed(model, policy, "smoothgrad", samples=3, noise=0.2, seed=4)
    assert torch.allclose(found.map, total.sum(2), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("method", ["input_x_gradient", "integrated_gradients"])
def test_a_batch_is_its_examples(method: str, model: Model) -> None:
    _, x, libra = model
    both = attributed(model, "libragrad", method)
    for i in range(2):
        one = fxgrad.attribute(libra, (x[i : i + 1],), target=int(CLASSES[i]), method=method, at="tokens")
        assert torch.allclose(one.map[0], both.map[i], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("at", ["input", "tokens"])
def test_noise_is_measured_by_each_example_alone(at: str, model: Model) -> None:
    _, x, libra = model
    wide = torch.cat([x[:1], 100 * x[1:2]])
    options = {"method": "smoothgrad", "samples": 1, "at": at}
    both = fxgrad.attribute(libra, (wide,), target=CLASSES, **options)
    # One draw for both examples starts with the numbers that the first gets alone.
    alone = fxgrad.attribute(libra, (wide[:1],), target=int(CLASSES[0]), **options)
    assert torch.allclose(both.map[0], alone.map[0], rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("name", ["test_vit", "test_vit2"])
def test_on_timm_s_models_they_are_what_hooks_on_the_original_see(name: str) -> None:
    vit = timm.create_model(name, img_size=32, patch_size=8, num_classes=5).double().eval()
    x, classes = torch.randn(2, 3, 32, 32).double(), torch.tensor([3, 1])
    entered: list[Tensor] = []

    def keep(_: torch.nn.Module, args: tuple[Tensor, ...]) -> None:
        args[0].retain_grad()
        entered.append(args[0])

    hooks = [block.register_forward_pre_hook(keep) for block in vit.blocks]
    vit(x.requires_grad_()).gather(1, classes[:, None]).sum().backward()
    for hook in hooks:
        hook.remove()
    pairs = [(h.detach(), h.grad) for h in entered]
    plain = fxgrad.convert(vit, (x.detach(),), rules="gradient")

    def off(method: str, wanted: Tensor, **options: Any) -> float:
        found = fxgrad.attribute(plain, (x.detach(),), target=classes, method=method, **options).map
        return float((found - wanted).abs().max() / wanted.abs().max())

    (first, first_g), (h, g) = pairs[0], pairs[-1]
    assert first_g is not None and g is not None
    assert off("input_x_gradient", (first * first_g).sum(2), at="tokens") < 1e-14
    assert off("gradcam_plus", (h * g.mean(1, keepdim=True)).sum(2)) < 1e-13
    weights = (g * h.abs()).sum(1, keepdim=True) / (h.abs().sum(1, keepdim=True) + 1e-7)
    assert off("xgradcam_plus", (h * weights).sum(2)) < 1e-6


def test_means_over_patches_only(model: Model) -> None:
    vit, x, libra = model
    t = trace(vit, x, CLASSES, balanced=True)
    for method, direct in (("gradcam_plus", cam), ("xgradcam_plus", xcam)):
        found = fxgrad.attribute(libra, (x,), target=CLASSES, method=method, mean="patches")
        assert torch.allclose(found.tokens, direct(*layer(t)), rtol=1e-9, atol=1e-12)
        assert not found.prefix.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"at": "blocks.0"}, "at is 'input' or 'tokens', not 'blocks.0': where input_x_gradient is taken"),
        (
            {"method": "integrated_gradients", "rule": "simpson"},
            "rule is 'gausslegendre' or 'riemann_right', not 'simpson': how the points are placed",
        ),
        (
            {"method": "gradcam_plus", "mean": "all"},
            "mean is 'tokens' or 'patches', not 'all': what gradcam_plus takes it over",
        ),
        ({"method": "gradient", "at": "tokens"}, "gradient has no option 'at'; it takes none of its own"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str, model: Model) -> None:
    with pytest.raises(fxgrad.InputError, match=message):
        fxgrad.attribute(model[2], (model[1],), target=0, **options)


def test_a_model_without_tokens_is_told_so() -> None:
    x = torch.randn(1, 3, 4, 4)
    libra = fxgrad.convert(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 2)).eval(), (x,))
    with pytest.raises(fxgrad.InputError, match="neither patches nor tokens are found in the model"):
        fxgrad.attribute(libra, (x,), target=0, at="tokens")
