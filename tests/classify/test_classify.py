"""Roles, liveness, refusals."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxgrad
from fxgrad.capture.export import capture
from fxgrad.classify.walk import Decision, classify
from fxgrad.table.loading import load


def decisions(forward: object, *args: Tensor, rules: str = "libragrad") -> dict[str, Decision]:
    class Model(nn.Module):
        def forward(self, *xs: Tensor) -> Tensor:
            return forward(*xs)  # type: ignore[operator,no-any-return]

    found = classify(capture(Model().eval(), args or (torch.randn(2, 4, 4),)), load(rules)).decisions
    counts: Counter[str] = Counter()
    renumbered = {}
    for name, decision in found.items():  # torch.export numbers nodes with gaps
        stem = re.sub(r"_\d+$", "", name)
        renumbered[f"{stem}_{counts[stem]}" if counts[stem] else stem] = decision
        counts[stem] += 1
    return renumbered


def roles(*args: object) -> dict[str, str]:
    return {name: d.role.label for name, d in decisions(*args).items()}


def test_roles_of_a_gated_unit() -> None:
    assert roles(lambda x: torch.tanh(x) * torch.sigmoid(x + 1)) == {
        "tanh": "carrier",
        "add": "carrier",
        "sigmoid": "gate",
        "mul": "carrier",
    }


def test_gates_stay_gates_through_linear_and_elementwise_ops() -> None:
    found = roles(lambda x: x * (1 - torch.softmax(x, -1).mean(-1, keepdim=True)).clamp(min=0).sqrt())
    assert found["softmax"] == found["mean"] == found["rsub"] == found["clamp"] == found["sqrt"] == "pure gate"
    assert found["mul"] == "carrier"


@pytest.mark.parametrize(
    ("forward", "role"),
    [
        (lambda x: 1 + torch.tanh(x), "gate"),
        (lambda x: 0.5 - torch.erf(x / 2) * 0.5, "gate"),
        (lambda x: 1 + torch.tanh(x).transpose(1, 2), "gate"),
        (lambda x: torch.tanh(x) + torch.ones(4), "carrier"),
        (lambda x: torch.tanh(x) + 0.0, "carrier"),
        (lambda x: 1 + x, "carrier"),
        (lambda x: 1 + (torch.tanh(x) + x), "carrier"),
        (lambda x: 1 + torch.asinh(x), "carrier"),
        (lambda x: 1 / (x.abs() + 1), "gate"),
        (lambda x: x / (x.abs() + 1), "carrier"),
        (lambda x: (x * x + 1) ** -0.5, "gate"),
        (lambda x: (x * x + 1) ** 0.5, "carrier"),
    ],
)
def test_role_of_the_result(forward: object, role: str) -> None:
    assert list(roles(forward).values())[-1] == role


def test_shares_and_reasons() -> None:
    found = decisions(lambda x, y: x * y * torch.sigmoid(x), torch.randn(2, 4), torch.randn(2, 4))
    assert found["mul"].weights == (0.5, 0.5) and found["mul_1"].weights == (1.0, 0.0)
    assert found["mul_1"].reason == "self is a carrier, other is a gate (held)"
    assert found["sigmoid"].reason.endswith("the result is only ever held")
    assert not found["sigmoid"].live and found["mul"].live


def test_a_computed_coefficient_makes_a_product() -> None:
    found = decisions(lambda x, w: nn.functional.linear(x, w.tanh()), torch.randn(2, 4), torch.randn(4, 4))
    assert found["linear"].kind.value == "product" and found["linear"].weights == (0.5, 0.5)


def test_only_the_value_of_an_attention_is_live() -> None:
    def attention(x: Tensor) -> Tensor:
        q, k, v = (x @ torch.eye(4)).unsqueeze(1).repeat(3, 1, 1, 1, 1).unbind(0)
        return nn.functional.scaled_dot_product_attention(q * 2, k + 1, v)

    found = decisions(attention)
    assert not found["mul"].live and not found["add"].live and found["matmul"].live


def test_comparisons_and_shapes_are_constants() -> None:
    found = decisions(lambda x: torch.where(x > x.argmax(-1, keepdim=True), x, torch.zeros_like(x)))
    assert list(found) == ["where"]


def test_same_graph_and_table_same_answer() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Softplus(), nn.LayerNorm(4)).eval()
    captured = capture(model, (torch.randn(2, 4),))
    assert classify(captured, load()).decisions == classify(captured, load()).decisions


class Unruled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = torch.special.bessel_j1(x)
        z = torch.digamma(y.abs() + 1)
        return torch.special.bessel_j1(z)


def test_all_unknown_ops_are_listed_at_once() -> None:
    with pytest.raises(fxgrad.NoRuleError) as caught:
        fxgrad.convert(nn.Sequential(nn.Linear(4, 4), Unruled()).eval(), (torch.randn(2, 4),))
    message = str(caught.value)
    assert "2 op(s) have no rule" in message
    assert (
        "aten.special_bessel_j1.default has no row (2 x)" in message
        and "aten.digamma.default has no row (1 x)" in message
    )
    assert message.count("at 1, ") == 3 and "test_classify.py:" in message
    assert "y = torch.special.bessel_j1(x)" in message and "z = torch.digamma(y.abs() + 1)" in message
    assert '"aten.digamma" = { carrier = "self" }' in message and "docs/new-op.md" in message


def test_the_line_to_add_works(tmp_path: Path) -> None:
    rows = tmp_path / "mine.toml"
    rows.write_text('[squash]\n"aten.special_bessel_j1" = { carrier = "self" }\n')

    class Bessel(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.special.bessel_j1(x)

    model, x = Bessel().eval(), torch.randn(2, 4).double()
    report = fxgrad.check(fxgrad.convert(model, (x,), rules=["libragrad", rows]), (x,), original=model)
    assert report.passed and report.completeness_error < 1e-14, "though autograd does not know this op"


class Digamma(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.digamma(x)


def test_a_squash_without_a_secant_is_refused(tmp_path: Path) -> None:
    rows = tmp_path / "mine.toml"
    rows.write_text('[squash]\n"aten.digamma" = { carrier = "self" }\n')
    with pytest.raises(fxgrad.NoRuleError, match=r"mine\.toml \[squash\] lists it, but .* has no secant through 0"):
        fxgrad.convert(Digamma().eval(), (torch.randn(2, 4),), rules=["libragrad", rows])


def test_unknown_ops_on_constants_need_no_rule() -> None:
    found = decisions(lambda x: x * torch.digamma(torch.ones(4)))
    assert list(found) == ["mul"]


def test_operands_that_no_row_provides_for() -> None:
    with pytest.raises(fxgrad.NoRuleError, match=r"aten\.layer_norm\.default has weight computed from the input"):
        decisions(lambda x: nn.functional.layer_norm(x, [4], weight=x[0, 0]))
    with pytest.raises(fxgrad.NoRuleError, match=r"aten\.special_bessel_j0\.default has no row"):
        decisions(lambda x: torch.special.bessel_j0(x))


@pytest.mark.parametrize(
    ("forward", "path"),
    [
        (lambda x: torch.softmax(x @ torch.ones(4, 4), -1), "softmax"),
        (lambda x: torch.softmax(x, -1) * 2 + x, "softmax -> mul -> add"),
        (lambda x: torch.log_softmax(x, -1), "log_softmax"),
        # Averages of constants: there is nothing but sources, or outputs that are nothing else.
        (lambda x: torch.softmax(x, -1) @ MEMORY[:4] + 1, "softmax -> matmul -> add"),
        (lambda x: torch.cat([torch.softmax(x, -1), x], -1), "softmax -> cat"),
        # No weights of an average.
        (lambda x: torch.log_softmax(x, -1) @ MEMORY[:4] + x, "log_softmax -> matmul -> add"),
        (lambda x: torch.softmax(x, -1).log() @ MEMORY[:4] + x, "softmax -> log -> matmul -> add"),
        (lambda x: torch.cdist(x, MEMORY) @ MEMORY + x, "cdist -> matmul -> add"),
    ],
)
def test_a_softmax_at_the_end_cannot_be_balanced(forward: object, path: str) -> None:
    with pytest.raises(fxgrad.NotBalanceableError) as caught:
        decisions(forward)
    message = str(caught.value)
    assert f"reaches the output by {path}\n" in re.sub(r"_\d+", "", message) and "test_classify.py:" in message
    assert 'softmax = "native"' in message or "cdist" in message


MEMORY = torch.randn(5, 4)


def external_attention(x: Tensor) -> Tensor:
    return x + (torch.softmax(x @ MEMORY.mT, -1)[..., :3] @ MEMORY[:3] + 1) @ torch.ones(4, 4)


def fused_external_attention(x: Tensor) -> Tensor:
    memory = MEMORY.expand(2, 5, 4)
    return nn.functional.scaled_dot_product_attention(x, memory, memory) - x


@pytest.mark.parametrize("forward", [external_attention, fused_external_attention])
def test_attention_to_constants_is_a_source_beside_a_carrier(forward: Callable[[Tensor], Tensor]) -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return forward(x)

    x, g = torch.randn(2, 4, 4), torch.randn(2, 4, 4)
    converted = fxgrad.convert(Model().eval(), (x,))
    report = fxgrad.check(converted, (x,), cotangent=g)
    sign = -1 if forward is fused_external_attention else 1
    (source,) = [row for row in report.sources if row.source.endswith("its weights held")]
    assert report.passed and source.contribution == pytest.approx((g * (forward(x) - sign * x)).sum().item(), rel=1e-4)
    x.requires_grad_()
    assert torch.equal(torch.autograd.grad(converted(x), x, g)[0], sign * g)


def test_attention_to_constants_gets_a_gradient_where_softmax_does() -> None:
    found = decisions(external_attention, rules="attnlrp")
    assert found["softmax"].live and not [s for d in found.values() for s in d.sources if "held" in s]


def test_a_softmax_at_the_end_is_fine_when_nothing_is_rewritten() -> None:
    assert decisions(lambda x: torch.softmax(x, -1), rules="gradient")["softmax"].backward.name == "native"


def test_a_softmax_that_multiplies_a_sigmoid_network() -> None:
    """Gates that can carry take over where there is no carrier; the softmax stays held."""
    found = decisions(lambda x: torch.softmax(x, -1) @ torch.sigmoid(x))
    assert found["matmul"].weights == (0.0, 1.0) and not found["softmax"].live
