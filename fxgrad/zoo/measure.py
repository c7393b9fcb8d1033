"""Measure one case: is the forward the same, and how complete are the balanced and the plain gradient?"""

from __future__ import annotations

import contextlib
import gc
import time
import traceback
from collections import Counter
from collections.abc import Iterable
from importlib import metadata
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxgrad.capture.captured import Captured
from fxgrad.capture.tracing import without_fast_path
from fxgrad.classify.walk import classify
from fxgrad.data.models import randomize
from fxgrad.errors import CaptureError, FxgradError, InputError
from fxgrad.module.converted import ConvertedModule
from fxgrad.module.rewrite import rewrite
from fxgrad.pipeline import convert
from fxgrad.proof.check import check, identical
from fxgrad.zoo.case import Case
from fxgrad.zoo.rows import Row, bar
from fxgrad.zoo.runs import Unfit, runnable
from fxgrad.zoo.shrink import count

_LONGEST = 600
"""The largest number of characters of a reason; the longest are lists of ops."""


def measure(case: Case, seed: int = 0) -> Row:
    """Convert a case in float64, compare its forward bit for bit, and check its completeness.

    Biases, norms, tokens and running statistics are randomised, so that no source is 0 by chance.

    Args:
        case: the case to build.
        seed: seed of weights, example and cotangent.

    Returns:
        The result row. Exceptions are not raised, but become its `reason`.

    Example:
        >>> from fxgrad.zoo.case import Built
        >>> net = lambda: Built(nn.Sequential(nn.Linear(3, 4), nn.GELU()).eval(), (torch.randn(2, 3),), {})
        >>> row = measure(Case("my:net", "nets", net))
        >>> row.passed, row.input, row.batches, row.kinds
        (True, '3', '1, 2', 'gated_activation 1; linear 1')

    Source: FullGrad, arXiv:1905.00780, eq. 1; LibraGrad, arXiv:2411.16760, section 3.
    """
    found: dict[str, Any] = {"versions": _versions(case.package)}
    start = time.perf_counter()
    try:
        _measure(case, seed, found)
    except Unfit as unfit:
        found["reason"] = str(unfit)
    except Exception as error:
        found["reason"] = reason(error)
    row = Row(case.name, case.family, **found, seconds=time.perf_counter() - start)
    torch._dynamo.reset()
    gc.collect()
    return row


def _measure(case: Case, seed: int, found: dict[str, Any]) -> None:
    torch.manual_seed(seed)
    model, args, kwargs, found["reduced"], through_no_grad = case.build()
    randomize(model.eval(), seed)
    found["parameters"] = count(model)
    found["input"] = _sizes(pytree.tree_leaves((args, kwargs)))
    with runnable(model, args, kwargs) as (args, kwargs, note):
        found["reduced"] = "; ".join(filter(None, [found["reduced"], note]))
        _convert(model, args, kwargs, through_no_grad, seed, found)


def _converted(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], through_no_grad: bool, found: dict[str, Any]
) -> ConvertedModule:
    """The converted model; if it draws numbers that its outputs do not depend on, with these drawn once."""
    try:
        return convert(model, args, kwargs, through_no_grad=through_no_grad)
    except CaptureError as error:
        if "on_random" not in str(error):
            raise
    found["reduced"] = "; ".join(filter(None, [found["reduced"], 'on_random="freeze"']))
    return convert(model, args, kwargs, through_no_grad=through_no_grad, on_random="freeze")


def _convert(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    through_no_grad: bool,
    seed: int,
    found: dict[str, Any],
) -> None:
    start = time.perf_counter()
    converted = _converted(model, args, kwargs, through_no_grad, found)
    whole = time.perf_counter() - start
    captured, table = converted.classified.captured, converted.classified.table
    found["nodes"] = sum(node.op == "call_function" for node in captured.graph.nodes)
    start = time.perf_counter()
    rewrite(classify(captured, table))  # once more, to time it alone
    found["pass_s"] = time.perf_counter() - start
    found["capture_s"] = max(whole - found["pass_s"], 0.0)
    found["precision"] = _precision(captured, converted)
    kinds = Counter(d.kind.value for d in converted.classified.decisions.values())
    found["kinds"] = "; ".join(f"{kind} {n}" for kind, n in sorted(kinds.items(), key=lambda item: (-item[1], item[0])))

    args, kwargs, found["batches"], same_at_example = _at_batch_of_one(model, converted, captured, args, kwargs)
    report = check(converted, args, kwargs, original=lambda *a, **k: _call(model, a, k), seed=seed)
    found["forward_identical"] = report.forward_identical and same_at_example
    found["completeness_error"] = report.completeness_error
    if report.ledger:
        worst = report.ledger[0]
        found["worst_node"] = f"{worst.node} {worst.op} {worst.rule} {worst.error:.1e} at {worst.module_path or 'top'}"
        if report.forward_identical and report.completeness_error <= bar(found["precision"]) and not report.passed:
            found["reason"] = (
                f"Unbalanced: the sum is right, but a node's error is {worst.error:.1e} and {report.unexplained:.1e} "
                f"of it all is unexplained; first {found['worst_node']}"
            )
    plain = converted.under("gradient")
    del converted
    found["plain_error"] = check(plain, args, kwargs, seed=seed).completeness_error


def _precision(captured: Captured, converted: ConvertedModule) -> str:
    """The dtype with the fewest bits among the values that a cotangent reaches."""
    decisions = converted.classified.decisions
    values = [n.meta.get("val") for n in captured.graph.nodes if n.name in decisions and decisions[n.name].live]
    dtypes = {v.dtype for v in values if isinstance(v, Tensor) and v.is_floating_point()}
    return str(min(dtypes, key=lambda d: torch.finfo(d).bits, default=torch.float64)).removeprefix("torch.")


def _at_batch_of_one(
    model: nn.Module, converted: ConvertedModule, captured: Captured, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any], str, bool]:
    """The example with a batch of one: users explain one example, and it costs half as much to check.

    Returns:
        args, kwargs: with a batch of one if the batch is dynamic, else the example.
        batches: the sizes of both batches.
        same: whether the outputs agree for the whole example.
    """
    with torch.no_grad(), without_fast_path():
        same = identical(converted(*args, **kwargs), _call(model, args, kwargs))
    if captured.signature:
        bound = captured.signature.bind(*args, **kwargs)
        args, kwargs = bound.args, bound.kwargs  # the order of captured.inputs
    free = [i.shape[0] is None if i.shape else None for i in captured.inputs]  # None: it has no first axis
    sizes = {leaf.shape[0] for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.dim()}
    batches = ", ".join(map(str, sorted(sizes)))
    if True not in free or False in free:
        return args, kwargs, batches, same
    has_batch = iter(free)
    first: tuple[tuple[Any, ...], dict[str, Any]]
    first = pytree.tree_map(lambda leaf: leaf[:1].clone() if next(has_batch) else leaf, (args, kwargs))
    try:
        with torch.no_grad():
            _call(model, *first)
    except Exception:  # the first axis is no batch, though torch.export could make it dynamic
        return args, kwargs, batches, same
    try:
        with torch.no_grad():
            converted(*first[0], **first[1])
    except InputError:  # the model's code decides otherwise for it
        return args, kwargs, batches, same
    return *first, f"1, {batches}", same


def _call(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The model's outputs on a copy of the example, since some models write to it."""
    args, kwargs = pytree.tree_map_only(Tensor, Tensor.clone, (args, kwargs))
    return model(*args, **kwargs)


def reason(error: Exception) -> str:
    """An error as one line: its name and first lines, and where it was raised unless it is an `FxgradError`.

    Example:
        >>> reason(FxgradError("two ops have no rule:\\n  a\\n  b"))
        'FxgradError: two ops have no rule: | a | b'
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not isinstance(error, FxgradError):
        frames = traceback.extract_tb(error.__traceback__)
        lines = [*lines[:3], *(f"raised at {f.filename}:{f.lineno}: {f.line}" for f in frames[-1:])]
    text = f"{type(error).__name__}: {' | '.join(lines)}"
    return text if len(text) <= _LONGEST else text[: _LONGEST - 4] + " ..."


def _sizes(leaves: Iterable[Any]) -> str:
    shapes = [leaf.shape[1:] for leaf in leaves if isinstance(leaf, Tensor)]
    return ", ".join("x".join(map(str, shape)) or "1" for shape in shapes)


def _versions(package: str) -> str:
    versions = [f"torch {torch.__version__}"]
    with contextlib.suppress(metadata.PackageNotFoundError):  # the user's own module
        versions.append(f"{package} {metadata.version(package)}")
    return ", ".join(versions)
