"""Policies and rows of one's own: a base and what differs, parameters of backwards, rows that replace shipped ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxgrad
from fxgrad.errors import RuleTableError
from fxgrad.kinds import Kind
from fxgrad.table import load, presets
from fxgrad.table.policy import Choice


def file(folder: Path, text: str, name: str = "mine.toml") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def net(activation: nn.Module) -> tuple[nn.Sequential, Tensor]:
    model = nn.Sequential(nn.Linear(3, 4), activation, nn.Linear(4, 2)).double().eval()
    return model, torch.randn(5, 3, dtype=torch.float64)


# Base: a policy says what differs.


def test_a_policy_is_its_base_but_for_what_it_says(tmp_path: Path) -> None:
    table = load(file(tmp_path, 'base = "libragrad"\n[backward]\nsoftmax = "native"\n'))
    wanted = {**load("libragrad").policy, Kind.SOFTMAX: "native"}
    assert table.policy == wanted and list(table.policy) == list(wanted)


def test_a_base_may_have_a_base_and_lie_beside(tmp_path: Path) -> None:
    file(tmp_path, 'base = "attnlrp"\n[backward]\npower = "native"\n', "middle.toml")
    table = load(file(tmp_path, 'base = "middle.toml"\n[backward]\nquotient = "native"\n'))
    wanted = {**load("attnlrp").policy, Kind.POWER: "native", Kind.QUOTIENT: "native"}
    assert table.policy == wanted


def test_policies_that_are_each_others_base_are_refused(tmp_path: Path) -> None:
    file(tmp_path, 'base = "b.toml"\n', "a.toml")
    file(tmp_path, 'base = "a.toml"\n', "b.toml")
    with pytest.raises(
        RuleTableError, match=r"the policies b\.toml, a\.toml are each other's base\. Let one stand alone"
    ):
        load(str(tmp_path / "a.toml"))


def test_a_base_that_is_no_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RuleTableError, match=r"base is a policy's name or the path of a \.toml file, not 3"):
        load(file(tmp_path, "base = 3\n"))


def test_what_a_policy_lacks_is_answered_by_a_line_that_is_taken(tmp_path: Path) -> None:
    with pytest.raises(RuleTableError, match='say base = "libragrad" at the top of the file') as refused:
        load(file(tmp_path, '[backward]\nsoftmax = "native"\n'))
    assert "no backward for linear" in str(refused.value)
    assert load(file(tmp_path, 'base = "libragrad"\n[backward]\nsoftmax = "native"\n')).policy[Kind.SOFTMAX] == "native"


def toml(choice: Choice) -> str:
    """A backward as a policy file spells it."""
    if isinstance(choice, str):
        return f'"{choice}"'
    return "{" + ", ".join(f"{key} = {json.dumps(value)}" for key, value in choice.items()) + "}"


def test_policies_written_out_in_full_still_load(tmp_path: Path) -> None:
    for name in presets():
        text = "[backward]\n" + "".join(f"{kind.value} = {toml(c)}\n" for kind, c in load(name).policy.items())
        assert load(file(tmp_path, text)).policy == load(name).policy


# Parameters: a secant through another point than 0.


@pytest.mark.parametrize("reference", [-1.0, 0.5])
def test_a_secant_through_a_reference_is_deeplifts_rescale_rule(reference: float, tmp_path: Path) -> None:
    model, x = net(nn.Tanh())
    policy = f'base = "libragrad"\n[backward]\nsquash = {{ backward = "secant", reference = {reference} }}\n'
    libra = fxgrad.convert(model, (x,), rules=file(tmp_path, policy))
    leaf = x.clone().requires_grad_()
    y = libra(leaf)
    cotangent = torch.randn_like(y)
    (gradient,) = torch.autograd.grad(y, leaf, cotangent)
    with torch.no_grad():
        h = model[0](x)
        slope = (h.tanh() - torch.tensor(reference).double().tanh()) / (h - reference)
        wanted = (cotangent @ model[2].weight * slope) @ model[0].weight
    assert torch.equal(y, model(x))
    torch.testing.assert_close(gradient, wanted, rtol=1e-12, atol=1e-14)
    report = fxgrad.check(libra, (x,), original=model)
    assert report.passed and report.completeness_error < 1e-13
    assert {row.rule for row in libra.report} >= {f"secant (reference = {reference:g})"}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_slope_at_the_reference_is_the_derivative(dtype: torch.dtype) -> None:
    from fxgrad.ops import reference, rescale

    near = torch.tensor([1.0, 1.0 + 1e-9, 1.0 - 1e-5, 1.01, 4.0], dtype=dtype).requires_grad_()
    y = rescale(torch.sigmoid, reference(torch.sigmoid, 1.0), near)
    (slope,) = torch.autograd.grad(y.sum(), near)
    exact = near.detach().to(torch.float64)
    apart = exact - 1
    start = torch.sigmoid(torch.tensor(1.0, dtype=torch.float64))
    wanted = torch.where(apart.abs() < 1e-7, start * (1 - start), (exact.sigmoid() - start) / apart)
    tolerance = {torch.float64: 1e-7, torch.float32: 2e-3, torch.bfloat16: 1e-2}[dtype]
    torch.testing.assert_close(slope.double(), wanted, rtol=tolerance, atol=0)


def test_parameters_are_saved_and_loaded(tmp_path: Path) -> None:
    model, x = net(nn.Tanh())
    policy = 'base = "libragrad"\n[backward]\nsquash = { backward = "secant", reference = -1.0 }\n'
    libra = fxgrad.convert(model, (x,), rules=file(tmp_path, policy))
    fxgrad.save(libra, tmp_path / "libra.pt2")
    loaded = fxgrad.load(tmp_path / "libra.pt2")
    leaf = x.clone().requires_grad_()
    ours, theirs = (torch.autograd.grad(f(leaf).sum(), leaf)[0] for f in (loaded, libra))
    assert loaded.classified.table.policy == libra.classified.table.policy and torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ('{ backward = "secant", slope = 1.0 }', "squash: secant has no parameter 'slope'; it takes reference"),
        ('{ backward = "native", reference = 1.0 }', "squash: native has no parameter 'reference'; it takes none"),
        ('{ backward = "secant", reference = "one" }', "squash: reference = 'one' is not a number"),
        ("{ reference = 1.0 }", "squash = None: must be one of native, secant"),
        ('"hold_scale"', "squash = 'hold_scale': must be one of native, secant"),
    ],
)
def test_parameters_that_a_backward_lacks_are_refused(choice: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(RuleTableError) as refused:
        load(file(tmp_path, f'base = "libragrad"\n[backward]\nsquash = {choice}\n'))
    assert message in str(refused.value)


# Rows that take the place of shipped ones.

TANH = '[squash]\n"aten.tanh" = { carrier = "self", odd = true'


def test_a_second_row_is_refused_with_the_line_that_replaces_the_first(tmp_path: Path) -> None:
    with pytest.raises(RuleTableError) as refused:
        load(["libragrad", file(tmp_path, TANH + " }\n")])
    line = '"aten.tanh" = { carrier = "self", odd = true, replace = true }'
    assert line in str(refused.value) and "rules/ops.toml [squash] has already" in str(refused.value)
    assert (
        load(["libragrad", file(tmp_path, f"[squash]\n{line}\n")])
        .rows["aten.tanh"]
        .origin.endswith("mine.toml [squash]")
    )


def test_an_op_that_the_tables_have_gets_a_twin_of_ones_own(tmp_path: Path) -> None:
    """The gradient is the twin's, which holds half of the gate; the values are the kernel's."""

    def half_held(self: Tensor, *, approximate: str = "none") -> Tensor:
        gate = torch.special.ndtr(self)
        return self * (gate / 2 + gate.detach() / 2)

    model, x = net(nn.GELU())
    row = '[composed]\n"aten.gelu" = { carrier = "self", replace = true }\n'
    rules = ["libragrad", file(tmp_path, row), {"aten.gelu": half_held}]
    libra = fxgrad.convert(model, (x,), rules=rules)
    leaf = x.clone().requires_grad_()
    y = libra(leaf)
    (gradient,) = torch.autograd.grad(y[:, 1].sum(), leaf)
    reference = x.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(model[2](half_held(model[0](reference)))[:, 1].sum(), reference)
    assert torch.equal(y, model(x))
    torch.testing.assert_close(gradient, wanted, rtol=1e-12, atol=1e-14)


def test_a_row_for_all_overloads_replaces_those_of_single_ones(tmp_path: Path) -> None:
    table = load(["libragrad", file(tmp_path, '[constant]\n"aten.where" = { replace = true }\n')])
    assert table.row(torch.ops.aten.where.self).kind is Kind.CONSTANT  # type: ignore[union-attr]
    assert not [op for op in table.rows if op.startswith("aten.where.")]


def test_replace_is_true_or_false(tmp_path: Path) -> None:
    with pytest.raises(RuleTableError, match="replace = 'yes' has the wrong type"):
        load(["libragrad", file(tmp_path, TANH + ', replace = "yes" }\n')])


def test_a_composed_row_that_replaces_needs_a_twin(tmp_path: Path) -> None:
    row = '[composed]\n"aten.glu" = { carrier = "self", replace = true }\n'
    with pytest.raises(RuleTableError, match=r"'aten.glu': a composed op needs a twin"):
        load(["libragrad", file(tmp_path, row)])
