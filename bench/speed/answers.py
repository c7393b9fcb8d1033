"""What the matrix of an answer costs: over the plain passes, and of a model of 1.2 billion parameters.

The cost of K rows is (seconds - forward) / (K backward passes), processor time on one thread, in turns with the plain
model's. The large one: a random Llama in bfloat16, 512 tokens of prompt and 64 of answer.

python -m bench.speed.answers
python -m bench.speed.answers --large --threads 2 --out bench/measured/answers.md
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from bench.speed.gpu_cases import LLAMA
from bench.speed.large import held_by_process
from bench.speed.measure import processor_seconds
from bench.speed.models import llama
from bench.speed.script import ONLY, main
from fxgrad.report import markdown
from fxgrad.text import Explainer

LIMIT = 0.7
"""The most plain backward passes that a row may cost, beyond one forward."""
ROWS = {
    "512 wide, 8 blocks": (512, 8, 8, 4, 1376, 8000),
    "256 wide, 4 blocks": (256, 4, 4, 2, 688, 8000),
    "64 wide, 8 blocks": (64, 8, 8, 4, 172, 1000),
}
"""Name -> width, blocks, heads, heads of keys, width inside, words."""


class Numbers:
    """In the place of a tokenizer: every id is a word."""

    all_special_ids: tuple[int, ...] = ()
    pad_token_id, eos_token_id = 0, None

    def decode(self, ids: list[int], **_: Any) -> str:
        return "".join(f" {i}" for i in ids)


def plain(model: Any, ids: torch.Tensor, start: int, rows: int) -> None:
    """The plain model's forward, and a backward for each of some rows."""
    embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
    logits = model(inputs_embeds=embedded, use_cache=False).logits
    for row in range(rows):
        torch.autograd.grad(logits[0, start + row, 5], embedded, retain_graph=True)


def cost(sizes: tuple[int, ...], prompt: int = 128, answer: int = 16, rounds: int = 5) -> tuple[str, float]:
    """(plain backward passes that a row costs, in words, and the median)."""
    model = llama(sizes).eval().requires_grad_(False)
    ids = torch.randint(sizes[-1], (1, prompt + answer))
    own = Explainer(model, Numbers())
    given, said = ids[0, :prompt].tolist(), ids[0, prompt:].tolist()
    runs = [partial(plain, model, ids[:, :-1], prompt - 1, n) for n in (0, answer)]
    taken = []
    for turn in range(rounds + 1):
        forward, all_of_it = (processor_seconds(run) for run in runs)
        ours = processor_seconds(lambda: own.explain(given, said).matrix)
        taken += [(ours - forward) / (all_of_it - forward)] if turn else []  # the first converts
    middle = statistics.median(taken)
    return f"{middle:.2f} ({min(taken):.2f} to {max(taken):.2f})", middle


def of_a_billion(prompt: int = 512, answer: int = 64) -> Iterator[list[str]]:
    """Rows of what the large model takes."""
    model = llama(LLAMA, torch.bfloat16, tied=True).eval().requires_grad_(False)
    ids = torch.randint(LLAMA[-1], (prompt + answer,)).tolist()
    own = Explainer(model, Numbers())
    weights = sum(p.nbytes for p in model.parameters()) / 1e9
    found: list[Any] = []
    start = time.perf_counter()
    held = held_by_process(lambda: found.append(own.explain(ids[:prompt], ids[prompt:])))
    yield [
        "conversion",
        f"{(time.perf_counter() - start) / 60:.1f}",
        f"{held / 1e9:.1f} beyond weights of {weights:.1f}",
    ]
    start = time.perf_counter()
    held = held_by_process(lambda: found[0].matrix)
    yield [f"matrix, {answer} rows", f"{(time.perf_counter() - start) / 60:.1f}", f"{held / 1e9:.1f}"]
    errors = (found[0].values - found[0].matrix.sum(1) - found[0].biases).abs()
    sizes = torch.maximum(found[0].values.abs(), found[0].matrix.abs().sum(1))
    yield ["largest error of a row, of its value or shares", f"{float((errors / sizes).max()):.1e}", ""]


def page(only: str, large: bool, threads: int) -> tuple[str, bool]:
    """The page, and whether every row of the first table keeps the limit."""
    found = {name: cost(sizes) for name, sizes in ROWS.items() if only in name}
    text = [
        "# Answers of language models, measured", "",
        "Plain backward passes that a row of the matrix costs, beyond one plain forward: a random Llama in float32, "
        f"128 tokens of prompt, 16 of answer, processor time on one thread. The bar is {LIMIT}. `make answers` writes "
        "this page.", "",
        *markdown(["model", "backward passes a row"], [[name, words] for name, (words, _) in found.items()]),
    ]  # fmt: skip
    if large:
        torch.set_num_threads(threads)
        text += ["", f"A Llama of 1.2 billion parameters in bfloat16, {threads} threads:", ""]
        text += markdown(["", "minutes", "GB"], of_a_billion(), "lrr")
    return "\n".join(text) + "\n", all(ratio <= LIMIT for _, ratio in found.values())


if __name__ == "__main__":
    large = {"action": "store_true", "help": "the model of 1.2 billion parameters, too: 8 GB"}
    threads = {"type": int, "default": 1, "help": "of the large model"}
    main(page, __doc__, {"--only": ONLY, "--large": large, "--threads": threads})
