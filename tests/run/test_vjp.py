"""Many cotangents from one forward, and checkpointing: the same gradients, for less."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import fxgrad
from fxgrad.data.models import randomize


@pytest.fixture(scope="module")
def vit() -> fxgrad.ConvertedModule:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=3, embed_dim=48, num_classes=7).eval().double()
    randomize(model)
    return fxgrad.convert(model, (torch.randn(2, 3, 32, 32).double(),))


def saved_bytes(run: fxgrad.ConvertedModule, x: Tensor) -> int:
    kept: dict[int, int] = {}

    def keep(t: Tensor) -> Tensor:
        if not isinstance(t, nn.Parameter):
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        run(x.detach().requires_grad_())
    return sum(kept.values())


@pytest.mark.parametrize("chunk", [None, 1, 3, 5, 100])
def test_every_gradient_is_that_of_a_call_of_its_own(vit: fxgrad.ConvertedModule, chunk: int | None) -> None:
    x, cotangents = torch.randn(2, 3, 32, 32).double(), torch.randn(5, 2, 7).double()
    result = fxgrad.vjp(vit, (x,), cotangents, chunk=chunk)
    assert torch.equal(result.outputs, vit(x)) and not result.outputs.requires_grad
    leaf = x.clone().requires_grad_()
    for found, cotangent in zip(result.gradients["x"], cotangents):
        (wanted,) = torch.autograd.grad(vit(leaf), leaf, cotangent)
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-14)


def test_one_forward(vit: fxgrad.ConvertedModule, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []
    monkeypatch.setattr(
        fxgrad.ConvertedModule, "run", lambda self, e: runs.append(1) or self.runner(*self.state, *e)[0]
    )
    fxgrad.vjp(vit, (torch.randn(2, 3, 32, 32).double(),), torch.randn(9, 2, 7).double(), chunk=2)
    assert len(runs) == 1


class Two(nn.Module):
    """Two inputs, of which one reaches only one of the outputs; an output that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, object]:
        return {"first": self.a(x).tanh(), "second": self.b(x * y), "none": None}


def test_structured_outputs() -> None:
    model = Two().double().eval()
    x, y = torch.randn(2, 5, 4).double().unbind(0)
    libra = fxgrad.convert(model, (x, y))
    first = torch.randn(6, 5, 3).double()
    result = fxgrad.vjp(libra, (x,), {"first": first, "second": None, "none": None}, {"y": y})
    assert set(result.outputs) == {"first", "second", "none"} and result.gradients["x"].shape == (6, 5, 4)
    assert torch.equal(result.gradients["y"], torch.zeros(6, 5, 4).double())
    second = torch.randn(6, 5, 2).double()
    both = fxgrad.vjp(libra, (x, y), {"first": first, "second": second, "none": None})
    alone = fxgrad.vjp(libra, (x, y), {"first": None, "second": second, "none": None})
    torch.testing.assert_close(both.gradients["x"], result.gradients["x"] + alone.gradients["x"])


def test_token_ids_get_the_gradients_of_their_embedding() -> None:
    model = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 2)).double().eval()
    ids = torch.tensor([[1, 5, 2]])
    result = fxgrad.vjp(fxgrad.convert(model, (ids,)), (ids,), torch.eye(2).double()[:, None])
    assert torch.equal(result.gradients["0"], model[2].weight.detach().view(2, 1, 3, 4))


@pytest.mark.parametrize(
    ("cotangents", "options", "message"),
    [
        (
            torch.zeros(2, 7),
            {},
            r"the cotangents are shaped \[\(2, 7\)\], but the outputs want \(K, 2, 7\), with one K",
        ),
        (torch.zeros(4, 2, 7), {"chunk": 0}, "chunk is how many cotangents go backward at once, at least 1, not 0"),
        (torch.zeros(4, 2, 7), {"chunk": "two"}, "chunk is how many cotangents .*, at least 1, not 'two'"),
        ([torch.zeros(4, 2, 7)] * 2, {}, "the cotangents are shaped"),
        (3, {}, r"the cotangents are shaped \[3\], but the outputs want"),
        (None, {}, "the cotangents are shaped"),
    ],
)
def test_refusals(vit: fxgrad.ConvertedModule, cotangents: object, options: dict[str, Any], message: str) -> None:
    with pytest.raises(fxgrad.InputError, match=message):
        fxgrad.vjp(vit, (torch.randn(2, 3, 32, 32).double(),), cotangents, **options)


def test_checkpointing_keeps_less_and_changes_nothing(vit: fxgrad.ConvertedModule) -> None:
    x = torch.randn(2, 3, 32, 32).double().requires_grad_()
    light = vit.checkpointed()
    y = light(x)
    assert torch.equal(y, vit(x)) and list(light.state_dict()) == list(vit.state_dict())
    g = torch.randn_like(y)
    assert torch.equal(torch.autograd.grad(y, x, g)[0], torch.autograd.grad(vit(x), x, g)[0])
    frozen, light_frozen = (m.requires_grad_(False) for m in (vit, light))
    # A residual stream per block is left.
    assert saved_bytes(light_frozen, x) < saved_bytes(frozen, x) / 3
    assert fxgrad.check(light).passed and torch.equal(light(x.detach()), vit(x.detach()))


def test_checkpointing_wants_blocks() -> None:
    libra = fxgrad.convert(Two().eval(), (torch.randn(5, 4), torch.randn(5, 4)))
    with pytest.raises(fxgrad.InputError, match="no numbered blocks"):
        libra.checkpointed()


def test_less_is_kept_than_by_plain_autograd(vit: fxgrad.ConvertedModule) -> None:
    x = torch.randn(2, 3, 32, 32).double()
    plain = vit.under("gradient").requires_grad_(False)
    assert saved_bytes(vit.under("libragrad").requires_grad_(False), x) < 0.75 * saved_bytes(plain, x)
