"""Every method against a direct implementation in plain autograd, on a small ViT that was balanced by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import fxgrad
from fxgrad import methods
from fxgrad.methods import METHODS, Attribution, Map, Problem, anatomy
from tests.helpers import balanced_vit
from tests.helpers.balanced_vit import GRID, PATCH, TOKENS, Trace, decomposed, trace
from tests.helpers.quick import QUICK

CLASSES = torch.tensor([3, 1])
POLICIES = {"libragrad": True, "gradient": False}


@pytest.fixture(scope="module")
def model() -> tuple[balanced_vit.ViT, Tensor, fxgrad.ConvertedModule]:
    vit, x = balanced_vit.vit()
    return vit, x, fxgrad.convert(vit, (x,))


def per_patch(pixels: Tensor) -> Tensor:
    return F.avg_pool2d(pixels[:, None], PATCH, divisor_override=1).flatten(1)


def class_row(matrix: Tensor) -> Tensor:
    return matrix[:, 0]


def rolled(matrices: list[Tensor]) -> Tensor:
    product = torch.eye(TOKENS).to(matrices[0])
    for matrix in matrices:
        product = (torch.eye(TOKENS).to(matrix) + matrix) / 2 @ product
    return product


def relevance(t: Trace) -> list[Tensor]:
    return [(a * g).relu().mean(1) for a, g in zip(t.weights, t.gradients(t.weights))]


def sources(t: Trace, since: int) -> Tensor:
    """Per token; what has no token axis, the class token's."""
    total = torch.zeros(2, TOKENS).double()
    kept = [b for place, b in t.sources if place >= since]
    for b, g in zip(kept, t.gradients(kept)):
        share = (b * g).sum(-1)
        if share.dim() == 1 or share.shape[1] not in (TOKENS, TOKENS - 1):
            total[:, 0] += share.flatten(1).sum(1) if share.dim() > 1 else share
        else:
            total[:, -share.shape[1] :] += share
    return total


def layer(t: Trace) -> tuple[Tensor, Tensor]:
    """The patches' h and g at the input of the last block."""
    (g,) = t.gradients([t.h[1]])
    return t.h[1][:, 1:], g[:, 1:]


def direct_gradient(t: Trace) -> Tensor:
    return per_patch(t.gradients([t.x])[0].sum(1))


def direct_saliency(t: Trace) -> Tensor:
    return per_patch(t.gradients([t.x])[0].abs().amax(1))


def direct_input_x_gradient(t: Trace) -> Tensor:
    return per_patch((t.x * t.gradients([t.x])[0]).sum(1))


def last(t: Trace) -> tuple[Tensor, Tensor]:
    """The same of all tokens, the class token included."""
    return t.h[1], t.gradients([t.h[1]])[0]


def cam(h: Tensor, g: Tensor) -> Tensor:
    return torch.einsum("btc,bc->bt", h, g.mean(1))


def xcam(h: Tensor, g: Tensor) -> Tensor:
    return torch.einsum("btc,bc->bt", h, (g * h.abs()).sum(1) / h.abs().sum(1))


def direct_gradcam(t: Trace) -> Tensor:
    return cam(*layer(t)).relu()


def direct_gradcam_plus(t: Trace) -> Tensor:
    return cam(*last(t))


def direct_xgradcam_plus(t: Trace) -> Tensor:
    return xcam(*last(t))


def direct_layercam(t: Trace) -> Tensor:
    h, g = layer(t)
    return (h * g.relu()).sum(2).relu()


def direct_gradcam_plusplus(t: Trace) -> Tensor:
    h, g = layer(t)
    alpha = g**2 / (2 * g**2 + g**3 * h.sum(1, keepdim=True))
    return torch.einsum("btc,bc->bt", h, (alpha * g.relu()).sum(1)).relu()


def direct_hirescam(t: Trace) -> Tensor:
    h, g = layer(t)
    return (h * g).sum(2)


def direct_fullgrad(t: Trace) -> Tensor:
    return F.pad(direct_input_x_gradient(t), (1, 0)) + sources(t, -1)


def direct_fullgrad_plus(t: Trace) -> Tensor:
    terms = [(h * g).sum(2) + sources(t, i) for i, (h, g) in enumerate(zip(t.h, t.gradients(t.h[:2])))]
    return torch.stack(terms).sum(0)


def direct_attcat(t: Trace) -> Tensor:
    behind = t.h[1:]
    return sum(
        (a.mean((1, 2)) * (h * g).sum(2) for a, h, g in zip(t.weights, behind, t.gradients(behind))), torch.zeros(())
    )


def direct_genatt(t: Trace) -> Tensor:
    return class_row(rolled(relevance(t)))


def direct_gradsam(t: Trace) -> Tensor:
    return class_row(sum(relevance(t), torch.zeros(())))


def direct_tokentm(t: Trace) -> Tensor:
    def weight(e: Tensor, f: Tensor) -> Tensor:
        cosine = (e * f).sum(2) / (e.norm(dim=2) * f.norm(dim=2))
        return f.norm(dim=2) / e.norm(dim=2) * cosine.exp() / cosine.exp().mean(1, keepdim=True)

    c = torch.diag_embed(t.h[0].norm(dim=2))
    for h, v, m, (stream, branch) in zip(t.h, t.values, relevance(t), t.middle):
        c = c + m @ torch.diag_embed(weight(h, v)) @ c
        c = c + torch.diag_embed(weight(stream, branch)) @ c
    return class_row(c)


def direct_raw_attention(t: Trace) -> Tensor:
    return class_row(t.weights[-1].mean(1))


def direct_rollout(t: Trace) -> Tensor:
    return class_row(rolled([a.mean(1) for a in t.weights]))


DIRECT: dict[str, Callable[[Trace], Tensor]] = {
    name.removeprefix("direct_"): f for name, f in globals().items() if name.startswith("direct_")
}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("method", DIRECT)
def test_against_plain_autograd(method: str, policy: str, model: tuple) -> None:  # type: ignore[type-arg]
    vit, x, libra = model
    found = fxgrad.attribute(libra.under(policy), (x,), target=CLASSES, method=method)
    t = trace(vit, x, CLASSES, POLICIES[policy])
    wanted = DIRECT[method](t).detach()
    assert torch.allclose(found.output, t.output, rtol=1e-12)
    if wanted.shape[1] == TOKENS and not found.of_pixels:
        assert torch.allclose(found.map, wanted, rtol=1e-9, atol=1e-12)
    assert torch.allclose(found.tokens, wanted[:, -GRID * GRID :], rtol=1e-9, atol=1e-12)
    assert found.tokens.shape == (2, GRID * GRID) and found.patches.shape == (2, GRID, GRID)
    assert found.pixels.shape == (2, 12, 12)
    assert found.tokens.abs().max() > 0


def test_all_others_have_a_test_of_their_own() -> None:
    """Captum's, those that run the model more than once, those that need no gradient, and noise."""
    captum_s = {"integrated_gradients", "smoothgrad", "occlusion", "kernel_shap"}
    assert set(METHODS) - set(DIRECT) == captum_s | {"shift_averaged", "transatt", "biattn", "legrad", "rise", "random"}


@pytest.mark.parametrize("method", ["input_x_gradient", "hirescam", "fullgrad", "fullgrad_plus"])
def test_shares_add_up_to_the_logit_if_the_policy_balances(method: str, model: tuple) -> None:  # type: ignore[type-arg]
    _, x, libra = model
    found = fxgrad.attribute(libra, (x,), target=CLASSES, method=method)
    assert found.total is not None and found.completeness_error is not None
    assert torch.allclose(found.total, found.output, rtol=1e-12)
    assert found.completeness_error < 1e-12
    plain = fxgrad.attribute(libra.under("gradient"), (x,), target=CLASSES, method=method)
    assert plain.completeness_error is not None and plain.completeness_error > 1e-2


def test_linear_decomposition_is_input_x_gradient(model: tuple) -> None:  # type: ignore[type-arg]
    vit, x, libra = model
    contributions = decomposed(vit, x)
    assert torch.allclose(contributions.sum(1), vit(x), rtol=1e-12)
    for target in range(balanced_vit.CLASSES):
        found = fxgrad.attribute(libra, (x,), target=target, method="input_x_gradient")
        assert torch.allclose(found.tokens, contributions[:, :-1, target], rtol=1e-9, atol=1e-9)
        assert found.apart is not None and torch.allclose(found.apart, contributions[:, -1, target], atol=1e-9)


@pytest.mark.parametrize("method", [m for m in METHODS if m not in ("random", "smoothgrad")])
def test_a_batch_is_its_examples(method: str, model: tuple) -> None:  # type: ignore[type-arg]
    _, x, libra = model
    both = fxgrad.attribute(libra, (x,), target=CLASSES, method=method, **QUICK.get(method, {}))
    for i in range(2):
        one = fxgrad.attribute(libra, (x[i : i + 1],), target=int(CLASSES[i]), method=method, **QUICK.get(method, {}))
        assert torch.allclose(one.map[0], both.map[i], rtol=1e-9, atol=1e-12)


def test_random_is_the_same_for_a_seed(model: tuple) -> None:  # type: ignore[type-arg]
    _, x, libra = model

    def noise(seed: int) -> Attribution:
        return fxgrad.attribute(libra, (x,), target=0, method="random", seed=seed)

    assert torch.equal(noise(1).tokens, noise(1).tokens) and not torch.equal(noise(1).tokens, noise(2).tokens)
    assert noise(1).completeness_error is None and noise(1).total is None


def test_in_half_precision(model: tuple) -> None:  # type: ignore[type-arg]
    vit, x, libra = model
    half = fxgrad.convert(copy.deepcopy(vit).bfloat16(), (x.bfloat16(),))
    for method in METHODS:
        few = QUICK.get(method, {})
        ours = fxgrad.attribute(half, (x.bfloat16(),), target=CLASSES, method=method, **few).tokens.double()
        exact = fxgrad.attribute(libra, (x,), target=CLASSES, method=method, **few).tokens
        if method != "smoothgrad":  # whose noise is another
            assert torch.corrcoef(torch.stack([ours.flatten(), exact.flatten()]))[0, 1] > 0.95, method


def test_what_the_graph_tells_can_be_overridden(model: tuple) -> None:  # type: ignore[type-arg]
    _, x, libra = model
    found = anatomy(libra.classified)
    assert (found.grid, found.prefix, found.tokens, found.class_token) == ((4, 4), 1, 17, 0)
    assert [block.path for block in found.blocks] == ["blocks.0", "blocks.1"]
    first = fxgrad.attribute(libra, (x,), target=0, method="raw_attention", blocks=["blocks.0"])
    last = fxgrad.attribute(libra, (x,), target=0, method="raw_attention")
    assert not torch.allclose(first.tokens, last.tokens)
    wide = fxgrad.attribute(libra, (x,), target=0, grid=(2, 8), prefix=1)
    assert wide.patches.shape == (2, 2, 8)
    other = fxgrad.attribute(libra, (x,), target=0, method="rollout", class_token=5)
    assert not torch.allclose(other.tokens, fxgrad.attribute(libra, (x,), target=0, method="rollout").tokens)


def test_the_inputs_and_the_random_state_stay(model: tuple) -> None:  # type: ignore[type-arg]
    _, x, libra = model
    before, state = x.clone(), torch.random.get_rng_state()
    for method in METHODS:
        with torch.no_grad():
            fxgrad.attribute(libra, (x,), target=1, method=method, **QUICK.get(method, {}))
    assert torch.equal(x, before) and not x.requires_grad
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(p.grad is None for p in libra.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "grad_cam"}, "there is no method 'grad_cam'. There are gradient, saliency"),
        ({"method": "genatt", "n_steps": 3}, "genatt has no option 'n_steps'; it takes none of its own"),
        ({"method": "smoothgrad", "steps": 3}, "smoothgrad has no option 'steps'; it takes samples, noise, seed"),
        ({"method": "genatt", "layer": "norm"}, r"genatt does not look at one layer. Leave out layer='norm'; gradcam"),
        ({"method": "gradcam", "layer": "blocks.7"}, r"no layer 'blocks.7' that .* Close to it: blocks"),
        ({"method": "gradcam", "layer": "head"}, r"gradcam looks at a layer's tokens .* 'head' of shape \(2, 5\)"),
        ({"input": "y"}, "there is no attributed input 'y'; there is x"),
        ({"blocks": ["block.0"]}, r"no node of the program that depends on 'x' is in the block 'block.0'"),
        ({"grid": (9, 9)}, r"a grid of 9 x 9 patches .* does not fit the 17 tokens"),
    ],
)
def test_what_there_is_not(arguments: dict[str, object], message: str, model: tuple) -> None:  # type: ignore[type-arg]
    _, x, libra = model
    with pytest.raises(fxgrad.InputError, match=message):
        fxgrad.attribute(libra, (x,), target=0, **arguments)  # type: ignore[call-overload]


def test_a_method_of_ones_own(model: tuple) -> None:  # type: ignore[type-arg]
    _, x, libra = model

    def squared(problem: Problem, power: int = 2) -> Map:
        return Map(pixels=(problem.run().gradients["x"].abs() ** power).sum(1))

    found = fxgrad.attribute(libra, (x,), target=[CLASSES, 0], method=squared, power=3)
    leaf = x.clone().requires_grad_()
    libra(leaf).gather(1, CLASSES[:, None]).sum().backward()
    assert leaf.grad is not None
    assert torch.allclose(found[0].pixels, (leaf.grad.abs() ** 3).sum(1), rtol=1e-9)
    assert found[0].method == "squared" and found[0].total is None and len(found) == 2
    with pytest.raises(fxgrad.InputError, match="squared has no option 'n_steps'; it takes power"):
        fxgrad.attribute(libra, (x,), target=0, method=squared, n_steps=3)
    with pytest.raises(fxgrad.InputError, match=r"squared does not look at one layer. Leave out layer='norm'; gradcam"):
        fxgrad.attribute(libra, (x,), target=0, method=squared, layer="norm")


def test_a_method_of_ones_own_takes_any_option_and_a_layer_if_it_says_so(model: tuple) -> None:  # type: ignore[type-arg]
    _, x, libra = model

    @methods.method(name="mine", layered=True)
    def cam(problem: Problem, **options: object) -> Map:
        assert options == {"anything": 1} and problem.layer == "blocks.1"
        return Map(tokens=problem.values([problem.layer_node("")])[problem.layer_node("")].sum(2))

    found = fxgrad.attribute(libra, (x,), target=0, method=cam, layer="blocks.1", anything=1)
    assert found.method == "mine" and found.tokens.shape == (2, GRID * GRID)
    assert "mine" not in METHODS and "cam" not in METHODS


@pytest.mark.parametrize("shares", [True, False])
def test_examples_that_cannot_be_told_apart_go_one_by_one(
    shares: bool,
    model: tuple,  # type: ignore[type-arg]
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, x, libra = model
    batches: list[int] = []

    @methods.method(shares=shares)
    def mine(problem: Problem) -> Map:
        batches.append(problem.batch)
        return METHODS["fullgrad"](problem)

    wanted = fxgrad.attribute(libra, (x,), target=CLASSES, method="fullgrad")
    monkeypatch.setattr(Problem, "mixed", True)
    found = fxgrad.attribute(libra, (x,), target=CLASSES, method=mine)
    assert batches == ([1, 1] if shares else [2])
    assert torch.allclose(found.map, wanted.map, rtol=1e-9, atol=1e-12) and found.completeness_error < 1e-12  # type: ignore[operator]


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (torch.zeros(2, 12, 12), r"mine must return Map\(pixels=.* or Map\(tokens=.*; it returned Tensor\."),
        (Map(), r"its Map has neither\. Give one of them\."),
        (Map(torch.zeros(2, 12, 12), torch.zeros(2, TOKENS)), r"its Map has both\. Give one of them\."),
        (Map(pixels=torch.zeros(2, 3, 12, 12)), r"its pixels are \(2, 3, 12, 12\), the input's \(2, 12, 12\)\."),
        (Map(tokens=torch.zeros(2, 16)), r"its tokens are \(2, 16\), the model's \(2, 17\), of which 1 lie ahead"),
        (Map(tokens=torch.zeros(1, TOKENS)), r"its tokens are \(1, 17\), the model's \(2, 17\)"),
        (
            Map(tokens=torch.zeros(2, TOKENS), apart=torch.zeros(2, 5)),
            r"apart holds one number per example, \(2,\); mine returned \(2, 5\)\. Sum it\.",
        ),
    ],
)
def test_what_a_method_of_ones_own_must_return(returned: object, message: str, model: tuple) -> None:  # type: ignore[type-arg]
    _, x, libra = model

    def mine(problem: Problem) -> object:
        return returned

    with pytest.raises(fxgrad.InputError, match=message):
        fxgrad.attribute(libra, (x,), target=0, method=mine)  # type: ignore[call-overload]
    with pytest.raises(fxgrad.InputError, match=r"a method is a name, or a function .*; 3 is neither"):
        fxgrad.attribute(libra, (x,), target=0, method=3)  # type: ignore[call-overload]
