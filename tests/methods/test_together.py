"""Methods and targets asked for together: what each gives alone, from one forward and one backward pass."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import fxgrad
from fxgrad.methods import SHARING, Attribution, Map, Problem
from fxgrad.methods.search import Search
from fxgrad.methods.together import Asked
from fxgrad.run.recording import Recorder, Recording
from tests.helpers.quick import QUICK

FEW: list[Any] = [*QUICK.items(), "transatt", "legrad", "occlusion"]
TARGETS: list[Any] = [3, torch.tensor([1, 0])]


@pytest.fixture(scope="module")
def vit() -> tuple[fxgrad.ConvertedModule, Tensor]:
    torch.manual_seed(0)
    model = timm.create_model("test_vit", img_size=32, num_classes=5).eval()
    x = torch.randn(2, 3, 32, 32)
    return fxgrad.convert(model, (x,)).requires_grad_(False), x


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """Forward passes of the program, of whichever kind, and backward passes."""
    found = {"recorded": 0, "looked": 0, "plain": 0, "back": 0}

    def counting(owner: Any, name: str, kind: str) -> None:
        own = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            found[kind] += 1
            return own(*args, **kwargs)

        patch.setattr(owner, name, call)

    with monkeypatch.context() as patch:
        counting(Recording, "__init__", "recorded")
        counting(Recording, "back", "back")
        counting(Recorder, "run", "looked")
        counting(fxgrad.ConvertedModule, "run", "plain")
        yield found


def assert_same(one: Attribution, other: Attribution) -> None:
    assert (one.method, one.rules, one.label, one.copies, one.note) == (
        *(other.method, other.rules, other.label, other.copies, other.note),
    )
    for ours, theirs in [(one.output, other.output), (one.map, other.map), (one.apart, other.apart)]:
        assert (ours is None) == (theirs is None)
        if ours is not None and theirs is not None:
            assert torch.equal(ours, theirs)
    assert one.maps.keys() == other.maps.keys()
    assert all(torch.equal(one.maps[name], other.maps[name]) for name in one.maps)


@pytest.mark.parametrize("policy", ["libragrad", "gradient", "attnlrp"])
def test_each_method_gives_together_what_it_gives_alone(
    policy: str, vit: tuple[fxgrad.ConvertedModule, Tensor]
) -> None:
    libra, x = vit[0].under(policy), vit[1]
    together = fxgrad.attribute(libra, (x,), target=TARGETS, method=[*SHARING, *FEW])
    for i, name in enumerate([*SHARING, *FEW]):  # each with one of the targets, in turn
        method, options = name if isinstance(name, tuple) else (name, {})
        alone = fxgrad.attribute(libra, (x,), target=TARGETS[i % 2], method=method, **options)
        assert_same(together[i % 2][i], alone)


def test_one_forward_and_one_backward_pass_serve_all(
    vit: tuple[fxgrad.ConvertedModule, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    libra, x = vit
    with counted(monkeypatch) as passes:
        fxgrad.attribute(libra, (x,), target=1, method=list(SHARING))
        assert passes == {"recorded": 1, "looked": 1, "plain": 0, "back": 1}
        fxgrad.attribute(libra, (x,), target=[1, 2, 3], method=list(SHARING))
        assert passes == {"recorded": 2, "looked": 2, "plain": 0, "back": 3}  # the second and third go at once
    for name in SHARING:
        with counted(monkeypatch) as passes:
            fxgrad.attribute(libra, (x,), target=1, method=name)
        assert sum(passes.values()) - passes["looked"] <= 2 and passes["looked"] <= 1, name


def test_the_operations_are_those_of_less_than_two_plain_gradients(vit: tuple[fxgrad.ConvertedModule, Tensor]) -> None:
    """Counted by torch itself, as multiplications and additions of matrices, whoever asks for them."""

    def operations(call: Any) -> int:
        with FlopCounterMode(display=False) as counter:
            call()
        return int(counter.get_total_flops())

    libra, x = vit[0].under("gradient"), vit[1]

    def plain() -> None:
        leaf = x.clone().requires_grad_()
        torch.autograd.grad(libra(leaf + 0)[:, 1].sum(), leaf)  # the counter's hooks take no leaf

    together = operations(lambda: fxgrad.attribute(libra, (x,), target=1, method=list(SHARING)))
    assert operations(plain) < together < 2 * operations(plain)


class Unbatched(nn.Module):
    """Attention whose projections' biases are known for the whole batch only."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Layer(), Layer()])
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x)[:, 0]


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.out = nn.LSTM(8, 8, batch_first=True), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        seen: Tensor = self.out(self.lstm(x)[0].tanh())
        return x + seen


def test_examples_that_run_one_by_one_share_their_runs_too(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, x = Unbatched().double().eval(), torch.randn(3, 5, 8).double()
    libra = fxgrad.convert(model, (x,))
    names: list[Any] = ["input_x_gradient", "fullgrad", "fullgrad_plus", "gradient"]
    with counted(monkeypatch) as passes:
        together = fxgrad.attribute(libra, (x,), target=1, method=names)
    assert passes["recorded"] == 4 and passes["back"] == 4 and passes["plain"] == 0  # the batch, then each example
    for name, found in zip(names, together):
        assert_same(found, fxgrad.attribute(libra, (x,), target=1, method=name))


def test_a_method_of_your_own_may_ask_for_any_node(vit: tuple[fxgrad.ConvertedModule, Tensor]) -> None:
    libra, x = vit
    node = next(n.name for n in libra.graph.nodes if "gelu" in n.name)

    def mine(problem: Problem) -> Map:
        found = problem.run([node])
        return Map(tokens=(found.values[node] * found.cotangents[node]).sum(2))

    both = fxgrad.attribute(libra, (x,), target=1, method=["fullgrad", mine, "gradsam"])
    assert_same(both[1], fxgrad.attribute(libra, (x,), target=1, method=mine))
    assert_same(both[2], fxgrad.attribute(libra, (x,), target=1, method="gradsam"))


def test_options_of_one_method_of_a_list(vit: tuple[fxgrad.ConvertedModule, Tensor]) -> None:
    libra, x = vit
    path = [block.path for block in fxgrad.methods.anatomy(libra.classified).blocks][2]
    found = fxgrad.attribute(
        libra, (x,), target=1, method=[("gradcam", {"layer": path}), "gradcam", ("gradsam", {"blocks": [path]})]
    )
    assert_same(found[0], fxgrad.attribute(libra, (x,), target=1, method="gradcam", layer=path))
    assert_same(found[1], fxgrad.attribute(libra, (x,), target=1, method="gradcam"))
    assert_same(found[2], fxgrad.attribute(libra, (x,), target=1, method="gradsam", blocks=[path]))
    with pytest.raises(fxgrad.InputError, match=r"saliency has no option 'n_steps'.*\(method, \{'n_steps': \.\.\.\}\)"):
        fxgrad.attribute(libra, (x,), target=1, method=["saliency", "integrated_gradients"], n_steps=2)
    with pytest.raises(fxgrad.InputError, match=r'gradcam_plus, .* do; in a list, \(method, \{"layer": \'norm\'\}\)'):
        fxgrad.attribute(libra, (x,), target=1, method=["gradcam", "fullgrad"], layer="norm")
    with pytest.raises(fxgrad.InputError, match=r'is \(method, \{"n_steps": 20\}\), not \(\'smoothgrad\', 5\)'):
        fxgrad.attribute(libra, (x,), target=1, method=[("smoothgrad", 5)])  # type: ignore[list-item]


def test_an_error_of_one_method_is_raised_or_returned(vit: tuple[fxgrad.ConvertedModule, Tensor]) -> None:
    x = torch.randn(1, 3, 8, 8)
    cnn = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
    libra = fxgrad.convert(cnn, (x,))
    with pytest.raises(fxgrad.InputError, match="genatt needs"):
        fxgrad.attribute(libra, (x,), target=1, method=["gradient", "genatt"])
    asked = [Asked(fxgrad.methods.entry.known(name)) for name in ("gradient", "genatt")]
    ((found, error),) = fxgrad.methods.entry.attributed(
        libra, (x,), None, targets=[1], asked=asked, caught=(fxgrad.InputError,)
    )
    assert_same(found, fxgrad.attribute(libra, (x,), target=1, method="gradient"))
    assert isinstance(error, fxgrad.InputError) and "genatt needs" in str(error)


def test_shuffled_weights_change_what_a_copy_gives(vit: tuple[fxgrad.ConvertedModule, Tensor]) -> None:
    """Nothing is kept from one call to the next."""
    libra, x = copy.deepcopy(vit[0]), vit[1]
    before = fxgrad.attribute(libra, (x,), target=1, method=["fullgrad", "rollout"])
    with torch.no_grad():
        for parameter in libra.parameters():
            parameter.mul_(1.5)
    for one, other in zip(before, fxgrad.attribute(libra, (x,), target=1, method=["fullgrad", "rollout"])):
        assert not torch.equal(one.map, other.map)


def test_the_parts_of_a_model_are_searched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    searches: list[str] = []
    whole = Search.anatomy
    monkeypatch.setattr(Search, "anatomy", lambda self, *given: (searches.append(self.name), whole(self, *given))[1])
    model = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 3)).eval()
    libra, x = fxgrad.convert(model, (torch.randn(2, 4),)), torch.randn(5, 4)
    first = fxgrad.attribute(libra, (x,), target=1)
    assert torch.equal(fxgrad.attribute(libra, (x,), target=1).map, first.map) and len(searches) == 1
    fxgrad.attribute(libra, (x[:2],), target=1)
    fxgrad.attribute(libra, (x,), target=1, channels=None)
    assert len(searches) == 3
    assert copy.deepcopy(libra).derived == {} and libra.under("gradient").derived == {}


def test_targets_go_one_by_one_where_an_op_cannot_be_batched(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Recording, cotangents: Any) -> Any:
        raise fxgrad.InputError("some op has no gradient at these inputs: vmap cannot batch it.")

    model, x = nn.Sequential(nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 3)).eval(), torch.randn(2, 4)
    libra = fxgrad.convert(model, (x,))
    wanted = fxgrad.attribute(libra, (x,), target=[0, 2, 1])  # the first goes alone
    monkeypatch.setattr(Recording, "back_at_once", refuse)
    for one, other in zip(fxgrad.attribute(libra, (x,), target=[0, 2, 1]), wanted):
        assert torch.allclose(one.map, other.map, rtol=0, atol=1e-6)
