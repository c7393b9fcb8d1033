"""The proof: what it reports, and what it refuses."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor, nn

import fxgrad
from tests.helpers.sharing import converted


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 3)
        self.token = nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.first(x) + self.token)
        return self.last(torch.sigmoid(h) + h.clamp(-0.5, 0.5)) + 2


def built() -> tuple[nn.Module, tuple[Tensor]]:
    torch.manual_seed(0)
    model = Net().double().eval()
    nn.init.normal_(model.norm.bias)
    return model, (torch.randn(5, 4).double(),)


@pytest.fixture
def net() -> nn.Module:
    return built()[0]


def test_books_add_up(net: nn.Module) -> None:
    x = torch.randn(5, 4).double()
    report = fxgrad.check(fxgrad.convert(net, (x,)), (x,), original=net)
    assert report.passed and report.forward_identical
    assert report.completeness_error < 1e-14 and report.unexplained < 1e-14
    total = report.inputs + sum(s.contribution for s in report.sources)
    assert total == pytest.approx(report.output, rel=1e-13)
    names = {s.source for s in report.sources}
    assert names == {
        "first.bias", "token", "norm.bias", "aten.sigmoid.default at 0", "min = -0.5, max = 0.5", "last.bias", "other = 2",
    }  # fmt: skip


def test_one_logit(net: nn.Module) -> None:
    x = torch.randn(1, 4).double()
    libra = fxgrad.convert(net, (x,))
    report = fxgrad.check(libra, (x,), cotangent=torch.tensor([[0.0, 1.0, 0.0]]))
    x.requires_grad_()
    logit = libra(x)[0, 1]
    logit.backward()
    assert report.output == pytest.approx(logit.item(), rel=1e-14)
    assert report.inputs == pytest.approx((x * x.grad).sum().item(), rel=1e-12)
    by_hand = fxgrad.convert(net, (x,)).requires_grad_(True)
    by_hand(x)[0, 1].backward()
    biases = {s.source: s.contribution for s in report.sources}
    for name in ("first.bias", "norm.bias", "last.bias", "token"):
        parameter = by_hand.get_parameter(name)
        assert biases[name] == pytest.approx((parameter * parameter.grad).sum().item(), rel=1e-12)


def test_the_plain_gradient_is_not_complete() -> None:
    plain = fxgrad.check(converted(built, "gradient")[2])
    assert plain.forward_identical and plain.unexplained < 1e-13 and not plain.passed
    assert plain.completeness_error > 1e-3
    assert plain.ledger[0].op in ("aten.layer_norm.default", "aten.sigmoid.default")


def test_a_different_original_is_noticed(net: nn.Module) -> None:
    x = torch.randn(5, 4).double()
    report = fxgrad.check(fxgrad.convert(net, (x,)), (x,), original=lambda x: net(x) + 1e-16 + 1e-12)
    assert not report.forward_identical and not report.passed
    assert str(report).startswith("FAILED: forward DIFFERS")


def test_the_seed_and_the_example_are_fixed() -> None:
    libra = converted(built)[2]
    assert fxgrad.check(libra).to_json() == fxgrad.check(libra).to_json()
    assert fxgrad.check(libra, seed=1).output != fxgrad.check(libra).output


def test_dtype_follows_the_module() -> None:
    libra = converted(built)[2]
    report = fxgrad.check(libra.float())
    assert report.tolerance == 1e-4 and report.passed and report.completeness_error < 1e-5


def test_several_outputs() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return torch.tanh(x), x.argmax(-1), x.exp().detach() + x

    x = torch.randn(2, 4).double()
    libra = fxgrad.convert(Two().eval(), (x,))
    report = fxgrad.check(libra)
    assert report.passed and report.completeness_error < 1e-14
    assert [s.source for s in report.sources] == ["detach"]
    first = fxgrad.check(libra, cotangent=(torch.ones(2, 4), None, None))
    assert first.passed and first.output == pytest.approx(torch.tanh(x).sum().item())


def test_unknown_shape_of_cotangent() -> None:
    libra = converted(built)[2]
    with pytest.raises(
        fxgrad.InputError, match=r"the cotangent is shaped \[\(3,\)\], but the outputs are shaped \[\(5, 3\)\]"
    ):
        fxgrad.check(libra, cotangent=torch.ones(3))


def test_nan_in_the_input_is_named(net: nn.Module) -> None:
    x = torch.randn(5, 4).double()
    libra = fxgrad.convert(net, (x,))
    x[2, 1] = float("nan")
    with pytest.raises(fxgrad.InputError, match=r"input 'x' is nan at \[2, 1\] \(1 of 20 elements are not finite\)"):
        fxgrad.check(libra, (x,))


def test_infinities_on_the_way_are_named() -> None:
    class Overflow(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.exp(x * 1000) * 0.5

    libra = fxgrad.convert(Overflow().eval(), (torch.ones(2, 4),))
    with pytest.raises(
        fxgrad.InputError, match=r"the result of exp \(aten\.exp\.default at .*test_check\.py.* is inf at \[0, 0\]"
    ):
        fxgrad.check(libra)


def test_reports_print_and_serialise(net: nn.Module) -> None:
    libra = converted(built)[2]
    report = libra.report
    assert "aten.layer_norm.default" in str(report) and "hold_scale" in str(report)
    assert "h = self.norm(self.first(x) + self.token)" in report.details()
    rows = json.loads(report.to_json())
    assert list(rows[0]) == ["node", "op", "kind", "roles", "rule", "reason", "module_path", "source_line"]
    assert report.to_json() == fxgrad.convert(net, (torch.randn(5, 4).double(),)).report.to_json()
    short, _, rest = report._repr_html_().rpartition("<details>")
    assert short.count("<tr>") == len(report.summary()) + 1  # the summary is shown, every node folded
    assert rest.count("<tr>") == len(report) + 1 and f"<summary>All {len(report)} nodes</summary>" in rest
    checked = fxgrad.check(libra)
    text = str(checked)
    assert text.startswith("passed: forward identical") and "Ledger, least balanced first" in text
    assert list(json.loads(checked.to_json())) == [
        "passed", "forward_identical", "completeness_error", "unexplained", "output", "inputs", "tolerance",
        "ledger", "sources",
    ]  # fmt: skip
    assert "<table>" in checked._repr_html_() and "norm.bias" in checked._repr_html_()


def test_report_escapes_html() -> None:
    from fxgrad.report import Table

    row = fxgrad.convert(nn.Tanh().eval(), (torch.ones(2, 2),)).report[0]
    assert "<b>" not in Table("<b>", [row])._repr_html_()


def test_an_infinite_mask_that_is_only_held_counts_for_nothing() -> None:
    class Masked(nn.Module):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return torch.softmax(x @ x.mT + mask, -1) @ x

    x, mask = torch.randn(2, 3, 4).double(), torch.full((2, 3, 3), -torch.inf).double().triu(1)
    libra = fxgrad.convert(Masked().eval(), (x, mask))
    assert fxgrad.check(libra, (x, mask)).passed
    plain = fxgrad.check(libra.under("gradient"), (x, mask))
    assert 0 < plain.completeness_error < 10


def test_outputs_that_no_input_reaches_explain_themselves() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.ones(2, 4).double())

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            return x * x, x.detach(), self.bias, x.argmax(-1).double(), x

    x = torch.randn(2, 4).double()
    report = fxgrad.check(fxgrad.convert(Mixed().eval(), (x,)), (x,))
    assert report.passed
    assert len(report.sources) == 3 and all(row.source.startswith("output ") for row in report.sources)


def test_the_tolerance_follows_the_coarsest_dtype_on_the_way() -> None:
    class Inside(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(x.float() * 3).double() * x

    x = torch.randn(2, 4).double()
    report = fxgrad.check(fxgrad.convert(Inside().eval(), (x,)), (x,))
    assert report.passed and report.tolerance == 1e-4


class Equal(nn.Module):
    """Normalizes values that are all the same wherever x is below 2.4: 0, but for rounding."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.instance_norm((x * 0.125).clamp(min=0.3))


def test_outputs_that_are_rounding_noise() -> None:
    libra = fxgrad.convert(Equal().eval(), (torch.zeros(1, 4, 4).double(),))
    report = fxgrad.check(
        libra, (torch.randn(1, 4, 4, generator=torch.Generator().manual_seed(0)).double(),), tolerance=1e-9
    )
    assert 0 < abs(report.output) < 1e-12 and report.drowned and report.passed
    assert "the outputs are rounding noise of larger values that cancel" in str(report)
    assert json.loads(report.to_json())["drowned"] is True
    whole = fxgrad.check(libra, (20 * torch.randn(2, 4, 4).double(),))
    assert whole.passed and not whole.drowned and "noise" not in str(whole) and "drowned" not in whole.to_json()


def test_a_wrong_gradient_of_small_outputs_is_no_noise() -> None:
    tiny = nn.Sequential(nn.Linear(3, 3), nn.GELU()).double().eval()
    with torch.no_grad():
        tiny[0].weight.mul_(1e-12)
    plain = fxgrad.convert(tiny, (torch.ones(1, 3).double(),), rules="gradient")
    report = fxgrad.check(plain, (torch.ones(1, 3).double(),))
    assert not report.drowned and not report.passed
