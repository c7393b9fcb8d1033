"""Targets of whole batches: functions with the user's own data per example, against plain autograd and one by one."""

from __future__ import annotations

import re
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
from fxgrad.methods import Contrast, Map, Probability, Problem, Token, method
from fxgrad.methods.fullgrad import fullgrad
from fxgrad.methods.targets import logits_of
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


def gpt2() -> tuple[fxgrad.ConvertedModule, Tensor, dict[str, Any]]:
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()
    small: dict[str, Any] = {"vocab_size": 50, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 16}
    model = GPT2LMHeadModel(GPT2Config(bos_token_id=0, eos_token_id=0, **small)).double().eval()
    ids, options = torch.randint(50, (3, 5)), {"use_cache": False, "attention_mask": torch.ones(3, 5).long()}
    return fxgrad.convert(model, (ids,), options), ids, options


def test_a_language_model_with_labels() -> None:
    libra, ids, options = gpt2()
    labels, last = torch.tensor([4, 9, 13]), torch.tensor([4, 2, 3])
    options["attention_mask"] = (torch.arange(5) <= last[:, None]).long()
    alone = []
    for k in range(3):
        own, one = (
            ids[k : k + 1, : last[k] + 1],
            {"use_cache": False, "attention_mask": torch.ones(1, last[k] + 1).long()},
        )
        tokens = fxgrad.convert(libra_of(), (own,), one)
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


def libra_of() -> nn.Module:
    torch.manual_seed(0)
    small: dict[str, Any] = {"vocab_size": 50, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 16}
    return GPT2LMHeadModel(GPT2Config(bos_token_id=0, eos_token_id=0, **small)).double().eval()


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


def test_a_model_that_mixes_examples_has_no_examples_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Problem, "mixed", True)
    libra, x = converted(Centred)
    with pytest.raises(fxgrad.InputError, match="the model mixes the examples of a batch"):
        fxgrad.attribute(libra, (x,), target=LABELS)


def test_a_fixed_batch_cannot_be_taken_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Problem, "mixed", True)
    torch.manual_seed(0)
    x = torch.randn(3, 5, 8)
    libra = fxgrad.convert(encoder().eval(), (x,), dynamic_shapes=({},))
    with pytest.raises(fxgrad.InputError, match=r"by the 3 examples of this batch, and the model was captured for 3"):
        fxgrad.attribute(libra, (x,), target=LABELS)


MIXING: dict[str, tuple[Any, str]] = {
    "mean": (lambda y: y[:, 1] - y[:, 1].mean(), "value 0 depends on output of example 1"),
    "roll": (lambda y: y[:, 1].roll(1), "value 1 depends on output of example 0"),
    "one": (lambda y: torch.stack([y[0, 0], y[0, 1], y[2, 2]]), "value 1 depends on output of example 0"),
    "softmax": (lambda y: y.softmax(0)[:, 2], "value . depends on output of example"),
    "contrast": (Contrast(lambda y: y[:, 1].flip(0), 2), "value 2 depends on output of example 0"),
    "slightly": (lambda y: y[:, 1] + 1e-5 * y[:, 1].sum(), "value . depends on output of example"),
}


@pytest.mark.parametrize("name", MIXING)
def test_targets_that_mix_examples_are_refused(name: str) -> None:
    libra, x = converted(encoder)
    target, message = MIXING[name]
    wanted = rf"mixes the examples of the batch: {message}.*\.detach\(\).*attribute one example at a time"
    for how in ("input_x_gradient", "gradient", "gradcam", "integrated_gradients"):
        with pytest.raises(fxgrad.InputError, match=wanted):
            fxgrad.attribute(libra, (x,), target=target, method=how)


@pytest.mark.parametrize(
    "target",
    [
        lambda y: y[:, 1] / y.mean(0).detach()[1],
        lambda y: (y * (y.argmax(1) == 2)[:, None]).sum(1),
        lambda y: y.flip(0).flip(0)[:, 2],
        lambda y: y.norm(dim=1),
        lambda y: y.amax(1),
        lambda y: y.relu().sum(1),
        lambda y: torch.zeros_like(y[:, 0]) * y[:, 0],
    ],
)
def test_targets_that_keep_examples_apart_are_sums(target: Function) -> None:
    libra, x = converted(encoder)
    found = fxgrad.attribute(libra, (x,), target=target)
    leaf = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(target(libra(leaf)).sum(), leaf)
    assert torch.allclose(found.map, (x * g).sum(2), rtol=1e-10, atol=1e-12) and found.note == ""
    assert torch.allclose(found.total, found.output, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "target",
    [
        surprise,
        lambda y: y.softmax(1)[:, 2],
        lambda y: y[:, 0].sigmoid(),
        lambda y: y[:, 0] + 1,
        lambda y: y[:, 0] - y[:, 0].detach() / 2,
        lambda y: y[:, 0] ** 2,
        lambda y: y.logsumexp(1),
        Contrast(0, lambda y: y.softmax(1)[:, 2]),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_targets_that_are_no_sum_come_with_a_warning(target: Any, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 8).to(dtype)
    libra = fxgrad.convert(nn.Sequential(nn.Linear(8, 6), nn.GELU(), nn.Linear(6, 4)).to(dtype).eval(), (x,))
    found = fxgrad.attribute(libra, (x,), target=target, method=as_they_are)
    assert re.search(r"Warning: the target \(.*\) is no sum of contributions of the outputs", found.note)
    assert "shares of its value cannot be complete" in str(found)
    both = fxgrad.attribute(libra, (x,), target=Contrast(Probability(1), target), method=as_they_are)
    assert both.note.startswith("Warning: a probability is no sum of contributions")
    assert fxgrad.attribute(libra, (x,), target=lambda y: y[:, 0] - 3 * y[:, 1], method=as_they_are).note == ""


def as_they_are(problem: Problem) -> Map:
    found = problem.run()
    return Map(tokens=found.inputs["input"] * found.gradients["input"])


class Several(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.f = nn.Linear(8, 4)
        self.scale, self.prototypes = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.randn(3, 4))

    def forward(self, x: Tensor) -> dict[str, Any]:
        y = self.f(x).mean(1)
        return {
            "loss": y.square().mean(),
            "logits": y,
            "scale": self.scale * 1,
            "prototypes": self.prototypes * 1,
            "hidden": None,
            "classes": y.argmax(1),
            "number": 3,
        }


def test_outputs_beside_the_logits() -> None:
    libra, x = converted(Several)
    assert torch.equal(fxgrad.attribute(libra, (x,), target=None).output, logits_of(libra(x)).amax(1))
    for target in (lambda o: o["loss"].expand(3), lambda o: o["logits"][:, 0] + o["loss"]):
        with pytest.raises(
            fxgrad.InputError, match=r"reads output\['loss'\] of shape \(\), which has no axis for the 3"
        ):
            fxgrad.attribute(libra, (x,), target=target)
    with pytest.raises(fxgrad.InputError, match="returned one number for 3 examples"):
        fxgrad.attribute(libra, (x,), target=lambda o: o["loss"])
    assert fxgrad.attribute(libra, (x[:1],), target=lambda o: o["loss"]).output.shape == (1,)


@pytest.mark.parametrize("name", ["scale", "prototypes"])
def test_outputs_that_all_examples_share(name: str) -> None:
    libra, x = converted(Several)
    order = torch.tensor([2, 0, 1])

    def target(o: dict[str, Tensor]) -> Tensor:
        return o["logits"][:, 1] * o["scale"] if name == "scale" else (o["logits"] * o["prototypes"][order]).sum(1)

    def one(o: dict[str, Tensor], k: int) -> Tensor:
        factor = o["scale"] if name == "scale" else o["prototypes"][order[k]]
        return o["logits"][:, 1] * factor if name == "scale" else (o["logits"] * factor).sum(1)

    whole = fxgrad.attribute(libra, (x,), target=target)
    own = [fxgrad.attribute(libra, (x[k : k + 1],), target=lambda o, k=k: one(o, k)) for k in range(3)]

    assert torch.allclose(whole.map, torch.cat([a.map for a in own]), rtol=1e-10, atol=1e-12)
    aparts = [a.apart for a in own if a.apart is not None]
    assert whole.apart is not None and torch.allclose(whole.apart, torch.cat(aparts), rtol=1e-10, atol=1e-12)
    # By degree 2 in the outputs, the shares are twice the value; the note says so.
    assert torch.allclose(whole.total, 2 * whole.output) and "is no sum of contributions" in whole.note


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
