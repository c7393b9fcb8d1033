"""What a layer gives for zeros is known from one row or window: the same bits as the whole op gives."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

import fxgrad
from fxgrad.graph.replay import Replay
from fxgrad.ops.zero import at_zero

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], bool]] = {
    "linear": (lambda: nn.Linear(4, 3), (2, 5, 4), True),
    "linear, a vector": (lambda: nn.Linear(4, 3), (4,), True),
    "linear without a bias": (lambda: nn.Linear(4, 3, bias=False), (5, 4), True),
    "layer norm": (lambda: nn.LayerNorm(4), (2, 5, 4), True),
    "layer norm over two axes": (lambda: nn.LayerNorm((5, 4)), (2, 5, 4), True),
    "layer norm over all axes": (lambda: nn.LayerNorm((5, 4)), (5, 4), False),
    "rms norm": (lambda: nn.RMSNorm(4), (2, 5, 4), True),
    "conv": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, dilation=2, groups=2), (2, 4, 9, 8), True),
    "conv with same padding": (lambda: nn.Conv2d(3, 2, (3, 1), padding="same"), (2, 3, 6, 5), True),
    "conv with valid padding": (lambda: nn.Conv1d(3, 2, 3, padding="valid"), (2, 3, 6), True),
    "conv over a volume": (lambda: nn.Conv3d(3, 2, (1, 2, 3), stride=(1, 2, 1)), (1, 3, 4, 4, 4), True),
    "conv without examples": (lambda: nn.Conv2d(3, 2, 3), (3, 6, 5), False),
    "transposed conv": (lambda: nn.ConvTranspose2d(3, 2, 3, stride=2), (2, 3, 4, 4), False),
}


@pytest.mark.parametrize("name", LAYERS)
def test_the_bits_of_the_whole_op(name: str) -> None:
    torch.manual_seed(0)
    make, shape, repeated = LAYERS[name]
    layer, x = make().double().eval(), torch.randn(shape).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter))
    graph, values = run(fxgrad.convert(layer, (x,)), x)
    node = next(n for n in graph.nodes if n.op == "call_function")
    carrier = next(n.name for n in node.all_input_nodes if torch.equal(values[n.name], x))
    found = at_zero(Replay(graph, values), node.name, [carrier])
    wanted = Replay(graph, values).call(node.name, {carrier: torch.zeros_like(x)})
    assert torch.equal(found, wanted) and found.shape == wanted.shape and found.dtype == wanted.dtype
    assert (found.untyped_storage().nbytes() < wanted.untyped_storage().nbytes()) is (repeated and len(shape) > 1)


def run(libra: fxgrad.ConvertedModule, x: Tensor) -> tuple[fx.Graph, dict[str, Tensor]]:
    """The captured graph, and the values of its nodes."""
    captured = libra.classified.captured
    values: dict[str, Tensor] = {}

    class Kept(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Tensor:
            values[n.name] = super().run_node(n)
            return values[n.name]

    with torch.no_grad():
        Kept(fx.GraphModule(nn.Module(), captured.graph)).run(*libra.state, x)
    return captured.graph, values


def test_a_computed_weight_takes_the_whole_op() -> None:
    """Where both factors carry, both are 0."""

    class Bilinear(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(x, x.tanh(), x[:, 0])

    x = torch.randn(3, 3).double()
    libra = fxgrad.convert(Bilinear().eval(), (x,))
    assert fxgrad.check(libra, (x,)).passed
