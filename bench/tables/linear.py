"""How exact linear maps and pairs are, and what they cost; the pictures of docs/linear.md.

python -m bench.tables.linear --out bench/measured/linear.md --folder bench/measured

writes the page, and the pictures. The exit status is 1 if a bar is missed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn

import fxgrad
from bench.speed.measure import processor_seconds
from bench.speed.script import ONLY, main
from bench.tables.linear_pictures import Tower, draw
from fxgrad.data.models import randomize
from fxgrad.demo.canvases import canvas
from fxgrad.demo.model import preprocess
from fxgrad.demo.models import clip
from fxgrad.report import markdown
from fxgrad.zoo.transformers import TEXT

BAR, BAR_IN_FLOAT32, BAR_OF_PAIRS = 1e-12, 1e-6, 1e-10
RANK = 5
Call = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]
"""A model, and its inputs."""


class Recurrent(nn.Module):
    """An LSTM in both directions, and a head that reads its last step."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(5, 7, 2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(14, 8)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, steps, 5) to (batch, 8)."""
        found: Tensor = self.head(self.lstm(x)[0][:, -1])
        return found


def of_pictures(create: Callable[[], nn.Module], side: int) -> Call:
    """A random model of timm, with no bias of 0."""
    model = create()
    randomize(model)
    return model, (torch.randn(1, 3, side, side),), {}


def of_text(name: str) -> Call:
    """The zoo's tiny model of transformers, and its first example."""
    model, args, kwargs, *_ = TEXT[name]()
    return model, args, {name: value[:1] for name, value in kwargs.items()}


def test_model(name: str) -> Call:
    """A model that timm has for tests, with ten classes."""
    return of_pictures(partial(timm.create_model, name, num_classes=10), 160)


def transformer(kind: Any, **sizes: Any) -> Call:
    """A small model of timm's class."""
    return of_pictures(partial(kind, img_size=32, num_classes=10, **sizes), 32)


def last(output: Any) -> Tensor:
    """The logits of the last token."""
    found: Tensor = output.logits[0, -1]
    return found


class Row(NamedTuple):
    """One row of the first table: what makes the model, the outputs, and the bar."""

    make: Callable[[], Call]
    outputs: Callable[[Any], Tensor] | None = None
    bar: float = BAR


SWIN = {"patch_size": 2, "window_size": 4, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4)}
MODELS: Mapping[str, Row] = {
    "ViT (`test_vit`)": Row(partial(test_model, "test_vit")),
    "ConvNeXt (`test_convnext`)": Row(partial(test_model, "test_convnext")),
    "Swin": Row(partial(transformer, timm.models.SwinTransformer, **SWIN)),
    "MLP-Mixer": Row(partial(transformer, timm.models.MlpMixer, patch_size=4, num_blocks=2, embed_dim=32)),
    "CLIP (the demo's)": Row(lambda: (clip(), (preprocess(canvas(4, colours=True).image),), {})),
    "LSTM": Row(lambda: (Recurrent(), (torch.randn(1, 6, 5),), {})),
    "GPT-2": Row(partial(of_text, "gpt2"), last),
    "Llama": Row(partial(of_text, "llama"), last, BAR_IN_FLOAT32),
    "T5": Row(partial(of_text, "t5"), last, BAR_IN_FLOAT32),
    "Mamba": Row(partial(of_text, "mamba"), last, BAR_IN_FLOAT32),
}


def converted(call: Call) -> tuple[fxgrad.ConvertedModule, tuple[Any, ...], dict[str, Any]]:
    """The model and its inputs in float64, converted."""
    model, args, kwargs = call
    model = model.double().eval().requires_grad_(False)
    args = tuple(a.double() if a.is_floating_point() else a for a in args)
    return fxgrad.convert(model, args, kwargs), args, kwargs


def milliseconds(run: Callable[[], Any]) -> str:
    """Processor time of a call, the least of three."""
    return f"{1000 * min(processor_seconds(run) for _ in range(3)):.1f}"


def measured(name: str, row: Row) -> tuple[list[str], bool]:
    """A row of the first table, and whether it keeps its bars."""
    torch.manual_seed(0)
    libra, args, kwargs = converted(row.make())
    W = fxgrad.linear_map(libra, args, kwargs, outputs=row.outputs)
    plain = fxgrad.linear_map(libra.under("gradient"), args, kwargs, outputs=row.outputs)
    matrix = W.dense()
    x, rank = torch.randn(W.shape[1]).double(), min(RANK, min(W.shape))
    product = float((W @ x - matrix @ x).norm() / (matrix @ x).norm())
    wanted = torch.linalg.svd(matrix.double(), full_matrices=False).S[:rank]
    singular = float((W.svd(rank, dense=False).S - wanted).abs().max() / wanted.max())
    fresh = [fxgrad.linear_map(libra, args, kwargs, outputs=row.outputs) for _ in range(3)]
    cells = [
        name, "{} x {}".format(*W.shape), f"{W.residual:.1e}", f"{plain.residual:.1e}", f"{product:.1e}",
        f"{singular:.1e}", milliseconds(lambda: W @ x), milliseconds(lambda: W.row(0)),
        milliseconds(lambda: fresh.pop().dense()),
    ]  # fmt: skip
    return cells, max(W.residual, product, singular) <= row.bar


def by_plain_autograd() -> Iterator[tuple[list[str], bool]]:
    """Rows of piecewise linear models: the largest difference from the plain model's Jacobian, relative to it."""
    torch.manual_seed(0)
    mlp = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 30), nn.ReLU(), nn.Linear(30, 10))
    convolutions = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.ReLU())
    head = nn.Sequential(nn.Flatten(), nn.Linear(8 * 25, 10))
    for name, model, shape in (
        ("MLP with ReLU", mlp, (1, 20)),
        ("convolutions with ReLU and pooling", nn.Sequential(convolutions, head), (1, 3, 16, 16)),
    ):
        libra, (x,), _ = converted((model, (torch.randn(shape),), {}))
        W = fxgrad.linear_map(libra, (x,))
        wanted = torch.autograd.functional.jacobian(model, x).reshape(W.shape)
        error = float((W.dense() - wanted).abs().max() / wanted.abs().max())
        yield [name, "{} x {}".format(*W.shape), f"{error:.1e}", f"{W.residual:.1e}"], max(error, W.residual) <= BAR


def of_pairs() -> Iterator[tuple[list[str], bool]]:
    """Rows of the table of pairs."""
    left, right = (Tower(side).double().eval().requires_grad_(False) for side in ("image", "text"))
    picture = preprocess(canvas(4, colours=True).image).double()
    ids = right.clip.tokenize("a red seven and a green two")
    towers = fxgrad.convert(left, (picture,)), fxgrad.convert(right, (ids,))
    yield _pair("CLIP (the demo's): a picture and a text", lambda: fxgrad.pairs(towers[0], picture, towers[1], ids))
    torch.manual_seed(0)
    model, _, kwargs = of_text("dpr")
    libra = fxgrad.convert(model.double().requires_grad_(False), (), kwargs)
    other = {**kwargs, "input_ids": kwargs["input_ids"].flip(1)}

    def pooled(output: Any) -> Tensor:
        found: Tensor = output.pooler_output
        return found

    run = partial(fxgrad.pairs, libra, kwargs, libra, other, left_output=pooled, right_output=pooled)
    yield _pair("BERT, pooled (DPR): two sentences", run)


def _pair(name: str, run: Callable[[], fxgrad.Pairs]) -> tuple[list[str], bool]:
    found = run()
    error = float((found.matrix.sum() + found.biases - found.total).abs())
    cells = [name, "{} x {}".format(*found.matrix.shape), f"{float(found.total):.4f}", f"{float(found.biases):.4f}"]
    return [*cells, f"{error:.1e}", milliseconds(run)], error <= BAR_OF_PAIRS


def of_a_thousand() -> list[str]:
    """What the singular vectors of a map with a thousand outputs cost, either way."""
    torch.manual_seed(0)
    model, (x,), _ = of_pictures(partial(timm.create_model, "vit_tiny_patch16_224", img_size=96), 96)
    libra = fxgrad.convert(model.eval().requires_grad_(False), (x,))
    maps = [fxgrad.linear_map(libra, (x,)) for _ in range(2)]
    searched = processor_seconds(lambda: maps[0].svd(RANK, dense=False))
    rows = processor_seconds(lambda: maps[1].dense())
    solved = processor_seconds(lambda: maps[1].svd(RANK, dense=True))
    return [f"{searched:.1f}", f"{rows:.1f}", f"{solved:.1f}"]


def page(only: str, folder: Path | None) -> tuple[str, bool]:
    """The page, and whether all bars are kept."""
    maps = [measured(name, row) for name, row in MODELS.items() if only in name]
    plain, pairs = list(by_plain_autograd()), list(of_pairs())
    if folder:
        draw(folder)
    head = ["model", "outputs x inputs", "residual", "plain", "W v", f"svd({RANK})"]
    head += ["W v, ms", "row, ms", "matrix, ms"]
    text = [
        "# Linear maps and pairs, measured", "",
        "In float64; `make linear` writes this page. `fxgrad.linear_map` of random models and one example:", "",
        "- *residual*: |f(x) - W x - b| / |f(x)|, with W x by passes, which may round as the model itself does;",
        "- *plain*: the same under the policy `gradient`, where W is the plain Jacobian;",
        "- *W v*: products by two backward passes, against the matrix that is made of rows;",
        f"- *svd({RANK})*: singular values by products (ARPACK), against the matrix's, relative to the largest.", "",
        f"Bars: {BAR:.0e}; for Llama, T5 and Mamba, whose own code computes norms in float32, {BAR_IN_FLOAT32:.0e}. "
        "Milliseconds are processor time on one thread.", "",
        *markdown(head, [cells for cells, _ in maps]), "",
        "Witness: for a piecewise linear model, W is the Jacobian of the plain model "
        "(`torch.autograd.functional.jacobian`).", "",
        *markdown(["model", "outputs x inputs", "largest difference", "residual"], [cells for cells, _ in plain]), "",
        "`fxgrad.pairs`: the cosine of two embeddings as a sum over pairs, and what biases have a part in. Bar: "
        f"{BAR_OF_PAIRS:.0e}.", "",
        *markdown(
            ["towers", "parts", "score", "biases", "error of their sum", "ms"], [cells for cells, _ in pairs]
        ), "",
        f"The {RANK} largest singular vectors of a random ViT-Tiny/16 with 1,000 outputs and 27,648 inputs, float32, "
        "processor seconds:", "",
        *markdown(["by products with W and W.T", "all rows", "and their svd"], [of_a_thousand()], "rrr"),
    ]  # fmt: skip
    return "\n".join(text) + "\n", all(kept for rows in (maps, plain, pairs) for _, kept in rows)


if __name__ == "__main__":
    folder = {"type": Path, "help": "where the pictures of docs/linear.md go"}
    main(page, __doc__, {"--only": ONLY, "--folder": folder})
