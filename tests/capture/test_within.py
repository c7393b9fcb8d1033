"""A model that returns what one of its modules does: the same values, names and gradients, and clear refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxgrad


class Digits(nn.Module):
    """A classifier as in PyTorch's first example: log-probabilities at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last, self.unused = nn.Conv2d(1, 4, 3), nn.Linear(36, 5), nn.Linear(2, 2)

    def logits(self, x: Tensor) -> Tensor:
        return self.last(F.max_pool2d(F.relu(self.conv(x)), 2).flatten(1))  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        return F.log_softmax(self.logits(x), -1)


def digits() -> tuple[Digits, Tensor]:
    torch.manual_seed(0)
    return Digits().double().eval(), torch.randn(3, 1, 8, 8, dtype=torch.float64)


def test_the_advice_of_the_error_is_right(tmp_path: Path) -> None:
    model, x = digits()
    with pytest.raises(fxgrad.NotBalanceableError, match=r"convert fxgrad\.returning\(model, 'last'\)\."):
        fxgrad.convert(model, (x,))
    libra = fxgrad.convert(fxgrad.returning(model, "last"), (x,))
    assert torch.equal(libra(x), model.logits(x))
    assert list(libra.state_dict()) == list(model.state_dict())
    assert fxgrad.check(libra, (x,)).passed
    assert not model.last._forward_hooks, "the hook is gone"
    witness = Digits()
    witness.forward = witness.logits  # type: ignore[method-assign]
    witness.load_state_dict(model.state_dict())
    wanted = fxgrad.attribute(fxgrad.convert(witness.double().eval(), (x,)), (x,), target=2, method="fullgrad")
    assert torch.equal(fxgrad.attribute(libra, (x,), target=2, method="fullgrad").map, wanted.map)
    fxgrad.save(libra, tmp_path / "cut.pt2")
    assert torch.equal(fxgrad.load(tmp_path / "cut.pt2")(x), libra(x))


def test_an_exported_program_gets_no_such_advice() -> None:
    model, x = digits()
    with pytest.raises(fxgrad.NotBalanceableError) as caught:
        fxgrad.convert(torch.export.export(model, (x,)))
    assert "Let the model return" in str(caught.value) and "returning" not in str(caught.value)


def test_no_advice_where_no_module_returns_the_value() -> None:
    class Scaled(Digits):
        def forward(self, x: Tensor) -> Tensor:
            return (2 * self.logits(x)).softmax(-1)

    class Twice(Digits):
        def forward(self, x: Tensor) -> Tensor:
            return (self.logits(x + self.logits(x).sum())).softmax(-1)

    _, x = digits()
    for kind in (Scaled, Twice):
        with pytest.raises(fxgrad.NotBalanceableError) as caught:
            fxgrad.convert(kind().double().eval(), (x,))
        assert "returning" not in str(caught.value), kind


def test_what_is_no_module_or_not_called_once() -> None:
    model, x = digits()
    with pytest.raises(fxgrad.InputError, match=r"no module 'lost'. Close to it: last\."):
        fxgrad.returning(model, "lost")
    with pytest.raises(fxgrad.InputError, match="takes a module, not ExportedProgram"):
        fxgrad.returning(torch.export.export(model, (x,)), "last")  # type: ignore[arg-type]
    with pytest.raises(fxgrad.CaptureError, match="the model calls 'unused' not at all, and not once"):
        fxgrad.convert(fxgrad.returning(model, "unused"), (x,))
    shared = nn.Sequential(layer := nn.Linear(4, 4), nn.ReLU(), layer).eval()
    with pytest.raises(fxgrad.CaptureError, match="the model calls '0' 2 times"):
        fxgrad.convert(fxgrad.returning(shared, "0"), (torch.randn(2, 4),))


def test_a_module_s_structure_comes_back() -> None:
    model = nn.Sequential(nn.LSTM(3, 4, batch_first=True)).eval()

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = model

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x)[0][:, -1].softmax(-1)  # type: ignore[no-any-return]

    x = torch.randn(2, 5, 3)
    libra = fxgrad.convert(fxgrad.returning(Last().eval(), "body.0"), (x,))
    (ours, (h, c)), (theirs, (own_h, own_c)) = libra(x), model(x)
    assert torch.equal(ours, theirs) and torch.equal(h, own_h) and torch.equal(c, own_c)
