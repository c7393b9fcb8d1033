"""What the paper's protocol costs: counted floating-point operations, and this CPU's rate; nothing of it ran on a GPU.

python -m bench.tables.paper_cost --out bench/measured/paper-cost.md

A part of the protocol is run on a few pictures with a small ViT. The operations that it takes for a picture, over those
of one forward pass, hardly depend on the model's size; every model's own forward pass is counted without weights.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.tables import many_methods
from bench.tables.paper_models import MODELS
from fxgrad.data import open_data
from fxgrad.evaluate.baselines import ALWAYS
from fxgrad.evaluate.bench import Bench
from fxgrad.evaluate.measure import all_metrics
from fxgrad.evaluate.methods import attributes, takes_gradient
from fxgrad.evaluate.plan import ANY, Plan
from fxgrad.evaluate.protocol import protocol
from fxgrad.evaluate.run import chosen_metrics
from fxgrad.evaluate.store import Store
from fxgrad.evaluate.units import Unit
from fxgrad.report import markdown

SMALL = "vit_tiny_patch16_224"
PICTURES = 1
"""In a chunk."""
PARTS = ("imagenet", "imagenet-logit", "imagenet-ig", "imagenet-s", "imagenet-s-logit", "completeness")
TARGETS = 3
"""The parts on ImageNet are run for the label, the first and the second class."""


@dataclass(frozen=True)
class Cost:
    """What one part costs.

    Attributes:
        part: its name.
        pictures: how many the protocol takes, times the targets.
        passes: operations for a picture, over those of one forward pass of it.
        seconds: for a picture, on this CPU.
    """

    part: str
    pictures: int
    passes: float
    seconds: float


def forward_flops(tag: str) -> float:
    """Operations of one forward pass of one picture; no weights are needed."""
    with torch.device("meta"):
        model = timm.create_model(tag).eval()
    x = torch.empty(1, *model.pretrained_cfg["input_size"], device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    return float(counter.get_total_flops())


def measured(name: str) -> Cost:
    """Run a part on coloured canvases with the small ViT, converted before: one chunk counted, the next one timed."""
    settings: dict[str, Any] = dict(protocol("libragrad").parts[name].settings)
    times = TARGETS if name.startswith("imagenet") and not name.startswith("imagenet-s") else 1
    pictures = settings["count"] * times
    settings |= {"data": "digits:heldout:colours", "value": "logit", "count": 2 * PICTURES, "chunk": PICTURES}
    plan = replace(Plan((f"timm:{SMALL}",), **settings), mode=None, least_area=0.0)
    known = attributes(plan.methods, plan.options, maps=plan.maps) | attributes(["random"])
    metrics = chosen_metrics(all_metrics([]), plan.measures)
    bench = Bench(plan, open_data(plan.data), list(range(2 * PICTURES)), known, metrics, plan.models[0])
    assert bench.ruler.tokens.grid and all(bench.under(policy) for policy in plan.policies)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        with FlopCounterMode(display=False) as counter:
            _chunk(bench, plan, store, 0)
        start = time.process_time()
        _chunk(bench, plan, store, 1)
        seconds = time.process_time() - start
        store.close()
    return Cost(name, pictures, counter.get_total_flops() / PICTURES / forward_flops(SMALL), seconds / PICTURES)


def _chunk(bench: Bench, plan: Plan, store: Store, number: int) -> None:
    """All methods under all policies, as `evaluate` runs them, on one chunk of pictures."""
    start = number * PICTURES
    bound = tuple(m for m in plan.methods if takes_gradient(m))
    free = tuple(dict.fromkeys([*(m for m in plan.methods if m not in bound), *ALWAYS]))
    for policy, methods in [(ANY, free), *((p, bound) for p in plan.policies)]:
        if methods:
            bench.run(Unit(plan.models[0], policy, methods, start, start + PICTURES), store)


def page(costs: Sequence[Cost], tflops: float, methods: Sequence[str] = ()) -> str:
    """The page: what was counted and timed, and the estimate for every model.

    Args:
        costs: of the protocol's parts.
        tflops: a GPU's rate.
        methods: the lines on all methods of one picture.
    """
    small = forward_flops(SMALL)
    parts = [
        [c.part, f"{c.pictures:,}", f"{c.passes:.0f}", f"{c.seconds:.1f}", f"{c.passes * small / c.seconds / 1e9:.0f}"]
        for c in costs
    ]
    passes = sum(c.passes * c.pictures for c in costs)
    hours = {name: passes * forward_flops(tag) / tflops / 1e12 / 3600 for name, tag in MODELS.items()}
    here = sum(c.seconds * c.pictures for c in costs) / small / 3600
    models = [
        [n, f"`{tag}`", f"{forward_flops(tag) / 1e9:.1f}", f"{hours[n]:.1f}", f"{here * forward_flops(tag):,.0f}"]
        for n, tag in MODELS.items()
    ]
    return "\n".join(
        [
            "# What the paper's protocol costs",
            "",
            f"Written by `python -m bench.tables.paper_cost`. *Passes*: floating-point operations for one picture, "
            f"over those of one forward pass of it, counted by `torch.utils.flop_counter` with {SMALL} and random "
            f"weights on one picture at a time. *Seconds*: of the processor, for one picture of that model on this CPU "
            "in one thread. *Pictures*: for one model, all targets together.",
            "",
            *markdown(["part", "pictures", "passes", "seconds", "GFLOP/s"], parts),
            "",
            f"GPU-hours are an estimate: these passes, times a model's own forward pass, at {tflops:g} TFLOP/s. No GPU "
            "was measured; for another rate they scale inversely. CPU-hours are of one thread of this CPU, at the "
            "rates above. MURA and Pet, which cost a third of ImageNet's parts for one model, are left out. A model "
            "whose tokens cannot be dropped (gMixer) takes up to twice as much.",
            "",
            *markdown(["model", "timm's tag", "GFLOP of a pass", "GPU-hours", "CPU-hours"], models),
            "",
            f"All models together: {sum(hours.values()):.0f} GPU-hours.",
            "",
            *methods,
        ]
    )


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="bench/measured/paper-cost.md")
    parser.add_argument("--tflops", type=float, default=40.0, help="sustained operations per second of a GPU, in 1e12")
    options = parser.parse_args()
    torch.set_num_threads(1)
    costs = []
    for name in PARTS:
        costs.append(measured(name))
        print(costs[-1], flush=True)
    Path(options.out).write_text(page(costs, options.tflops, many_methods.measured()), "utf-8")
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
