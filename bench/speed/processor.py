"""Forward and backward over the plain gradient's, in processor time: small models, and compiled ones.

Where others share the cores, the clock says nothing, and processor time still does. All calls of a row run in turns in
one process on one thread; a ratio is taken within a round, and their median is given, with the least and the most.

python -m bench.speed.processor
python -m bench.speed.processor --compiled --only "4,096" --out bench/measured/processor.md
"""

from __future__ import annotations

import copy
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import timm
import torch
from timm.models.mlp_mixer import MlpMixer
from torch import Tensor, nn

import fxgrad
from bench.speed.baselines import vjp
from bench.speed.measure import Run, processor_seconds
from bench.speed.models import Shape, vit
from bench.speed.script import ONLY, main, rounds
from fxgrad.data.models import randomize
from fxgrad.report import markdown


@dataclass(frozen=True)
class Row:
    """A model and what its time may be.

    Attributes:
        make: the model.
        shape: of its input; of ids, where it takes them.
        bar: the largest ratio to the plain gradient.
        compiled_bar: the largest ratio of both compiled; None for rows that are not compiled.
        eager_bar: the largest ratio of the compiled one to the eager plain gradient.
    """

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    bar: float = 1.0
    compiled_bar: float | None = None
    eager_bar: float | None = None


class Ids(nn.Module):
    """A small transformer on token ids."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(1000, 64)
        layer = nn.TransformerEncoderLayer(64, 2, 128, activation="gelu", batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.head = nn.Linear(64, 10)

    def forward(self, ids: Tensor) -> Tensor:
        return self.of_tokens(self.embedding(ids))

    def of_tokens(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean(1))  # type: ignore[no-any-return]


def net(name: str) -> Callable[[], nn.Module]:
    return partial(timm.create_model, name)


ROWS: dict[str, Row] = {
    "12 blocks, 16 wide, one token": Row(vit(Shape(16, 12, 2), 1), (1, 3, 16, 16)),
    "8 narrow blocks, 64 tokens": Row(vit(Shape(128, 8, 2), 8), (1, 3, 128, 128), compiled_bar=0.9, eager_bar=0.55),
    "48 narrow blocks": Row(vit(Shape(128, 48, 2), 4), (1, 3, 64, 64)),
    "ViT-Ti/16, batch 1": Row(vit(Shape(192, 12, 3)), (1, 3, 224, 224), 0.95),
    "token ids": Row(Ids, (1, 32)),
    "ResNet-18": Row(net("resnet18"), (1, 3, 64, 64)),
    "ConvNeXt-Atto": Row(net("convnext_atto"), (1, 3, 64, 64)),
    "Mixer, 8 narrow blocks": Row(partial(MlpMixer, img_size=64, embed_dim=128, num_blocks=8), (1, 3, 64, 64)),
    "MobileNetV3-S": Row(net("mobilenetv3_small_100"), (1, 3, 64, 64)),
    "4 blocks of ViT-S, 197 tokens": Row(vit(Shape(384, 4, 6)), (2, 3, 224, 224), 0.95, 0.90),
    "2 blocks of ViT-S, 1,024 tokens": Row(vit(Shape(384, 2, 6), 32), (1, 3, 512, 512), 0.85, 0.80),
    "1 block of ViT-S, 4,096 tokens": Row(vit(Shape(384, 1, 6), 64), (1, 3, 1024, 1024), 0.75, 0.70),
}


def of_ids(model: Ids, ids: Tensor, g: Tensor) -> Tensor:
    """The plain gradient in the embedded tokens."""
    x = model.embedding(ids).detach().requires_grad_()
    return torch.autograd.grad(model.of_tokens(x), x, g)[0]


def of_ids_converted(libra: fxgrad.ConvertedModule, ids: Tensor, g: Tensor) -> Tensor:
    """The balanced one."""
    tokens = libra.embed(ids)
    return torch.autograd.grad(libra.forward_from(tokens, ids), list(tokens.values()), g)[0]


def calls(row: Row, compiled: bool) -> dict[str, Run]:
    """What is timed: the plain gradient, fxgrad's, and both compiled."""
    torch.manual_seed(0)
    model = row.make().eval().requires_grad_(False)
    randomize(model)
    if isinstance(model, Ids):
        ids = torch.randint(1000, row.shape)
        libra, g = fxgrad.convert(model, (ids,)), torch.randn_like(model(ids))
        return {"plain": partial(of_ids, model, ids, g), "fxgrad": partial(of_ids_converted, libra, ids, g)}
    x = torch.randn(row.shape)
    libra, g = fxgrad.convert(model, (x,)), torch.randn_like(model(x))
    found: dict[str, Run] = {"plain": partial(vjp, model, x, g), "fxgrad": partial(vjp, libra, x, g)}
    if compiled and row.compiled_bar is not None:
        own = copy.copy(libra)
        own.compile()
        found["plain, compiled"] = partial(vjp, torch.compile(model), x, g)
        found["fxgrad, compiled"] = partial(vjp, own, x, g)
    return found


def measured(runs: dict[str, Run], rounds: int) -> dict[str, list[float]]:
    """Name -> processor seconds in every round."""
    for run in runs.values():
        run()
    times = max(1, min(30, int(0.05 / processor_seconds(runs["plain"]))))
    turns = [[processor_seconds(run, times) for run in runs.values()] for _ in range(rounds)]
    return {name: list(taken) for name, taken in zip(runs, zip(*turns))}


def cells(row: Row, found: dict[str, list[float]]) -> tuple[list[str], bool]:
    """A line of the table, and whether it keeps its bars."""
    pairs = [("fxgrad", "plain", row.bar)]
    if "fxgrad, compiled" in found:
        pairs += [("fxgrad, compiled", "plain, compiled", row.compiled_bar or 0.0)]
        pairs += [("fxgrad, compiled", "plain", row.eager_bar or float("inf"))]
    line, kept = [], True
    for ours, theirs, bar in pairs:
        ratios = [a / b for a, b in zip(found[ours], found[theirs])]
        middle = statistics.median(ratios)
        wanted = "" if bar == float("inf") else f", bar {bar:g}"
        line.append(f"{middle:.3f} ({min(ratios):.2f} to {max(ratios):.2f}{wanted})")
        kept = kept and middle <= bar
    return line + [""] * (3 - len(line)), kept


WHY = """Where a bar is missed, it is by Python. A block has two held scales, one attention and one set of projections
in autograd functions of its own, which take 40 to 150 microseconds a call, forward and backward each, whatever their
size; a block 16 wide takes about 460 in all. One function for several nodes, and ops whose backward is recorded in C++,
are used wherever the forward keeps its bits. torch.compile takes the plain gradient itself to 0.85 of the eager one
here, so that 0.55 of eager would be 0.64 of what is compiled: matrix products take most of either."""


def page(compiled: bool, only: str, rounds: int) -> tuple[str, bool]:
    """The table of the rows that have `only` in their names, and whether all bars are kept."""
    lines, kept = [], True
    for name, row in ROWS.items():
        if only in name:
            line, met = cells(row, measured(calls(row, compiled), rounds))
            lines.append([name, *line])
            kept = kept and met
            print(lines[-1], file=sys.stderr, flush=True)
    head = ["model", "fxgrad / plain", "fxgrad, compiled / plain, compiled", "fxgrad, compiled / plain"]
    about = (__doc__ or "").split("\n\n")[1]
    return "\n".join(["# Processor time", "", about, "", *markdown(head, lines), "", WHY]) + "\n", kept


if __name__ == "__main__":
    compiled = {"action": "store_true", "help": "compile, too: a minute a row"}
    main(page, __doc__, {"--compiled": compiled, "--only": ONLY, "--rounds": rounds(15)})
