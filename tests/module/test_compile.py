"""`converted.compile`: in place, one graph for each module, and the same gradients."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import fxgrad
from fxgrad import FxgradError, InputError

pytestmark = pytest.mark.usefixtures("fresh_compiler")


class Compiler:
    """A backend of torch.compile that counts the graphs that it is given."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: fx.GraphModule, inputs: list[Any]) -> Any:
        self.graphs += 1
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)


class Block(nn.Module):
    """Attention, a norm and an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.last = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.last(nn.functional.gelu(x + y)).mean(1)


def converted() -> tuple[fxgrad.ConvertedModule, Tensor]:
    x = torch.randn(2, 5, 8).double()
    return fxgrad.convert(Block().double().eval(), (x,), verify=False), x


def gradient(module: nn.Module, x: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    y = module(x)
    return torch.autograd.grad(y, x, torch.linspace(-1, 1, y.numel()).to(y).reshape(y.shape))[0]


def test_more_modules_than_dynamo_compiles_of_one_function() -> None:
    compiler = Compiler()
    for _ in range(torch._dynamo.config.recompile_limit + 2):
        libra, x = converted()
        wanted = gradient(libra, x)
        libra.compile(backend=compiler)
        torch.testing.assert_close(gradient(libra, x), wanted, rtol=1e-12, atol=1e-14)
    assert compiler.graphs == torch._dynamo.config.recompile_limit + 2


def test_batches_of_all_sizes_take_two_compilations_at_most() -> None:
    libra, _ = converted()
    eager, compiler = copy.copy(libra), Compiler()
    libra.compile(backend=compiler)
    for batch in (2, 3, 5, 9, 16):
        x = torch.randn(batch, 5, 8).double()
        torch.testing.assert_close(gradient(libra, x), gradient(eager, x), rtol=1e-12, atol=1e-14)
    assert compiler.graphs <= 2


def test_under_another_policy_and_by_vjp() -> None:
    libra, x = converted()
    other = libra.under("attnlrp")
    wanted = gradient(other, x)
    other.compile(backend="aot_eager")
    torch.testing.assert_close(gradient(other, x), wanted, rtol=1e-12, atol=1e-14)
    targets = torch.eye(3).double()[:, None].expand(3, 2, 3)
    eager = fxgrad.vjp(libra, (x,), targets).gradients["x"]
    libra.compile(backend="aot_eager")
    for chunk in (None, 1):
        torch.testing.assert_close(fxgrad.vjp(libra, (x,), targets, chunk=chunk).gradients["x"], eager)
    attribution = fxgrad.attribute(libra, (x,), target=1)
    torch.testing.assert_close(attribution.map, fxgrad.attribute(libra.under("libragrad"), (x,), target=1).map)


def test_copies_and_other_dtypes_stay_compiled() -> None:
    libra, x = converted()
    compiler = Compiler()
    libra.compile(backend=compiler)
    copied = copy.deepcopy(libra)
    torch.testing.assert_close(gradient(copied, x), gradient(libra, x))
    assert compiler.graphs == 1
    torch.testing.assert_close(gradient(libra.float(), x.float()).double(), gradient(copied, x), rtol=1e-4, atol=1e-6)
    assert compiler.graphs == 2


def test_checkpointed_and_unflattened_programs_compile() -> None:
    x = torch.randn(2, 5).double()
    blocks = nn.Sequential(*(nn.Sequential(nn.Linear(5, 5), nn.GELU()) for _ in range(2))).double().eval()
    libra = fxgrad.convert(blocks, (x,), verify=False)
    wanted = gradient(libra, x)
    for other in (libra.checkpointed(), libra.unflattened()):
        other.compile(backend="aot_eager")
        torch.testing.assert_close(gradient(other, x), wanted)


def test_errors_say_whose_fault_it_is() -> None:
    libra, x = converted()
    libra.compile(backend="aot_eager")
    with pytest.raises(InputError, match=r"has shape \(2, 5, 7\), but the model was captured for"):
        libra(torch.randn(2, 5, 7).double())
    with pytest.raises(RuntimeError, match="double backward"):
        y = libra(x := x.requires_grad_()).sum()
        torch.autograd.grad(torch.autograd.grad(y, x, create_graph=True)[0].sum(), x)

    def broken(graph: fx.GraphModule, inputs: list[Any]) -> Any:
        raise ValueError("no compiler at hand")

    libra.compile(backend=broken)
    with pytest.raises(FxgradError, match=r"(?s)what torch.compile makes of the program fails.*compile\(fullgraph"):
        libra(x)
