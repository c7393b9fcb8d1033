"""Idioms: found by facts, whatever the ops are called; and their reason, which the report prints."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fxgrad
from fxgrad.classify.idioms import IDIOMS
from fxgrad.kinds import Role


class Calls(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def reasons(function: Callable[[Tensor], Tensor]) -> list[str]:
    libra = fxgrad.convert(Calls(function).eval(), (torch.randn(2, 3).double(),))
    assert fxgrad.check(libra, (torch.randn(2, 3).double(),)).passed
    return [d.idiom for d in libra.classified.decisions.values() if d.idiom]


@pytest.mark.parametrize(
    "lifted", [lambda x: 1 + torch.tanh(x), lambda x: torch.rsub(torch.erf(x), 1), lambda x: 2 - torch.atan(x) / 2]
)
def test_a_number_plus_an_odd_squash_says_why_it_is_a_gate(lifted: Callable[[Tensor], Tensor]) -> None:
    assert reasons(lambda x: x * lifted(x)) == ["as in 1 + tanh(x): a gate"]


def test_a_hard_sigmoid_says_why_it_is_a_gate() -> None:
    assert reasons(lambda x: x * torch.nn.functional.relu6(x + 3)) == ["as in relu6(x + 3): a gate"]
    assert reasons(lambda x: x * torch.clamp(x + 3, 0, 6)) == ["as in relu6(x + 3): a gate"]


def test_the_report_prints_the_reason() -> None:
    libra = fxgrad.convert(Calls(lambda x: x * (1 + torch.tanh(x))).eval(), (torch.randn(2, 3),))
    (row,) = [row for row in libra.report if row.op.startswith("aten.add")]
    assert row.reason.endswith("; as in 1 + tanh(x): a gate") and row.roles.endswith("-> gate")


def test_a_parameter_plus_a_squash_is_no_gate() -> None:
    """tanh(x) + bias is a layer's output."""

    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.randn(3))

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(x) + self.bias

    libra = fxgrad.convert(Shifted().eval(), (torch.randn(2, 3),))
    assert list(libra.classified.decisions.values())[-1].role is Role.CARRIER


def test_every_idiom_has_a_formula() -> None:
    assert all(idiom.formula for idiom in IDIOMS) and len({idiom.formula for idiom in IDIOMS}) == len(IDIOMS)
