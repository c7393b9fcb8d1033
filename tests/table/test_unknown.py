"""Ops that no rule covers: the refusal, the suggestion, the twin, and the result at the user's own risk."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxgrad
from fxgrad.classify.suggest import suggest
from fxgrad.table.loading import load

X = torch.linspace(-2, 2, 12, dtype=torch.float64).reshape(3, 4)


class Function(nn.Module):
    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def refusal(function: Callable[..., Tensor], **options: object) -> str:
    with pytest.raises(fxgrad.NoRuleError) as caught:
        fxgrad.convert(Function(function).eval(), (X,), **options)
    return str(caught.value)


# The suggestion. Ops that have rows, so that the table says what the answer is.
SUGGESTED = {
    "linear": lambda x, y: torch.flip(x, [1]),
    "linear of two": lambda x, y: torch.add(x, y),
    "piecewise_linear": lambda x, y: torch.relu(x),
    "piecewise_linear of two": lambda x, y: torch.maximum(x, y),
    "gated_activation": lambda x, y: nn.functional.silu(x),
    "squash, odd": lambda x, y: torch.tanh(x),
    "squash, not odd": lambda x, y: torch.expm1(x),
    "squash, unbounded": lambda x, y: torch.asinh(x),
    "gate, secant": lambda x, y: torch.sigmoid(x),
    "gate, degree = -1": lambda x, y: torch.reciprocal(x),
    "power, degree = 2": lambda x, y: torch.square(x),
    "product": lambda x, y: torch.mul(x, y),
    "quotient": lambda x, y: torch.div(x, y),
    "softmax": lambda x, y: torch.softmax(x, -1),
}


class Two(nn.Module):
    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.function(x, y)


@pytest.mark.parametrize("case", SUGGESTED)
def test_suggestions_agree_with_the_table(case: str) -> None:
    graph = torch.export.export(Two(SUGGESTED[case]), (X, X + 3)).graph
    (node,) = (n for n in graph.nodes if n.op == "call_function")
    row = load().row(node.target)
    tensors = [a.name for a, value in zip(node.target._schema.arguments, node.args) if isinstance(value, torch.fx.Node)]
    kind, text, because = suggest(node, tensors)
    assert kind is row.kind, because
    for part, names in row.parts.items():
        if set(names) <= set(tensors):
            assert f'{part} = "{names[0]}"' in text or f"{part} = " in text
    assert ("odd = true" in text) == (case == "squash, odd")
    if "degree" in case:
        assert case.split(", ")[1] in text
    assert ("secant = true" in text) == (case == "gate, secant")


def test_every_result_that_is_used_counts() -> None:
    """The factors of a decomposition have other degrees than what it says of the size."""
    message = refusal(lambda x: torch.linalg.svdvals(x))
    assert "aten._linalg_svd.default has no row" in message and "looks like piecewise_linear (homogeneous" in message
    message = refusal(lambda x: torch.matmul(*torch.linalg.qr(x)))
    assert "aten.linalg_qr.default has no row" in message and "looks like composed (its results are" in message


def test_a_direction_is_no_constant() -> None:
    message = refusal(lambda x: torch.linalg.qr(x)[0])
    assert '[gate]\n      "aten.linalg_qr" = { carrier = "A" }\n' in message


def test_what_cannot_be_tried_is_composed() -> None:
    message = refusal(lambda x: torch.special.ndtri(x / 4))  # a quantile: only in (0, 1)
    assert "looks like composed (it could not be tried on random numbers); and a twin, {op: function}, add" in message


def test_a_composite_op_with_a_side_effect_stays_whole() -> None:
    """Where PyTorch checks the factorization by a side effect; a PyTorch that does not decomposes it."""
    message = refusal(lambda x: torch.linalg.cholesky(x @ x.T))
    assert re.search(r"aten\.linalg_cholesky(_ex)?\.default has no row \(1 x\)", message), message


def test_the_refusal_groups_ops_and_says_where_and_what_next() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([Function(torch.special.bessel_j1) for _ in range(5)])

        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                x = block(x)
            return torch.special.bessel_j0(x)

    with pytest.raises(fxgrad.NoRuleError) as caught:
        fxgrad.convert(Net().eval(), (X,))
    message = str(caught.value)
    assert message.startswith("2 op(s) have no rule:")
    assert "aten.special_bessel_j1.default has no row (5 x)" in message
    assert "at blocks.0, test_unknown.py:" in message and "return self.function(x)" in message
    assert "and 2 more" in message
    assert '[squash]\n      "aten.special_bessel_j1" = { carrier = "self", odd = true }' in message
    assert '[gate]\n      "aten.special_bessel_j0" = { carrier = "self", secant = true }' in message
    assert "docs/new-op.md" in message and 'on_unknown="native"' in message


# Control flow.


def branch(x: Tensor) -> Tensor:
    return torch.cond(x.sum() > 0, lambda x: x + 1, lambda x: x - 1, (x,))


def loop(x: Tensor) -> Tensor:
    return torch.while_loop(lambda x: x.abs().sum() < 100, lambda x: (x * 2,), (x,))[0]


@pytest.mark.parametrize(("function", "name"), [(branch, "cond"), (loop, "while_loop")])
@pytest.mark.parametrize("on_unknown", ["error", "native"])
def test_control_flow_is_refused_by_name(function: Callable[..., Tensor], name: str, on_unknown: str) -> None:
    message = refusal(function, on_unknown=on_unknown)
    assert f"{name} is control flow (1 x)" in message and "replace it by torch.where" in message


# At the user's own risk.


def test_native_books_what_it_costs() -> None:
    model = Function(lambda x: torch.special.log_ndtr(x) + 2 * x).eval()
    libra = fxgrad.convert(model, (X,), on_unknown="native")
    report = fxgrad.check(libra, (X,), original=model)
    assert report.forward_identical and not report.passed
    worst = report.ledger[0]
    assert (worst.op, worst.kind, worst.rule) == ("aten.special_log_ndtr.default", "opaque", "native")
    assert worst.error == pytest.approx(report.completeness_error, rel=1e-9)
    assert all(row.error < 1e-12 for row in report.ledger[1:])
    x = X.clone().requires_grad_()
    libra(x).sum().backward()
    leaf = X.clone().requires_grad_()
    model(leaf).sum().backward()
    torch.testing.assert_close(x.grad, leaf.grad)
    assert libra.under("gradient").classified.table.on_unknown == "native"


def test_native_is_asked_for_by_name() -> None:
    with pytest.raises(fxgrad.RuleTableError, match=r'on_unknown is "error" or "native", not \'ignore\''):
        fxgrad.convert(nn.ReLU().eval(), (X,), on_unknown="ignore")


# Custom ops.


@torch.library.custom_op("fxgradtest::swish3", mutates_args=())
def swish3(x: Tensor) -> Tensor:
    return x * torch.sigmoid(3 * x)


@torch.library.custom_op("fxgradtest::double", mutates_args=())
def double(x: Tensor) -> Tensor:
    return 2 * x


@torch.library.custom_op("fxgradtest::halve", mutates_args=())
def halve(x: Tensor) -> Tensor:
    return x / 2


for op in (swish3, double, halve):
    op.register_fake(torch.empty_like)
double.register_autograd(lambda ctx, g: 2 * g)


def rows(path: Path, text: str) -> Path:
    (path / "mine.toml").write_text(text)
    return path / "mine.toml"


def test_a_custom_op_with_its_own_gradient(tmp_path: Path) -> None:
    file = rows(tmp_path, '[linear]\n"fxgradtest.double" = { carrier = "x" }\n')
    libra = fxgrad.convert(Function(double).eval(), (X,), rules=["libragrad", file])
    assert fxgrad.check(libra, (X,)).passed


def test_a_custom_op_without_a_gradient_is_carried_by_its_secant(tmp_path: Path) -> None:
    assert '[gated_activation]\n      "fxgradtest.swish3" = { carrier = "x" }' in refusal(swish3)
    file = rows(tmp_path, '[gated_activation]\n"fxgradtest.swish3" = { carrier = "x" }\n')
    libra = fxgrad.convert(Function(swish3).eval(), (X,), rules=["libragrad", file])
    x = X.clone().requires_grad_()
    libra(x).sum().backward()
    torch.testing.assert_close(x.grad, torch.sigmoid(3 * X), rtol=1e-12, atol=0)
    assert fxgrad.check(libra, (X,)).passed


def test_a_linear_custom_op_without_a_gradient_needs_a_twin(tmp_path: Path) -> None:
    file = rows(tmp_path, '[linear]\n"fxgradtest.halve" = { carrier = "x" }\n')
    libra = fxgrad.convert(Function(halve).eval(), (X,), rules=["libragrad", file])
    with pytest.raises(fxgrad.InputError, match=r"fxgradtest\.halve.*has no gradient of its own.*\[composed\].*twin"):
        fxgrad.check(libra, (X,))
    file = rows(tmp_path, '[composed]\n"fxgradtest.halve" = { carrier = "x" }\n')
    libra = fxgrad.convert(
        Function(halve).eval(), (X,), rules=["libragrad", file, {"fxgradtest.halve": lambda x: 0.5 * x}]
    )
    assert fxgrad.check(libra, (X,)).passed


def test_a_twin_that_lies_is_found(tmp_path: Path) -> None:
    file = rows(tmp_path, '[composed]\n"fxgradtest.halve" = { carrier = "x" }\n')
    libra = fxgrad.convert(Function(halve).eval(), (X,), rules=["libragrad", file, {"fxgradtest.halve": lambda x: x}])
    report = fxgrad.check(libra, (X,))
    assert report.forward_identical, "the values are the op's, whatever the twin says"
    assert not report.passed and report.ledger[0].op == "fxgradtest.halve.default"


def test_twins_and_rows_belong_together(tmp_path: Path) -> None:
    composed = rows(tmp_path, '[composed]\n"fxgradtest.halve" = { carrier = "x" }\n')
    with pytest.raises(fxgrad.RuleTableError, match=r"'fxgradtest\.halve': a composed op needs a twin.*rules=\["):
        load(["libragrad", composed])
    with pytest.raises(
        fxgrad.RuleTableError, match=r"a twin is given for fxgradtest\.double, which has no row in a section"
    ):
        load(["libragrad", {"fxgradtest.double": lambda x: x}])
    with pytest.raises(fxgrad.RuleTableError, match=r"the twin of fxgradtest\.halve must be a function, not 3"):
        load(["libragrad", composed, {"fxgradtest.halve": 3}])


def test_rows_for_ops_that_this_torch_lacks(tmp_path: Path) -> None:
    """In the shipped table they are for another torch, or a library that is not imported; in a user's, a mistake."""
    file = rows(tmp_path, '[linear]\n"fxgradtest.absent" = { carrier = "x" }\n')
    with pytest.raises(fxgrad.RuleTableError, match=r"'fxgradtest\.absent': torch has no such op\. Import the library"):
        load(file)
    assert "aten.absent" not in load().rows


# Ops that write to their operands.


@torch.library.custom_op("fxgrad_tests::double_", mutates_args={"x"})
def double_(x: Tensor) -> None:
    x.mul_(2)


@double_.register_fake
def _(x: Tensor) -> None:
    return None


@torch.library.custom_op("fxgrad_tests::doubled", mutates_args=())
def doubled(x: Tensor) -> Tensor:
    return x * 2


@doubled.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def test_an_op_that_writes_to_its_operands_is_refused_by_name(tmp_path: Path) -> None:
    def written(x: Tensor) -> Tensor:
        y = x.sin()
        double_(y)
        return y

    message = refusal(written)
    assert "fxgrad_tests.double_.default writes to its operands (1 x)" in message and "test_unknown.py:" in message
    assert "let it return its results" in message and "on_unknown" not in message
    (tmp_path / "mine.toml").write_text('[composed]\n"fxgrad_tests.doubled" = { carrier = "x" }\n')
    twins = {"fxgrad_tests.doubled": lambda x: 2 * x}
    rules = ["libragrad", str(tmp_path / "mine.toml"), twins]
    libra = fxgrad.convert(Function(lambda x: doubled(x.sin())).eval(), (X,), rules=rules)  # as it says
    assert fxgrad.check(libra, (X,), original=Function(lambda x: doubled(x.sin()))).passed


def test_an_op_that_writes_to_constants_is_one(tmp_path: Path) -> None:
    def shifted(x: Tensor) -> Tensor:
        positions = torch.arange(x.shape[-1], dtype=x.dtype)
        double_(positions)
        return x + positions

    model = Function(shifted).eval()
    libra = fxgrad.convert(model, (X,))
    assert torch.equal(libra(X), model(X)) and fxgrad.check(libra, (X,), original=model).passed
