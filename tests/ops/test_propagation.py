"""LRP's rules for layers: against the sums of their papers, written as loops over contributions, and against zennit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import zennit.attribution
import zennit.composites
import zennit.rules
import zennit.types
from numpy.typing import NDArray
from torch import Tensor, nn

import fxgrad
from fxgrad.errors import NoRuleError, RuleTableError
from fxgrad.module.converted import ConvertedModule
from fxgrad.run.recording import Recording

LOW, HIGH = -2.5, 2.0
POLICIES = {
    "epsilon": {"epsilon": 0.25},
    "gamma": {"gamma": 0.5},
    "alpha-beta": {"alpha": 3.0, "beta": 2.0},
    "z-plus": {},
    "z-box": {"low": LOW, "high": HIGH},
}
Array = NDArray[np.float64]


# The papers' sums. q[j, i] = x_i w_ji are contributions to output j; the last column is the bias.


def proportions(part: Array) -> Array:
    """In proportion; where there is nothing, nothing."""
    return part / part.sum() if part.any() else part


def divided(policy: str, q: Array, relevance: Array, weight: Array) -> Array:
    """What each contribution gets of each output's relevance, in the shape of q."""
    shares = np.zeros_like(q)
    for j, contributions in enumerate(q):
        z, up, down = contributions.sum(), contributions.clip(min=0), contributions.clip(max=0)
        if policy == "epsilon":
            part = contributions / (z + 0.25 * (1 if z >= 0 else -1))
        elif policy == "gamma":
            part = contributions + 0.5 * (up if z > 0 else down)
            part = proportions(part)
        elif policy == "alpha-beta":
            part = 3 * proportions(up) - 2 * proportions(down)
        elif policy == "z-plus":
            part = proportions(up)
        else:
            part = contributions[:-1] - LOW * weight[j].clip(min=0) - HIGH * weight[j].clip(max=0)
            part = np.append(proportions(part), 0)
        shares[j] = part * relevance[j]
    return shares


def dense(layer: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Array, Array]:
    """Matrix and bias of a layer, from its derivative and its value at 0."""
    jacobian = torch.autograd.functional.jacobian(lambda flat: layer(flat.view_as(x)).flatten(), x.flatten())
    return jacobian.numpy(), layer(torch.zeros_like(x)).detach().flatten().numpy()


class Layer(nn.Module):
    def __init__(self, function: Callable[..., Tensor], *shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.function = function
        self.weights = nn.ParameterList(torch.randn(shape, dtype=torch.float64) for shape in shapes)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.weights)


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(6, 4).double(), (2, 6)),
    "linear without bias": (lambda: nn.Linear(6, 4, bias=False).double(), (2, 3, 6)),
    "convolution": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2).double(), (2, 4, 5, 5)),
    "transposed": (lambda: nn.ConvTranspose1d(2, 3, 3, stride=2, output_padding=1).double(), (2, 2, 4)),
    "addmm": (lambda: Layer(lambda x, w, b: torch.addmm(b, x, w), (6, 4), (4,)), (2, 6)),
    "matmul": (lambda: Layer(torch.matmul, (6, 4)), (2, 3, 6)),
    "from the left": (lambda: Layer(lambda x, w: w @ x, (4, 6)), (6, 3)),
    "vector": (lambda: Layer(torch.matmul, (6,)), (2, 6)),
}


def gradient(module: Callable[..., Any], x: Tensor, g: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(module(x), x, g)[0]


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("policy", POLICIES)
def test_papers_sums(policy: str, name: str) -> None:
    make, shape = LAYERS[name]
    layer, x = make().eval().requires_grad_(False), torch.randn(shape, dtype=torch.float64).clamp(LOW, HIGH)
    converted = fxgrad.convert(layer, (x,)).under(policy, **POLICIES[policy])
    z = layer(x)
    g = torch.randn_like(z)
    assert torch.equal(converted(x), z)
    weight, bias = dense(layer, x)
    q = np.concatenate([weight * x.flatten().numpy(), bias[:, None]], 1)
    shares = divided(policy, q, (z * g).flatten().numpy(), weight)
    ours = x * gradient(converted, x, g)
    torch.testing.assert_close(ours.flatten().numpy(), shares[:, :-1].sum(0), rtol=1e-11, atol=1e-11)

    kept = Recording(converted, [x]).back([g]).sources.values()
    total = sum(part.sum() for parts in kept for part in parts)
    torch.testing.assert_close(float(total), shares[:, -1].sum(), rtol=1e-11, atol=1e-11)


def test_relevance_that_a_rule_loses_is_in_the_ledger() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double().eval()
    x = torch.randn(4, 6).double()
    libra = fxgrad.convert(model, (x,))
    for policy in ("gamma", "gamma (gamma = 100)"):
        report = fxgrad.check(libra.under(policy), (x,), original=model)
        assert report.passed and report.completeness_error < 1e-13
    report = fxgrad.check(libra.under("epsilon", epsilon=0.1), (x,), original=model)
    wrong = {row.op for row in report.ledger if row.error > 1e-6}
    assert not report.passed and wrong == {"aten.linear.default"} and report.unexplained < 1e-13
    found = fxgrad.attribute(libra.under("epsilon", epsilon=0.1), (x,), target=1)
    assert "the rules of these ops can lose relevance: aten.linear.default (2 x)" in found.note


def test_outputs_with_contributions_of_one_sign() -> None:
    """alpha-beta hands on alpha R where nothing is negative; z-plus loses R where nothing is positive."""
    layer, x = nn.Linear(3, 2, bias=False).double().eval(), torch.rand(1, 3).double() + 0.1
    layer.weight.data = torch.tensor([[1.0, 2, 3], [-1, -2, -3]]).double()
    libra, z = fxgrad.convert(layer, (x,)), layer(x)
    up, down = (torch.eye(2).double()[i : i + 1] for i in range(2))

    def handed(policy: str, g: Tensor) -> Tensor:
        return (x * gradient(libra.under(policy), x, g)).sum() / (z * g).sum()

    torch.testing.assert_close(handed("alpha-beta", up).item(), 2.0)
    torch.testing.assert_close(handed("alpha-beta", down).item(), -1.0)
    assert handed("z-plus", down) == 0
    torch.testing.assert_close(handed("gamma", down).item(), 1.0)


def test_what_is_no_layer_keeps_its_own_gradient() -> None:
    """Batch norms, scales, sums, means and views; and a product of two carriers has its shares."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.scale = nn.BatchNorm1d(6), nn.Parameter(torch.randn(6))

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(x) * self.scale + x.flip(-1)
            return y * x + y.mean(0)

    model, x = Model().double().eval(), torch.randn(4, 6).double()
    model.norm.running_mean = torch.full((6,), 0.5).double()
    g, libra = torch.randn(4, 6).double(), fxgrad.convert(model, (x,))
    assert all(torch.equal(gradient(libra.under(p), x, g), gradient(libra, x, g)) for p in POLICIES)


def test_sizes_are_no_weights() -> None:
    """A factor that is a free size of the input is a number, whatever the policy."""
    model = Layer(lambda x: torch.lerp(x, x.flip(-1) * x.shape[0], 0.25) / x.shape[1]).eval()
    x = torch.randn(3, 4).double()
    assert fxgrad.check(fxgrad.convert(model, (x,), rules="gamma"), (x,), original=model).passed


def test_a_residual_in_addmm_is_a_contribution() -> None:
    w = torch.randn(5, 5).double()
    model, x = Layer(lambda x: torch.addmm(x, x, w)).eval(), torch.randn(3, 5).double()
    libra, z, g = fxgrad.convert(model, (x,)).under("gamma"), model(x), torch.randn(3, 5).double()
    ours, wanted = x * gradient(libra, x, g), torch.zeros(3, 5).double()
    for row in range(3):
        for j in range(5):
            q = torch.cat([x[row] * w[:, j], x[row, j : j + 1]])
            q = q + 0.25 * (q.clamp(min=0) if z[row, j] > 0 else q.clamp(max=0))
            r = q / q.sum() * (z * g)[row, j]
            wanted[row] += r[:-1]
            wanted[row, j] += r[-1]
    torch.testing.assert_close(ours, wanted, rtol=1e-11, atol=1e-12)
    assert fxgrad.check(libra, (x,), original=model).passed


def test_queries_that_are_held_do_not_hide_the_values_rule() -> None:
    """Of a fused projection only the values are live; their rows have the rule, not the layer's own gradient."""
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).double().eval()
    x = torch.randn(2, 5, 8).double()
    libra = fxgrad.convert(model, (x,))
    assert fxgrad.check(libra.under("gamma"), (x,), original=model).completeness_error < 1e-12
    g = torch.randn(2, 5, 8).double()
    near = gradient(libra.under("gamma", gamma=1e-9), x, g)
    torch.testing.assert_close(near, gradient(libra, x, g), rtol=1e-6, atol=1e-6)
    assert {row.rule for row in libra.under("gamma").report if row.kind == "linear" and "proj" in row.op} <= {"gamma"}


# zennit, the package of LRP for convolutional networks. Its rules add a stabilizer to what they divide by.

TINY = 1e-30
RULES = {
    "epsilon": [zennit.rules.Epsilon(0.25)],
    "gamma": [zennit.rules.Gamma(0.5, TINY)],
    "alpha-beta": [zennit.rules.AlphaBeta(3, 2, TINY)],
    "z-plus": [zennit.rules.ZPlus(TINY)],
    "z-box": [
        zennit.rules.ZPlus(TINY),
        zennit.rules.ZBox(torch.tensor(LOW).double(), torch.tensor(HIGH).double(), TINY),
    ],
}


def convolutional() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 8, 3, padding=1, stride=2), nn.ReLU(), nn.AvgPool2d(3), nn.Flatten(), nn.Linear(8, 5)),
    )


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(588, 16), nn.GELU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 5))


@pytest.mark.parametrize("make", [convolutional, perceptron])
@pytest.mark.parametrize("policy", RULES)
def test_zennit(policy: str, make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(1)
    model, x = make().double().eval(), torch.randn(2, 3, 14, 14).double().clamp(LOW, HIGH)
    layers = [
        (zennit.types.Activation, zennit.rules.Pass()),
        (zennit.types.AvgPool, zennit.rules.Norm(TINY)),
        (zennit.types.Linear, RULES[policy][0]),
    ]
    first = [(zennit.types.Linear, rule) for rule in RULES[policy][1:]]
    composite = zennit.composites.SpecialFirstLayerMapComposite(layers, first)
    one_hot = F.one_hot(torch.tensor([1, 1]), 5).double()
    with zennit.attribution.Gradient(model, composite) as attributor:
        _, theirs = attributor(x, lambda output: output * one_hot)
    libra = fxgrad.convert(model, (x,)).under(policy, **POLICIES[policy])
    ours = x * gradient(libra, x, one_hot)
    assert (ours - theirs).abs().max() <= 1e-12 * theirs.abs().max() and all(map(torch.any, theirs))
    assert not torch.allclose(ours, x * gradient(model, x, one_hot), rtol=1e-2), "the plain gradient is another one"


# The whole of fxgrad with them.


@pytest.fixture(scope="module")
def small() -> tuple[nn.Module, Tensor, ConvertedModule]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 4)).double().eval()
    x = torch.randn(2, 1, 5, 5).double().clamp(LOW, HIGH)
    return model, x, fxgrad.convert(model, (x,))


@pytest.mark.parametrize("policy", POLICIES)
def test_every_form_has_the_same_gradient(
    policy: str, small: tuple[nn.Module, Tensor, ConvertedModule], tmp_path: Path
) -> None:
    _, x, converted = small
    libra = converted.under(policy, **POLICIES[policy])
    rows = torch.randn(3, 2, 4).double()
    wanted = torch.stack([gradient(libra, x, g) for g in rows])
    torch.testing.assert_close(fxgrad.vjp(libra, (x,), rows).gradients["input"], wanted, rtol=1e-12, atol=1e-14)
    fxgrad.save(libra, tmp_path / "a.pt2")
    loaded = fxgrad.load(tmp_path / "a.pt2")
    assert loaded.classified.table.name == libra.classified.table.name
    for other in (copy.deepcopy(libra), loaded, torch.compile(libra, backend="aot_eager", fullgraph=True)):
        torch.testing.assert_close(gradient(other, x, rows[0]), wanted[0], rtol=1e-12, atol=1e-14)


def test_the_explainer_has_the_parameters(small: tuple[nn.Module, Tensor, ConvertedModule], tmp_path: Path) -> None:
    _, x, converted = small
    policies = ["gamma", "gamma (gamma = 3)"]
    described = fxgrad.export_explainer(converted, (x,), tmp_path / "e.pt2", policies=policies)
    assert set(described["policies"]) == {"gamma", "gamma_gamma_3"}


# Parameters.


def test_parameters_are_part_of_the_name(small: tuple[nn.Module, Tensor, ConvertedModule]) -> None:
    model, x, converted = small
    named = converted.under("gamma", gamma=2)
    written = fxgrad.convert(model, (x,), rules="gamma (gamma = 2)")
    assert named.classified.decisions == written.classified.decisions
    assert written.classified.table.name == "gamma (gamma = 2)" and "rules='gamma (gamma = 2)'" in repr(named)
    assert named.classified.decisions != converted.under("gamma").classified.decisions
    rules = {row.op.split(".")[1]: row.rule for row in named.report}
    assert rules.pop("conv2d") == rules.pop("linear") == "gamma (gamma = 2)"
    assert set(rules.values()) == {"native"}, "what is no layer says so"


@pytest.mark.parametrize(
    ("policy", "parameters", "said"),
    [
        ("gamma", {"gama": 1}, "there is no parameter 'gama'; the policy takes gamma, reference"),
        ("gamma (gamma = much)", {}, "'gamma = much' is not written as name = number, as in 'gamma"),
        ("gamma (0.5)", {}, "'0.5' is not written as name = number"),
        ("gamma", {"gamma": "1"}, "gamma = '1' is not a number"),
        ("alpha-beta", {"alpha": 3}, "alpha - beta must be 1 and beta at least 0, not 3 and 1"),
        ("z-box (low = 1)", {}, "low must be at most 0, high at least 0"),
        ("gradient", {"gamma": 1}, "there is no parameter 'gamma'; the policy takes none"),
        ("epsilon (epsilon = 1)", {"beta": 1}, "there is no parameter 'beta'"),
    ],
)
def test_wrong_parameters(
    policy: str, parameters: dict[str, float], said: str, small: tuple[nn.Module, Tensor, ConvertedModule]
) -> None:
    with pytest.raises(RuleTableError) as refused:
        small[2].under(policy, **parameters)
    assert said in str(refused.value)


def test_weights_that_are_several_tensors_are_refused() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(torch.randn(4)), nn.Parameter(torch.randn(3, 4, 4))

        def forward(self, x: Tensor) -> Tensor:
            return F.bilinear(x, self.a.expand_as(x), self.b)

    model, x = Model().eval(), torch.randn(2, 4)
    with pytest.raises(NoRuleError, match=r"its weights are several tensors \(input2, weight\)"):
        fxgrad.convert(model, (x,), rules="gamma")


def test_packed_weights_are_refused() -> None:
    weight, scales = torch.randint(-9, 9, (16, 32), dtype=torch.int8), torch.rand(16)
    model = Layer(lambda x: torch._weight_int8pack_mm(x, weight, scales)).eval()
    libra = fxgrad.convert(model, (torch.randn(4, 32),))
    with pytest.raises(
        NoRuleError, match=r"_weight_int8pack_mm.*its weights are packed, and rules such as epsilon and gamma"
    ):
        libra.under("epsilon")
