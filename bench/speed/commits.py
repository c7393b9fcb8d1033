"""Is one commit slower than another? Both run in turn, task by task, each in a process of its own; CPU time counts.

    python bench/speed/commits.py OLD_CHECKOUT NEW_CHECKOUT [--rounds 5] [--tasks convert-blocks,gradient-vit]

Prints the ratio new / old of each task, its median and its range over the rounds; and for a Llama on token ids the
ratio of forward and gradient to the plain model's, in the new checkout.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

TASKS = ("convert-vit", "convert-blocks", "gradient-vit", "gradient-blocks", "fullgrad", "llama", "llama-plain")


class Tasks:
    """What a worker times; models are made once, and everything is warmed up by a first call."""

    def __init__(self) -> None:
        import timm
        import torch
        from torch import nn

        torch.manual_seed(0)
        torch.set_num_threads(1)
        self.vit = timm.create_model("vit_base_patch16_224").eval()
        self.pictures = torch.randn(2, 3, 224, 224)
        blocks = [nn.TransformerEncoderLayer(32, 2, 64, batch_first=True, dropout=0.0) for _ in range(48)]
        self.blocks, self.sequence = nn.Sequential(*blocks).eval(), torch.randn(2, 16, 32)
        self.kept: dict[str, Any] = {}

    def run(self, name: str) -> float:
        """CPU seconds of a task."""
        call = self.ready(name)
        start = time.process_time()
        call()
        return time.process_time() - start

    def ready(self, name: str) -> Callable[[], Any]:
        import fxgrad

        what, _, which = name.partition("-")
        if what == "convert":
            model, x = (self.vit, self.pictures) if which == "vit" else (self.blocks, self.sequence)
            return lambda: fxgrad.convert(model, (x,))
        if name not in self.kept:
            self.kept[name] = getattr(self, what)(which)
            self.kept[name]()
        return self.kept[name]  # type: ignore[no-any-return]

    def gradient(self, which: str) -> Callable[[], Any]:
        import torch

        import fxgrad

        model, x = (self.vit, self.pictures) if which == "vit" else (self.blocks, self.sequence)
        libra, leaf = fxgrad.convert(model, (x,)), x.clone().requires_grad_()
        libra.requires_grad_(False)
        return lambda: [torch.autograd.grad(libra(leaf).sum(), leaf) for _ in range(3)]

    def fullgrad(self, which: str) -> Callable[[], Any]:
        import fxgrad

        libra = fxgrad.convert(self.vit, (self.pictures,))
        return lambda: fxgrad.attribute(libra, (self.pictures,), target=1, method="fullgrad")

    def llama(self, which: str) -> Callable[[], Any]:
        """Forward and gradient of the embedded tokens; the plain model's for comparison."""
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        import fxgrad

        config = LlamaConfig(
            vocab_size=1000, hidden_size=256, intermediate_size=688, num_hidden_layers=4, num_attention_heads=8
        )
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).eval().requires_grad_(False)
        ids = torch.randint(0, 1000, (4, 128))
        if which == "plain":
            words = model.get_input_embeddings()

            def plain() -> None:
                embedded = words(ids).detach().requires_grad_()
                output = model(inputs_embeds=embedded, use_cache=False).logits
                torch.autograd.grad(output[:, -1].sum(), embedded)

            return lambda: [plain() for _ in range(3)]
        libra = fxgrad.convert(model, (), {"input_ids": ids, "use_cache": False})
        libra.requires_grad_(False)

        def ours() -> None:
            found = libra.embed(input_ids=ids, use_cache=False)
            output = libra.forward_from(found, input_ids=ids, use_cache=False).logits
            torch.autograd.grad(output[:, -1].sum(), list(found.values()))

        return lambda: [ours() for _ in range(3)]


def work() -> None:
    """Answer each task that comes in on stdin with its seconds."""
    tasks = Tasks()
    for line in sys.stdin:
        print(tasks.run(line.strip()), flush=True)


class Worker:
    """A process with one checkout's fxgrad."""

    def __init__(self, checkout: str) -> None:
        environment = {**os.environ, "PYTHONPATH": checkout, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, os.path.abspath(__file__), "--worker"]
        self.process = subprocess.Popen(
            command, cwd=checkout, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self, task: str) -> float:
        assert self.process.stdin is not None and self.process.stdout is not None
        print(task, file=self.process.stdin, flush=True)
        return float(self.process.stdout.readline())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", nargs="?")
    parser.add_argument("new", nargs="?")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.worker:
        work()
        return
    old, new = Worker(chosen.old), Worker(chosen.new)
    print("| task | new / old | range | new, CPU s |\n|---|--:|--:|--:|")
    for task in chosen.tasks.split(","):
        pairs = [(old(task), new(task)) for _ in range(chosen.rounds + 1)][1:]
        ratios = sorted(b / a for a, b in pairs)
        median = statistics.median(ratios)
        print(
            f"| {task} | {median:.3f} | {ratios[0]:.3f} to {ratios[-1]:.3f} | {min(b for _, b in pairs):.3f} |",
            flush=True,
        )
    if "llama-plain" in chosen.tasks:
        found = sorted(new("llama") / new("llama-plain") for _ in range(3 * chosen.rounds + 1))
        middle, spread = statistics.median(found), f"{found[0]:.3f} to {found[-1]:.3f}"
        print(f"\nLlama on ids, forward and gradient over the plain model's: {middle:.3f} ({spread})")


if __name__ == "__main__":
    main()
