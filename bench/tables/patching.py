"""How well estimates of patching agree with effects, under three policies; the picture of docs/patching.md.

python -m bench.tables.patching --out bench/measured/patching.md --folder bench/measured

writes the page, and the picture. There is no bar: the page says what is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import count, product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import timm
import torch
from torch import Tensor, nn

import fxgrad
from bench.speed.script import ONLY, main
from bench.tables.patching_pictures import draw
from fxgrad.data.models import randomize
from fxgrad.demo.canvases import Canvas, canvas
from fxgrad.demo.model import preprocess
from fxgrad.demo.models import ARCHITECTURES
from fxgrad.methods.targets import Token
from fxgrad.report import markdown
from fxgrad.zoo.transformers import TEXT

POLICIES = ("gradient", "libragrad", "attnlrp")
PAIRS = 20
RUNS = ("clean", "corrupt")
KINDS = {"blocks": "what enters each block", "branches": "what attention and MLP give to the stream"}
Pair = tuple[Tensor, Tensor, Any]
"""A clean input, a corrupt one, and the target."""
BRANCHES = ("attn", "self_attn", "mlp", "mlp_tokens", "mlp_channels")
"""Last names of the modules in a block whose outputs are added to the stream."""


class Case(NamedTuple):
    """A model and its pairs."""

    make: Callable[[], nn.Module]
    pairs: Callable[[], Iterator[Pair]]


def other_pictures(colours: bool) -> Iterator[Pair]:
    """A held-out canvas, the next one that lacks its first digit, and that digit."""
    for seed in count():
        clean = canvas(seed, colours=colours)
        numbers = (canvas(other, colours=colours) for other in count(seed + 1))
        corrupt = next(other for other in numbers if clean.labels[0] not in other.labels)
        yield _read(clean), _read(corrupt), clean.labels[0]


def noise(colours: bool) -> Iterator[Pair]:
    """A held-out canvas, uniform noise, and the canvas's first digit."""
    for seed in count():
        clean = canvas(seed, colours=colours)
        pixels = np.random.default_rng(seed).random(clean.image.shape, np.float32)
        yield _read(clean), preprocess(pixels).double(), clean.labels[0]


def random_pictures() -> Iterator[Pair]:
    """Normal pixels, others, and the likeliest class."""
    while True:
        yield (*torch.randn(2, 1, 3, 48, 48).double(), None)


def random_texts() -> Iterator[Pair]:
    """Twelve tokens, others, and the likeliest next one."""
    while True:
        yield (*torch.randint(5, 99, (2, 1, 12)), Token())


def _read(picture: Canvas) -> Tensor:
    return preprocess(picture.image).double()


def _random(make: Callable[[], Any]) -> nn.Module:
    torch.manual_seed(0)
    made = make()
    model: nn.Module = made[0] if isinstance(made, tuple) else made
    randomize(model)
    return model


VIT = partial(timm.create_model, "test_vit", img_size=48, num_classes=10)
CASES: Mapping[str, Case] = {
    **{
        f"{name}, {how}": Case(make, partial(pairs, name == "clip"))
        for name, make in ARCHITECTURES.items()
        for how, pairs in (("another picture", other_pictures), ("noise", noise))
    },
    "random ViT (`test_vit`)": Case(partial(_random, VIT), random_pictures),
    "random GPT-2": Case(partial(_random, TEXT["gpt2"]), random_texts),
    "random Llama": Case(partial(_random, TEXT["llama"]), random_texts),
}


def measured(case: Case, pairs: int) -> Mapping[tuple[str, str], Any]:
    """(run, kind of cut) -> (pairs, policies, Pearson and Spearman)."""
    model = case.make().double().eval().requires_grad_(False)
    torch.manual_seed(1)
    some = [pair for pair, _ in zip(case.pairs(), range(pairs))]
    libra = fxgrad.convert(model, (some[0][0],))
    policies = [libra.under(rules) for rules in POLICIES]
    inside = [name for name, _ in model.named_modules() if name.rpartition(".")[2] in BRANCHES]
    branches = [name for name in inside if not name.startswith(("text_", "attn_pool"))]
    found: dict[tuple[str, str], list[Any]] = {}
    for (clean, corrupt, target), run, kind in product(some, RUNS, KINDS):
        common = {"target": target, "cuts": branches if kind == "branches" else None, "run": run}
        one = fxgrad.patching(policies[0], clean, corrupt, effects=True, **common)
        others = [fxgrad.patching(policy, clean, corrupt, **common) for policy in policies[1:]]
        each = [one, *(replace(other, effect=one.effect) for other in others)]
        found.setdefault((run, kind), []).append([found_by.correlation["all"] for found_by in each])
    return {key: np.array(rows) for key, rows in found.items()}


def _row(name: str, table: Any) -> list[str]:
    pearson, spearman = table[..., 0], table[..., 1]
    cells = [f"{v[:, i].mean():.2f} ± {v[:, i].std(ddof=1):.2f}" for v in (pearson, spearman) for i in range(3)]
    better = (int((pearson[:, i] > pearson[:, 0]).sum()) for i in (1, 2))
    return [name, *cells, " / ".join(map(str, better))]


def page(only: str, pairs: int, folder: Path | None) -> tuple[str, bool]:
    """The page; there are no bars."""
    if folder:
        draw(folder)
    found = {name: measured(case, pairs) for name, case in CASES.items() if only in name}
    head = ["model, corrupt input", *(f"r, {rules}" for rules in POLICIES), *(f"rank, {rules}" for rules in POLICIES)]
    head.append("r higher than gradient's, libragrad / attnlrp")
    text = [
        "# Patching, measured", "",
        "How well `fxgrad.patching`'s estimates agree with its effects: Pearson's r, and Spearman's (*rank*), over all "
        f"tokens of all cuts of a pair, mean ± standard deviation over {pairs} pairs; and in how many of these r is "
        "higher than the plain gradient's. In float64; `make patching` writes this page.", "",
        "The first eight models are the demo's, trained on digits. Clean is a held-out canvas, the target the logit of "
        "its first digit; corrupt is a canvas without that digit, or uniform noise. The last three have random "
        "weights, random inputs, and as the target the likeliest class or token of the run that is patched.", "",
    ]  # fmt: skip
    for run, kind in product(RUNS, KINDS):
        other = RUNS[1 - RUNS.index(run)].capitalize()
        text += [f"{other} values put into the {run} run, at {KINDS[kind]}:", ""]
        text += [*markdown(head, [_row(name, own[run, kind]) for name, own in found.items()]), ""]
    return "\n".join(text), True


if __name__ == "__main__":
    options: dict[str, Mapping[str, Any]] = {
        "--only": ONLY,
        "--pairs": {"type": int, "default": PAIRS, "help": f"by default {PAIRS}"},
        "--folder": {"type": Path, "help": "where the picture of docs/patching.md goes"},
    }
    main(page, __doc__, options)
