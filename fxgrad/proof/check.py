"""Stage 4, check: same forward, complete gradient, and a ledger that assigns every error to one node.

Completeness is local: at z = f(a_1 ... a_n) with cotangent g, a balanced backward satisfies
<g, z> = sum_i <g_i, a_i> + <g, b>, where b is the offset (from a bias, f(0)). The ledger runs the converted program
backwards one node at a time and compares both sides. The error of the whole is the sum of the nodes' errors.

Source: FullGrad (Srinivas & Fleuret, NeurIPS 2019, arXiv:1905.00780), eq. 1; LibraGrad, section 3.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxgrad.capture.admission import call_of
from fxgrad.capture.objects import returned, spared, with_tensors
from fxgrad.capture.tracing import outcome, without_fast_path
from fxgrad.errors import InputError
from fxgrad.graph.places import Place
from fxgrad.module.converted import ConvertedModule
from fxgrad.proof.ledger import DROWNED, TOLERANCE, Ledger, LedgerRow, SourceRow, dot
from fxgrad.report import Table
from fxgrad.run.passes import differentiated
from fxgrad.run.recording import refuse_unbalanced


@dataclass(frozen=True)
class CheckReport:
    """The result of `check`.

    Attributes:
        forward_identical: whether every output equals the original's, bit for bit.
        completeness_error: |y - inputs - sources| / max(|y|, ||v * f(x)||), from the module's own `backward()`. For one
            logit the denominator is |y|; for a random v it cannot vanish by chance, as |y| could.
        unexplained: the part of that error that the sum of the ledger's rows does not explain.
        output: y = <v, f(x)>, v a random cotangent.
        inputs: sum of <x, gradient of x> over the attributed inputs (for token ids, their embeddings).
        tolerance: the largest error that passes.
        ledger: one row per live node, the least balanced first.
        sources: one row per source, the largest contribution first.
        left_out: names of the outputs that cannot be balanced, and so take no part.
        drowned: whether the outputs are nothing but the rounding noise of larger values that cancel, as those of a
            normalization of equal values. Errors are then relative to that noise: they pass if noise explains them.
    """

    forward_identical: bool
    completeness_error: float
    unexplained: float
    output: float
    inputs: float
    tolerance: float
    ledger: Table[LedgerRow]
    sources: Table[SourceRow]
    left_out: tuple[str, ...] = ()
    drowned: bool = False

    @property
    def passed(self) -> bool:
        """Forward identical, and every error within the tolerance."""
        errors = [self.completeness_error, self.unexplained, *(row.error for row in self.ledger)]
        return self.forward_identical and all(e <= self.tolerance for e in errors)

    def __str__(self) -> str:
        sources = sum(row.contribution for row in self.sources)
        lines = [
            f"{'passed' if self.passed else 'FAILED'}: forward {'identical' if self.forward_identical else 'DIFFERS'}, "
            f"completeness error {self.completeness_error:.2e} (tolerance {self.tolerance:.0e})",
            f"output {self.output:.6g} = inputs {self.inputs:.6g} + sources {sources:.6g} "
            f"+ residual {self.output - self.inputs - sources:.2e}",
        ]
        if self.left_out:
            lines.append(f"left out, since it cannot be balanced: {', '.join(self.left_out)}")
        if self.drowned:
            lines.append("the outputs are rounding noise of larger values that cancel, and errors are relative to that")
        wrong = [row for row in self.ledger if not row.error <= self.tolerance]
        if wrong:
            first = wrong[0]
            lines.append(
                f"{len(wrong)} node(s) are not balanced; first {first.node} ({first.op}, {first.rule}) by "
                f"{first.residual:.4g}, error {first.error:.2e}, at {Place(first.module_path, first.source_line)}"
            )
        return "\n".join([*lines, "", str(self.ledger), "", str(self.sources)])

    def _repr_html_(self) -> str:
        return f"<pre>{str(self).split(chr(10) * 2)[0]}</pre>{self.ledger._repr_html_()}{self.sources._repr_html_()}"

    def to_json(self) -> str:
        """The report as one JSON object, with `left_out` if there is any; the same report gives the same text."""
        optional = ("left_out", "drowned")
        plain = {k: v for k, v in vars(self).items() if not isinstance(v, Table) and (v or k not in optional)}
        tables = {"ledger": json.loads(self.ledger.to_json()), "sources": json.loads(self.sources.to_json())}
        return json.dumps({"passed": self.passed, **plain, **tables}, indent=1)


def check(
    converted: ConvertedModule,
    args: tuple[Any, ...] | Tensor = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    original: Callable[..., Any] | None = None,
    cotangent: Any = None,
    tolerance: float | None = None,
    seed: int = 0,
) -> CheckReport:
    """Prove a converted module: same forward, complete gradient, every node balanced.

    Args:
        converted: what `fxgrad.convert` returned.
        args, kwargs: inputs, as for calling the module; by default the example it was converted with,
            in the module's present dtype and device.
        original: the model to compare the forward with, bit for bit under `torch.no_grad()` and without
            MultiheadAttention's fast path; by default the captured program.
        cotangent: v in y = <v, f(x)>, structured and shaped as the outputs, such as a one-hot for one
            logit; None for an output that takes no part, or that is no tensor. By default random, for all outputs that
            can be balanced.
        tolerance: for `passed`; by default that of the coarsest dtype between the inputs and the outputs:
            1e-10 in float64, 1e-4 in float32 (`TOLERANCE`).
        seed: seed of the random cotangent: standard normal, one number per output element.

    Returns:
        The report. Contributions are in the units of the output, errors relative to max(|y|, ||v * f(x)||).

    Raises:
        InputError: the module does not take the inputs; or an input, or a value that a cotangent reaches, has NaN or
            infinities (the message names the node).
        NotBalanceableError, NoRuleError: a cotangent is given for an output that cannot be balanced.

    Example:
        >>> import fxgrad
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.LayerNorm(4)).double().eval()
        >>> report = check(fxgrad.convert(model, (torch.randn(2, 3).double(),)), original=model)
        >>> report.passed, report.completeness_error < 1e-12
        (True, True)

    Source: FullGrad, arXiv:1905.00780, eq. 1; LibraGrad, arXiv:2411.16760, section 3.
    """
    args, kwargs = call_of(args, kwargs)
    if not args and not kwargs:
        args, kwargs = _example_like(converted)
    with torch.no_grad():
        leaves = converted.entries(args, kwargs)
    books = Ledger(converted, leaves)
    with torch.no_grad(), without_fast_path():
        theirs = _outputs(original, args, kwargs) if original else _plain(converted, leaves)
    same = identical(books.outputs, theirs)

    refusals = converted.classified.refusals
    cotangents = _random_like(books.outputs, seed) if cotangent is None else _like(books.outputs, cotangent)
    for refusal in refusals if cotangent is None else ():
        cotangents[refusal.index] = None
    refuse_unbalanced(converted, cotangents)
    pairs = [(v, g) for v, g in zip(books.outputs, cotangents) if g is not None]
    output = sum(dot(g, v) for v, g in pairs)
    scale = max(abs(output), sum(dot(g.abs().square(), v.abs().square()) for v, g in pairs) ** 0.5) or 1.0
    tolerance = TOLERANCE[books.coarsest] if tolerance is None else tolerance
    rows, sources = books.close(cotangents, scale)
    drowned = books.drowned(scale)
    if drowned:
        scale = DROWNED * books.noise / tolerance
        rows, sources = books.close(cotangents, scale)
    inputs = _input_contribution(converted, leaves, cotangents)

    error = output - inputs - sum(s.contribution for s in sources)
    return CheckReport(
        forward_identical=same,
        completeness_error=abs(error) / scale,
        unexplained=abs(error - sum(r.residual for r in rows)) / scale,
        output=output,
        inputs=inputs,
        tolerance=tolerance,
        ledger=Table("Ledger, least balanced first", sorted(rows, key=lambda r: _rank(r.error)), shown=10),
        sources=Table("Sources, largest first", sorted(sources, key=lambda s: -abs(s.contribution)), shown=10),
        left_out=tuple(refusal.output for refusal in refusals),
        drowned=drowned,
    )


def _random_like(outputs: list[Any], seed: int) -> list[Tensor | None]:
    generator = torch.Generator().manual_seed(seed)

    def draw(v: Any) -> Tensor | None:
        if not isinstance(v, Tensor) or not (v.is_floating_point() or v.is_complex()):
            return None
        dtype = torch.complex128 if v.is_complex() else torch.float64
        return torch.randn(v.shape, generator=generator, dtype=dtype).to(v)

    return [draw(v) for v in outputs]


def _like(outputs: list[Any], cotangent: Any) -> list[Tensor | None]:
    cotangents = pytree.tree_leaves(cotangent)
    shapes = [tuple(v.shape) if isinstance(v, Tensor) else None for v in outputs]
    given = [tuple(g.shape) if isinstance(g, Tensor) else g for g in cotangents]
    if len(given) != len(shapes) or any(g not in (s, None) for g, s in zip(given, shapes)):
        raise InputError(f"the cotangent is shaped {given}, but the outputs are shaped {shapes}.")
    return [None if g is None else g.to(v) for g, v in zip(cotangents, outputs)]


def _plain(converted: ConvertedModule, leaves: list[Any]) -> Any:
    """The outputs of the captured program, without rewritten nodes."""
    program = fx.GraphModule(nn.Module(), converted.classified.captured.graph)
    return program(*converted.state, *leaves)


def _outputs(original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """What the original model returns, as a program returns it; objects among its inputs stay as they are."""
    args, kwargs = spared((args, kwargs))
    return returned(outcome(original, args, kwargs))


def identical(ours: Any, theirs: Any) -> bool:
    """Whether two outputs, of any structure, are equal bit for bit, and their dtypes alike.

    Example:
        >>> identical({"a": torch.ones(2)}, {"a": torch.ones(2)}), identical(torch.ones(2), torch.ones(2, 1))
        (True, False)
    """
    ours, theirs = pytree.tree_leaves(ours), pytree.tree_leaves(theirs)
    return len(ours) == len(theirs) and all(
        a.dtype == b.dtype and torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a == b
        for a, b in zip(ours, theirs)
    )


def _input_contribution(converted: ConvertedModule, leaves: list[Any], cotangents: list[Tensor | None]) -> float:
    """sum <x, gradient of x>, by the module's own `backward()`, as a user would run it."""
    captured = converted.classified.captured
    leaves = [v.detach().clone().requires_grad_() if d.attributed else v for d, v in zip(captured.entries, leaves)]
    attributed = [v for d, v in zip(captured.entries, leaves) if d.attributed]
    with torch.enable_grad():
        outputs = converted.program(*converted.state, *leaves)
    pairs = [(v, g) for v, g in zip(outputs, cotangents) if g is not None and v.requires_grad]
    gradients = differentiated([v for v, _ in pairs], attributed, [g for _, g in pairs])
    return sum(dot(g, x) for x, g in zip(attributed, gradients))


def _example_like(converted: ConvertedModule) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The example inputs, in the module's present dtype and on its present device."""
    like = next((p for p in converted.parameters() if p.is_floating_point()), None)

    def move(leaf: Tensor) -> Tensor:
        if like is None:
            return leaf
        return leaf.to(like.device, like.dtype if leaf.is_floating_point() else leaf.dtype)

    args, kwargs = with_tensors(converted.classified.captured.example, move)
    return args, kwargs


def _rank(error: float) -> float:
    """Sort key: the largest error first, NaN before all."""
    return -error if error == error else -float("inf")
