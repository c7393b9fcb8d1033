"""The contract of the rules: every op's rewritten gradient equals an independently written textbook reference.

One test, run over every case in three dtypes and under eight kinds of inputs. In float64 `fxgrad.check` is
the second witness.
"""

from __future__ import annotations

import copy
import functools
import math
import random
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

import fxgrad
from fxgrad.table.loading import load
from tests.references.cases import GATES, NONLINEAR, Case, Unary
from tests.references.cases_linear import LINEAR
from tests.references.cases_losses import LOSSES
from tests.references.cases_recurrent import RECURRENT
from tests.references.textbook import SECANTS

CASES = {case.name: case for case in [*NONLINEAR, *LINEAR, *RECURRENT, *LOSSES]}
assert len(CASES) == len(NONLINEAR) + len(LINEAR) + len(RECURRENT) + len(LOSSES), "two cases have one name"
NATIVE = ("linear", "piecewise_linear", "constant", "softmax")
"""Kinds that keep the op's own backward: their rows may go without a case."""

# Relative to the largest entry of the reference. Float64: 1e-12 for everything. The others: a few
# roundings of operands, result and cotangent (bfloat16), sums of some tens of terms (float32).
BOUND = {torch.float64: 1e-12, torch.float32: 32 * 2.0**-23, torch.bfloat16: 4 * 2.0**-7}
ONE_BATCH = {"bce"} if torch.__version__ < (2, 12) else set[str]()
"""Cases whose batch cannot be free: PyTorch 2.11 broadcasts this loss's weights by a function that takes numbers only."""
NO_KERNEL = {("avg_pool3d", torch.bfloat16)}
REGIMES = ("random", "batch of one", "other strides", "zeros", "small", "around the series", "denormal", "large")


def draw(spec: str, sizes: dict[str, int], regime: str, dtype: torch.dtype, large: float, seed: int) -> Tensor:
    """One input of a case: `sizes` says how long a lettered axis is."""
    axes, _, domain = (part.strip() for part in spec.partition(":"))
    shape = [int(axis) if axis.isdigit() else sizes[axis] for axis in axes.split()]
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    magnitude = torch.rand(shape, generator=generator, dtype=torch.float64)
    if regime == "large":
        x = x.sign() * large * (0.5 + magnitude / 2)
    if regime == "other strides":
        x = x.permute(*reversed(range(x.dim()))).contiguous().permute(*reversed(range(x.dim())))
    if domain in ("nonzero", "positive"):  # away from 0, where the op has a pole
        x = (x.abs() + 0.1) * (1 if domain == "positive" else x.sign())
    elif regime == "zeros":
        x = x * (magnitude < 0.5)
    elif regime == "small":
        x = x.sign() * 10 ** (-12 * magnitude)
    elif regime == "around the series":
        # Where a difference f(x) - f(0) gives way to a series, and where x * x underflows against 1.
        x = x.sign() * torch.finfo(dtype).eps ** magnitude
    elif regime == "denormal" and domain != "normal":
        x = x.sign() * torch.finfo(dtype).tiny * torch.finfo(dtype).eps ** magnitude
    return x.to(dtype)


@functools.cache
def converted_case(name: str) -> tuple[fxgrad.ConvertedModule, dict[str, int]]:
    """The case's module converted in float64, every lettered axis dynamic; and the sizes that export fixed."""
    case = CASES[name]
    letters = sorted({axis for spec in case.inputs for axis in spec.partition(":")[0].split() if not axis.isdigit()})
    # All different: that two axes happen to be equal must not enter the graph.
    sizes = {letter: 2 + i for i, letter in enumerate(letters)}
    example = tuple(draw(spec, sizes, "random", torch.float64, 1.0, i) for i, spec in enumerate(case.inputs))
    axes = [spec.partition(":")[0].split() for spec in case.inputs]
    dynamic = tuple({i: torch.export.Dim.AUTO for i, a in enumerate(axis) if not a.isdigit()} for axis in axes)
    converted = fxgrad.convert(case.module, example, dynamic_shapes=dynamic)
    declared = [i.shape for i in converted.classified.captured.inputs]
    fixed = {a: n for axis, shape in zip(axes, declared) for a, n in zip(axis, shape or ()) if n is not None}
    return converted, fixed


def inputs_of(case: Case, regime: str, dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    """Inputs of random shapes: every lettered axis is drawn anew, but for those that export fixed."""
    rng = random.Random(f"{case.name} {regime} {seed}")
    sizes = {letter: rng.randint(2, 6) for letter in "abcn"}
    if regime == "batch of one":
        sizes["n"] = 1
    sizes |= converted_case(case.name)[1]
    return [draw(spec, sizes, regime, dtype, case.large, 10 * seed + i) for i, spec in enumerate(case.inputs)]


def gradients(output: Tensor, inputs: Sequence[Tensor], cotangent: Tensor) -> list[Tensor]:
    """An input that is held has no path to the output: a gradient of 0."""
    if not output.requires_grad:
        return [torch.zeros_like(x) for x in inputs]
    found = torch.autograd.grad(output, inputs, cotangent, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found)]


def assert_close(found: Tensor, wanted: Tensor, bound: float, what: str) -> None:
    # One step of the smallest denormals; kernels of half precision may flush all of them to 0.
    info = torch.finfo(found.dtype)
    floor = 16 * info.tiny if found.dtype is torch.bfloat16 else 4 * info.smallest_normal * info.eps
    allowed = bound * wanted.abs().max() + floor
    error = (found.double() - wanted).abs().max()
    assert error <= allowed, f"{what}: off by {error:.3e}, allowed {allowed:.3e}"


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, dtype) for name in CASES for dtype in BOUND if (name, dtype) not in NO_KERNEL],
    ids=lambda value: str(value).removeprefix("torch."),
)
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")
def test_contract(name: str, dtype: torch.dtype) -> None:
    case, (converted, fixed) = CASES[name], converted_case(name)
    assert ("n" in fixed) == (name in ONE_BATCH)
    ran = {decision.row.op for decision in converted.classified.decisions.values() if decision.row}
    assert set(case.rows) <= ran
    # Frozen, as the converted module is: under no_grad, too, PyTorch's matmul picks its kernel by requires_grad.
    original, converted = (copy.deepcopy(m).to(dtype).requires_grad_(False) for m in (case.module, converted))
    exact = copy.deepcopy(original).double()
    exact.dtype = dtype
    bound = BOUND[dtype] * (1 if dtype is torch.float64 else case.loose)
    for regime in REGIMES:
        inputs = [x.requires_grad_() for x in inputs_of(case, regime, dtype)]
        values = [x.detach() for x in inputs]
        output, recorded = converted(*inputs), original(*inputs)
        with torch.no_grad():
            plain = original(*values)
            assert torch.equal(converted(*values), plain), f"{regime}: another forward"
        # While autograd records, PyTorch picks another matmul or attention kernel in places, for either module.
        assert torch.equal(output, plain) or torch.equal(output, recorded), f"{regime}: another recorded forward"
        cotangent = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
        found = gradients(output, inputs, cotangent)

        doubles = [x.double().clone().requires_grad_() for x in values]
        expected = case.expected(exact, doubles)
        assert_close(output, expected, bound, f"{regime}: the reference's value")
        wanted = gradients(expected, doubles, cotangent.double())
        for i, (f, w) in enumerate(zip(found, wanted)):
            assert_close(f, w, bound, f"{regime}: gradient of input {i}")
        # Products of denormals underflow: no relative completeness there.
        if dtype is torch.float64 and regime != "denormal":
            report = fxgrad.check(converted, tuple(values), original=original)
            assert report.passed, f"{regime}: {report}"
            assert report.completeness_error <= 1e-12, f"{regime}: {report}"


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if list(case.module.parameters())])
def test_parameter_gradients(name: str) -> None:
    """Weights and biases get the reference's gradient, too, when they ask for one."""
    case = CASES[name]
    converted = copy.deepcopy(converted_case(name)[0]).requires_grad_(True)
    inputs = inputs_of(case, "random", torch.float64, seed=1)
    case.module.requires_grad_(True).dtype = torch.float64
    expected, output = case.expected(case.module, inputs), converted(*inputs)
    cotangent = torch.randn_like(output)
    found = gradients(output, list(converted.parameters()), cotangent)
    wanted = gradients(expected, list(case.module.parameters()), cotangent)
    for (path, _), f, w in zip(case.module.named_parameters(), found, wanted):
        assert_close(f, w, 1e-12, path)


def test_every_row_has_a_case() -> None:
    covered = {row for case in CASES.values() for row in case.rows}
    rows = {op for op, row in load().rows.items() if row.kind.value not in NATIVE}
    assert rows <= covered, f"add a case to reference_cases.py for {sorted(rows - covered)}"


@pytest.mark.parametrize("gate", ["softmax", "_softmax", "_safe_softmax", "log_softmax", "_log_softmax", "logsumexp"])
def test_a_pure_gate_as_the_result_is_refused(gate: str) -> None:
    with pytest.raises(fxgrad.NotBalanceableError, match=f"aten.{gate}"):
        fxgrad.convert(Unary(GATES[gate][1]).eval(), (torch.randn(2, 3),))


@pytest.mark.parametrize("name", [name for name, (at_zero, _) in SECANTS.items() if at_zero != 0])
def test_an_elementwise_gate_as_the_result_keeps_its_secant(name: str) -> None:
    """Complete with f(0) as its source."""
    converted, _ = converted_case(name)
    inputs = tuple(inputs_of(CASES[name], "random", torch.float64))
    cotangent = torch.randn_like(inputs[0])
    report = fxgrad.check(converted, inputs, cotangent=cotangent)
    assert report.passed and report.ledger[0].rule == "secant"
    assert sum(row.contribution for row in report.sources) == pytest.approx(SECANTS[name][0] * cotangent.sum().item())


def test_a_logarithm_as_the_result_has_its_secant_through_1() -> None:
    """Complete with -1, times the slope, as its source; at 1 as well."""
    x, cotangent = torch.tensor([[0.1, 1.0, 7.0]]).double(), torch.randn(1, 3).double()
    converted = fxgrad.convert(Unary(torch.log).eval(), (x,))
    report = fxgrad.check(converted, (x,), cotangent=cotangent)
    slope = torch.tensor([[math.log(0.1) / -0.9, 1.0, math.log(7) / 6]]).double()
    assert report.passed and report.ledger[0].rule == "secant" and report.sources[0].source == "aten.log.default at 1"
    assert report.sources[0].contribution == pytest.approx(-(cotangent * slope).sum().item())
