"""Memory of a large model and of long inputs: a Llama of 1.2 billion parameters in bfloat16; up to 16,384 tokens.

The large one: what a conversion holds beyond the weights, by the operating system; forward and gradient of the
checkpointed program, by PyTorch's allocator, over the weights and the activations of one block, which are what the
plain block's own forward and gradient hold. The last token's logits are taken (`logits_to_keep=1`).

python -m bench.speed.large
python -m bench.speed.large --small --out /tmp/large.md
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

import fxgrad
from bench.speed.gpu_cases import LLAMA
from bench.speed.measure import peak_bytes
from bench.speed.models import Shape, llama, vit
from bench.speed.results import exponent
from bench.speed.script import main
from fxgrad.report import markdown

MEMORY, GROWTH = 1.3, 1.05
"""The bars: of the large model's memory, and of the exponent in tokens."""
SMALL = (64, 2, 4, 2, 128, 1000)
SIDES = (32, 45, 64, 91, 128)
"""Sides of pictures in patches, 1,024 to 16,384 of them."""
GIGA = 1e9


class LastLogits(nn.Module):
    """transformers' Llama on embedded tokens, (batch, tokens, width) -> the last token's logits, (batch, 1, words)."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.model = llama(sizes, torch.bfloat16, tied=True)

    def forward(self, embedded: Tensor) -> Tensor:
        return self.model(inputs_embeds=embedded, use_cache=False, logits_to_keep=1).logits  # type: ignore[no-any-return]


def gradient(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Forward, and the gradient of the first number of the last row."""
    x = x.detach().requires_grad_()
    return torch.autograd.grad(function(x)[:, -1, 0].sum(), x)[0]


def held_by_process(run: Callable[[], object]) -> int:
    """The most memory, in bytes, that the process held during a call beyond what it held before; on Linux."""
    gc.collect()  # else garbage of before the call may go during it, and hide as much
    Path("/proc/self/clear_refs").write_text("5")  # the highest value so far is forgotten
    before = _status("VmRSS")
    run()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def large(sizes: tuple[int, ...], tokens: int) -> Iterator[tuple[list[str], float | None]]:
    """Rows of the large model: what, bytes, seconds; and the ratio that a bar is for."""
    model = LastLogits(sizes).eval().requires_grad_(False)
    x = torch.randn(1, tokens, sizes[0], dtype=torch.bfloat16)
    weights = sum(p.nbytes for p in model.parameters())
    yield ["weights", f"{weights / GIGA:.2f} GB", ""], None
    found: list[fxgrad.ConvertedModule] = []
    for verify in (False, True):
        start = time.process_time()
        convert = partial(fxgrad.convert, model, (x[:, :64],), verify=verify)
        held = held_by_process(lambda: found.append(convert()))  # noqa: B023
        what = "conversion at 64 tokens" + ("" if verify else ", without verification")
        yield [what, f"{held / GIGA:.2f} GB", f"{time.process_time() - start:.0f} s"], None
    layer, inner = model.model.model.layers[0], model.model.model
    turns = inner.rotary_emb(x, torch.arange(tokens)[None])
    block = peak_bytes(partial(gradient, lambda h: layer(h, position_embeddings=turns), x))
    yield ["one plain block, forward and gradient", f"{block / GIGA:.2f} GB", ""], None
    libra = found[-1].checkpointed()
    for name, function in (("plain", model), ("fxgrad", found[-1]), ("fxgrad, checkpointed", libra)):
        start = time.process_time()
        held = peak_bytes(partial(gradient, function, x))
        ratio = (weights + held) / (weights + block)
        cells = [f"forward and gradient, {name}", f"{held / GIGA:.2f} GB, in all {ratio:.2f} of weights and a block"]
        yield [*cells, f"{time.process_time() - start:.0f} s"], ratio if function is libra else None


def growth(sides: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Tokens, and the peak of forward and gradient in bytes, of two blocks 64 wide."""
    for side in sides:
        x = torch.randn(1, 3, side * 16, side * 16)
        libra = fxgrad.convert(vit(Shape(64, 2, 2), side)().eval().requires_grad_(False), (x,), verify=False)
        yield side * side + 1, peak_bytes(partial(gradient, lambda x: libra(x)[:, None], x))  # noqa: B023


def page(small: bool) -> tuple[str, bool]:
    """The page, and whether both bars are met."""
    tokens = 64 if small else 2048
    rows, ratios = zip(*large(SMALL if small else LLAMA, tokens))
    (ratio,) = (r for r in ratios if r is not None)
    sizes, peaks = zip(*growth(SIDES[:2] if small else SIDES))
    power = exponent(sizes, peaks)
    text = [
        "# Large models and long inputs", "",
        f"A Llama of 1.2 billion parameters in bfloat16, {tokens:,} tokens; beyond what was held before, processor "
        f"seconds on one thread. `make large` writes this page.", "",
        *markdown(["", "memory", "seconds"], rows, "lrr"), "",
        f"Checkpointed, forward and gradient need {ratio:.2f} of the weights and one block's activations; the bar is "
        f"{MEMORY}.", "", "Two blocks, 64 wide, forward and gradient:", "",
        *markdown(["tokens", "peak"], [[f"{n:,}", f"{b / 1e6:.1f} MB"] for n, b in zip(sizes, peaks)]), "",
        f"The peak grows as tokens to the power of {power:.2f}; the bar is {GROWTH}.",
    ]  # fmt: skip
    return "\n".join(text) + "\n", ratio <= MEMORY and power <= GROWTH


if __name__ == "__main__":
    main(page, __doc__, {"--small": {"action": "store_true", "help": "next to nothing, to see that it runs"}})
