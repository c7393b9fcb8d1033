"""Whatever the model: the forward stays, the gradient is complete, and every conversion comes out the same.

Hypothesis builds models from the grammar in random_models.py. 200 of them, always the same, are tried by default;
for more, and other ones:

    FXGRAD_FUZZ_EXAMPLES=2000 FXGRAD_FUZZ_SEED=7 pytest tests/test_fuzz.py -s
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, assume, event, example, given, note, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import fxgrad
from fxgrad.classify.walk import classify
from tests.helpers.random_models import GRAMMAR, Program, RandomModel, Step, arity, build, programs
from tests.helpers.sampling import sample

EXAMPLES = int(os.environ.get("FXGRAD_FUZZ_EXAMPLES", 200))
BAR = 1e-9
"""For relative errors, in float64. CheckReport's own tolerance is tighter; random models are worse conditioned."""
FLOAT32_BAR = 1e-5

Inputs = tuple[Tensor, ...]


@pytest.fixture(autouse=True, scope="module")
def _ordinary_attention() -> Iterator[None]:
    """Without nn.MultiheadAttention's fused inference path, which is left for the ordinary one."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(enabled)


def attempt(program: Program) -> None:
    """Build a program's model, convert it, and assert every property of the conversion."""
    model: nn.Module = build(program)
    note(f"{program}\n{model.source}")
    inputs, others = program.examples(program.batch, 2), program.examples(program.other, 3)
    if program.strided:
        others = tuple(x.transpose(1, 2).contiguous().transpose(1, 2) for x in others)
    with torch.no_grad():
        finite = all(t.isfinite().all() for t in tensors(model(*inputs)) + tensors(model(*others)))
    if not finite:
        event("rejected: an output is not finite")
        assume(False)
    before = copy.deepcopy(model.state_dict())

    if all(meaning.role == 0 for meaning in model.meanings):
        event("refused, rightly: no output depends on the inputs")
        with pytest.raises(fxgrad.CaptureError, match="no output depends"):
            fxgrad.convert(model, inputs)
        return
    # A meaning is that of a whole tensor, and knows no averages: so some of these are taken apart, or are sources.
    refusing = {i for i, meaning in enumerate(model.meanings) if meaning.refuses()}
    averages = r"cat\(|stack\(|softmax\(|attention\(\w+, \w+, self\.matrix"
    finer = re.search(averages, model.source) is not None
    try:
        converted = fxgrad.convert(model, inputs)
    except fxgrad.NotBalanceableError:
        event("refused, rightly: a softmax is an addend of every output")
        assert refusing == {i for i, meaning in enumerate(model.meanings) if meaning.role}
        return
    except fxgrad.CaptureError as error:
        event("refused, rightly: the outputs are constants that were put into a join")
        assert finer and "no output depends" in str(error)
        return
    refused = {refusal.index for refusal in converted.classified.refusals}
    assert refused <= refusing and (refused == refusing or finer)
    event("some outputs are refused" if refused else "converted")
    whole = model
    if refused:
        kept = [i for i in range(len(model.meanings)) if i not in refused]
        beside, model = Only(converted, kept), Only(model, kept)
        converted = fxgrad.convert(model, inputs)
        assert_close(gradients(beside, inputs, program.seed), gradients(converted, inputs, program.seed), 1e-12)

    bar = BAR if program.exact else FLOAT32_BAR
    for some in (inputs, others):
        assert_forward_identical(converted, model, some)
        assert_complete(converted, model, some, program.seed, bar)
    assert_rows_independent(converted, program.examples(3, 4), program.examples(3, 5))
    assert_biases_are_sources(converted, inputs, program.seed, bar)
    plain = converted.under("gradient")
    assert_plain_gradient(plain, model, inputs, program.seed, bar)
    assert_copies(converted, plain, inputs)
    assert_untouched(whole, before, program)


class Only(nn.Module):
    """A module that returns only some of another one's outputs."""

    def __init__(self, model: nn.Module, kept: list[int]) -> None:
        super().__init__()
        self.model, self.kept = model, kept
        self.eval()

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        leaves = pytree.tree_leaves(self.model(*inputs))
        return [leaves[i] for i in self.kept]


def tensors(outputs: object) -> list[Tensor]:
    """The floating-point tensors among the outputs."""
    return [v for v in pytree.tree_leaves(outputs) if isinstance(v, Tensor) and v.is_floating_point()]


def cotangents_of(outputs: object, number: int) -> object:
    """Random v for <v, f(x)>, the same for every row of the batch; None where an output is not differentiable."""
    generator = torch.Generator().manual_seed(number)

    def like(y: Tensor) -> Tensor | None:
        v = torch.randn(y.shape[1:], generator=generator).expand(y.shape)
        return v.to(y) if y.is_floating_point() else None

    return pytree.tree_map(like, outputs)


def gradients(model: nn.Module, inputs: Inputs, number: int) -> dict[str, Tensor]:
    """Of <v, f(x)>, in the inputs and in the parameters that want one; 0 where none arrives."""
    leaves = {f"input {i}": x.clone().requires_grad_() for i, x in enumerate(inputs)}
    outputs = model(*leaves.values())
    leaves |= {name: p for name, p in model.named_parameters() if p.requires_grad}
    cotangents = pytree.tree_leaves(cotangents_of(outputs, number), is_leaf=lambda v: v is None)
    pairs = [(y, v) for y, v in zip(pytree.tree_leaves(outputs), cotangents) if y.requires_grad]
    found = torch.autograd.grad([y for y, _ in pairs], list(leaves.values()), [v for _, v in pairs], allow_unused=True)
    return {name: torch.zeros_like(x) if g is None else g for (name, x), g in zip(leaves.items(), found)}


def product(inputs: Inputs, found: dict[str, Tensor]) -> Tensor:
    """x times its gradient, all in one vector."""
    return torch.cat([(x * found[f"input {i}"]).flatten() for i, x in enumerate(inputs)])


def assert_close(ours: dict[str, Tensor], theirs: dict[str, Tensor], bar: float) -> None:
    assert list(ours) == list(theirs)
    scale = max(float(t.abs().max()) for t in theirs.values())
    for name, their in theirs.items():
        assert float((ours[name] - their).abs().max()) <= bar * scale, name


def assert_forward_identical(converted: nn.Module, model: nn.Module, inputs: Inputs) -> None:
    with torch.no_grad():
        ours, theirs = converted(*inputs), model(*inputs)
    assert pytree.tree_structure(ours) == pytree.tree_structure(theirs)
    for a, b in zip(pytree.tree_leaves(ours), pytree.tree_leaves(theirs)):
        assert a.dtype == b.dtype and torch.equal(a, b)


def assert_complete(
    converted: fxgrad.ConvertedModule, model: nn.Module, inputs: Inputs, number: int, bar: float
) -> None:
    report = fxgrad.check(converted, inputs, original=model, seed=number, tolerance=bar)
    assert report.forward_identical
    assert report.completeness_error <= bar, report
    assert report.unexplained <= bar, report
    assert report.passed, report


def assert_rows_independent(converted: nn.Module, one: Inputs, another: Inputs) -> None:
    """Other rows may be what they like: the first row's gradient is the same."""
    mixed = tuple(torch.cat([a[:1], b[1:]]) for a, b in zip(one, another))
    ours, theirs = (
        {name: g[:1] for name, g in gradients(converted, inputs, 0).items() if name.startswith("input")}
        for inputs in (mixed, one)
    )
    assert_close(ours, theirs, 1e-12)


def assert_biases_are_sources(converted: fxgrad.ConvertedModule, inputs: Inputs, number: int, bar: float) -> None:
    """What the check books for a bias is the bias times its gradient."""
    with torch.no_grad():
        cotangent = cotangents_of(converted(*inputs), number)
    report = fxgrad.check(converted, inputs, cotangent=cotangent)
    found = gradients(converted, inputs, number)
    size = abs(report.output) + sum(abs(row.contribution) for row in report.sources)
    for name, bias in converted.named_parameters():
        rows = [row for row in report.sources if name in row.source]
        alone = all(row.source == name for row in rows)
        if name.endswith("bias") and bias.requires_grad and alone and only_added(converted, name):
            booked = sum(row.contribution for row in rows)
            assert abs(booked - float((bias.detach() * found[name]).sum())) <= bar * size, name


def only_added(converted: fxgrad.ConvertedModule, name: str) -> bool:
    """Whether a parameter enters what depends on the inputs, whole or in parts, but no other constant."""
    captured, decisions = converted.classified.captured, converted.classified.decisions
    if name not in captured.state:
        return False
    parts = [list(captured.graph.nodes)[captured.state.index(name)]]
    for part in parts:
        for user in part.users:
            if user.name not in decisions:
                if not set(user.all_input_nodes) <= set(parts):
                    return False
                parts.append(user)
    return True


def assert_plain_gradient(
    plain: fxgrad.ConvertedModule, model: nn.Module, inputs: Inputs, number: int, bar: float
) -> None:
    """Under "gradient", autograd's own gradient; and the check's books are honest about it."""
    theirs = gradients(model, inputs, number)
    if not all(g.isfinite().all() for g in theirs.values()):
        event("plain gradient is not finite")
        return
    assert_close(gradients(plain, inputs, number), theirs, bar)
    with torch.no_grad():
        cotangent = cotangents_of(plain(*inputs), number)
    report = fxgrad.check(plain, inputs, original=model, cotangent=cotangent)
    attributed = product(inputs, theirs)
    assert abs(report.inputs - float(attributed.sum())) <= bar * float(attributed.norm())
    assert report.unexplained <= bar * max(1.0, report.completeness_error), report


def assert_same(ours: fxgrad.ConvertedModule, theirs: fxgrad.ConvertedModule, inputs: Inputs) -> None:
    assert ours.program.code == theirs.program.code
    assert ours.report.to_json() == theirs.report.to_json()
    assert_forward_identical(ours, theirs, inputs)


def assert_copies(converted: fxgrad.ConvertedModule, plain: fxgrad.ConvertedModule, inputs: Inputs) -> None:
    """Copies, and the way back from another policy, lead to the same module; classification to the same decisions."""
    assert_same(copy.deepcopy(converted), converted, inputs)
    assert_same(plain.under("libragrad"), converted, inputs)
    classified = converted.classified
    assert classify(classified.captured, classified.table).decisions == classified.decisions
    with pytest.raises(fxgrad.CaptureError, match="converted already"):
        fxgrad.convert(converted, inputs)


def assert_untouched(model: RandomModel, before: dict[str, Tensor], program: Program) -> None:
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert not any(module.training for module in model.modules())
    assert all(p.grad is None and p.requires_grad is not program.frozen for p in model.parameters())


NOISE = Program((Step("a * a.shape[0]", (0,)), Step("a.clamp(min=0.3)", (0,)), Step("F.instance_norm(a)", (0,))))
"""All values are the same before the normalization, so that its result is rounding noise."""


@example(NOISE)
@sample(programs(), EXAMPLES)
def test_random_models(program: Program) -> None:
    attempt(program)


@sample(programs(), EXAMPLES // 10)
def test_conversion_is_repeatable(program: Program) -> None:
    model = build(program)
    inputs = program.examples(program.batch)
    try:
        first = fxgrad.convert(model, inputs)
    except fxgrad.FxgradError as error:
        with pytest.raises(type(error)) as again:
            fxgrad.convert(model, inputs)
        assert str(again.value) == str(error)
        return
    assert_same(fxgrad.convert(build(program), inputs), first, inputs)


# Every production at least once, ten to a model.
PACKS = [list(kind)[i : i + 10] for kind in GRAMMAR.values() for i in range(0, len(kind), 10)]


@pytest.mark.parametrize("codes", PACKS, ids=lambda codes: codes[0])
@settings(max_examples=1, database=None, deadline=None, suppress_health_check=list(HealthCheck))
@given(number=st.just(1))
def test_grammar(codes: list[str], number: int) -> None:
    attempt(Program(tuple(Step(code, (0, 1, 2)[: arity(code)]) for code in codes), inputs=3, seed=number))
