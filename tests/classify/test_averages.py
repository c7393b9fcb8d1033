"""Averages of constants by softmax weights are sources where they are added to carriers, or lie beside them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxgrad

TABLE = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).double()
Average = Callable[[Tensor], Tensor]

# Weights (batch, 4) -> (batch, 3): as many ways to average rows of the table.
AVERAGES: dict[str, Average] = {
    "matmul": lambda w: w @ TABLE,
    "matmul from the left": lambda w: (TABLE.mT @ w.mT).mT,
    "linear": lambda w: F.linear(w, TABLE.mT, TABLE[0]),
    "einsum": lambda w: torch.einsum("bi,ij->bj", w, TABLE),
    "attention": lambda w: torch.bmm(w[:, None], TABLE.expand(len(w), 4, 3))[:, 0],
    "a bag of embeddings": lambda w: F.embedding_bag(
        torch.arange(4).expand(len(w), 4), TABLE, per_sample_weights=w, mode="sum"
    ),
    "convolution": lambda w: F.conv1d(w[:, :, None], TABLE.mT[..., None])[..., 0],
    "a distribution for each side, as detectors of boxes have it": lambda w: F.conv2d(
        w.reshape(-1, 2, 2, 1), torch.tensor([[0.0, 1.0]]).double()[..., None, None]
    ).reshape(-1, 2)[:, [0, 1, 1]],
    "products, summed": lambda w: (w[..., None] * TABLE).sum(1),
    "expected position": lambda w: (w * torch.arange(4)).sum(-1, keepdim=True) * TABLE[:1],
    "expected position, scaled": lambda w: ((w * 2) * torch.arange(4)).mean(-1, keepdim=True).expand(-1, 3) / 4,
    "cut and turned": lambda w: (2 - (w @ TABLE).flip(-1)[:, [2, 1, 0]]).relu(),
}
# A carrier (batch, 3) and an average (batch, 3) -> what the rest of the model reads.
MEETING: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "added": lambda a, m: a + m,
    "subtracted": lambda a, m: 2 * a - m / 2,
    "cat": lambda a, m: torch.cat([a, m], 1),
    "cat first": lambda a, m: torch.cat([m, a], 1).relu(),
    "stack": lambda a, m: torch.stack([a, m], 1),
    "where": lambda a, m: torch.where(a > 0, a, m),
    "maximum": lambda a, m: torch.maximum(a, m),
    "addmm": lambda a, m: torch.addmm(m, a, TABLE[:3]),
    "written into": lambda a, m: torch.slice_scatter(a, m[:, :2], 1, 0, 2),
    "cat and cut": lambda a, m: (lambda z: z[:, 1:3] + z[:, 2:4])(torch.cat([a, m], 1)),
}


class Mixed(nn.Module):
    def __init__(self, average: Average, meet: Callable[[Tensor, Tensor], Tensor], held: bool = False) -> None:
        super().__init__()
        self.average, self.meet, self.held = average, meet, held
        self.scores, self.first = nn.Linear(5, 4), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.scores(x).softmax(-1)
        mixed = self.meet(self.first(x), self.average(weights.detach() if self.held else weights))
        return F.gelu(mixed)


def proves(average: Average, meet: Callable[[Tensor, Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    model = Mixed(average, meet).double().eval()
    constant = Mixed(average, meet, held=True).double().eval()  # the witness: by hand, the weights are constants
    constant.load_state_dict(model.state_dict())
    x = torch.randn(3, 5).double().requires_grad_()
    libra, witness = fxgrad.convert(model, (x,)), fxgrad.convert(constant, (x,))
    report = fxgrad.check(libra, (x,), original=model)
    assert report.passed and report.completeness_error < 1e-13
    assert [row.source for row in report.sources if row.source.endswith(", its weights held")]
    ours, theirs = (torch.autograd.grad(f(x).square().sum(), x)[0] for f in (libra, witness))
    assert torch.equal(ours, theirs) and ours.abs().sum() > 0


@pytest.mark.parametrize("name", AVERAGES)
def test_averages(name: str) -> None:
    proves(AVERAGES[name], MEETING["added"])
    proves(AVERAGES[name], MEETING["cat"])


@pytest.mark.parametrize("name", MEETING)
def test_where_they_meet_a_carrier(name: str) -> None:
    proves(AVERAGES["matmul"], MEETING[name])


@pytest.mark.parametrize(
    "no_average",
    [
        lambda w: w[:, :3],
        lambda w: w.sum(-1, keepdim=True),
        lambda w: (w * 0.5).mean(-1, keepdim=True).expand(-1, 3),
        lambda w: w.log() @ TABLE,
        lambda w: w.cumsum(-1)[:, 1:],
        lambda w: (w * w).sum(-1, keepdim=True) + w[:, :3],
    ],
)
@pytest.mark.parametrize("meeting", ["added", "cat"])
def test_weights_themselves_are_no_sources(no_average: Average, meeting: str) -> None:
    model = Mixed(no_average, MEETING[meeting]).double().eval()
    with pytest.raises(fxgrad.NotBalanceableError, match=r"aten\.softmax\.int"):
        fxgrad.convert(model, (torch.randn(3, 5).double(),))


def test_a_detector_of_boxes() -> None:
    """Boxes are averages of positions; beside them are scores, of which a class is attributed."""

    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.boxes, self.scores = nn.Conv2d(3, 16, 1), nn.Conv2d(3, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            n = len(x)
            sides = self.boxes(x).reshape(n, 4, 4, -1).transpose(2, 1).softmax(1)
            sides = F.conv2d(sides, torch.arange(4).to(x).reshape(1, 4, 1, 1)).reshape(n, 4, -1)
            near, far = sides.chunk(2, 1)
            centre, size = (2.5 - near + far) / 2, near + far
            return torch.cat([torch.cat([centre, size], 1) * 8, self.scores(x).flatten(2).sigmoid()], 1)

    class Classes(Head):
        def forward(self, x: Tensor) -> Tensor:
            return self.scores(x).flatten(2).sigmoid()

    head, classes = Head().double().eval(), Classes().double().eval()
    classes.load_state_dict(head.state_dict())
    x = torch.randn(2, 3, 4, 4).double().requires_grad_()
    libra, alone = fxgrad.convert(head, (x,)), fxgrad.convert(classes, (x,))
    assert fxgrad.check(libra, (x,), original=head).completeness_error < 1e-13
    ours = torch.autograd.grad(libra(x)[:, 4:].sum(), x)[0]
    assert torch.equal(ours, torch.autograd.grad(alone(x).sum(), x)[0])
