"""What is timed against what in one row, and whether it computes the same."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

import fxgrad
from bench.speed.baselines import BASELINES, Refusal, adapted, vjp
from bench.speed.measure import Run
from bench.speed.models import Case
from bench.speed.results import BOUND, BY_HAND, FORWARD, FXGRAD, PLAIN, SAME


@dataclass(frozen=True)
class Series:
    """The calls of one row.

    Attributes:
        runs: name -> call; fxgrad's is the last.
        sparse: the toolkits, which are slow.
        verdicts: name of a baseline -> "same gradient", "another gradient", "another gradient: the plain one", or
            "cannot: " and its own reason.
        differences: name -> largest difference, over the largest number; left out where that is no number.
        converted: the model.
        function: the original, as a function of one tensor.
    """

    runs: dict[str, Run]
    sparse: frozenset[str]
    verdicts: dict[str, str]
    differences: dict[str, float]
    converted: fxgrad.ConvertedModule
    function: nn.Module


def forward_only(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Nothing recorded."""
    with torch.no_grad():
        return function(x)


def series(case: Case, model: nn.Module, x: Tensor) -> Series:
    """Build everything that a row compares, and hold every gradient against fxgrad's once.

    Args:
        case: the row.
        model, x: what `case.build` returned.

    Returns:
        Calls without arguments: those that are there to be timed.

    Raises:
        AssertionError: the two forwards differ, or a baseline by hand computes another gradient than fxgrad.
        fxgrad.FxgradError: the model cannot be converted.
    """
    function = adapted(case.kind, model)
    converted = fxgrad.convert(function, (x,))
    expected = forward_only(function, x)
    assert torch.equal(forward_only(converted, x), expected), f"{case.name}: the forwards differ"
    cotangent = torch.randn_like(expected)
    ours = {"libragrad": partial(vjp, converted, x, cotangent)}
    gradients = {"libragrad": ours["libragrad"](), "gradient": vjp(function, x, cotangent)}
    assert all(g.isfinite().all() for g in gradients.values()), f"{case.name}: a gradient is not finite"
    runs: dict[str, Run] = {FORWARD: partial(forward_only, function, x), PLAIN: partial(vjp, function, x, cotangent)}
    verdicts: dict[str, str] = {}
    differences: dict[str, float] = {}
    for baseline in BASELINES:
        by_hand = baseline.name in BY_HAND
        wanted = {"all": True, "hand": by_hand, "none": False}[case.against]
        if not wanted or baseline.name == PLAIN or baseline.name.startswith(FXGRAD):
            continue
        step = baseline.build(case.kind, model, x)
        if isinstance(step, Refusal):
            verdicts[baseline.name] = f"cannot: {textwrap.shorten(step.reason, 200)}"
            continue
        policy = baseline.policy
        if policy not in ours:
            ours[policy] = partial(vjp, converted.under(policy), x, cotangent)
            gradients[policy] = ours[policy]()
        if policy != "libragrad":
            runs[f"{FXGRAD}, {policy}"] = ours[policy]
        found = step(x, cotangent)
        scale = x if baseline.relevance else torch.ones_like(x)
        difference = {p: relative(found, scale * gradients[p]) for p in (policy, "gradient")}
        verdict = "another gradient: the plain one" if difference["gradient"] <= BOUND else "another gradient"
        verdicts[baseline.name] = SAME if difference[policy] <= BOUND else verdict
        if math.isfinite(difference[policy]):
            differences[baseline.name] = difference[policy]
        assert not by_hand or verdicts[baseline.name] == SAME, f"{case.name}: {baseline.name} is {difference} off"
        runs[baseline.name] = partial(step, x, cotangent)
    runs[FXGRAD] = ours["libragrad"]
    sparse = frozenset(set(runs) - {FORWARD, PLAIN, FXGRAD, *BY_HAND})
    return Series(runs, sparse, verdicts, differences, converted, function)


def relative(found: Tensor, expected: Tensor) -> float:
    """The largest difference, over the largest number.

    Example:
        >>> relative(torch.tensor([1.0, 4.0]), torch.tensor([2.0, 4.0]))
        0.25
    """
    return float((found - expected).abs().max() / expected.abs().max())
