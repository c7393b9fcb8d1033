"""`fxgrad.trace`: relevance of all values, against hooks and autograd, and that every cut adds up."""

from __future__ import annotations

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import fxgrad
from fxgrad.errors import InputError
from fxgrad.module.converted import ConvertedModule


@pytest.fixture(scope="module")
def vit() -> tuple[nn.Module, Tensor, ConvertedModule]:
    torch.manual_seed(0)
    model = VisionTransformer(img_size=16, patch_size=8, embed_dim=16, depth=3, num_heads=2, num_classes=5)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.2)
    model, x = model.double().eval().requires_grad_(False), torch.randn(2, 3, 16, 16).double()
    return model, x, fxgrad.convert(model, (x,))


@pytest.mark.parametrize("policy", ["libragrad", "gradient", "gamma", "attnlrp"])
def test_hooks_see_the_same(policy: str, vit: tuple[nn.Module, Tensor, ConvertedModule]) -> None:
    """The unflattened module has the model's submodules, whose outputs' values and gradients hooks take."""
    _, x, converted = vit
    libra = converted.under(policy)
    found = fxgrad.trace(libra, (x,), target=3)
    plain, seen = libra.unflattened(), {}
    paths = ["patch_embed.proj", "blocks.0.mlp.fc1", "blocks.1", "blocks.2.attn.proj", "norm", "head"]

    def keep(path: str) -> None:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            output.retain_grad()
            seen[path] = output

        plain.get_submodule(path).register_forward_hook(hook)

    for path in paths:
        keep(path)
    leaf = x.clone().requires_grad_()
    y = plain(leaf)
    y[:, 3].sum().backward()
    torch.testing.assert_close(found["x"], leaf * leaf.grad, rtol=1e-12, atol=1e-15)
    for path in paths:
        torch.testing.assert_close(found.module(path), seen[path] * seen[path].grad, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(found.output, y[:, 3].detach())
    assert found.rules == policy


def test_every_cut_adds_up() -> None:
    """Without constants that are added, the values of each layer add up to the target's value."""
    torch.manual_seed(0)
    layers = [
        nn.Linear(6, 8, bias=False),
        nn.GELU(),
        nn.Linear(8, 8, bias=False),
        nn.ReLU(),
        nn.Linear(8, 3, bias=False),
    ]
    model, x = nn.Sequential(*layers).double().eval(), torch.randn(4, 6).double()
    for policy in ("libragrad", "gamma"):
        found = fxgrad.trace(fxgrad.convert(model, (x,), rules=policy), (x,), target=2)
        assert list(found.modules) == ["0", "1", "2", "3", "4"] and len(found) == 6
        for name, relevance in found.items():
            torch.testing.assert_close(relevance.sum(1), model(x)[:, 2], rtol=1e-11, atol=1e-12, msg=name)
        torch.testing.assert_close(found.sums["3"], float(model(x)[:, 2].detach().sum()))


def test_some_places_only(vit: tuple[nn.Module, Tensor, ConvertedModule]) -> None:
    _, x, libra = vit
    whole = fxgrad.trace(libra, (x,), target=0)
    some = fxgrad.trace(libra, (x,), target=0, where=["blocks.1", "x"])
    assert list(some) == ["x", whole.modules["blocks.1"]] and "blocks.0" not in some.modules
    assert all(torch.equal(some[name], whole[name]) for name in some)
    assert "blocks.0.attn" in whole.modules and whole.modules["blocks.1"] in whole and "softmax" not in whole


def test_token_ids_are_traced_from_their_embedding() -> None:
    model = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 2)).double().eval()
    ids = torch.tensor([[1, 5, 2]])
    found = fxgrad.trace(fxgrad.convert(model, (ids,)), (ids,), target=1)
    tokens = model[0](ids)
    wanted = tokens * model[2].weight[1].reshape(1, 3, 4)
    torch.testing.assert_close(found["0"], wanted.detach())


def test_a_module_that_is_called_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f = nn.Linear(3, 3, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.f(torch.relu(self.f(x)))

    model, x = Twice().double().eval(), torch.randn(2, 3).double()
    found = fxgrad.trace(fxgrad.convert(model, (x,)), (x,), target=0)
    inner = model.f(x)
    torch.testing.assert_close(found.module("f"), (inner.relu() * model.f.weight[0]).detach())
    torch.testing.assert_close(found.module("f@1"), model(x).detach() * torch.tensor([1.0, 0, 0]))


def test_mistakes(vit: tuple[nn.Module, Tensor, ConvertedModule]) -> None:
    _, x, libra = vit
    with pytest.raises(InputError, match=r"no relevance reaches a module or value 'blocks\.7'\. Close to it: blocks"):
        fxgrad.trace(libra, (x,), target=0, where=["blocks.7"])
    with pytest.raises(InputError, match=r"Pass where=\['blocks\.1'\]"):
        fxgrad.trace(libra, (x,), target=0, where="blocks.1")
    with pytest.raises(InputError, match="a trace has one target"):
        fxgrad.trace(libra, (x,), target=[0, 1])
    found = fxgrad.trace(libra, (x,), target=0, where=["norm"])
    with pytest.raises(InputError, match="no relevance reaches a module or value 'head'"):
        found.module("head")
    with pytest.raises(KeyError):
        found["head"]
