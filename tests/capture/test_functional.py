"""Programs made functional in one pass: torch's own decomposition, which an ExportedProgram takes, is the witness."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fxgrad
from fxgrad.capture.functional import make_functional

Forward = Callable[["Net", Tensor], Tensor]


class Net(nn.Module):
    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.run, self.linear, self.norm, self.last = forward, nn.Linear(6, 6), nn.BatchNorm1d(4), nn.Linear(6, 2)
        self.register_buffer("table", torch.randn(4, 6))
        self.norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def _added(net: Net, x: Tensor) -> Tensor:
    y = net.linear(x)
    z = y
    y += 1
    y.relu_()
    return net.last(y * z)


def _residual(net: Net, x: Tensor) -> Tensor:
    y = net.linear(x)
    z = nn.functional.gelu(y)
    z += y
    return net.last(z.mul_(2).clamp_(-1, 1))


def _half_written(net: Net, x: Tensor) -> Tensor:
    y = net.linear(x)
    y[:, :2] *= 3
    return net.last(y)


def _view_read_later(net: Net, x: Tensor) -> Tensor:
    y = net.linear(x)
    half = y[:, :2]
    y.mul_(2)
    return net.last(half)


def _view_written(net: Net, x: Tensor) -> Tensor:
    return net.last(net.linear(x).view(-1, 6).relu_().view(-1, 4, 6))


def _dropped(net: Net, x: Tensor) -> Tensor:
    y = nn.functional.dropout(net.linear(x), 0.5, False)
    y = torch.alpha_dropout(y, 0.5, False)
    y = torch.feature_dropout(y, 0.5, False)
    return net.last(torch.dropout_(y, 0.5, False)) + torch.dropout(y[..., :2], 0.1, False)


def _cast(net: Net, x: Tensor) -> Tensor:
    y = net.linear(x).to(torch.float64).to("cpu").contiguous()
    return net.last(y.mT.contiguous().mT.to(torch.float32).to(x).type_as(x))


def _constants(net: Net, x: Tensor) -> Tensor:
    return net.last(net.linear(x) * torch.tensor([1.0, 2, 3, 4, 5, 6]).to(x)) + torch.tensor(2.0)


SIMPLE: dict[str, Forward] = {
    "written and returned by another name": _added,
    "a sum written into a branch": _residual,
    "a view is written, and nothing else reads": _view_written,
    "dropouts do nothing": _dropped,
    "casts and copies": _cast,
    "constants": _constants,
    "batch norm": lambda net, x: net.last(net.norm(net.linear(x)).relu_()),
    "batch norm is the output": lambda net, x: net.norm(net.linear(x)),
    "dropout is the output": lambda net, x: torch.dropout(net.linear(x), 0.5, False),
    "shapes change in place": lambda net, x: net.last(net.linear(x).unsqueeze_(0).squeeze_(0)),
    "a power in place, whose overload has another name": lambda net, x: net.last((net.linear(x).abs() + 1).pow_(-0.5)),
    "an element is filled": lambda net, x: net.last(net.linear(x).masked_fill_(net.table > 1, 0.5)),
}
OTHER: dict[str, Forward] = {
    "a part is written": _half_written,
    "a view is read later": _view_read_later,
    "axes change in place": lambda net, x: net.last(net.linear(x).transpose_(0, 1)),
    "a copy of a part": lambda net, x: net.last(torch.zeros_like(x).copy_(net.linear(x))),
}


@pytest.mark.parametrize("name", [*SIMPLE, *OTHER])
def test_both_ways_give_the_same(name: str) -> None:
    torch.manual_seed(0)
    model = Net({**SIMPLE, **OTHER}[name]).double().eval()
    x = torch.randn(3, 4, 6).double()
    program = torch.export.export(model, (x,), strict=False)
    for rules in ("libragrad", "gradient"):
        ours, theirs = fxgrad.convert(model, (x,), rules=rules), fxgrad.convert(program, (x,), rules=rules)
        y = ours(x.requires_grad_())
        assert torch.equal(y, model(x)) and torch.equal(y, theirs(x))
        g = torch.randn_like(y)
        wanted = [f(x) for f in (theirs, model)]
        (own,), (other,), (plain,) = (torch.autograd.grad(v, x, g) for v in (y, *wanted))
        torch.testing.assert_close(own, other, rtol=1e-12, atol=1e-14)
        if rules == "gradient":
            torch.testing.assert_close(own, plain, rtol=1e-12, atol=1e-14)
    report = fxgrad.check(fxgrad.convert(model, (x.detach(),)), (x.detach(),), original=model)
    assert report.passed, str(report)


@pytest.mark.parametrize("name", SIMPLE)
def test_one_pass_suffices(name: str) -> None:
    program = torch.export.export(Net(SIMPLE[name]).double().eval(), (torch.randn(3, 4, 6).double(),), strict=False)
    assert make_functional(program, lambda op: True)
    ops = [node.target for node in program.graph.nodes if isinstance(node.target, torch._ops.OpOverload)]
    assert ops and not any(op._schema.is_mutable for op in ops)
    program.validate()


@pytest.mark.parametrize("name", ["a part is written", "a view is read later"])
def test_what_one_pass_cannot_do_is_left_as_it_is(name: str) -> None:
    program = torch.export.export(Net(OTHER[name]).double().eval(), (torch.randn(3, 4, 6).double(),), strict=False)
    before = str(program.graph)
    assert not make_functional(program, lambda op: True) and str(program.graph) == before


def test_state_that_is_written_to_is_refused_and_an_input_copied() -> None:
    x = torch.randn(3, 4, 6)
    with pytest.raises(fxgrad.CaptureError, match=r"writes to its own state .*\(table\)"):
        fxgrad.convert(Net(lambda net, x: net.last(x + net.table.mul_(2))).eval(), (x,))
    model, given = Net(lambda net, x: net.last(x.mul_(2))).eval(), x.clone()
    libra = fxgrad.convert(model, (given,))
    assert torch.equal(libra(given), model(x.clone())) and torch.equal(given, x)


def test_a_program_that_asserts_something_of_its_data_can_be_taken_apart() -> None:
    def asserted(net: Net, x: Tensor) -> Tensor:
        torch._check(x.isfinite().all().item())
        return _half_written(net, x)

    model, x = Net(asserted).double().eval(), torch.randn(3, 4, 6).double()
    libra = fxgrad.convert(model, (x,))
    assert torch.equal(libra(x), model(x)) and fxgrad.check(libra, (x,), original=model).passed
