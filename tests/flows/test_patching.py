"""`fxgrad.patching`: estimates are autograd's by hand, effects are those of hooks on the original model."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import fxgrad
from fxgrad.data.models import randomize
from fxgrad.errors import InputError
from fxgrad.flows.effects import Effects
from fxgrad.methods import Contrast, Token

Mask = Callable[[Tensor], list[Tensor]]
"""From a module's output to a bool tensor of its shape for each token, in order."""


def rows(value: Tensor) -> list[Tensor]:
    """Tokens (1, tokens, channels)."""
    return [(torch.arange(value.shape[1]) == i)[None, :, None].expand(value.shape) for i in range(value.shape[1])]


def cells(value: Tensor) -> list[Tensor]:
    """The 4 x 4 cells of a map (1, channels, rows, columns)."""
    high, wide = (torch.arange(n) // (n // 4) for n in value.shape[2:])
    return [((high == r)[:, None] & (wide == c)[None, :]).expand(value.shape) for r in range(4) for c in range(4)]


SWIN = {"window_size": 4, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4)}
VISION: dict[str, tuple[Callable[[], nn.Module], int, list[str], Mask]] = {
    "vit": (lambda: timm.create_model("test_vit", img_size=32, num_classes=5), 32, ["blocks.1", "blocks.3.attn", "norm"], rows),
    "convnext": (lambda: timm.create_model("test_convnext", num_classes=5), 64, ["stages.1", "stages.2.blocks.0"], cells),
}  # fmt: skip
TEXTS = {"gpt2": ["transformer.h.0", "transformer.h.1.mlp"], "llama": ["model.layers.0", "model.layers.1.self_attn"]}


def score(output: Any) -> Tensor:
    """What `TARGET` reads."""
    value: Tensor = output[0, 2] if isinstance(output, Tensor) else output.logits[0, -1, 7]
    return value


@cache
def case(name: str) -> tuple[nn.Module, Any, Tensor, Tensor, list[str], Mask, Any]:
    """(original, converted, clean, corrupt, cuts, masks of tokens, target), in float64."""
    torch.manual_seed(0)
    if name in VISION:
        build, side, cuts, masks = VISION[name]
        model = build()
        clean, corrupt = torch.randn(2, 1, 3, side, side, dtype=torch.float64)
        target: Any = 2
    else:
        pytest.importorskip("transformers")
        from tests.helpers.language_models import V
        from tests.helpers.language_models import model as built

        model, cuts, masks, target = built(name), TEXTS[name], rows, Token(id=7)
        clean, corrupt = torch.randint(5, V, (2, 1, 5))
    model = model.eval().double().requires_grad_(False)
    randomize(model, 0)
    return model, fxgrad.convert(model, (clean,)), clean, corrupt, cuts, masks, target


def hooked(model: nn.Module, path: str, x: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """The target's value with another output of a module."""

    def hook(_: Any, __: Any, output: Any) -> Any:
        return change(output) if isinstance(output, Tensor) else (change(output[0]), *output[1:])

    handle = model.get_submodule(path).register_forward_hook(hook)
    try:
        return score(model(x))
    finally:
        handle.remove()


def output_of(model: nn.Module, path: str, x: Tensor) -> Tensor:
    seen: list[Tensor] = []
    hooked(model, path, x, lambda h: (seen.append(h), h)[1])
    return seen[0].detach()


ALL = [*VISION, *TEXTS]


@pytest.mark.parametrize("run", ["clean", "corrupt"])
@pytest.mark.parametrize("name", ALL)
def test_effects_are_those_of_hooks_on_the_original(name: str, run: str) -> None:
    model, libra, clean, corrupt, cuts, masks, target = case(name)
    found = fxgrad.patching(libra, clean, corrupt, target=target, cuts=cuts, run=run, effects=True)
    x, other = (clean, corrupt) if run == "clean" else (corrupt, clean)
    before = score(model(x))
    assert abs(found.clean - score(model(clean))) < 1e-6 and abs(found.corrupt - score(model(corrupt))) < 1e-6
    for path in cuts:
        theirs = output_of(model, path, other)
        changes = [partial(torch.where, mask, theirs) for mask in masks(theirs)]
        wanted = [hooked(model, path, x, change) - before for change in changes]
        tolerance = 1e-7 if name == "llama" else 1e-11  # its own code computes norms in float32
        assert torch.allclose(found.effect[path], torch.stack(wanted).double(), rtol=0, atol=tolerance)
        assert found.effect[path].abs().max() > 1e-5


@pytest.mark.parametrize("rules", ["gradient", "libragrad", "attnlrp"])
@pytest.mark.parametrize("name", ALL)
def test_estimates_are_differences_times_gradients(name: str, rules: str) -> None:
    """Plain gradients by hooks on the original model, the policies' by hooks on the rewritten one."""
    model, libra, clean, corrupt, cuts, masks, target = case(name)
    found = fxgrad.patching(libra.under(rules), clean, corrupt, target=target, cuts=cuts)
    net = model if rules == "gradient" else libra.under(rules).unflattened()
    for path in cuts:
        theirs = output_of(model, path, corrupt)
        start: list[Tensor] = []

        def leaf(h: Tensor, start: list[Tensor] = start) -> Tensor:
            start.append(h.detach().requires_grad_())
            return start[0]

        (g,) = torch.autograd.grad(hooked(net, path, clean, leaf), start)
        products = (theirs - start[0].detach()) * g
        wanted = torch.stack([products[mask].sum() for mask in masks(products)]).double()
        tolerance = 1e-7 if name == "llama" else 1e-12
        assert torch.allclose(found.estimate[path], wanted, rtol=0, atol=tolerance) and wanted.abs().max() > 1e-5


def test_of_a_linear_model_the_estimate_is_the_effect() -> None:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 2, 2), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 2, 2, 2)
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, 3)).eval().double()
    clean, corrupt = torch.randn(2, 1, 3, 8, 8, dtype=torch.float64)
    libra = fxgrad.convert(model, (clean,))
    for run in ("clean", "corrupt"):
        found = fxgrad.patching(libra, clean, corrupt, target=1, cuts=["0", "1", "2"], run=run, effects=True)
        assert {cut: len(values) for cut, values in found.effect.items()} == {"0": 4, "1": 4, "2": 4}
        for cut, effect in found.effect.items():
            assert (found.estimate[cut] - effect).abs().max() < 1e-10 < effect.abs().max()
            sign = 1 if run == "clean" else -1
            assert abs(effect.sum() - sign * (found.corrupt - found.clean)) < 1e-10
        assert all(abs(one.pearson - 1) < 1e-10 for one in found.correlation.values())


@pytest.mark.parametrize("name", [*ALL, "swin", "lstm"])
def test_at_once_and_one_by_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Swin's windows are merged with the batch."""
    if name in ("swin", "lstm"):
        from tests.flows.test_flow import converted

        libra, clean, options = converted(name)
        corrupt, target = torch.randn_like(clean), 2
        cuts = options.get("cuts", ["layers.0.blocks.1.attn", "layers.1.blocks.0"])
    else:
        _, libra, clean, corrupt, cuts, _, target = case(name)
    seen: list[int] = []
    fitting = Effects._fitting

    def watched(self: Effects, *sizes: int) -> int:
        seen.append(fitting(self, *sizes))
        return seen[-1]

    def found() -> Any:
        return fxgrad.patching(libra, clean, corrupt, target=target, cuts=cuts, effects=True).effect

    monkeypatch.setattr(Effects, "_fitting", watched)
    batched = found()
    assert seen[0] > 1
    for count in (1, 3):
        monkeypatch.setattr(Effects, "_fitting", lambda *_, count=count: count)
        for cut, effect in found().items():
            tolerance = 1e-7 if name == "llama" else 1e-12
            assert effect.abs().max() > 1e-5 and (effect - batched[cut]).abs().max() < tolerance


def test_a_batch_whose_rows_differ_is_not_used() -> None:
    """Its own mean over the batch is the same for copies, but not once one of them is changed."""

    class Mixing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x).tanh()
            logits: Tensor = self.b((h - h.mean(0, keepdim=True) + 1) * h).mean(1)
            return logits

    torch.manual_seed(0)
    model = Mixing().eval().double()
    clean, corrupt = torch.randn(2, 1, 5, 3, dtype=torch.float64)
    libra = fxgrad.convert(model, (clean,))
    found = fxgrad.patching(libra, clean, corrupt, target=1, cuts=["a"], effects=True)
    start, theirs = model.a(clean), model.a(corrupt)
    for i in range(5):
        h = torch.where((torch.arange(5) == i)[None, :, None], theirs, start).tanh()
        wanted = model.b(h).mean(1)[0, 1] - model(clean)[0, 1]
        assert abs(found.effect["a"][i] - wanted) < 1e-12


def test_a_mask_has_a_row_for_each_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Llama picks the rows of its mask by number, so that the graph does not tell that they are examples."""
    pytest.importorskip("transformers")
    from tests.helpers.language_models import V, model

    net = model("llama")
    randomize(net, 0)
    clean, corrupt = (
        {"input_ids": torch.randint(5, V, (1, 5)), "attention_mask": torch.ones(1, 5, dtype=torch.int64)} for _ in "ab"
    )
    alike, seen = Effects._alike, []

    def watched(self: Effects, outputs: Any) -> bool:
        seen.append((self.copies, alike(self, outputs)))
        return seen[-1][1]

    monkeypatch.setattr(Effects, "_alike", watched)
    libra = fxgrad.convert(net, (), clean)
    found = fxgrad.patching(libra, clean, corrupt, target=Token(id=7), effects=True)
    assert seen == [(5, True)]
    monkeypatch.setattr(Effects, "_fitting", lambda *_: 1)
    singly = fxgrad.patching(libra, clean, corrupt, target=Token(id=7), effects=True)
    assert all((singly.effect[cut] - effect).abs().max() < 1e-7 for cut, effect in found.effect.items())


def test_targets() -> None:
    _, libra, clean, corrupt, *_ = case("vit")

    def effect(target: Any) -> Tensor:
        return fxgrad.patching(libra, clean, corrupt, target=target, cuts=["blocks.1"], effects=True).effect["blocks.1"]

    likeliest = int(libra(clean).argmax())
    assert torch.equal(effect(None), effect(likeliest))
    assert torch.allclose(effect(Contrast(2, 1)), effect(2) - effect(1), rtol=0, atol=1e-12)
    assert torch.allclose(effect(lambda logits: 3 * logits[:, 2]), 3 * effect(2), rtol=0, atol=1e-12)


def test_what_is_found(tmp_path: Path) -> None:
    _, libra, clean, corrupt, *_ = case("vit")
    found = fxgrad.patching(libra, clean, corrupt, target=2, effects=True)
    graph = fxgrad.flow(libra, (clean,), target=2)
    for cut, names in found.nodes.items():
        assert [graph.nodes[name]["name"] for name in names] == [about["name"] for about in found.about[cut]]
        assert len(found.estimate[cut]) == len(names) == 5
    assert list(found.correlation) == [*found.nodes, "all"]
    best = found.strongest(3, by="effect")
    everything = torch.cat([*found.effect.values()])
    assert [abs(one.effect or 0) for one in best] == everything.abs().sort(descending=True).values[:3].tolist()
    read = json.loads(found.to_json())
    assert read["cuts"][1]["effect"] == found.effect["blocks.1"].tolist() and read["clean"] == found.clean
    assert "| blocks." in str(found) and "corrupt values put into the clean run, libragrad" in str(found)
    found.plot(tmp_path / "heat.png")
    assert (tmp_path / "heat.png").stat().st_size > 5000


def test_correlations_of_what_does_not_vary() -> None:
    _, libra, clean, _, *_ = case("vit")
    found = fxgrad.patching(libra, clean, clean, target=2, cuts=["blocks.1"], effects=True)
    assert found.effect["blocks.1"].abs().max() < 1e-15 and not found.estimate["blocks.1"].any()
    assert math.isnan(found.correlation["all"].pearson)


def test_refusals() -> None:
    _, libra, clean, corrupt, *_ = case("vit")

    def refused(**options: Any) -> str:
        given = {"clean": clean, "corrupt": corrupt, "target": 2, **options}
        with pytest.raises(InputError) as error:
            fxgrad.patching(libra, given.pop("clean"), given.pop("corrupt"), **given)
        return str(error.value)

    assert refused(run="noise") == 'run is "clean" or "corrupt", not \'noise\'.'
    assert refused(cuts="blocks.0") == "cuts are several module paths. Pass cuts=['blocks.0']."
    assert refused(target=[1]).startswith("patching has one target, not a list")
    assert refused(clean=clean.repeat(2, 1, 1, 1)).startswith("patching is of one example, and these are 2.")
    assert "equal shapes, and 'x' is (1, 3, 32, 32) in the one and (2, 3," in refused(corrupt=clean.repeat(2, 1, 1, 1))
    assert refused(cuts=["blocks.1.attn.qkv"]).startswith("nothing of the target flows through")
    plain = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2)).eval()
    x = torch.ones(1, 3)
    with pytest.raises(InputError, match="no blocks that the target's gradient reaches"):
        fxgrad.patching(fxgrad.convert(plain, (x,)), x, 2 * x, target=1, cuts=[])
    found = fxgrad.patching(libra, clean, corrupt, target=2)
    assert found.effect == {}
    with pytest.raises(InputError, match="effects=True"):
        found.correlation  # noqa: B018
    with pytest.raises(InputError, match="by="):
        found.strongest(by="effect")
