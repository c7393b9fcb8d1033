"""bench/measured/benchmarks.md and its plots, from the benchmark's JSON.

    python -m bench.speed.page bench/measured/benchmarks.json bench/measured/benchmarks.md [ANOTHER.json ...]

Rows of another run, of some rows only, take the place of the first one's, and the first file is rewritten with them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from bench.speed.bars import bars
from bench.speed.results import FORWARD, FXGRAD, PLAIN, Results, read
from bench.speed.tables import growth, megabytes, models, ratio, seconds, table, targets, toolkits

INTRODUCTION = """# Speed and memory, measured

What a balanced input gradient costs, beside the plain one and beside LibraGrad by hooks and swapped modules, on
frozen models. Everything of one row runs in one process, in turns, and ratios are taken round by round; what is given
is their median, and the least and the most in parentheses. Below 1 is less than the other.

- *forward only* is the original model under `torch.no_grad()`; all else is one forward and one backward to the input.
- *swapped modules*, *tuned* (with autograd functions of their own) and *full backward hooks* are LibraGrad by hand,
  `bench/speed/hook_baseline.py`.
- The *floor* is (forward + backward) / forward, counted in multiply-adds of the matrix products that the backward
  cannot do without (`bench/speed/floor.py`): no parameter's, no held operand's, and of a fused projection the live
  rows only. *Over the floor* is the same ratio as measured, divided by it; its forward is the original's.
- *Peak* is the most that PyTorch's allocator holds during one forward and backward beyond what was there before;
  *saved* is what autograd keeps for the backward, every storage once, without parameters and inputs.
"""


NOTES = """## What stands behind these numbers

- **Attention.** The kernel's own backward takes 31 ms at 8 x 12 heads x 197 tokens x 64, 162 ms at 2 x 12 x 1,024 and
  1,304 ms at 1 x 12 x 4,096. The same kernel forward, with q and k swapped, gives the value's gradient in 18, 71 and
  541 ms; making the weights again block by block takes 17 to 20, 105 and 840 ms.
- **Activations.** Keeping only the slope of a GELU costs 7 ms a block more in the forward (four passes over one new
  tensor) and 3 ms less in the backward, at 8 x 197 x 3,072. Tried: one division in the place of two of the passes
  saves 1 ms, but writes where `torch.func.vmap` cannot; the error function costs 10 ms more; on another processor
  two passes for four save 0.2 ms of 5.8. Writing into values that nobody reads again saves no time either (8.26 s of
  processor time with, 8.27 s without, ViT-B/16).
- **Baselines by hand** at 197 tokens know the model, and do what the pass does: split the projection, detach queries
  and keys, keep gates. Counted in matrix products the plain gradient is 1.12 of the floor there, so that no baseline
  which is about as fast as the plain gradient can be 1.3 of anything. The tuned one also writes attention out, which
  at this length is faster than the fused forward kernel, but does not give the original's outputs bit for bit.
- **Networks without attention** (ResNet, ConvNeXt, Mixer) have no product to prune: their floor is the plain
  gradient's.
- **Small models** pay for Python: every rewritten node is an `autograd.Function`.
- **Conversion** ends with a run of the model and one of the converted module, to compare their bits: of ViT-B/16 with
  two pictures about half of a second. Without (`verify=False`), it takes 0.3 s more than torch.export.
"""


def page(results: Results, images: Iterable[str] = ()) -> str:
    """The page, in Markdown.

    Args:
        results: of a run.
        images: file names of the plots, relative to the page.

    Returns:
        Its text. What was not measured is left out, but for the table of what must hold, which says so.

    Example:
        >>> print(page(Results({}, "2026-01-01", {}))[:28])
        # Speed and memory, measured
    """
    files = {Path(name).stem.rpartition("-")[2]: name for name in images}

    def image(name: str, alt: str) -> str:
        return f"![{alt}]({files[name]})" if name in files else ""

    parts = [
        INTRODUCTION,
        _machine(results),
        "## What must hold",
        _bars(results),
        NOTES,
        "## Models",
        image("models", "Time over the plain gradient's, model by model"),
        models([*results.axis("bars"), *results.axis("models")]),
        "## Other toolkits",
        toolkits(results),
        "## Growth",
        image("growth", "Time against tokens, batch, depth and targets, with the fitted exponents"),
        image("memory", "Peak memory and bytes saved for the backward, over the plain gradient's"),
        growth(results),
        "## Many targets",
        targets(results),
        "## Compiled, checkpointed, bfloat16",
        _variants(results),
        "## Conversion, and Python's overhead",
        _conversion(results),
        _overhead(results),
        "## GPU",
        _gpu(results),
    ]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def _machine(results: Results) -> str:
    machine = results.machine
    cpu = machine.get("cpu", {})
    versions = ", ".join(f"{name} {version}" for name, version in machine.get("versions", {}).items())
    quick = "**A smoke run on shrunken models: its numbers mean nothing.** " if machine.get("quick") else ""
    return (
        f"{quick}Written by `make bench` on {results.when[:10]}: {cpu.get('brand_raw', 'an unnamed CPU')}, "
        f"{machine.get('threads', '?')} threads, {machine.get('system', '')} {machine.get('machine', '')}, "
        f"GPU: {machine.get('gpu') or 'none'}. Python {machine.get('python_version', '?')}, {versions}."
    )


def _bars(results: Results) -> str:
    rows = []
    for bar in bars(results):
        spread = f" ({bar.spread.low:.2f} to {bar.spread.high:.2f})" if bar.spread else ""
        where = f"; {bar.where}" if bar.where else ""
        unit = " s" if bar.unit == "s" else ""
        bound = f"{'<=' if bar.at_most else '>='} {bar.bound:g}{unit}"
        verdict = bar.verdict if bar.verdict != "MISSED" else "**MISSED**"
        rows.append([bar.what + where, bound, f"{bar.shown}{spread}", verdict])
    note = (
        "The verdict goes by the median as measured; the number shown is rounded against us. 4,096 tokens are measured "
        "at batch 1, since eight of them take minutes per round."
    )
    return table(["what", "bar", "measured", ""], rows) + "\n\n" + note


def _variants(results: Results) -> str:
    rows, notes = [], []
    for row in [r for axis in ("compiled", "checkpointed", "bfloat16") for r in results.axis(axis)]:
        for name in row.times:
            peak, saved = (row.info.get(figure, {}).get(name) for figure in ("peak", "saved"))
            taken = row.info.get("compile_seconds", {}).get(name)
            cells = [
                row.name,
                name,
                seconds(row.time(name)),
                ratio(row.ratio(name, PLAIN)),
                ratio(row.ratio(name, FXGRAD)),
            ]
            cells += ["" if v is None else megabytes(v) for v in (peak, saved)]
            rows.append([*cells, "" if taken is None else f"{taken:.1f} s"])
        notes += [f"{row.name}: {name}: {verdict}." for name, verdict in row.info.get("verdicts", {}).items()]
    head = ["model", "", "time", "/ plain", "/ fxgrad", "peak", "saved", "compile time"]
    return "\n\n".join([table(head, rows), *notes]) if rows else ""


def _conversion(results: Results) -> str:
    rows = results.axis("conversion")
    cells = [[r.name, str(r["nodes"]), *(ratio(r.time(s)) for s in ("torch.export", FXGRAD))] for r in rows]
    return (
        table(["", "nodes", "torch.export and decomposition, seconds", "beyond that, fxgrad, seconds"], cells)
        if rows
        else ""
    )


def _overhead(results: Results) -> str:
    parts = []
    for row in results.axis("overhead"):
        nodes, only = row["nodes"], "fxgrad, forward only"
        ahead, both = (
            (row.time(a).median - row.time(b).median) / nodes * 1e6 for a, b in ((only, FORWARD), (FXGRAD, PLAIN))
        )
        parts.append(
            f"Python's overhead, on a transformer of {nodes} nodes, one image of one patch, 16 wide, where next to "
            f"nothing is computed: the converted forward takes {seconds(row.time(only))} and the original's "
            f"{seconds(row.time(FORWARD))}, {ahead:+.1f} µs per node; with the backward {seconds(row.time(FXGRAD))} "
            f"and {seconds(row.time(PLAIN))}, {both:+.1f} µs per node."
        )
    return "\n\n".join(parts)


def _gpu(results: Results) -> str:
    rows = results.axis("gpu")
    return (
        models(rows)
        if rows
        else "There was no GPU where this was measured; the same script measures one that it finds."
    )


def merge(first: Path, others: Sequence[Path]) -> None:
    """Put rows of other runs in the place of a file's own.

    Args:
        first: the file, rewritten.
        others: files of runs of some rows.
    """
    found = json.loads(first.read_text("utf-8"))
    for other in others:
        newer = json.loads(other.read_text("utf-8"))
        rows = {b["extra_info"]["name"]: b for b in [*found["benchmarks"], *newer["benchmarks"]]}
        found["benchmarks"] = list(rows.values())
    first.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", type=Path)
    parser.add_argument("page", type=Path)
    parser.add_argument("others", nargs="*", type=Path)
    options = parser.parse_args()
    from bench.speed.plots import plots

    if options.others:
        merge(options.json, options.others)
    results = read(options.json)
    images = [path.name for path in plots(results, options.page.parent)]
    options.page.write_text(page(results, images), "utf-8")
    for bar in bars(results):
        print(f"{bar.verdict:13} {bar.shown:>9}  {'<=' if bar.at_most else '>='} {bar.bound:<5g} {bar.what}")


if __name__ == "__main__":
    main()
