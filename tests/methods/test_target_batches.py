"""Targets of whole batches: functions with the user's own data per example, against plain autograd and one by one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

import fxgrad
from fxgrad.data.models import randomize
from fxgrad.methods import Map, Problem, Token, method
from fxgrad.methods.fullgrad import fullgrad
from tests.methods.test_examples import SHARES, Merged, TokensFirst, encoder

LABELS = torch.tensor([1, 3, 0])
WEIGHTS = torch.tensor([[1.0, -2.0], [0.5, 3.0], [-1.0, 1.0]]).double()
Build = Callable[[], nn.Module]
Function = Callable[[Tensor], Tensor]


class Tokens(nn.Module):
    """Logits of every token, in several orders of tokens and examples."""

    def __init__(self, order: str) -> None:
        super().__init__()
        self.order = order
        self.blocks = nn.Sequential(*(nn.TransformerEncoderLayer(8, 2, 16, activation="gelu") for _ in range(2)))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(self.blocks(x.transpose(0, 1)))
        if self.order == "merged":
            return y.transpose(0, 1).reshape(-1, 4)
        return y.reshape(-1, 4) if self.order == "merged, tokens first" else y


def labelled(y: Tensor) -> Tensor:
    return y[torch.arange(3), LABELS] + (WEIGHTS * y[:, 2:]).sum(1)


def of_each(y: Tensor) -> Tensor:
    """For logits (5 tokens, 3 examples, classes): each example has its own token."""
    return (WEIGHTS[:, 0, None] * y[LABELS + 1, torch.arange(3)]).sum(1)


MODELS: dict[str, tuple[Build, Function]] = {
    "classes": (encoder, labelled),
    "tokens inside": (TokensFirst, labelled),
    "gpt-2": (Merged, labelled),
    "tokens first": (lambda: Tokens(""), of_each),
    "merged": (lambda: Tokens("merged"), lambda y: of_each(y.view(3, 5, 4).transpose(0, 1))),
    "merged, tokens first": (lambda: Tokens("merged, tokens first"), lambda y: of_each(y.view(5, 3, 4))),
}


def converted(build: Build) -> tuple[fxgrad.ConvertedModule, Tensor]:
    torch.manual_seed(0)
    model = build().double().eval()
    randomize(model)
    x = torch.randn(3, 5, 8).double()
    return fxgrad.convert(model, (x,)), x


@pytest.mark.parametrize("name", MODELS)
def test_functions_in_one_run_and_one_by_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    build, target = MODELS[name]
    libra, x = converted(build)
    leaf = x.clone().requires_grad_()
    value = target(libra(leaf))
    (wanted,) = torch.autograd.grad(value.sum(), leaf)
    found = {m: fxgrad.attribute(libra, (x,), target=target, method=m) for m in SHARES}
    assert torch.allclose(found["input_x_gradient"].map, (x * wanted).sum(2), rtol=1e-10, atol=1e-12)
    monkeypatch.setattr(Problem, "mixed", True)  # so examples run alone, and the cotangents are cut
    for m, whole in found.items():
        alone = fxgrad.attribute(libra, (x,), target=target, method=m)
        assert torch.equal(alone.output, value) and torch.equal(whole.output, value)
        assert torch.allclose(alone.map, whole.map, rtol=1e-10, atol=1e-12), m
        assert alone.apart is not None and torch.allclose(alone.apart, whole.apart, rtol=1e-10, atol=1e-12), m
        assert alone.completeness_error is not None and alone.completeness_error < 1e-10, m
        assert alone.note == "" and alone.label == whole.label


@pytest.mark.parametrize("batch", [3, 5])
def test_a_token_is_read_from_logits_with_tokens_first(batch: int) -> None:
    libra, _ = converted(lambda: Tokens(""))
    x, here = torch.randn(batch, 5, 8).double(), torch.arange(batch)
    position, ids = torch.arange(batch) % 5 - 5, torch.arange(batch) % 4
    leaf = x.clone().requires_grad_()
    value = libra(leaf)[position, here, ids]
    (g,) = torch.autograd.grad(value.sum(), leaf)
    found = fxgrad.attribute(libra, (x,), target=Token(position, ids))
    assert torch.equal(found.output, value)
    assert torch.allclose(found.map, (x * g).sum(2), rtol=1e-10, atol=1e-12)
    likeliest = fxgrad.attribute(libra, (x,), target=Token())
    assert (
        torch.equal(likeliest.output, libra(x)[-1].amax(1)) and likeliest.label == "the likeliest token at position 4"
    )


class Pairs(nn.Module):
    """As CLIP: (pictures, texts) similarities, with constants on both sides."""

    def __init__(self, tokens_first: bool) -> None:
        super().__init__()
        self.a, self.b, self.tokens_first = nn.Linear(6, 8), nn.Linear(5, 8), tokens_first
        self.attention = nn.MultiheadAttention(8, 2, batch_first=not tokens_first)

    def tower(self, x: Tensor) -> Tensor:
        x = x.transpose(0, 1) if self.tokens_first else x
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return F.normalize(x.mean(0 if self.tokens_first else 1), dim=-1)

    def forward(self, i: Tensor, t: Tensor) -> Tensor:
        return self.tower(self.a(i)) @ self.tower(self.b(t)).T


class Both(Pairs):
    """Similarities both ways."""

    def forward(self, i: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        y = super().forward(i, t)
        return y, y.T


@pytest.mark.parametrize("tokens_first", [False, True])
def test_pairs_of_two_inputs(tokens_first: bool) -> None:
    torch.manual_seed(0)
    i, t = torch.randn(3, 4, 6).double(), torch.randn(3, 4, 5).double()
    libra = fxgrad.convert(Pairs(tokens_first).double().eval(), (i, t))
    order = torch.tensor([2, 0, 1])
    functions: dict[str, Any] = {
        "diagonal": lambda y: y.diagonal(),
        "labels": lambda y: y[torch.arange(3), torch.arange(3)],
        "gather": lambda y: y.gather(1, torch.arange(3)[: len(y), None])[:, 0],
        "classes": torch.arange(3),
    }
    leaves = [v.clone().requires_grad_() for v in (i, t)]
    gradients = torch.autograd.grad(libra(*leaves).diagonal().sum(), leaves)
    for name, x, g in zip("it", (i, t), gradients):
        for what, target in functions.items():
            found = fxgrad.attribute(libra, (i, t), target=target, input=name)
            assert torch.allclose(found.tokens, (x * g).sum(-1), rtol=1e-10, atol=1e-12), (name, what)
            assert found.completeness_error is not None and found.completeness_error < 1e-10, (name, what)
    # A picture may be asked about any text: texts are no examples then.
    leaf = i.clone().requires_grad_()
    (g,) = torch.autograd.grad(libra(leaf, t)[torch.arange(3), order].sum(), leaf)
    other = fxgrad.attribute(libra, (i, t), target=lambda y: y[torch.arange(3), order], input="i")
    assert torch.allclose(other.tokens, (i * g).sum(-1), rtol=1e-10, atol=1e-12)
    # The classes of a text are the pictures.
    first = fxgrad.attribute(libra, (i, t), target=0, input="t")
    assert torch.allclose(first.output, libra(i, t)[0])
    both = fxgrad.convert(Both(tokens_first).double().eval(), (i, t))
    for name, advice in (("i", r"output\[0\]\[:, 0\]"), ("t", r"output\[1\]\[:, 0\]")):
        with pytest.raises(fxgrad.InputError, match=rf"none of them called logits.* lambda output: {advice}\."):
            fxgrad.attribute(both, (i, t), target=None, input=name)
    with pytest.raises(fxgrad.InputError, match=r"mixes the examples .*: value 1 depends on output of example 0"):
        fxgrad.attribute(libra, (i, t), target=lambda y: y[torch.arange(3), order], input="t")


def gpt2() -> nn.Module:
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()
    small: dict[str, Any] = {"vocab_size": 50, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 16}
    return GPT2LMHeadModel(GPT2Config(bos_token_id=0, eos_token_id=0, **small)).double().eval()


def test_a_language_model_with_labels() -> None:
    model, ids = gpt2(), torch.randint(50, (3, 5))
    labels, last = torch.tensor([4, 9, 13]), torch.tensor([4, 2, 3])
    options = {"use_cache": False, "attention_mask": (torch.arange(5) <= last[:, None]).long()}
    libra = fxgrad.convert(model, (ids,), options)
    alone = []
    for k in range(3):
        own, one = (
            ids[k : k + 1, : last[k] + 1],
            {"use_cache": False, "attention_mask": torch.ones(1, last[k] + 1).long()},
        )
        tokens = fxgrad.convert(model, (own,), one)
        alone.append(fxgrad.attribute(tokens, (own,), one, target=Token(-1, int(labels[k]))))
    for target in (
        Token(last, labels),
        Token(last - 5, labels),
        lambda o: o.logits[torch.arange(3), last, labels],
        lambda o: o.logits[torch.arange(3), last].gather(1, labels[:, None])[:, 0],
    ):
        for how in ("input_x_gradient", "fullgrad_plus"):
            found = fxgrad.attribute(libra, (ids,), options, target=target, method=how)
            assert found.completeness_error is not None and found.completeness_error < 1e-10
            if how == "input_x_gradient":
                for k in range(3):
                    assert torch.allclose(found.tokens[k, : last[k] + 1], alone[k].tokens[0], rtol=1e-9, atol=1e-12)
                    assert not found.tokens[k, last[k] + 1 :].any()
    rows = fxgrad.attribute(libra, (ids,), options, target=Token(last), method="raw_attention").tokens
    each = [
        fxgrad.attribute(libra, (ids,), options, target=Token(int(p)), method="raw_attention").tokens[k]
        for k, p in enumerate(last)
    ]
    assert torch.equal(rows, torch.stack(each))


def surprise(y: Tensor) -> Tensor:
    return -F.cross_entropy(y, LABELS, reduction="none")


def test_integrated_gradients_of_a_function_sees_whole_batches() -> None:
    libra, x = converted(encoder)
    seen: list[int] = []

    def target(y: Tensor) -> Tensor:
        seen.append(len(y))
        return surprise(y)

    points, weights = np.polynomial.legendre.leggauss(50)
    total = torch.zeros_like(x)
    for point, weight in zip((points + 1) / 2, weights / 2):
        leaf = (point * x).requires_grad_()
        total += weight * torch.autograd.grad(surprise(libra(leaf)).sum(), leaf)[0]
    found = fxgrad.attribute(libra, (x,), target=target, method="integrated_gradients")
    assert torch.allclose(found.map, (x * total).sum(2), rtol=1e-8, atol=1e-10)
    assert found.apart is not None and torch.allclose(found.apart, surprise(libra(torch.zeros_like(x))))
    fxgrad.attribute(libra, (x,), target=target, method="smoothgrad", samples=2)
    assert set(seen) == {3}


def test_a_target_is_evaluated_once() -> None:
    libra, x = converted(encoder)
    calls: list[tuple[int, ...]] = []

    def target(y: Tensor) -> Tensor:
        calls.append(tuple(y.shape))
        return labelled(y)

    fxgrad.attribute(libra, (x,), target=target, method="fullgrad_plus")
    assert calls == [(3, 4)]


def test_methods_of_your_own_at_other_inputs() -> None:
    libra, x = converted(encoder)

    def halfway(problem: Problem) -> Map:
        moved = replace(problem, entries=[0.5 * problem.entries[0]])
        return Map(tokens=moved.run().gradients["input"].sum(2))

    leaf = (0.5 * x).requires_grad_()
    (wanted,) = torch.autograd.grad(surprise(libra(leaf)).sum(), leaf)
    found = fxgrad.attribute(libra, (x,), target=surprise, method=halfway)
    assert torch.allclose(found.map, wanted.sum(2), rtol=1e-10, atol=1e-12)


def test_one_example_has_no_target_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Problem, "mixed", True)
    libra, x = converted(encoder)

    @method(shares=True)
    def asks(problem: Problem) -> Map:
        problem.target.score(problem.run().outputs[0])
        return fullgrad(problem)

    @method(shares=True)
    def moves(problem: Problem) -> Map:
        return fullgrad(replace(problem, entries=[0.5 * problem.entries[0]]))

    with pytest.raises(
        fxgrad.InputError, match=r"a target is a function of the whole batch's outputs. Use problem.run"
    ):
        fxgrad.attribute(libra, (x,), target=labelled, method=asks)
    with pytest.raises(
        fxgrad.InputError, match=r"example 0 .* other outputs when it runs alone.* one example at a time"
    ):
        fxgrad.attribute(libra, (x,), target=labelled, method=moves)
    assert fxgrad.attribute(libra, (x[:1],), target=1, method=asks).map.shape == (1, 5)


class Centred(nn.Module):
    """Mixes the examples of a batch, behind a layer with constants."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 4), nn.Linear(20, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).flatten(1)
        return self.b(y - y.mean(0, keepdim=True))


def test_a_model_that_mixes_examples_has_a_map_of_all_of_them_for_each() -> None:
    libra, x = converted(Centred)
    found = fxgrad.attribute(libra, (x,), target=LABELS)
    assert found.completeness_error is not None and found.completeness_error < 1e-10
    leaf = x.clone().requires_grad_()
    for k, label in enumerate(LABELS):
        (g,) = torch.autograd.grad(libra(leaf)[k, label], leaf)
        wanted = (x * g).sum(-1) if x.dim() > 1 else x * g
        assert torch.allclose(found.map[k], wanted, rtol=1e-10, atol=1e-12)


def test_a_fixed_batch_runs_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, x = encoder().double().eval(), torch.randn(3, 5, 8).double()
    fixed = fxgrad.convert(model, (x,), dynamic_shapes=({},))
    for name in SHARES:
        wanted = fxgrad.attribute(fxgrad.convert(model, (x,)), (x,), target=LABELS, method=name)
        with monkeypatch.context() as patched:
            patched.setattr(Problem, "mixed", True)
            found = fxgrad.attribute(fixed, (x,), target=LABELS, method=name)
        assert torch.allclose(found.map, wanted.map, rtol=1e-10, atol=1e-12), name
        assert torch.allclose(found.total, wanted.total, rtol=1e-10, atol=1e-12), name  # type: ignore[arg-type]


def test_a_batch_without_examples() -> None:
    libra, x = converted(encoder)
    with pytest.raises(fxgrad.InputError, match="input 'input' has no examples: its first axis has size 0"):
        fxgrad.attribute(libra, (x[:0],), target=1)


class Recurrent(nn.Module):
    """A bias's contribution of recurrent layers is summed over the batch, so examples really run alone."""

    def __init__(self) -> None:
        super().__init__()
        self.f, self.head = nn.GRU(8, 6, batch_first=True), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.f(x)[0][:, -1])


class Prompted(nn.Module):
    """All examples share an attributed input, and an output that depends on it."""

    def __init__(self) -> None:
        super().__init__()
        self.f, self.head = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor, prompt: Tensor) -> tuple[Tensor, Tensor]:
        return self.head(F.gelu(self.f(x)).mean(1)), self.head(prompt)


@pytest.mark.parametrize("shared", [False, True])
def test_examples_that_really_run_alone(shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = (Prompted() if shared else Recurrent()).double().eval()
    inputs = (torch.randn(3, 5, 8).double(), torch.randn(4, 8).double())[: 1 + shared]
    libra = fxgrad.convert(model, inputs)

    def target(y: Any, labels: Tensor = LABELS, weights: Tensor = WEIGHTS) -> Tensor:
        logits, prompts = y if shared else (y, None)
        value = logits[torch.arange(len(labels)), labels] + (weights * logits[:, 2:]).sum(1)
        return value if prompts is None else value + prompts[labels, labels]

    calls: list[int] = []
    only = Problem.only
    monkeypatch.setattr(Problem, "only", lambda self, k: [calls.append(k), only(self, k)][1])
    found = fxgrad.attribute(libra, inputs, target=target)
    assert calls == [0, 1, 2]
    assert found.completeness_error is not None and found.completeness_error < 1e-10 and found.note == ""
    for k in range(3):
        own = slice(k, k + 1)
        alone = fxgrad.attribute(
            libra, (inputs[0][own], *inputs[1:]), target=lambda y, own=own: target(y, LABELS[own], WEIGHTS[own])
        )
        assert torch.allclose(found.map[own], alone.map, rtol=1e-10, atol=1e-12)
        assert found.apart is not None and torch.allclose(found.apart[own], alone.apart, rtol=1e-10, atol=1e-12)
