"""Stage 4, check: the proof. Same forward, complete gradient, and a ledger that lays every error at one node's door.

Completeness is local: at z = f(a_1 ... a_n) with incoming cotangent g, a balanced backward hands on
exactly <g, z> = sum_i <g_i, a_i> + <g, b>, where b enters additively (a bias, an offset, f(0)). The
ledger runs the converted program backwards one node at a time and books both sides. What is wrong
with the whole is then the sum of what is wrong at the nodes.

Source: FullGrad (Srinivas & Fleuret, NeurIPS 2019, arXiv:1905.00780), eq. 1; LibraGrad, section 3.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxgrad.classify import Decision
from fxgrad.errors import InputError
from fxgrad.module import ConvertedModule
from fxgrad.report import Table
from fxgrad.roles import Kind

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 5e-2, torch.bfloat16: 2e-1}
"""Relative completeness error up to which `CheckReport.passed` holds, by the dtype of the outputs."""


@dataclass(frozen=True)
class LedgerRow:
    """The books of one node, for one cotangent of the outputs.

    Attributes:
        node, op, kind, rule: what it is.
        inflow: <g, z>, what arrives.
        outflow: sum of <g_i, a_i>, what is handed on to operands.
        source: <g, b>, what stays with the node's constants.
        residual: inflow - outflow - source; 0 when balanced.
        error: |residual| relative to the output, or the relative error of a secant's limit at 0 if
            that is larger.
        module_path, source_line: where the model's author wrote it.
    """

    node: str
    op: str
    kind: str
    rule: str
    inflow: float
    outflow: float
    source: float
    residual: float
    error: float
    module_path: str
    source_line: str


@dataclass(frozen=True)
class SourceRow:
    """What the constants of one node contribute: <g, b>, and that relative to the output."""

    source: str
    node: str
    contribution: float
    share: float
    module_path: str
    source_line: str


@dataclass(frozen=True)
class CheckReport:
    """What `check` found.

    Attributes:
        forward_identical: whether every output equals the original's, bit for bit.
        completeness_error: |y - inputs - sources| over the output, from the module's own backward. Over
            max(|y|, ||v * f(x)||), which for one logit is |y|, and which a sum of many random terms
            cannot make vanish by chance.
        unexplained: the part of that error which the ledger's rows do not add up to.
        output: y = <v, f(x)>, v a random cotangent.
        inputs: sum of <x, gradient of x> over the attributed inputs.
        tolerance: the error up to which `passed` holds.
        ledger: one row per live node, the least balanced first.
        sources: one row per source, the largest contribution first.
    """

    forward_identical: bool
    completeness_error: float
    unexplained: float
    output: float
    inputs: float
    tolerance: float
    ledger: Table[LedgerRow]
    sources: Table[SourceRow]

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
        wrong = [row for row in self.ledger if not row.error <= self.tolerance]
        if wrong:
            first = wrong[0]
            lines.append(
                f"{len(wrong)} node(s) are not balanced; first {first.node} ({first.op}, {first.rule}) by "
                f"{first.residual:.4g}, error {first.error:.2e}, at {first.module_path or 'the model itself'}, {first.source_line}"
            )
        return "\n".join([*lines, "", str(self.ledger), "", str(self.sources)])

    def _repr_html_(self) -> str:
        return f"<pre>{str(self).split(chr(10) * 2)[0]}</pre>{self.ledger._repr_html_()}{self.sources._repr_html_()}"

    def to_json(self) -> str:
        """Everything as one JSON object; same report, same text."""
        plain = {k: v for k, v in vars(self).items() if not isinstance(v, Table)}
        tables = {"ledger": json.loads(self.ledger.to_json()), "sources": json.loads(self.sources.to_json())}
        return json.dumps({"passed": self.passed, **plain, **tables}, indent=1)


def check(
    converted: ConvertedModule,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    original: Callable[..., Any] | None = None,
    tolerance: float | None = None,
    seed: int = 0,
) -> CheckReport:
    """Prove a converted module: same forward, complete gradient, every node balanced.

    Args:
        converted: what `fxgrad.convert` returned.
        args, kwargs: inputs, as for calling the module; by default the example it was converted with,
            in the module's present dtype and device.
        original: the model to compare the forward with, bit for bit under `torch.no_grad()`; by
            default the captured program.
        tolerance: for `passed`; by default 1e-10 in float64 and 1e-4 in float32 (`TOLERANCE`).
        seed: of the random cotangent, standard normal, one number per output element.

    Returns:
        The report. Contributions are in the units of the output, errors relative to max(|y|, ||v * f(x)||).

    Raises:
        InputError: inputs that the module does not take, or that hold NaN or infinities; or a value
            on the way to the output that becomes so, with the node that made it.

    Example:
        >>> import fxgrad
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.LayerNorm(4)).double().eval()
        >>> report = check(fxgrad.convert(model, (torch.randn(2, 3).double(),)), original=model)
        >>> report.passed, report.completeness_error < 1e-12
        (True, True)

    Source: FullGrad, arXiv:1905.00780, eq. 1; LibraGrad, arXiv:2411.16760, section 3.
    """
    if not args and not kwargs:
        args, kwargs = _example_like(converted)
    leaves = converted.classified.captured.flatten(args, kwargs or {})
    for declared, value in zip(converted.classified.captured.inputs, leaves):
        _refuse_non_finite(value, f"input {declared.name!r}")

    books = _Books(converted, leaves)
    outputs = [v for v in books.outputs if isinstance(v, Tensor)]
    with torch.no_grad():
        theirs = original(*args, **(kwargs or {})) if original else _plain(converted, leaves)
    identical = _identical(books.outputs, pytree.tree_leaves(theirs))

    generator = torch.Generator().manual_seed(seed)
    cotangents = [
        torch.randn(v.shape, generator=generator, dtype=torch.float64).to(v) if v.is_floating_point() else None
        for v in outputs
    ]
    pairs = [(v, g) for v, g in zip(outputs, cotangents) if g is not None]
    output = sum(_dot(g, v) for v, g in pairs)
    scale = max(abs(output), sum(_dot(g.square(), v.square()) for v, g in pairs) ** 0.5) or 1.0
    inputs = _input_contribution(converted, leaves, cotangents)
    rows, sources = books.close(cotangents, scale)

    error = output - inputs - sum(s.contribution for s in sources)
    dtype = max((v.dtype for v, _ in pairs), key=lambda d: torch.finfo(d).eps)
    return CheckReport(
        forward_identical=identical,
        completeness_error=abs(error) / scale,
        unexplained=abs(error - sum(r.residual for r in rows)) / scale,
        output=output,
        inputs=inputs,
        tolerance=TOLERANCE[dtype] if tolerance is None else tolerance,
        ledger=Table("Ledger, least balanced first", sorted(rows, key=lambda r: _rank(r.error)), shown=10),
        sources=Table("Sources, largest first", sorted(sources, key=lambda s: -abs(s.contribution)), shown=10),
    )


class _Books:
    """One run of the converted program, and the ledger of its backward, node by node."""

    def __init__(self, converted: ConvertedModule, leaves: list[Any]) -> None:
        self.decisions = converted.classified.decisions
        self.program = converted.program
        self.originals = {n.name: n for n in converted.classified.captured.graph.nodes}
        self.values: dict[str, Any] = {}
        recorder = _Recorder(self.program, self.values)
        with torch.no_grad():
            self.outputs: list[Any] = list(recorder.run(*converted.state, *leaves))
        for name, decision in self.decisions.items():
            if decision.live:
                _refuse_non_finite(self.values[name], f"{decision.op} ({name}, {_place(decision)}) gives a result that")

    def close(self, cotangents: list[Tensor | None], scale: float) -> tuple[list[LedgerRow], list[SourceRow]]:
        """Run backwards from the outputs' cotangents; one row per live node, one per source."""
        arrived: dict[str, Any] = {}
        rows, sources = [], []
        tensors = [n for n in pytree.tree_leaves(self.program.graph.output_node().args[0]) if isinstance(n, fx.Node)]
        for node, g in zip(tensors, cotangents):
            self._deliver(arrived, node.name, g)
        for node in reversed(list(self.program.graph.nodes)):
            decision = self.decisions.get(node.name)
            if decision is None or not decision.live or node.name not in arrived:
                continue
            g = arrived.pop(node.name)
            if node.target is operator.getitem:
                parent, index = node.args[0], node.args[1]
                parts = arrived.setdefault(parent.name, [None] * len(self.values[parent.name]))
                parts[index] = g if parts[index] is None else parts[index] + g
                continue
            row, source = self._book(node, decision, g, arrived, scale)
            rows.append(row)
            sources += [source] if source else []
        return rows, sources

    def _book(
        self, node: fx.Node, decision: Decision, g: Any, arrived: dict[str, Any], scale: float
    ) -> tuple[LedgerRow, SourceRow | None]:
        carrying = [
            n for n in node.all_input_nodes if n.op == "placeholder" or getattr(self.decisions.get(n.name), "live", False)
        ]
        carrying = [n for n in carrying if any(o.data and o.value.name == n.name for o in decision.operands)]
        gradients = self._vjp(node, [n.name for n in carrying], g)
        for n, gradient in zip(carrying, gradients):
            self._deliver(arrived, n.name, gradient)
        inflow = _dot(g, self.values[node.name])
        outflow = sum(_dot(gradient, self.values[n.name]) for n, gradient in zip(carrying, gradients))
        source = self._offset(decision, [n.name for n in carrying], g)
        residual = inflow - outflow - source
        error = max(abs(residual) / scale, self._limit_error(node, decision))
        rule = decision.backward
        place = decision.module_path, decision.source_line
        row = LedgerRow(node.name, decision.op, decision.kind.value, rule, inflow, outflow, source, residual, error, *place)
        if source == 0:
            return row, None
        name = ", ".join(decision.sources) or f"{decision.op} at 0"
        return row, SourceRow(name, node.name, source, source / scale, *place)

    def _vjp(self, node: fx.Node, wanted: list[str], g: Any, at: Callable[[Tensor], Tensor] = torch.detach) -> list[Any]:
        """The vjp of one node's call for some of its operands: None where nothing arrives."""
        leaves = {name: at(self.values[name]).requires_grad_() for name in wanted}
        with torch.enable_grad():
            result = self._call(node, leaves)
        pairs = [
            (z, c)
            for z, c in zip(*(v if isinstance(v, (list, tuple)) else [v] for v in (result, g)))
            if c is not None and z.requires_grad
        ]
        if not pairs or not leaves:
            return [None] * len(wanted)
        return list(
            torch.autograd.grad([z for z, _ in pairs], list(leaves.values()), [c for _, c in pairs], allow_unused=True)
        )

    def _call(self, node: fx.Node, substitutes: Mapping[str, Tensor]) -> Any:
        args, kwargs = fx.node.map_arg(
            (node.args, node.kwargs), lambda n: substitutes.get(n.name, self.values.get(n.name))
        )
        return node.target(*args, **kwargs)  # type: ignore[operator]

    def _offset(self, decision: Decision, carrying: list[str], g: Any) -> float:
        """<g, b>: what the node's constants contribute, without looking at its backward.

        An affine op shows b where its carriers are 0. A piecewise linear one has an offset per piece,
        z - J a, with J from the original op's own derivative.
        """
        original = self.originals[decision.node]
        if decision.kind is Kind.PIECEWISE_LINEAR and decision.sources:
            native = self._vjp(original, carrying, g)
            return _dot(g, self.values[decision.node]) - sum(
                _dot(j, self.values[name]) for j, name in zip(native, carrying)
            )
        if decision.sources or _through_secant(decision):
            zeros = {name: torch.zeros_like(self.values[name]) for name in carrying}
            with torch.no_grad():
                return _dot(g, self._call(original, zeros))
        return 0.0

    def _limit_error(self, node: fx.Node, decision: Decision) -> float:
        """How far a secant's slope at 0 is from f'(0). Completeness cannot see it: 0 times anything is 0."""
        if decision.vjp != "secant":
            return 0.0
        name = decision.operands[0].value.name
        one = torch.ones_like(self.values[name])
        ours, exact = (
            self._vjp(n, [name], one, at=torch.zeros_like)[0] for n in (node, self.originals[decision.node])
        )
        error = (ours - exact).abs().max() / exact.abs().max().clamp(min=1)
        return float(error) if error > 4 * torch.finfo(error.dtype).eps else 0.0

    def _deliver(self, arrived: dict[str, Any], name: str, g: Tensor | None) -> None:
        if g is not None:
            arrived[name] = arrived[name] + g if name in arrived else g


class _Recorder(fx.Interpreter):
    """Runs a program and keeps the value of every node."""

    def __init__(self, program: fx.GraphModule, values: dict[str, Any]) -> None:
        super().__init__(program, garbage_collect_values=False)
        self.values = values

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        self.values[n.name] = result
        return result


def _plain(converted: ConvertedModule, leaves: list[Any]) -> Any:
    """The captured program's outputs: no rewritten node in it."""
    program = fx.GraphModule(nn.Module(), converted.classified.captured.graph)
    return program(*converted.state, *leaves)


def _identical(ours: list[Any], theirs: list[Any]) -> bool:
    return len(ours) == len(theirs) and all(
        a.dtype == b.dtype and torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a == b
        for a, b in zip(ours, theirs)
    )


def _input_contribution(converted: ConvertedModule, leaves: list[Any], cotangents: list[Tensor | None]) -> float:
    """sum <x, gradient of x>, by the module's own backward, as a user would run it."""
    captured = converted.classified.captured
    leaves = [v.detach().clone().requires_grad_() if d.attributed else v for d, v in zip(captured.inputs, leaves)]
    attributed = [v for d, v in zip(captured.inputs, leaves) if d.attributed]
    with torch.enable_grad():
        outputs = [v for v in converted.program(*converted.state, *leaves) if isinstance(v, Tensor)]
    pairs = [(v, g) for v, g in zip(outputs, cotangents) if g is not None and v.requires_grad]
    gradients = torch.autograd.grad([v for v, _ in pairs], attributed, [g for _, g in pairs], allow_unused=True)
    return sum(_dot(g, x) for x, g in zip(attributed, gradients))


def _example_like(converted: ConvertedModule) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The example inputs, in the dtype and on the device that the module has now."""
    like = next((p for p in converted.parameters() if p.is_floating_point()), None)

    def move(leaf: Any) -> Any:
        if like is None or not isinstance(leaf, Tensor):
            return leaf
        return leaf.to(like.device, like.dtype if leaf.is_floating_point() else leaf.dtype)

    args, kwargs = pytree.tree_map(move, converted.classified.captured.example)
    return args, kwargs


def _through_secant(decision: Decision) -> bool:
    secant_gate = decision.row is not None and decision.row.options.get("secant", False)
    return decision.kind is Kind.SQUASH or bool(secant_gate)


def _dot(g: Any, z: Any) -> float:
    """<g, z> in float64, over tensors or lists of them; the real part where they are complex."""
    if g is None or z is None:
        return 0.0
    if isinstance(z, (list, tuple)):
        return sum(_dot(gi, zi) for gi, zi in zip(g, z))
    if z.is_complex():
        return float((g.conj().to(torch.complex128) * z.to(torch.complex128)).real.sum())
    return float((g.double() * z.double()).sum())


def _refuse_non_finite(value: Any, what: str) -> None:
    for tensor in pytree.tree_leaves(value):
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and not tensor.isfinite().all():
            where = tuple(int(i) for i in (~tensor.isfinite()).nonzero()[0])
            raise InputError(
                f"{what} is {tensor[where].item()} at {list(where)} ({int((~tensor.isfinite()).sum())} of "
                f"{tensor.numel()} elements are not finite), so no completeness can be measured. Mend that value first."
            )


def _place(decision: Decision) -> str:
    return f"{decision.module_path or 'the model itself'}, {decision.source_line}"


def _rank(error: float) -> float:
    """Largest first, NaN before all."""
    return -error if error == error else -float("inf")
