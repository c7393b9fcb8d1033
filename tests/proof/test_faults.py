"""Planted faults: for every kind, one wrong backward in a net full of right ones, and the check must name its node."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, fx

import fxgrad
from fxgrad.classify.walk import classify
from fxgrad.kinds import Kind
from fxgrad.module.bound import BOUND
from fxgrad.ops import weighted
from fxgrad.table.loading import load
from tests.helpers.every_kind import captured_net, converted_net, net

SDPA = "scaled_dot_product_attention"


def node_of(converted: fxgrad.ConvertedModule, op: str, module_path: str | None = None) -> str:
    """The name of the one live node that runs `op`."""
    (name,) = (
        d.node
        for d in converted.classified.decisions.values()
        if d.op.startswith(f"aten.{op}.") and d.live and module_path in (None, d.place.module_path)
    )
    return name


def assert_found(converted: fxgrad.ConvertedModule, x: Tensor, node: str) -> fxgrad.CheckReport:
    """The check fails, and lays the fault at the door of `node` and of no other."""
    report = fxgrad.check(converted, (x,))
    assert not report.passed
    assert report.ledger[0].node == node
    assert [row.node for row in report.ledger if row.error > 1e-12] == [node]
    return report


def test_the_net_without_a_fault_passes() -> None:
    model, x, converted = converted_net()
    report = fxgrad.check(converted, (x,), original=model)
    assert report.passed and report.completeness_error < 1e-12
    kinds = {row.kind for row in report.ledger}
    # A softmax is never live.
    assert kinds == {kind.value for kind in Kind if kind not in (Kind.CONSTANT, Kind.SOFTMAX, Kind.OPAQUE)}


# The op in the net whose kind is left native, and the line of code that the report must show.
NATIVE = {
    "gated_activation": ("gelu", "block", "F.gelu(q)"),
    "squash": ("tanh", "block", "torch.tanh(k)"),
    "gate": ("sigmoid", "block", "torch.sigmoid(v)"),
    "product": ("mul", "block", "q * v"),
    "quotient": ("div", "block", "x / scale"),
    "power": ("square", "block", "q.square()"),
    "normalization": ("layer_norm", "block.norm", "self.norm(x)"),
    "attention": (SDPA, "block", "F.scaled_dot_product_attention(q, k, v)"),
    "composed": ("glu", "block", "F.glu(torch.cat([q, k], -1))"),
}


@pytest.mark.parametrize("kind", NATIVE)
def test_a_kind_left_native(kind: str, tmp_path: Path) -> None:
    op, module_path, code = NATIVE[kind]
    policy = {k.value: name for k, name in load().policy.items()} | {kind: "native"}
    file = tmp_path / "one_native.toml"
    file.write_text("[backward]\n" + "".join(f'{k} = "{name}"\n' for k, name in policy.items()))
    _, x, converted = converted_net(file)
    report = assert_found(converted, x, node_of(converted, op))
    assert report.forward_identical and report.completeness_error > 1e-4
    row = report.ledger[0]
    assert row.module_path == module_path
    assert "every_kind.py:" in row.source_line and code in row.source_line
    summary = str(report).split("\n\n")[0]
    assert all(text in summary for text in ("FAILED", row.node, row.op, "native", module_path, row.source_line))


def edited(converted: fxgrad.ConvertedModule, node: str, edit: Callable[[fx.Node], None]) -> None:
    """Change one node of the rewritten graph."""
    edit(next(n for n in converted.graph.nodes if n.name == node))
    converted.graph.lint()
    converted.program.recompile()


def set_detail(change: Callable[[Any], Any]) -> Callable[[fx.Node], None]:
    """Change what a rewritten node is told of its backward."""

    def edit(node: fx.Node) -> None:
        op, detail, *args = node.args
        node.args = (op, change(detail), *args)

    return edit


def scale_by(factor: float) -> Callable[[fx.Node], None]:
    """Scale the cotangents that a node which was left alone hands on."""

    def edit(node: fx.Node) -> None:
        op = next((op for op, bound in BOUND.items() if bound is node.target), node.target)
        node.args = (op, (factor,) * len(node.args), *node.args)
        node.target = weighted

    return edit


def pass_the_query(node: fx.Node) -> None:
    """Attention by its own backward, for query and value."""
    node.args = (node.args[0], (1.0, 0.0, 1.0), *node.args[1:])
    node.target = weighted


EDITS = {
    "a linear layer scales": ("linear", "last", scale_by(0.5)),
    "a relu scales": ("relu", None, scale_by(1.5)),
    "a clamp scales": ("hardtanh", None, scale_by(1.5)),
    "a clamp holds": ("hardtanh", None, scale_by(0.0)),
    "a product's shares add up to two": ("mul", None, set_detail(lambda weights: (1.0, 1.0))),
    "a product holds everything": ("mul", None, set_detail(lambda weights: (0.0, 0.0))),
    "a power counts its degree twice": ("square", None, set_detail(lambda weights: (0.25,))),
    "a quotient passes the denominator": ("div", None, set_detail(lambda weights: (1.0, 1.0))),
    "attention passes the query": (SDPA, None, pass_the_query),
    "a gate's f(0) is off": ("sigmoid", None, set_detail(lambda series: (0.49, *series[1:]))),
    # Completeness cannot see a wrong limit at 0, as 0 times anything is 0; the check looks there on purpose.
    "a gated activation's limit is off": ("gelu", None, set_detail(lambda series: (0.0, 0.5 + 1e-6))),
    "a squash's limit is off": ("tanh", None, set_detail(lambda series: (0.0, 1 - 1e-6))),
    "a gate's limit is off": ("sigmoid", None, set_detail(lambda series: (0.5, 0.25 + 1e-6, *series[2:]))),
    "a norm forgets the mean": ("layer_norm", None, set_detail(lambda layout: layout._replace(centered=False))),
    "a norm forgets epsilon": ("layer_norm", None, set_detail(lambda layout: layout._replace(eps=0.0))),
    "a norm forgets its weight": ("layer_norm", None, set_detail(lambda layout: layout._replace(weight=None))),
}  # fmt: skip


@pytest.mark.parametrize("fault", EDITS)
def test_an_edited_node(fault: str) -> None:
    op, module_path, edit = EDITS[fault]
    _, x, converted = converted_net()
    node = node_of(converted, op, module_path)
    edited(converted, node, edit)
    report = assert_found(converted, x, node)
    assert report.forward_identical


def test_a_changed_forward() -> None:
    """Balanced, but not the original's function."""
    model, x, converted = converted_net()

    def edit(node: fx.Node) -> None:
        node.kwargs = {**node.kwargs, "approximate": "tanh"}

    edited(converted, node_of(converted, "gelu"), edit)
    report = fxgrad.check(converted, (x,), original=model)
    assert not report.forward_identical and not report.passed
    assert report.completeness_error < 1e-12
    assert "DIFFERS" in str(report)


@pytest.mark.parametrize(
    ("op", "paths"),
    [("linear", {"first", "block.project", "block.out", "last"}), ("layer_norm", {"block.norm"})],
)
def test_a_forgotten_bias(op: str, paths: set[str]) -> None:
    """A row that does not name the bias as a source leaves what the bias contributes unexplained."""
    _, (x,) = net()
    table = load()
    row = table.rows[f"aten.{op}"]
    row = replace(row, parts={part: names for part, names in row.parts.items() if part != "source"})
    table = replace(table, rows={**table.rows, f"aten.{op}": row})
    classified = classify(captured_net(), table)
    report = fxgrad.check(fxgrad.ConvertedModule(classified), (x,))
    assert not report.passed
    wrong = [r for r in report.ledger if r.error > 1e-12]
    assert {r.module_path for r in wrong} == paths and report.ledger[0] in wrong
    assert {r.op for r in wrong} == {f"aten.{op}.default"}
    assert all(r.source == 0 for r in wrong)
