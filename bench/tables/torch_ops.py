"""PyTorch's own table of ops, with its own samples of inputs, through the pass: what is complete, and what is refused.

Every floating-point operand of a sample is an input. Each op runs in a process of its own, since samples may be such
that a kernel reads where it must not.

    python -m bench.tables.torch_ops --out bench/measured/torch-ops.md
    python -m bench.tables.torch_ops --only scatter --samples 20
"""

from __future__ import annotations

import logging
import multiprocessing
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import fxgrad
from bench.speed.script import ONLY, main
from fxgrad.errors import FxgradError, InputError, one_line
from fxgrad.report import markdown

COMPLETE, INCOMPLETE, CRASHED = "complete", "incomplete", "crashed"
UNWANTED = (INCOMPLETE, CRASHED)
KNOWN: Mapping[str, str] = {
    "as_strided": "a view of a part of a larger storage: what it reads is not the input's, or not there in a copy",
    "native_layer_norm": "returns its scale, which is held, as an output",
    "native_group_norm": "returns its scale, which is held, as an output",
    "native_batch_norm": "the kernel reads statistics without a look at their number, and is asked about one example",
    "_native_batch_norm_legit": "the kernel reads statistics without a look at their number, as above",
    "nn.functional.embedding": "in a table that is an input, PyTorch gives `padding_idx` no gradient",
    "nn.functional.max_unpool": "indices that meet: PyTorch's gradient goes to all that were written there",
    "nn.functional.soft_margin_loss": "a value near 0 as the sum of f(0) and its opposite, which round",
    "nn.functional.softplus": "a value near 0 as the sum of f(0) and its opposite, which round",
    "special.ndtr": "a value near 0 as the sum of f(0) and its opposite, which round",
}
"""Start of the name of an op with incomplete samples, or such as crash -> why."""
_CONTEXT = multiprocessing.get_context("fork")
Found = tuple[str, str]
"""How a sample went, and what was said."""


class Op(nn.Module):
    """A sample: the op with its arguments, of which the floating-point tensors are inputs."""

    def __init__(self, function: Any, arguments: Any) -> None:
        super().__init__()
        self.function, self.arguments = function, arguments

    def leaves(self) -> list[Tensor]:
        return [leaf for leaf in pytree.tree_leaves(self.arguments) if _carries(leaf)]

    def forward(self, *inputs: Tensor) -> Any:
        given = iter(inputs)
        x, args, kwargs = pytree.tree_map(lambda leaf: next(given) if _carries(leaf) else leaf, self.arguments)
        return self.function(x, *args, **kwargs)


def _carries(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def table() -> dict[str, Any]:
    """Name -> PyTorch's entry, of all ops with a gradient in float64 on a CPU."""
    try:
        from torch.testing._internal.common_methods_invocations import op_db
    except ImportError as error:
        raise InputError(f"PyTorch's table of ops cannot be imported ({error}). Try pip install expecttest.") from error
    found = {f"{op.name}.{op.variant_test_name}".rstrip("."): op for op in op_db if op.supports_autograd}
    return {name: op for name, op in found.items() if op.op and op.supports_dtype(torch.float64, "cpu")}


def modules(op: Any, count: int) -> Iterator[Op]:
    """Up to `count` of an op's samples, spread over all of them, that it takes and answers with floats."""
    samples = list(op.sample_inputs("cpu", torch.float64, requires_grad=False))
    for sample in samples[:: max(1, len(samples) // count)][:count]:
        module = Op(op.op, (sample.input, sample.args, sample.kwargs)).eval()
        leaves = module.leaves()
        if leaves and all(leaf.numel() for leaf in leaves) and any(map(_carries, pytree.tree_leaves(module(*leaves)))):
            yield module


def tried(module: Op) -> Found:
    """How one sample went."""
    inputs = tuple(module.leaves())
    try:
        report = fxgrad.check(fxgrad.convert(module, inputs), inputs)
    except FxgradError as error:
        first, *rest = str(error).splitlines()
        return type(error).__name__, rest[0].strip() if first.endswith(":") else first
    except Exception as error:
        return CRASHED, f"{type(error).__name__}: {one_line(error)}"
    return (COMPLETE, "") if report.passed else (INCOMPLETE, str(report).splitlines()[0])


def _work(op: Any, count: int, answer: Any) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.filterwarnings("ignore")
    logging.disable(logging.CRITICAL)
    answer.send([tried(module) for module in modules(op, count)])


def measured(op: Any, count: int) -> list[Found]:
    """How an op's samples went, in a process of its own."""
    answer, own = _CONTEXT.Pipe(duplex=False)
    process = _CONTEXT.Process(target=_work, args=(op, count, own))
    process.start()
    own.close()
    try:
        found: list[Found] = answer.recv()
    except EOFError:
        process.join()
        found = [(CRASHED, f"the process ended with {process.exitcode}")]
    process.join()
    return found


def section(found: Mapping[str, Sequence[Found]], what: str) -> list[str]:
    """The ops with samples that went like this, with what was said of the first."""
    rows = []
    for name, results in found.items():
        said = [words for went, words in results if went == what]
        if said:
            reason = next((why for start, why in KNOWN.items() if what in UNWANTED and name.startswith(start)), "")
            rows.append([f"`{name}`", f"{len(said)} of {len(results)}", (reason or said[0])[:160].replace("|", "\\|")])
    return ["", f"## {what}", "", *markdown(["op", "samples", "what was said first"], rows, "lrl")] if rows else []


def page(only: str, samples: int, jobs: int) -> tuple[str, bool]:
    """The page, and whether every sample that crashed or is incomplete is one that is known."""
    ops = {name: op for name, op in table().items() if only in name}
    with ThreadPoolExecutor(jobs) as pool:
        found = dict(zip(ops, pool.map(lambda op: measured(op, samples), ops.values())))
    found = {name: results for name, results in found.items() if results}
    counts = Counter(went for results in found.values() for went, _ in results)
    whole = [name for name, results in found.items() if all(went == COMPLETE for went, _ in results)]
    unwanted = {name for name, results in found.items() if any(went in UNWANTED for went, _ in results)}
    others = [what for what, _ in counts.most_common() if what != COMPLETE]
    lines = [
        "# PyTorch's own ops",
        "",
        f"Written by `python -m bench.tables.torch_ops`: of {len(found)} ops with a gradient, {sum(counts.values())} "
        f"of PyTorch's own samples, in float64, with every floating-point operand an input. Torch {torch.__version__}.",
        "",
        *markdown(["samples", "count"], counts.most_common(), "lr"),
        "",
        f"Of {len(whole)} ops all samples are complete. What was said of the others:",
        *(line for what in others for line in section(found, what)),
        "",
    ]
    return "\n".join(lines), all(name.startswith(tuple(KNOWN)) for name in unwanted)


if __name__ == "__main__":
    options: dict[str, Mapping[str, Any]] = {
        "--only": ONLY,
        "--samples": {"type": int, "default": 4, "help": "of each op; by default 4"},
        "--jobs": {"type": int, "default": 2, "help": "by default 2"},
    }
    main(page, __doc__, options)
