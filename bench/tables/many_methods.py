"""What many methods and policies cost for one picture: counted passes, and CPU seconds. Part of the page of paper_cost.

Forward and backward passes are counted by calls of the patch embedding's convolution and of its backward, whoever makes
them; operations by `torch.utils.flop_counter`. Both see every op that runs.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import timm
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import fxgrad
from bench.speed.measure import processor_seconds
from fxgrad.evaluate.plan import POLICIES
from fxgrad.methods import SHARING
from fxgrad.report import markdown

MODEL = "vit_base_patch16_224"
STEPPED = {"integrated_gradients": ("n_steps", 50), "smoothgrad": ("samples", 25)}
"""Methods whose cost grows with the number of points -> its option, and how many there are by default."""
POINTS = (1, 4)
"""How many of them are timed; the line through both gives the rest."""
TOGETHER = "all that one run serves, together"
ROUNDS = 3
PROTOCOL = (1000, 5000)
"""Pictures of the paper's parts."""
_CONVOLUTION, _BACKWARD = torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default


@dataclass(frozen=True)
class Passes:
    """What one call takes.

    Attributes:
        forward, backward: passes through the patch embedding.
        operations: over those of one plain forward and backward pass.
        time: CPU time, over that of one plain forward and backward pass: the median of the rounds.
    """

    forward: int
    backward: int
    operations: float
    time: float


class _Calls(TorchDispatchMode):
    """Counts calls of ops."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[Any] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found[func] += 1
        return func(*args, **(kwargs or {}))


def passes(
    libra: fxgrad.ConvertedModule, x: Tensor, rounds: int = ROUNDS, methods: Sequence[str] = SHARING
) -> tuple[float, dict[str, Passes]]:
    """(CPU seconds of a plain forward and backward pass, method -> what it takes alone, and all of them together).

    Args:
        libra: a converted model with one convolution, under any policy.
        x: one picture.
        rounds: of timing, in turn with the plain passes.
        methods: which.
    """
    plain = libra.under("gradient")

    def gradient() -> None:
        leaf = x.clone().requires_grad_()
        torch.autograd.grad(plain(leaf + 0)[:, 1].sum(), leaf)

    asked: dict[str, Any] = {**{name: name for name in methods}, TOGETHER: list(methods)}
    calls = {name: partial(fxgrad.attribute, libra, x, target=1, method=method) for name, method in asked.items()}
    whole, counts = _operations(gradient), {name: _counted(call) for name, call in calls.items()}
    operations = {name: _operations(call) / whole for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in ("plain", *calls)}
    for _ in range(rounds):
        for name, call in {"plain": gradient, **calls}.items():
            times[name].append(processor_seconds(call))
    seconds = statistics.median(times["plain"])
    found = {name: Passes(*counts[name], operations[name], statistics.median(times[name]) / seconds) for name in asked}
    return seconds, found


def seconds_of_policies(libra: fxgrad.ConvertedModule, x: Tensor) -> dict[str, dict[str, float]]:
    """Policy -> what is made together, or a stepped method -> CPU seconds for a picture."""
    found: dict[str, dict[str, float]] = {}
    for policy in POLICIES:
        call = partial(fxgrad.attribute, libra.under(policy), x, target=1)
        found[policy] = {TOGETHER: processor_seconds(partial(call, method=list(SHARING)))}
        for name, (option, count) in STEPPED.items():
            few, more = (processor_seconds(partial(call, method=name, **{option: n})) for n in POINTS)
            each = (more - few) / (POINTS[1] - POINTS[0])
            found[policy][name] = few + each * (count - POINTS[0])
    return found


def section(seconds: float, each: Mapping[str, Passes], policies: Mapping[str, Mapping[str, float]]) -> list[str]:
    """The lines of the page."""
    alone = [each[name] for name in SHARING]
    rows = [
        *((name, each[name]) for name in SHARING),
        ("all of these, one by one", Passes(*(sum(p) for p in zip(*map(_numbers, alone))))),
        (TOGETHER, each[TOGETHER]),
    ]
    names = [TOGETHER, *STEPPED]
    sums = {name: sum(own[name] for own in policies.values()) for name in names}
    total = sum(sums.values())
    cost = [[p, *(f"{own[n]:.1f}" for n in names), f"{sum(own.values()):.1f}"] for p, own in policies.items()]
    cost.append(["all policies", *(f"{sums[n]:.1f}" for n in names), f"{total:.1f}"])
    hours = " and ".join(f"{n * total / 3600:,.0f} for {n:,}" for n in PROTOCOL)
    fewer = " and ".join(f"{n * sums[TOGETHER] / 3600:,.1f} for {n:,}" for n in PROTOCOL)
    return [
        "## All methods of a picture",
        "",
        f"{MODEL}, random weights, one picture, float32, one thread, target class 1, under libragrad. *Forward* and "
        "*backward*: calls of the patch embedding's convolution and of its backward; the contributions of constants "
        "call it once more, at 0. *Operations* and *time*: of matrix products, and of the processor, over those of one "
        f"plain forward and backward pass of the same model, which took {seconds:.2f} s.",
        "",
        *markdown(
            ["method", "forward", "backward", "operations", "time"],
            [[name, str(p.forward), str(p.backward), f"{p.operations:.2f}", f"{p.time:.2f}"] for name, p in rows],
        ),
        "",
        "Seconds of the processor for one picture, under each policy. "
        + " and ".join(f"{name} with {count} {option}" for name, (option, count) in STEPPED.items())
        + f" were timed with {POINTS[0]} and {POINTS[1]}: the line through both gives the rest.",
        "",
        *markdown(["policy", *names, "all"], cost),
        "",
        f"All of these under all {len(policies)} policies: {total:.0f} s a picture, so {hours} pictures, in hours of "
        f"one core; without the two that step, {sums[TOGETHER]:.0f} s a picture, and {fewer}.",
        "",
    ]


def measured() -> list[str]:
    """Convert the model, measure, and write the section."""
    torch.manual_seed(0)
    model = timm.create_model(MODEL).eval().requires_grad_(False)
    x = torch.randn(1, *model.pretrained_cfg["input_size"])
    libra = fxgrad.convert(model, x)
    return section(*passes(libra, x), seconds_of_policies(libra, x))


def _numbers(p: Passes) -> Sequence[Any]:
    return p.forward, p.backward, p.operations, p.time


def _operations(call: Callable[[], Any]) -> float:
    with FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops())


def _counted(call: Callable[[], Any]) -> tuple[int, int]:
    """(forward, backward) passes through the only convolution."""
    with _Calls() as calls:
        call()
    return calls.found[_CONVOLUTION], calls.found[_BACKWARD]
