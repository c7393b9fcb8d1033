"""What constants contribute, elementwise: against the ledger's sums, by hand, and traced."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

import fxgrad
from fxgrad.run.recording import Contributions, contributions
from tests.helpers.every_kind import converted_net, net
from tests.helpers.tagger import tagger


def sums(found: Contributions) -> dict[str, float]:
    return {name: float(sum(part.sum() for part in parts)) for name, parts in found.sources.items()}


class Recurrent(nn.Module):
    """Several biases in one op, and piecewise linear ones whose constants broadcast."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 6, batch_first=True)
        self.floor = nn.Parameter(torch.linspace(-1, 1, 6))

    def forward(self, x: Tensor) -> Tensor:
        return torch.log(2 + torch.maximum(self.lstm(x)[0], self.floor).clamp(max=0.3).sigmoid())


def recurrent() -> tuple[nn.Module, tuple[Tensor]]:
    return Recurrent().double().eval(), (torch.randn(3, 5, 4).double(),)


@pytest.mark.parametrize("policy", ["libragrad", "attnlrp", "gradient"])
@pytest.mark.parametrize("case", [net, recurrent], ids=["every kind", "recurrent"])
def test_elements_add_up_to_the_ledger_s_rows(case: object, policy: str) -> None:
    model, (x,) = case()  # type: ignore[operator]
    converted = fxgrad.convert(model, (x,), rules=policy)
    v = torch.randn_like(model(x))
    found = contributions(converted, [x], [v])
    report = fxgrad.check(converted, (x,), cotangent=v)
    wanted = {row.node: row.contribution for row in report.sources}
    assert {k: s for k, s in sums(found).items() if s != 0} == pytest.approx(wanted, rel=1e-9, abs=1e-12)
    assert float((x * found.gradients["x"]).sum()) == pytest.approx(report.inputs, rel=1e-10)
    leaf = x.clone().requires_grad_()
    (plain,) = torch.autograd.grad(converted(leaf), leaf, v)
    assert torch.equal(found.gradients["x"], plain)
    assert torch.equal(found.outputs[0], model(x))


def test_they_are_shaped_as_the_nodes_outputs() -> None:
    _, x, converted = converted_net()
    found = contributions(converted, [x], lambda outputs: [torch.ones_like(outputs[0])], also=["linear"])
    graph = converted.classified.captured.graph
    shapes = {n.name: n.meta["val"].shape[1:] for n in graph.nodes if n.name in found.sources}
    assert len(found.sources) > 5
    for name, parts in found.sources.items():
        assert [tuple(part.shape) for part in parts] == [(3, *shapes[name])], name
    first = converted.first
    assert torch.allclose(found.sources["linear"][0], found.cotangents["linear"] * first.bias)
    assert torch.allclose(found.values["linear"], nn.functional.linear(x, first.weight, first.bias))


def test_twins_biases_have_their_own_shapes() -> None:
    model, (x,) = recurrent()
    found = contributions(fxgrad.convert(model, (x,)), [x], [torch.ones(3, 5, 6).double()])
    (twin,) = [parts for parts in found.sources.values() if len(parts) > 1]
    assert [part.shape for part in twin if part.dim() == 1] == [(24,), (24,)]  # weights have their own part


def test_token_ids_are_embedded_first() -> None:
    model, inputs = tagger()
    converted = fxgrad.convert(model, inputs)
    with torch.no_grad():
        entries = converted.entries(inputs, {})
    v = torch.randn(3, 6, 11).double()
    found = contributions(converted, entries, [v])
    report = fxgrad.check(converted, inputs, cotangent=v)
    assert list(found.gradients) == ["words", "types"]
    total = sum(float((x * found.gradients[name]).sum()) for name, x in found.inputs.items())
    assert total == pytest.approx(report.inputs, rel=1e-10)
    assert sum(sums(found).values()) == pytest.approx(report.output - total, rel=1e-9)


def test_an_output_that_no_input_reaches_is_its_own_source() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.constant = nn.Parameter(torch.tensor([2.0, 3.0]))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x.tanh(), self.constant * 2

    x = torch.ones(2, 2)
    converted = fxgrad.convert(Two().eval(), (x,))
    found = contributions(converted, [x], [None, torch.tensor([1.0, 10.0])])
    assert [[part.tolist() for part in parts] for parts in found.sources.values()] == [[[4.0, 60.0]]]
    assert found.gradients["x"].tolist() == [[0, 0], [0, 0]]


def test_the_state_s_gradients_are_not_computed_and_the_inputs_stay() -> None:
    _, x, converted = converted_net()
    before = x.clone()
    contributions(converted, [x], [torch.ones(3, 5, 2).double()])
    assert torch.equal(x, before) and not x.requires_grad
    assert all(p.grad is None for p in converted.parameters())


def test_it_can_be_traced() -> None:
    _, x, converted = converted_net()

    def attribute(x: Tensor) -> tuple[Tensor, Tensor]:
        found = contributions(converted, [x], [torch.ones(3, 5, 2).double()])
        return found.gradients["x"], torch.stack([p.sum() for parts in found.sources.values() for p in parts])

    traced = make_fx(attribute)(torch.randn_like(x))
    for ours, theirs in zip(traced(x), attribute(x)):
        assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("policy", ["libragrad", "gradient"])
@pytest.mark.parametrize("norm", [nn.LayerNorm(6, eps=0), nn.GroupNorm(2, 6, eps=0), nn.LayerNorm(6, eps=1e-300)])
def test_the_shift_of_a_norm_without_epsilon_is_a_source(norm: nn.Module, policy: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), norm, nn.Linear(6, 3)).double().eval()
    nn.init.normal_(model[1].bias)  # type: ignore[arg-type]
    x = torch.randn(4, 5, dtype=torch.float64)
    libra = fxgrad.convert(model, (x,), rules=policy)
    found = fxgrad.attribute(libra, (x,), target=1, method="input_x_gradient")
    assert found.apart is not None and found.apart.isfinite().all()
    report = fxgrad.check(libra, (x,), original=model, cotangent=torch.ones(4, 3, dtype=torch.float64))
    assert report.passed == (policy == "libragrad")
    # By hand: the last weights times the shift.
    shares = {row.source: row.contribution for row in report.sources}
    weights = torch.ones(4, 3, dtype=torch.float64) @ model[2].weight  # type: ignore[operator]
    assert shares["1.bias"] == pytest.approx(float((weights * model[1].bias).sum().detach()), rel=1e-9)
