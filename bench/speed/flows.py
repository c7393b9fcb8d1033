"""What the flow of a vision transformer costs, and a picture of one: the demo's model and a canvas.

The cost is in backward passes of the whole converted model for each token, by processor time. Weights are random, which
costs the same.

python -m bench.speed.flows --out bench/measured/flows.md
python -m bench.speed.flows --picture bench/measured/flow.png
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import timm
import torch

import fxgrad
from bench.speed.large import held_by_process
from bench.speed.measure import processor_seconds
from bench.speed.script import ONLY, main
from fxgrad.demo.canvases import canvas
from fxgrad.demo.model import CLASS_NAMES, preprocess
from fxgrad.demo.models import vit
from fxgrad.flows.picture import draw
from fxgrad.report import markdown

MODELS = ("vit_tiny_patch16_224", "vit_small_patch16_224", "vit_base_patch16_224")
CANVAS = 7
"""The held-out canvas in the picture."""
TOP = 40
"""How many edges between two cuts the picture has."""
LIMIT, SECONDS, SMALL = 0.7, 12, "vit_small_patch16_224"
"""The most backward passes that a token may cost, and the most processor seconds of the small model."""
TURNS = 5


def row(name: str, threads: int) -> tuple[list[str], bool]:
    """A row of the table, and whether the bars are kept."""
    torch.manual_seed(0)
    model = timm.create_model(name).eval().requires_grad_(False)
    x = torch.randn(1, 3, 224, 224)
    libra = fxgrad.convert(model, (x,))

    def backward() -> None:
        leaf = x.clone().requires_grad_()
        logit = libra(leaf)[0, 3]
        taken.append(processor_seconds(lambda: torch.autograd.grad(logit, leaf)))

    taken: list[float] = []
    for _ in range(TURNS):
        backward()
    found: list[Any] = []
    start, before = time.perf_counter(), time.process_time()
    held = held_by_process(lambda: found.append(fxgrad.flow(libra, (x,), target=3)))
    minutes, seconds = (time.perf_counter() - start) / 60, time.process_time() - before
    for _ in range(TURNS):
        backward()
    graph = found[0]
    tokens = sum(about["layer"] == 1 and about["kind"] == "token" for about in graph.nodes.values())
    passes = seconds / tokens / sorted(taken)[TURNS]
    kept = passes <= LIMIT and (name != SMALL or seconds <= SECONDS)
    numbers = [str(tokens), str(len({about["cut"] for about in graph.nodes.values()}) - 2), f"{len(graph.edges):,}"]
    costs = [f"{seconds:.0f}", f"{minutes:.1f}", f"{passes:.2f}", f"{held / 1e9:.2f}", f"{graph.graph['error']:.0e}"]
    return [name, *numbers, *costs], kept


def picture(path: Path) -> None:
    """Draw the flow of the demo's model on a canvas."""
    shown = canvas(CANVAS)
    x = preprocess(shown.image)
    libra = fxgrad.convert(vit(), (x,))
    graph = fxgrad.flow(libra, (x,), target=shown.labels[0], class_names=CLASS_NAMES, top=TOP)
    draw(graph, path, shown.image, edges=4 * TOP)


def page(only: str, threads: int, picture_file: Path | None) -> tuple[str, bool]:
    """The page, and whether all bars are kept."""
    if picture_file is not None:
        picture(picture_file)
        return f"wrote {picture_file}\n", True
    torch.set_num_threads(threads)
    rows = [row(name, threads) for name in MODELS if only in name]
    names = ["model", "tokens", "cuts", "edges", "processor seconds", "minutes", "passes a token", "GB", "error"]
    text = [
        "# Flows, measured", "",
        f"What `fxgrad.flow` takes of a vision transformer in float32 with random weights, threads: {threads}. "
        "Processor seconds of all threads; minutes by the clock, which others on the machine make longer; backward "
        f"passes of the whole converted model for each token (the bar is {LIMIT}); memory beyond what the process "
        f"held; and the largest error at a node. The bar of {SMALL} is {SECONDS} processor "
        "seconds. `make flows` writes this page.", "",
        *markdown(names, [cells for cells, _ in rows]),
    ]  # fmt: skip
    return "\n".join(text) + "\n", all(kept for _, kept in rows)


if __name__ == "__main__":
    threads = {"type": int, "default": 1}
    drawn = {"type": Path, "dest": "picture_file", "help": "draw the demo's model instead, into this file"}
    main(page, __doc__, {"--only": ONLY, "--threads": threads, "--picture": drawn})
