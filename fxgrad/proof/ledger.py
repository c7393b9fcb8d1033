"""The books of one backward pass, node by node: what arrives, what is handed on, what stays.

The converted program runs forwards once and keeps every value, then backwards one node at a time: each node's own vjp
is called with the cotangent that arrived. Offsets are computed independently of any backward, so that no fault can hide
in them.

Source: FullGrad (Srinivas & Fleuret, NeurIPS 2019, arXiv:1905.00780), eq. 1, applied to every node.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxgrad.classify.decision import Decision
from fxgrad.errors import InputError, first_line
from fxgrad.graph.places import place_of
from fxgrad.graph.replay import Replay
from fxgrad.module.converted import ConvertedModule
from fxgrad.run.recording import Recorder
from fxgrad.run.sources import Offsets

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 5e-2, torch.bfloat16: 2e-1}
"""Coarsest dtype of a run -> the largest relative completeness error that passes."""
DROWNED = 10
"""A value below this multiple of `Ledger.noise` is rounding noise."""


@dataclass(frozen=True)
class LedgerRow:
    """The books of one node, for one cotangent of the outputs.

    Attributes:
        node, op, kind, rule: the node's name, op, kind and backward.
        inflow: <g, z>, what arrives.
        outflow: sum of <g_i, a_i>, what is handed on to operands.
        source: <g, b>, what stays with the node's constants.
        residual: inflow - outflow - source; 0 when balanced.
        error: |residual| relative to the output, or the relative error of a secant's limit if that is larger.
        module_path, source_line: where the node comes from in the user's code.
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
    """What the constants of one node contribute: <g, b>, absolute and relative to the output."""

    source: str
    node: str
    contribution: float
    share: float
    module_path: str
    source_line: str


class Ledger:
    """One run of the converted program, and the books of its backward, node by node.

    Args:
        converted: what `fxgrad.convert` returned.
        leaves: its flattened inputs.

    Attributes:
        noise: after `close`, what rounding makes of the largest flow: the dtype's epsilon times the largest ||g * z||.

    Example:
        >>> import fxgrad
        >>> x = torch.ones(2, 3)
        >>> books = Ledger(fxgrad.convert(torch.nn.GELU().eval(), (x,)), [x])
        >>> rows, sources = books.close([torch.ones(2, 3)], scale=1.0)
        >>> rows[0].rule, abs(rows[0].residual) < 1e-5
        ('hold_gate', True)
    """

    def __init__(self, converted: ConvertedModule, leaves: list[Any]) -> None:
        self.decisions = converted.classified.decisions
        self.program = converted.program
        captured = converted.classified.captured
        self.attributed = {n.name: d for n, d in zip(captured.entry_nodes, captured.entries) if d.attributed}
        recorder = Recorder(self.program)
        self.values = recorder.values
        self.offsets = Offsets(converted, self.values)
        self.ours, self.original = Replay(self.program.graph, self.values), self.offsets.original
        self.noise = 0.0
        with torch.no_grad():
            self.outputs: list[Any] = list(converted.called(recorder.run, leaves))

    @property
    def coarsest(self) -> torch.dtype:
        """The dtype of least precision among the values that a cotangent reaches."""
        live = [self.values[name] for name, decision in self.decisions.items() if decision.live]
        # A kernel for packed weights computes in the dtype of their scales (those of one byte are codes).
        kernels = [d for d in self.decisions.values() if d.live and d.options.get("packed")]
        constants = [self.values.get(str(o.value)) for d in kernels for o in d.operands if not o.data]
        live += [v for v in constants if isinstance(v, Tensor) and v.dtype.itemsize > 1]
        dtypes = {v.dtype for v in pytree.tree_leaves([live, self.outputs]) if isinstance(v, Tensor)}
        real = {d.to_real() for d in dtypes if d.is_floating_point or d.is_complex}
        return max(real, key=lambda d: torch.finfo(d).eps)

    def close(self, cotangents: list[Tensor | None], scale: float) -> tuple[list[LedgerRow], list[SourceRow]]:
        """Run backwards from the outputs' cotangents (None: takes no part); errors are relative to `scale`.

        Returns:
            One row per live node, and one per node that has sources.

        Raises:
            InputError: a value that a cotangent reaches is NaN or infinite; the message names the node.
        """
        arrived: dict[str, Any] = {}
        rows: list[LedgerRow] = []
        sources: list[SourceRow] = []
        spoilt: Decision | None = None
        largest = 0.0
        for node, g in zip(pytree.tree_leaves(self.program.graph.output_node().args[0]), cotangents):
            if g is None:
                continue
            self._deliver(arrived, node.name, g)
            if node.name not in self.decisions and node.name not in self.attributed:
                # An output that depends on no attributed input is itself the source.
                share = dot(g, self.values[node.name])
                place = place_of(self.original.nodes[node.name])
                sources.append(SourceRow(f"output {node.name}", node.name, share, share / scale, *place))
        for node in reversed(list(self.program.graph.nodes)):
            decision = self.decisions.get(node.name)
            if decision is None or not decision.live or node.name not in arrived:
                continue
            g = arrived.pop(node.name)
            if _spoils(self.values[node.name], g):
                spoilt = decision
            largest = max(largest, size(g, self.values[node.name]))
            if node.target is operator.getitem:
                parent, index = node.args[0], node.args[1]
                parts = arrived.setdefault(parent.name, [None] * len(self.values[parent.name]))
                parts[index] = g if parts[index] is None else parts[index] + g
                continue
            row, source = self._book(node, decision, g, arrived, scale)
            rows.append(row)
            sources += [source] if source else []
        for name, declared in self.attributed.items():
            if name in arrived and _spoils(self.values[name], arrived[name]):
                refuse_non_finite(self.values[name], f"input {declared.name!r}")
        if spoilt:  # the last one met on the way backwards is where it began
            value = self.values[spoilt.node]
            refuse_non_finite(value, f"the result of {spoilt.node} ({spoilt.op} at {spoilt.place})")
        self.noise = torch.finfo(self.coarsest).eps * largest
        return rows, sources

    def drowned(self, value: float) -> bool:
        """Whether a value is hardly more than what rounding makes of the largest flow: then no error of it counts."""
        return value < DROWNED * self.noise

    def _book(
        self, node: fx.Node, decision: Decision, g: Any, arrived: dict[str, Any], scale: float
    ) -> tuple[LedgerRow, SourceRow | None]:
        carrying = self.offsets.carrying(decision)
        try:
            gradients = self.ours.vjp(node.name, carrying, g)
        except (RuntimeError, NotImplementedError) as error:
            raise InputError(
                f"{decision.op} at {decision.place} has no gradient of its own ({first_line(error)}). Register one, or "
                "give the op a row in a section [composed] and a twin; docs/new-op.md shows how."
            ) from error
        for name, gradient in gradients.items():
            self._deliver(arrived, name, gradient)
        inflow = dot(g, self.values[node.name])
        outflow = sum(dot(gradient, self.values[name]) for name, gradient in gradients.items())
        source = sum(dot(gb, b) for gb, b in self.offsets.of(decision, g))
        residual = inflow - outflow - source
        row = LedgerRow(
            node=node.name,
            op=decision.op,
            kind=decision.kind.value,
            rule=str(decision.backward),
            inflow=inflow,
            outflow=outflow,
            source=source,
            residual=residual,
            error=max(abs(residual) / scale, decision.backward.limit_error(decision, self.ours, self.original)),
            module_path=decision.place.module_path,
            source_line=decision.place.source_line,
        )
        if source == 0:
            return row, None
        name = ", ".join(decision.sources) or f"{decision.op} at {decision.backward.point(decision):g}"
        return row, SourceRow(name, node.name, source, source / scale, *decision.place)

    def _deliver(self, arrived: dict[str, Any], name: str, g: Tensor) -> None:
        arrived[name] = arrived[name] + g if name in arrived else g


def dot(g: Any, z: Any) -> float:
    """<g, z> in float64, over tensors or lists of them; the real part for complex ones."""
    if g is None or z is None:
        return 0.0
    if isinstance(z, (list, tuple)):
        return sum(dot(gi, zi) for gi, zi in zip(g, z))
    with torch.no_grad():
        if z.is_complex():
            return float((g.conj().to(torch.complex128) * z.to(torch.complex128)).real.sum())
        # An infinity whose cotangent is 0, as in a mask, counts as 0.
        return float(torch.where(g == 0, 0, g.double() * z.double()).sum())


def size(g: Any, z: Any) -> float:
    """||g * z||, over tensors or lists of them: how large what flows is, whatever cancels.

    Example:
        >>> size(torch.tensor([1.0, 1.0]), torch.tensor([3.0, -4.0]))
        5.0
    """
    if g is None or z is None:
        return 0.0
    if isinstance(z, (list, tuple)):
        return float(sum(size(gi, zi) ** 2 for gi, zi in zip(g, z)) ** 0.5)
    with torch.no_grad():
        wide = torch.complex128 if z.is_complex() else torch.float64
        found: float = torch.linalg.vector_norm(torch.where(g == 0, 0, g.to(wide) * z.to(wide))).item()
        return found


def _spoils(z: Any, g: Any) -> bool:
    """Whether a cotangent meets a NaN or an infinity."""
    if g is None or isinstance(z, (list, tuple)):
        return any(_spoils(zi, gi) for zi, gi in zip(z, g)) if g is not None else False
    return bool((~z.isfinite() & (g != 0)).any())


def refuse_non_finite(value: Any, what: str) -> None:
    """Raise `InputError` if a tensor among the leaves of `value` has NaN or infinities; says where."""
    for tensor in pytree.tree_leaves(value):
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and not tensor.isfinite().all():
            where = tuple(int(i) for i in (~tensor.isfinite()).nonzero()[0])
            raise InputError(
                f"{what} is {tensor[where].item()} at {list(where)} ({int((~tensor.isfinite()).sum())} of "
                f"{tensor.numel()} elements are not finite), so no completeness can be measured. Mend that value first."
            )
