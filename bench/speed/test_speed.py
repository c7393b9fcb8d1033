"""The speed benchmark: `make bench`, or `python -m pytest bench/speed/test_speed.py --benchmark-json FILE`.

One test per row. pytest-benchmark times fxgrad's forward and backward; its setup times everything else of the row,
once per round, so that noise hits all alike. `extra_info` has it all:

    name, axis, size, batch, tokens, blocks, nodes, dtype, device
    times         series -> seconds per round, paired
    verdicts, differences   baseline -> whether it computes fxgrad's gradient
    peak, saved   series -> bytes
    macs, floor, floor_plain    multiply-adds forward; (forward + backward) / forward
"""

from __future__ import annotations

import dataclasses
import gc
import time
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import fxgrad
from bench.speed.baselines import vjp
from bench.speed.floor import count
from bench.speed.measure import Run, Turns, conversion, peak_bytes, saved_bytes
from bench.speed.models import (
    BASE,
    DEPTHS,
    NARROW,
    QUICK,
    SMALL,
    TARGETS,
    TINY,
    Case,
    Shape,
    cases,
    targets_bar,
    targets_case,
    vit_case,
)
from bench.speed.results import BOUND, BY_HAND, CALLS, CONVERSION, FORWARD, FXGRAD, LOOP, PLAIN, VJP
from bench.speed.series import Series, forward_only, relative, series

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


@pytest.fixture(autouse=True)
def _collected() -> Any:
    yield
    gc.collect()


def facts(case: Case, device: str = "cpu") -> dict[str, Any]:
    """What a row says of itself."""
    fields = {"axis": case.axis, "size": case.size, "batch": case.shape[0], "tokens": case.tokens}
    dtype = str(case.dtype).removeprefix("torch.")
    return {**fields, "name": case.name, "blocks": case.blocks, "dtype": dtype, "device": device}


def timed(turns: Turns, rounds: int, benchmark: Any) -> None:
    """Time in turns, and note the times, to five digits."""
    turns.interleave(rounds, benchmark)
    rounded = {k: [None if t is None else float(f"{t:.5g}") for t in v] for k, v in turns.times.items()}
    benchmark.extra_info["times"] = rounded


def memory(runs: dict[str, Run], leave_out: list[Tensor], device: str) -> dict[str, Any]:
    """Peak and saved bytes of calls."""
    return {
        "peak": {name: peak_bytes(run, device) for name, run in runs.items()},
        "saved": {name: saved_bytes(run, leave_out) for name, run in runs.items()},
    }


def there(s: Series, x: Tensor) -> list[Tensor]:
    """Tensors that are kept anyway."""
    return [x, *s.function.parameters(), *s.function.buffers()]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_model(benchmark: Any, case: Case, device: str) -> None:
    model, x = case.build(device)
    s = series(case, model, x)
    timed(Turns(s.runs, s.sparse, device), case.rounds, benchmark)
    measured = {name: s.runs[name] for name in (PLAIN, *BY_HAND, FXGRAD) if name in s.runs}
    libra, plain = count(s.converted, (x,)), count(s.converted.under("gradient"), (x,))
    benchmark.extra_info.update(
        facts(case, device), **memory(measured, there(s, x), device), verdicts=s.verdicts, differences=s.differences,
        nodes=len(s.converted.classified.decisions), macs=libra.forward, floor=libra.floor, floor_plain=plain.floor,
    )  # fmt: skip
    if device == "cuda":
        benchmark.extra_info.update(name=f"{case.name}, GPU", axis="gpu")


@pytest.mark.parametrize("case", [*map(targets_case, TARGETS), targets_bar()], ids=lambda case: case.name)
def test_targets(benchmark: Any, case: Case) -> None:
    model, x = case.build()
    converted = fxgrad.convert(model, (x,))
    k = case.size
    classes = torch.nn.functional.one_hot(torch.arange(k), 1000).to(x)
    cotangents = classes[:, None].expand(k, len(x), 1000)

    def one_forward(function: torch.nn.Module) -> Tensor:
        leaf = x.detach().requires_grad_()
        y = function(leaf)
        return torch.stack([torch.autograd.grad(y, leaf, g, retain_graph=True)[0] for g in cotangents])

    def calls() -> Tensor:
        return torch.stack([vjp(converted, x, g) for g in cotangents])

    runs: dict[str, Run] = {PLAIN: partial(one_forward, model), CALLS: calls}
    batched = getattr(fxgrad, "vjp", None)
    if batched is None or case.against != "none":
        runs[LOOP] = partial(one_forward, converted)
    vjp(model, x, cotangents[0])  # to warm up
    expected = calls()
    assert LOOP not in runs or relative(runs[LOOP](), expected) <= BOUND
    if batched is not None:
        runs[VJP] = partial(batched, converted, (x,), cotangents)
        (found,) = runs[VJP]().gradients.values()
        assert relative(found, expected) <= BOUND
    del expected
    timed(Turns(runs), case.rounds, benchmark)
    measured = {} if case.against == "none" else runs
    benchmark.extra_info.update(facts(case), peak={name: peak_bytes(run) for name, run in measured.items()})


def test_checkpointed(benchmark: Any) -> None:
    case = vit_case("checkpointed, ViT-S/16, batch 8", "checkpointed", 0, SMALL, 8, against="none")
    model, x = case.build()
    s = series(case, model, x)
    name = "fxgrad, checkpointed"
    benchmark.extra_info.update(facts(case))
    if not hasattr(s.converted, "checkpointed"):
        benchmark.extra_info["verdicts"] = {name: "cannot: this fxgrad has no checkpointing"}
    else:
        cotangent = torch.randn_like(forward_only(s.function, x))
        run = partial(vjp, s.converted.checkpointed(), x, cotangent)
        assert relative(run(), vjp(s.converted, x, cotangent)) <= BOUND
        s = dataclasses.replace(
            s, runs={FORWARD: s.runs[FORWARD], PLAIN: s.runs[PLAIN], name: run, FXGRAD: s.runs[FXGRAD]}
        )
    timed(Turns(s.runs), case.rounds, benchmark)
    benchmark.extra_info.update(memory({k: v for k, v in s.runs.items() if k != FORWARD}, there(s, x), "cpu"))


def test_bfloat16(benchmark: Any) -> None:
    case = vit_case("bfloat16, ViT-Ti/16, batch 2", "bfloat16", 0, TINY, 2, against="none")
    case = dataclasses.replace(case, dtype=torch.bfloat16)
    model, x = case.build()
    s = series(case, model, x)
    timed(Turns(s.runs), case.rounds, benchmark)
    measured = memory({name: s.runs[name] for name in (PLAIN, FXGRAD)}, there(s, x), "cpu")
    benchmark.extra_info.update(facts(case), **measured, floor=count(s.converted, (x,)).floor)


def test_compiled(benchmark: Any) -> None:
    case = vit_case("compiled, 4 blocks of ViT-S/16, batch 4", "compiled", 0, Shape(384, 4, 6), 4, against="none")
    model, x = case.build()
    s = series(case, model, x)
    cotangent = torch.randn_like(forward_only(s.function, x))
    runs, seconds, verdicts = {PLAIN: s.runs[PLAIN]}, {}, {}
    torch.compiler.reset()
    torch.compile(torch.sin)(x)  # what a compiler does once is nobody's share
    for name, function in (("plain, compiled", s.function), ("fxgrad, compiled", s.converted)):
        run = partial(vjp, torch.compile(function, fullgraph=True), x, cotangent)
        start = time.perf_counter()
        try:
            found = run()
        except Exception as error:  # whatever a compiler raises, that is the finding
            verdicts[name] = f"cannot: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
            continue
        seconds[name] = time.perf_counter() - start
        run()
        verdicts[name] = f"{relative(found, vjp(function, x, cotangent)):.1e} off the uncompiled"
        runs[name] = run
    timed(Turns({**runs, FXGRAD: s.runs[FXGRAD]}), case.rounds, benchmark)
    benchmark.extra_info.update(facts(case), verdicts=verdicts, compile_seconds=seconds)


def test_overhead_per_node(benchmark: Any) -> None:
    blocks = 12
    case = Case(
        "overhead per node", "overhead", 0, "vit", vit_case("", "", 0, Shape(16, blocks, 2), 1, 1).make, (1, 3, 16, 16),
        rounds=10 if QUICK else 100, against="none", blocks=blocks, tokens=1,
    )  # fmt: skip
    model, x = case.build()
    s = series(case, model, x)
    runs = {FORWARD: s.runs[FORWARD], "fxgrad, forward only": partial(forward_only, s.converted, x)}
    timed(Turns({**runs, PLAIN: s.runs[PLAIN], FXGRAD: s.runs[FXGRAD]}), case.rounds, benchmark)
    nodes = sum(node.op == "call_function" for node in s.converted.graph.nodes)
    benchmark.extra_info.update(facts(case), nodes=nodes)


CONVERTED = {
    CONVERSION: (BASE, 14, 5),
    **{f"conversion, {depth} blocks": (Shape(NARROW, depth, 2), 4, 3) for depth in DEPTHS},
}
"""Name -> shape, side, rounds."""


@pytest.mark.parametrize("name", CONVERTED)
def test_conversion(benchmark: Any, name: str) -> None:
    shape, side, rounds = CONVERTED[name]
    case = vit_case(name, "conversion", shape.depth, shape, 2, side)
    model, x = case.build()
    found = []
    rounds = 1 if QUICK else rounds
    benchmark.pedantic(lambda: found.append(conversion(model, x)), rounds=rounds, warmup_rounds=0 if QUICK else 1)
    found = found[-rounds:]
    times = {"torch.export": [c.export for c in found], FXGRAD: [c.beyond for c in found]}
    benchmark.extra_info.update(facts(case), nodes=found[0].nodes, times=times)
