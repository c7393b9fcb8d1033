"""Examples are apart exactly where a Jacobian says so, whatever op mixes or moves them.

The Jacobian of the plain function is the witness: an op mixes the batch if one row of its result depends on another
row of x. The policy is the plain gradient, whose flow is the Jacobian's.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxgrad
from fxgrad.methods.search import anatomy

ROWS, WIDTH = 3, 4
INDEX = torch.tensor([[0, 1, 2, 0]] * ROWS)
SMOOTHING = torch.full((WIDTH, WIDTH, 3), 0.5, dtype=torch.float64)
SQUARE = torch.ones(1, ROWS, ROWS, dtype=torch.float64)
Op = Callable[[Tensor], Tensor]

OPS: dict[str, Op] = {
    "layer_norm of all": lambda x: F.layer_norm(x, x.shape),
    "layer_norm of features": lambda x: F.layer_norm(x, x.shape[-1:]),
    "rms_norm of all": lambda x: F.rms_norm(x, x.shape),
    "group_norm along rows": lambda x: F.group_norm(x.T[None], 2)[0].T,
    "group_norm of features": lambda x: F.group_norm(x, 2),
    "instance_norm along rows": lambda x: F.instance_norm(x.T[None])[0].T,
    "instance_norm of features": lambda x: F.instance_norm(x[:, None])[:, 0],
    "local_response_norm of rows": lambda x: F.local_response_norm(x[None], 2)[0],
    "softmax of rows": lambda x: x.softmax(0) * x,
    "softmax of features": lambda x: x.softmax(1) * x,
    "log_softmax of rows": lambda x: x.log_softmax(0),
    "logsumexp of rows": lambda x: x - x.logsumexp(0, keepdim=True),
    "norm of all": lambda x: x / torch.linalg.vector_norm(x, keepdim=True),
    "norm of features": lambda x: x / torch.linalg.vector_norm(x, dim=1, keepdim=True),
    "norm of rows": lambda x: F.normalize(x, dim=0),
    "std of all": lambda x: x / x.std(dim=None, keepdim=True),
    "std of features": lambda x: (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True),
    "amax of all": lambda x: x * x.amax(keepdim=True),
    "amax of features": lambda x: x * x.amax(1, keepdim=True),
    "max of rows": lambda x: x - x.max(0, keepdim=True).values,
    "median of rows": lambda x: x - x.median(0).values,
    "sort of rows": lambda x: x.sort(0).values,
    "cumprod of rows": lambda x: x.cumprod(0),
    "flat roll": lambda x: x + x.roll(1),
    "roll of rows": lambda x: x + x.roll(1, 0),
    "roll of features": lambda x: x + x.roll(1, 1),
    "flip of rows": lambda x: x + x.flip(0),
    "conv1d along rows": lambda x: F.conv1d(x.T[None], SMOOTHING, padding=1)[0].T,
    "pool along rows": lambda x: F.avg_pool1d(x.T[None], 3, 1, 1)[0].T + x,
    "pool of features": lambda x: F.avg_pool1d(x[:, None], 3, 1, 1)[:, 0],
    "unfold of rows": lambda x: x.unfold(0, 3, 1).sum(-1).repeat(ROWS, 1) + 0 * x,
    "attention among rows": lambda x: F.scaled_dot_product_attention(x[None], x[None], x[None])[0],
    "attention among features": lambda x: F.scaled_dot_product_attention(x[..., None], x[..., None], x[..., None])[
        ..., 0
    ],
    "product of rows": lambda x: x @ x.T @ x,
    "product of features": lambda x: x @ SQUARE[0, :1].expand(WIDTH, ROWS),
    "product from the left": lambda x: torch.bmm(SQUARE, x[None])[0],
    "einsum of rows": lambda x: torch.einsum("bi,ci->bc", x, x) @ x,
    "einsum of features": lambda x: torch.einsum("...i,...j->...ij", x, x).sum(-1),
    "einsum turned": lambda x: torch.einsum("bi,bj->ijb", x, x).sum(1).T,
    "vector of rows": lambda x: x * torch.mv(x.T, SQUARE[0, 0]),
    "cdist": lambda x: torch.cdist(x, x) @ x,
    "trace": lambda x: x * torch.trace(x),
    "triangles": lambda x: x.T.tril().T + x.triu(),
    "diagonals": lambda x: torch.diag_embed(x).sum(1),
    "glu": lambda x: F.glu(torch.cat([x, x.flip(1)], 1)),
    "scatter": lambda x: torch.zeros_like(x).scatter_add(0, INDEX, x),
    "gather": lambda x: x.gather(0, INDEX),
    "index": lambda x: x[INDEX[0, :3].flip(0)],
    "turned by reshape": lambda x: x.reshape(WIDTH, ROWS).T,
    "read in another order": lambda x: x.T.reshape(ROWS, WIDTH),
    "turned twice": lambda x: x.T.exp().T,
}


class Carried(nn.Module):
    """A recurrence whose first state comes from the input, as a caption's from a picture."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.axis, self.gru = 0 if batch_first else 1, nn.GRU(WIDTH, WIDTH, batch_first=batch_first)

    def forward(self, x: Tensor) -> Tensor:
        steps = torch.stack([x.exp(), x.cos()], 1 - self.axis)
        return self.gru(steps, x[None])[0].select(1 - self.axis, -1)


class Called(nn.Module):
    def __init__(self, op: Op) -> None:
        super().__init__()
        self.op = op

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


@pytest.mark.parametrize("free", [False, True], ids=["fixed", "free"])
@pytest.mark.parametrize("name", OPS)
def test_examples_are_apart_where_the_jacobian_says_so(name: str, free: bool) -> None:
    x = torch.randn(ROWS, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    jacobian = torch.autograd.functional.jacobian(OPS[name], x)
    across = jacobian.abs().amax((1, 3))  # (rows of the result, rows of x)
    apart = not bool(across[~torch.eye(ROWS, dtype=torch.bool)].any())
    sizes = {} if free else {"dynamic_shapes": {"x": None}}
    converted = fxgrad.convert(Called(OPS[name]).eval(), (x,), rules="gradient", **sizes)
    assert bool(anatomy(converted.classified).inputs) == apart


@pytest.mark.parametrize("batch_first", [False, True])
def test_a_recurrence_whose_state_comes_from_the_input_keeps_the_examples_apart(batch_first: bool) -> None:
    x = torch.randn(ROWS, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    model = Carried(batch_first).double().eval()
    converted = fxgrad.convert(model, (x,))
    assert anatomy(converted.classified).inputs == {"x": 0}
    found = fxgrad.attribute(converted, (x,), target=torch.tensor([0, 1, 2]))
    alone = [fxgrad.attribute(converted, (x[i : i + 1],), target=i).map for i in range(ROWS)]
    assert torch.allclose(found.map, torch.cat(alone), rtol=1e-10) and found.completeness_error < 1e-10


class Modulated(nn.Module):
    """A convolution whose weights each example makes for itself, the batch folded into groups of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.style = nn.Parameter(torch.randn(4, 3, 3, 3)), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        batch = x.shape[0]
        weights = self.weight[None] * self.style(x.mean((2, 3)))[:, None, :, None, None]
        y = F.conv2d(x.reshape(1, -1, 6, 6), weights.reshape(-1, 3, 3, 3), groups=batch)
        return y.reshape(batch, 4, 4, 4).relu().mean((2, 3))


def test_one_example_is_mapped_as_one_of_several() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 6, 6).double()
    converted = fxgrad.convert(Modulated().double().eval(), (x,))
    found = fxgrad.attribute(converted, (x,), target=1)
    alone = torch.cat([fxgrad.attribute(converted, (x[i : i + 1],), target=1).map for i in range(2)])
    assert found.map.shape == (2, 6, 6) and torch.allclose(found.map, alone, rtol=1e-10)
    assert found.completeness_error < 1e-10


def test_one_example_that_would_meet_others_keeps_its_axis() -> None:
    converted = fxgrad.convert(Called(OPS["cdist"]).double().eval(), (torch.randn(3, 4).double(),))
    shapes = [
        fxgrad.attribute(converted, (torch.randn(n, 4).double(),), target=lambda y: y.sum()[None]).map.shape
        for n in (1, 3)
    ]
    assert shapes == [(1, 1), (1, 3)]
