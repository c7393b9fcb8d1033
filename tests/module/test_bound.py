"""Each function of the table calls the op that it stands for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx

from fxgrad.explainer.plain import PLAIN
from fxgrad.module.bound import BOUND, bind

aten = torch.ops.aten
x, square = torch.rand(2, 3, 8, 8), torch.rand(3, 4, 4)
ARGUMENTS: dict[Any, tuple[Any, ...]] = {
    aten.add.Tensor: (x, 2.5),
    aten.bmm.default: (square, square),
    aten.cat.default: ([x, x], 1),
    aten.conv1d.default: (x[0], torch.rand(4, 8, 3), torch.rand(4), [2], [1], [1], 1),
    aten.conv2d.default: (x, torch.rand(6, 1, 3, 3), None, [1, 1], [1, 1], [1, 1], 3),
    aten.conv3d.default: (x[None], torch.rand(4, 2, 3, 3, 3)),
    aten.div.Tensor: (x, 3),
    aten.embedding.default: (torch.rand(5, 4), torch.tensor([[1, 2]]), 1, False, False),
    aten.flatten.using_ints: (x, 2),
    aten.linear.default: (x, torch.rand(5, 8), None),
    aten.avg_pool2d.default: (x, [2, 2], [2, 2], [0, 0], True),
    aten.matmul.default: (x, square[0].new_ones(8, 3)),
    aten.mean.dim: (x, [-1, -2], True),
    aten.mul.Tensor: (x, x),
    aten.permute.default: (x, [0, 2, 1, 3]),
    aten.pow.Tensor_Scalar: (x, 2),
    aten.reshape.default: (x, [2, -1]),
    aten.select.int: (x, 1, 0),
    aten.softmax.int: (x, -1, torch.float64),
    aten.stack.default: ([x, x], 1),
    aten.sub.Tensor: (x, x),
    aten.transpose.int: (x, 1, -1),
    aten.unbind.int: (x, 1),
    aten.unsqueeze.default: (x, -1),
    aten.sym_size.int: (x, 1),
    aten.sym_stride.int: (x, 1),
    aten.sym_numel.default: (x,),
}


@pytest.mark.parametrize("op", BOUND, ids=str)
def test_function_calls_the_op(op: Any) -> None:
    arguments = ARGUMENTS.get(op, (x,))
    names = [argument.name for argument in op._schema.arguments]
    assert len(arguments) <= len(names)
    bound, own = BOUND[op](*arguments), op(*arguments)
    if isinstance(own, int):
        assert bound == own
        return
    for one, other in zip(*([t] if isinstance(t, torch.Tensor) else t for t in (bound, own)), strict=True):
        assert torch.equal(one, other) and one.stride() == other.stride() and one.dtype == other.dtype
    called = [
        n.target for n in make_fx(BOUND[op], pre_dispatch=True)(*arguments).graph.nodes if n.op == "call_function"
    ]
    assert called[0] is op


def test_no_op_that_exports_write_out_is_hidden() -> None:
    assert not set(PLAIN) & set(BOUND)


def test_an_argument_by_name_keeps_the_op() -> None:
    graph = fx.Graph()
    node = graph.call_function(aten.add.Tensor, (graph.placeholder("x"), 1), {"alpha": 2})
    bind(node)
    assert node.target is aten.add.Tensor
