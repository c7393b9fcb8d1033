"""Targets that mix examples, targets that are no sum, and outputs beside the logits."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxgrad
from fxgrad.methods import Contrast, Map, Probability, Problem
from fxgrad.methods.outputs import logits_of
from tests.methods.test_examples import encoder
from tests.methods.test_target_batches import Function, converted, surprise

MIXING: dict[str, tuple[Any, str]] = {
    "mean": (lambda y: y[:, 1] - y[:, 1].mean(), "value 0 depends on output of example 1"),
    "roll": (lambda y: y[:, 1].roll(1), "value 1 depends on output of example 0"),
    "one": (lambda y: torch.stack([y[0, 0], y[0, 1], y[2, 2]]), "value 1 depends on output of example 0"),
    "softmax": (lambda y: y.softmax(0)[:, 2], "value . depends on output of example"),
    "contrast": (Contrast(lambda y: y[:, 1].flip(0), 2), "value 2 depends on output of example 0"),
    "slightly": (lambda y: y[:, 1] + 1e-5 * y[:, 1].sum(), "value . depends on output of example"),
}


@pytest.mark.parametrize("name", MIXING)
def test_targets_that_mix_examples_are_refused(name: str) -> None:
    libra, x = converted(encoder)
    target, message = MIXING[name]
    wanted = rf"mixes the examples of the batch: {message}.*\.detach\(\).*attribute one example at a time"
    for how in ("input_x_gradient", "gradient", "gradcam", "integrated_gradients"):
        with pytest.raises(fxgrad.InputError, match=wanted):
            fxgrad.attribute(libra, (x,), target=target, method=how)


@pytest.mark.parametrize(
    "target",
    [
        lambda y: y[:, 1] / y.mean(0).detach()[1],
        lambda y: (y * (y.argmax(1) == 2)[:, None]).sum(1),
        lambda y: y.flip(0).flip(0)[:, 2],
        lambda y: y.norm(dim=1),
        lambda y: y.amax(1),
        lambda y: y.relu().sum(1),
        lambda y: torch.zeros_like(y[:, 0]) * y[:, 0],
    ],
)
def test_targets_that_keep_examples_apart_are_sums(target: Function) -> None:
    libra, x = converted(encoder)
    found = fxgrad.attribute(libra, (x,), target=target)
    leaf = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(target(libra(leaf)).sum(), leaf)
    assert torch.allclose(found.map, (x * g).sum(2), rtol=1e-10, atol=1e-12) and found.note == ""
    assert torch.allclose(found.total, found.output, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "target",
    [
        surprise,
        lambda y: y.softmax(1)[:, 2],
        lambda y: y[:, 0].sigmoid(),
        lambda y: y[:, 0] + 1,
        lambda y: y[:, 0] - y[:, 0].detach() / 2,
        lambda y: y[:, 0] ** 2,
        lambda y: y.logsumexp(1),
        Contrast(0, lambda y: y.softmax(1)[:, 2]),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_targets_that_are_no_sum_come_with_a_warning(target: Any, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 8).to(dtype)
    libra = fxgrad.convert(nn.Sequential(nn.Linear(8, 6), nn.GELU(), nn.Linear(6, 4)).to(dtype).eval(), (x,))
    found = fxgrad.attribute(libra, (x,), target=target, method=as_they_are)
    assert re.search(r"Warning: the target \(.*\) is no sum of contributions of the outputs", found.note)
    assert "shares of its value cannot be complete" in str(found)
    both = fxgrad.attribute(libra, (x,), target=Contrast(Probability(1), target), method=as_they_are)
    assert both.note.startswith("Warning: a probability is no sum of contributions")
    assert fxgrad.attribute(libra, (x,), target=lambda y: y[:, 0] - 3 * y[:, 1], method=as_they_are).note == ""


def as_they_are(problem: Problem) -> Map:
    found = problem.run()
    return Map(tokens=found.inputs["input"] * found.gradients["input"])


class Several(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.f = nn.Linear(8, 4)
        self.scale, self.prototypes = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.randn(3, 4))

    def forward(self, x: Tensor) -> dict[str, Any]:
        y = self.f(x).mean(1)
        return {
            "loss": y.square().mean(),
            "logits": y,
            "scale": self.scale * 1,
            "prototypes": self.prototypes * 1,
            "hidden": None,
            "classes": y.argmax(1),
            "number": 3,
        }


def test_outputs_beside_the_logits() -> None:
    libra, x = converted(Several)
    assert torch.equal(fxgrad.attribute(libra, (x,), target=None).output, logits_of(libra(x)).amax(1))
    for target in (lambda o: o["loss"].expand(3), lambda o: o["logits"][:, 0] + o["loss"]):
        with pytest.raises(
            fxgrad.InputError, match=r"reads output\['loss'\] of shape \(\), which has no axis for the 3"
        ):
            fxgrad.attribute(libra, (x,), target=target)
    with pytest.raises(fxgrad.InputError, match="returned one number for 3 examples"):
        fxgrad.attribute(libra, (x,), target=lambda o: o["loss"])
    assert fxgrad.attribute(libra, (x[:1],), target=lambda o: o["loss"]).output.shape == (1,)


@pytest.mark.parametrize("name", ["scale", "prototypes"])
def test_outputs_that_all_examples_share(name: str) -> None:
    libra, x = converted(Several)
    order = torch.tensor([2, 0, 1])

    def target(o: dict[str, Tensor]) -> Tensor:
        return o["logits"][:, 1] * o["scale"] if name == "scale" else (o["logits"] * o["prototypes"][order]).sum(1)

    def one(o: dict[str, Tensor], k: int) -> Tensor:
        factor = o["scale"] if name == "scale" else o["prototypes"][order[k]]
        return o["logits"][:, 1] * factor if name == "scale" else (o["logits"] * factor).sum(1)

    whole = fxgrad.attribute(libra, (x,), target=target)
    own = [fxgrad.attribute(libra, (x[k : k + 1],), target=lambda o, k=k: one(o, k)) for k in range(3)]

    assert torch.allclose(whole.map, torch.cat([a.map for a in own]), rtol=1e-10, atol=1e-12)
    aparts = [a.apart for a in own if a.apart is not None]
    assert whole.apart is not None and torch.allclose(whole.apart, torch.cat(aparts), rtol=1e-10, atol=1e-12)
    # By degree 2 in the outputs, the shares are twice the value; the note says so.
    assert torch.allclose(whole.total, 2 * whole.output) and "is no sum of contributions" in whole.note
