"""What `bench/gpu.py` measures on a GPU, as jobs; their cases run in workers (`bench.speed.workers`)."""

from __future__ import annotations

import copy
import gc
import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bench.speed.gpu_attention import flexible, launches, roads, tiles
from bench.speed.workers import Case, Job, Stage
from bench.tables.paper_models import MODELS

SIDES = {197: 14, 1025: 32, 4097: 64, 16385: 128}
"""Tokens of a ViT-B/16 with its class token -> side of the image, in patches."""
BATCHES = {
    197: ((64, "bfloat16"), (64, "float32"), (1, "bfloat16"), (8, "bfloat16"), (1, "float32"), (8, "float32")),
    1025: ((8, "bfloat16"), (64, "bfloat16"), (8, "float32"), (1, "bfloat16")),
    4097: ((1, "bfloat16"), (8, "bfloat16"), (1, "float32")),
    16385: ((1, "bfloat16"),),
}
"""Tokens -> batches and dtypes, the ones with a bar first."""
COMPILED = {"reduce-overhead": 1, "default": 64}
"""Mode of torch.compile -> batch."""
OTHERS = {
    "MURA's and Pet's ViT": "vit_base_patch16_224",
    "ResNet-50": "resnet50",
    "Swin-T": "swin_tiny_patch4_window7_224",
}
PRECISIONS = {"float32": False, "float32, TF32": True, "bfloat16": True, "float16": True}
"""Name -> whether TF32 is allowed."""
TOOLKITS = ("ViT-B/16, batch 8", "Llama-shaped, 140 M")
LLAMA = (2048, 16, 32, 8, 8192, 128_256)
"""Width, blocks, heads, heads of keys, width inside, words: 1.24 billion parameters, as Llama 3.2 1B has."""
ATTENTION_KERNEL = re.compile(r"flash|fmha|sdpa|attention|softmax|_body", re.IGNORECASE)


def stages(small: bool) -> list[Stage]:
    """All jobs, the most valuable first; what is timed runs alone."""
    vits = {tokens: Job(f"ViT-B/16, {tokens:,} tokens", least=25, most=60) for tokens in SIDES}
    models = [Job(f"model {name}", least=25, most=90) for name in ([*OTHERS][-1:] if small else every_model())]
    compiled = [Job(f"compiled, {mode}", 60, 150) for mode in COMPILED]
    rest = [vits[16385], compiled[0], Job("Llama 1B", 30, 90), Job("toolkits", 25, 60), Job("tiles", 15, 40)]
    rest += [compiled[1], Job("FlexAttention", 25, 60)]
    first = [Job("attention", 20, 60), Job("launches", 10, 30), vits[197], vits[4097], vits[1025]]
    return [Stage(first), Stage(models, workers=1 if small else 4), Stage(rest)]


def every_model() -> dict[str, str]:
    """Name -> timm's name: the models of the paper, and two without plain attention."""
    return {**MODELS, **OTHERS}


def cases(device: str, small: bool, job: str) -> Iterator[Case]:
    """The cases of a job.

    Args:
        device: "cuda", or "cpu" for a smoke run.
        small: whether everything shrinks to next to nothing.
        job: its name, one of `stages`.
    """
    os.environ["FXGRAD_BENCH"] = "quick" if small else ""  # before bench.speed.models is imported
    torch.set_num_threads(1 if small else 4)
    _tf32(False)
    kind, _, rest = job.partition(" ")
    if job.startswith("ViT-B/16"):
        yield from _vit(int(job.split()[1].replace(",", "")), device, small)
    elif kind == "model":
        yield from _model(rest, device, small)
    elif job.startswith("compiled"):
        yield from _compiled(job.partition(", ")[2], device, small)
    else:
        others = {
            "attention": roads,
            "launches": launches,
            "FlexAttention": flexible,
            "tiles": tiles,
            "toolkits": _toolkits,
        }
        yield from {**others, "Llama 1B": _llama}[job](device, small)


def _tf32(allowed: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


def _converted(make: Callable[[], nn.Module], x: Tensor, device: str) -> tuple[nn.Module, nn.Module]:
    import fxgrad
    from fxgrad.data.models import randomize

    gc.unfreeze()
    gc.collect()  # the models of the job before
    torch.manual_seed(0)
    with torch.device(device):
        model = make().eval().requires_grad_(False)
    randomize(model)
    converted = fxgrad.convert(model, (x,))
    gc.collect()
    gc.freeze()  # what stays need not be looked at between two rounds
    return model, converted


# Forward and gradient, over the plain one.


def _vit(tokens: int, device: str, small: bool) -> Iterator[Case]:
    from bench.speed.models import BASE, PATCH, Shape, vit

    shape, side = (Shape(32, 2, 2), 2) if small else (BASE, SIDES[tokens])
    pixels = side * PATCH
    model, converted = _converted(vit(shape, side), torch.randn(2, 3, pixels, pixels, device=device), device)
    for batch, dtype in BATCHES[tokens][: 2 if small else None]:
        x = torch.randn(1 if small else batch, 3, pixels, pixels, device=device)
        yield f"batch {batch}, {dtype}", partial(_over_plain, model, converted, x, dtype, device)


def _over_plain(model: nn.Module, converted: nn.Module, x: Tensor, dtype: str, device: str) -> dict[str, Any]:
    """Seconds in turns, eager and as CUDA graphs; peak memory; the kernels of attention; whether they agree."""
    from bench.speed.baselines import vjp
    from bench.speed.measure import Turns, peak_bytes

    x = x.to(getattr(torch, dtype))
    functions = {"plain": model.to(x.dtype), "fxgrad": converted.to(x.dtype)}
    with torch.no_grad():
        outputs = [function(x) for function in functions.values()]
    cotangent = torch.randn_like(outputs[0])
    row: dict[str, Any] = {"identical": torch.equal(*outputs), "peak": {}, "kernels": {}, "refused": {}}
    del outputs
    runs: dict[str, Callable[[], Any]] = {}
    for name, function in functions.items():
        runs[name] = partial(vjp, function, x, cotangent)
        runs[name]()
        row["peak"][name] = peak_bytes(runs[name], device)
        row["kernels"][name] = kernels(runs[name], device)
    for name in functions if device == "cuda" else ():
        try:
            runs[f"{name}, CUDA graph"] = graphed(runs[name])
        except RuntimeError as error:
            row["refused"][f"{name}, CUDA graph"] = str(error).splitlines()[0]
    turns = Turns(runs, device=device)
    total = sum(turns.timed(name) for name in runs)
    turns.interleave(min(max(int(1.5 / total), 3), 25) if device == "cuda" else 2)
    return {**row, "times": turns.times}


def graphed(run: Callable[[], Any]) -> Callable[[], Any]:
    """A call, recorded once as a CUDA graph; returns what replays it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def kernels(run: Callable[[], Any], device: str) -> list[str]:
    """Names of the kernels of attention that a call runs on the GPU, each once, in order."""
    if device == "cpu":
        return []
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        run()
        torch.cuda.synchronize()
    return list(dict.fromkeys(e.name[:120] for e in profiled.events() or () if ATTENTION_KERNEL.search(e.name)))


def _compiled(mode: str, device: str, small: bool) -> Iterator[Case]:
    from bench.speed.models import BASE, PATCH, Shape, vit

    shape, side, batch = (Shape(32, 2, 2), 2, 1) if small else (BASE, 14, COMPILED[mode])
    pixels = side * PATCH
    x = torch.randn(batch, 3, pixels, pixels, device=device, dtype=torch.bfloat16)
    model, converted = _converted(vit(shape, side), x.float(), device)
    yield f"ViT-B/16, batch {batch}", partial(_compiled_over_plain, model, converted, x, mode, device, small)


def _compiled_over_plain(
    model: nn.Module, converted: nn.Module, x: Tensor, mode: str, device: str, small: bool
) -> dict[str, Any]:
    """Seconds in turns of both, eager and compiled; what compiling took; how far the gradients are off."""
    from time import perf_counter

    from bench.speed.baselines import vjp
    from bench.speed.measure import Turns, peak_bytes
    from bench.speed.series import relative

    runs, row = {}, {"compile seconds": {}, "difference": {}, "refused": {}, "peak": {}}
    options: dict[str, Any] = {"backend": "aot_eager"} if small else {"mode": mode}
    for name, function in (("plain", model.to(x.dtype)), ("fxgrad", converted.to(x.dtype))):
        with torch.no_grad():
            cotangent = torch.ones_like(function(x))
        runs[name] = partial(vjp, function, x, cotangent)
        faster = copy.copy(function)
        start = perf_counter()
        try:
            faster.compile(fullgraph=True, **options)
            run = partial(_step, faster, x, cotangent)
            row["difference"][name] = relative(run().float(), runs[name]().float())
            row["compile seconds"][name] = perf_counter() - start
            row["peak"][name] = peak_bytes(run, device)
            runs[f"{name}, compiled"] = run
        except Exception as error:  # whatever a compiler raises, that is the finding
            row["refused"][name] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    turns = Turns(dict(sorted(runs.items(), reverse=True)), device=device)
    turns.interleave(3 if small else 15)
    return {**row, "times": turns.times}


def _step(function: nn.Module, x: Tensor, cotangent: Tensor) -> Tensor:
    from bench.speed.baselines import vjp

    torch.compiler.cudagraph_mark_step_begin()
    return vjp(function, x, cotangent)


# Forward identity and completeness.


def _model(name: str, device: str, small: bool) -> Iterator[Case]:
    import timm

    tag = every_model()[name]
    shrunk: dict[str, Any] = {"img_size": 56, "embed_dim": 24, "depths": (1, 1)} if small else {}
    size = timm.get_pretrained_cfg(tag).input_size
    assert size is not None
    x = torch.randn(2, *((3, 56, 56) if small else size), device=device)
    model, converted = _converted(partial(timm.create_model, tag, **shrunk), x, device)
    for precision, tf32 in PRECISIONS.items():
        yield precision, partial(_checked, model, converted, x, precision, tf32)


def _checked(model: nn.Module, converted: nn.Module, x: Tensor, precision: str, tf32: bool) -> dict[str, Any]:
    """Forward bit by bit at two batches, and the error of completeness, beside the plain gradient's."""
    import fxgrad

    assert isinstance(converted, fxgrad.ConvertedModule)
    dtype = getattr(torch, precision.partition(",")[0])
    _tf32(tf32)
    try:
        model, converted, x = model.to(dtype), converted.to(dtype), x.to(dtype)
        report = fxgrad.check(converted, (x,), original=model)
        with torch.no_grad():
            one = len(x) == 1 or torch.equal(converted(x[:1]), model(x[:1]))
        plain = fxgrad.check(converted.under("gradient"), (x,))
    finally:
        _tf32(False)
    return {
        "identical": report.forward_identical and one,
        "completeness": report.completeness_error,
        "plain": plain.completeness_error,
        "passed": report.passed,
        "worst": report.ledger[0].node if report.ledger else "",
    }


# Others.


def _toolkits(device: str, small: bool) -> Iterator[Case]:
    from bench.speed.models import cases as every

    for case in every():
        if case.name in TOOLKITS:
            yield case.name, partial(_beside, case, device)


def _beside(case: Any, device: str) -> dict[str, Any]:
    """Every toolkit on one model: seconds in turns, and whether it has fxgrad's gradient."""
    from bench.speed.measure import Turns
    from bench.speed.series import series

    found = series(case, *case.build(device))
    turns = Turns(found.runs, found.sparse, device, every=2)
    turns.interleave(2 if device == "cpu" else 8)
    return {"times": turns.times, "verdicts": found.verdicts}


def _llama(device: str, small: bool) -> Iterator[Case]:
    import transformers

    from bench.speed.baselines import Logits

    width, blocks, heads, of_keys, inside, words = (32, 2, 4, 2, 64, 50) if small else LLAMA
    tokens = 8 if small else 2048
    config = transformers.LlamaConfig(
        vocab_size=words, hidden_size=width, intermediate_size=inside, num_hidden_layers=blocks,
        num_attention_heads=heads, num_key_value_heads=of_keys, max_position_embeddings=4096, dtype=torch.bfloat16,
    )  # fmt: skip
    x = torch.randn(1, tokens, width, device=device, dtype=torch.bfloat16)
    make = lambda: Logits(transformers.LlamaForCausalLM(config).to(torch.bfloat16))  # noqa: E731
    model, converted = _converted(make, x, device)
    yield f"{tokens:,} tokens, bfloat16", partial(_over_plain, model, converted, x, "bfloat16", device)
    yield "bfloat16", partial(_checked, model, converted, x[:, : tokens // 8], "bfloat16", True)
    for precision in ("float32", "float32, TF32", "float16"):
        yield precision, partial(_again, model, x[:, : tokens // 8], precision)


def _again(model: nn.Module, x: Tensor, precision: str) -> dict[str, Any]:
    """The same, converted in another dtype: the model names its dtype when it casts."""
    import fxgrad

    dtype = getattr(torch, precision.partition(",")[0])
    x = x.to(dtype)
    return _checked(model, fxgrad.convert(model.to(dtype), (x,)), x, precision, PRECISIONS[precision])
