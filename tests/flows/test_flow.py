"""`fxgrad.flow`: what flows into a token is its share and flows out of it, and every edge is what dense algebra gives."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import timm
import torch
from timm.models import MlpMixer
from torch import Tensor, nn

import fxgrad
from fxgrad.data.models import randomize
from fxgrad.demo.clip import DigitsClip
from fxgrad.errors import InputError
from fxgrad.flows.balance import imbalance
from fxgrad.methods import Contrast, Probability
from tests.helpers.flows import conserved


class Recurrent(nn.Module):
    """An LSTM over another: the second has its own constants, the first both directions."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.LSTM(4, 5, batch_first=True, bidirectional=True)
        self.two = nn.LSTM(10, 6, batch_first=True)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        head: Tensor = self.head(self.two(self.one(x)[0])[0][:, -1])
        return head


class Skipping(nn.Module):
    """A convolution's output that skips two others, and is added behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(n, 3, 3, padding=1) for n in (2, 3, 3))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x).tanh()
        joined = torch.cat([a, self.c(self.b(a).tanh()).tanh()], 1)
        head: Tensor = self.head(joined.mean((2, 3)))
        return head


SWIN = {"window_size": 4, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4)}
PICTURES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, Any]]] = {
    "vit": (lambda: timm.create_model("test_vit", img_size=32, num_classes=5), (3, 32, 32), {}),
    "swin": (lambda: timm.create_model("swin_tiny_patch4_window7_224", img_size=32, num_classes=5, **SWIN), (3, 32, 32), {}),
    "convnext": (lambda: timm.create_model("test_convnext", num_classes=5), (3, 64, 64), {}),
    "mixer": (lambda: MlpMixer(img_size=32, patch_size=8, embed_dim=16, num_blocks=2, num_classes=5), (3, 32, 32), {}),
    "clip": (lambda: DigitsClip(width=16, depth=2).visual, (3, 48, 48), {}),
    "lstm": (Recurrent, (7, 4), {"cuts": ["one", "two"]}),
    "skip": (Skipping, (2, 4, 4), {"cuts": ["a", "b", "c"]}),
}  # fmt: skip


@cache
def converted(name: str) -> tuple[Any, Tensor, dict[str, Any]]:
    build, shape, options = PICTURES[name]
    torch.manual_seed(0)
    model = build().eval().double().requires_grad_(False)
    randomize(model, 0)
    x = torch.randn(1, *shape, dtype=torch.float64)
    return fxgrad.convert(model, (x,)), x, options


@pytest.mark.parametrize("name", PICTURES)
def test_flow_is_conserved(name: str) -> None:
    libra, x, options = converted(name)
    value = float(libra(x)[0, 2])
    graph = fxgrad.flow(libra, (x,), target=2, **options)
    conserved(graph, value)
    conserved(fxgrad.flow(libra, (x,), target=2, top=3, **options), value)
    layers = {about["layer"] for about in graph.nodes.values()}
    assert layers == set(range(max(layers) + 1)) and max(layers) > 2
    assert any(about["kind"] == "constants" and about["share"] != 0 for about in graph.nodes.values())


def test_edges_are_those_of_dense_jacobians() -> None:
    """The first block, the second, and the rest, each converted for itself, with all of its Jacobian."""
    torch.manual_seed(0)
    vit = timm.create_model("test_vit", img_size=32, num_classes=5).eval().double().requires_grad_(False)
    vit.blocks = vit.blocks[:2].eval()
    randomize(vit, 0)
    x = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    graph = fxgrad.flow(fxgrad.convert(vit, (x,)), (x,), target=3)

    class Head(nn.Module):
        def forward(self, h: Tensor) -> Tensor:
            return vit.forward_head(vit.norm(h))

    class Start(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(x))))

    first = Start()(x)
    second = vit.blocks[0](first)
    last = vit.blocks[1](second)
    parts = [(Start(), x), (vit.blocks[0], first), (vit.blocks[1], second), (Head(), last)]
    dense = [torch.autograd.functional.jacobian(fxgrad.convert(part.eval(), (h,)), h)[0] for part, h in parts]
    g_last = dense[3][3][0]  # (tokens, channels)
    g_second = torch.einsum("jc,jcbid->id", g_last, dense[2])
    g_first = torch.einsum("jc,jcbid->id", g_second, dense[1])
    wanted = torch.einsum("id,jcid,jc->ij", first[0], dense[1][:, :, 0], g_second)
    found = torch.tensor([
        [graph.edges.get((f"blocks.0[{i}]", f"blocks.1[{j}]"), {"weight": 0.0})["weight"] for j in range(5)]
        for i in range(5)
    ], dtype=torch.float64)  # fmt: skip
    assert wanted.abs().min() > 0 and (wanted - found).abs().max() < 1e-12 * wanted.abs().max()
    pixels = torch.einsum("bcyx,jdbcyx,jd->yxj", x, dense[0], g_first).unflatten(0, (2, 16)).unflatten(2, (2, 16))
    patches = pixels.sum((1, 3)).flatten(0, 1)
    for patch, row in enumerate(patches, start=1):
        for token, weight in enumerate(row.tolist()):
            edge = graph.edges.get((f"x[{patch}]", f"blocks.0[{token}]"), {"weight": 0.0})["weight"]
            assert abs(edge - weight) < 1e-12 * patches.abs().max()
    kept = float(vit(x)[0, 3]) - float((second[0] * g_second).sum())
    assert abs(graph.nodes["constants before target"]["share"] - kept) < 1e-12


@pytest.mark.parametrize("name", ["vit", "mixer", "clip", "swin", "convnext"])
def test_shares_are_those_of_attribute(name: str) -> None:
    libra, x, _ = converted(name)
    graph = fxgrad.flow(libra, (x,), target=2)

    def shares(kind: str, layer: int | None = None) -> Tensor:
        own = [a["share"] for a in graph.nodes.values() if a["kind"] == kind and layer in (None, a["layer"])]
        return torch.tensor(own, dtype=torch.float64)

    inputs = fxgrad.attribute(libra, (x,), target=2)
    assert torch.allclose(shares("input"), inputs.patches.flatten(), rtol=0, atol=1e-12)
    assert abs(shares("constants").sum() - inputs.apart) < 1e-12
    if name in ("vit", "mixer", "clip"):
        tokens = fxgrad.attribute(libra, (x,), target=2, at="tokens").map
        assert torch.allclose(shares("token", 1), tokens.flatten(), rtol=0, atol=1e-12)


def test_class_token_comes_from_constants() -> None:
    """FullGrad puts what constants contribute on the tokens; the flow's first constants say on which."""
    libra, x, _ = converted("vit")
    graph = fxgrad.flow(libra, (x,), target=2)
    assert set(graph.pred["blocks.0[0]"]) == {"constants before blocks.0"}
    assert graph.nodes["blocks.0[0]"]["name"] == "class token" and graph.nodes["blocks.0[4]"]["column"] == 1
    fullgrad = fxgrad.attribute(libra, (x,), target=2, method="fullgrad", grid=(2, 2))
    assert abs(float(fullgrad.map.sum()) - sum(graph.nodes[n]["share"] for n in graph if not graph.pred[n])) < 1e-12


def test_a_skip_is_part_of_the_cuts_that_it_passes() -> None:
    libra, x, options = converted("skip")
    graph = fxgrad.flow(libra, (x,), target=2, **options)
    values = {str(n).partition("[")[0] for n, about in graph.nodes.items() if about["kind"] == "token"}
    assert values == {"a", "b", "b, tanh", "c", "c, tanh"}
    at_b = [graph.nodes[f"b, tanh[{i}]"] for i in range(16)]
    assert [(one["row"], one["column"]) for one in at_b] == [divmod(i, 4) for i in range(16)]
    for i in range(16):  # it passes unchanged
        assert set(graph.pred[f"c, tanh[{i}]"]) == {f"b, tanh[{i}]"}


def test_a_contrast_is_a_difference_of_flows() -> None:
    libra, x, _ = converted("mixer")
    both = fxgrad.flow(libra, (x,), target=Contrast(2, 0))
    one, other = (fxgrad.flow(libra, (x,), target=target) for target in (2, lambda logits: logits[:, 0]))
    assert both.graph["target"] == "class 2 minus class 0"
    for a, b, weight in both.edges.data("weight"):
        assert abs(weight - one.edges[a, b]["weight"] + other.edges[a, b]["weight"]) < 1e-12


def test_the_strongest_edges_stay_as_they_are() -> None:
    libra, x, _ = converted("mixer")
    whole, some = fxgrad.flow(libra, (x,), target=2), fxgrad.flow(libra, (x,), target=2, top=4)
    kept = [
        (a, b, w)
        for a, b, w in some.edges.data("weight")
        if "rest" not in (some.nodes[a]["kind"], some.nodes[b]["kind"])
    ]
    assert len(kept) == 12 and all(whole.edges[a, b]["weight"] == w for a, b, w in kept)
    for layer in (1, 2, 3):
        all_of_it = sorted((abs(w) for _, b, w in whole.edges.data("weight") if whole.nodes[b]["layer"] == layer))
        own = sorted(abs(w) for _, b, w in kept if some.nodes[b]["layer"] == layer)
        assert own == all_of_it[-4:]
    assert [a["name"] for a in some.nodes.values() if a["kind"] == "rest"] == [
        "rest before blocks.0", "rest before blocks.1", "rest before target"
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["vit", "lstm"])
def test_tokens_at_once_and_one_by_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where an op has no gradient that vmap can batch."""
    libra, x, options = converted(name)
    wanted = fxgrad.flow(libra, (x,), target=2, **options)

    def fails(*_: Any) -> Any:
        raise RuntimeError("no batching rule")

    monkeypatch.setattr(torch, "vmap", fails)
    found = fxgrad.flow(libra, (x,), target=2, **options)
    assert set(found.edges) == set(wanted.edges)
    assert all(abs(weight - wanted.edges[a, b]["weight"]) < 1e-14 for a, b, weight in found.edges.data("weight"))


def refuse(call: Callable[[], Any]) -> str:
    with pytest.raises(InputError) as error:
        call()
    return str(error.value)


def test_refusals() -> None:
    libra, x, _ = converted("mixer")

    def asked(**options: Any) -> str:
        return refuse(lambda: fxgrad.flow(libra, (x,), **{"target": 2, **options}))

    assert asked(cuts="blocks.0") == "cuts are several module paths. Pass cuts=['blocks.0']."
    assert asked(cuts=["blocks.7"]).startswith("no layer 'blocks.7' that depends on the input. Close to it: blocks.")
    assert asked(cuts=["blocks.0", "blocks.0"]).startswith("the cut 'blocks.0' is where another is, or the inputs are.")
    assert asked(top=-1) == "top is how many edges to keep between two cuts, a whole number from 0, not -1."
    assert asked(target=[2]) == "a flow has one target, not a list of them. Call fxgrad.flow for each."
    assert "whole: a probability is no sum of contributions" in asked(target=Probability(2))
    assert "has a constant in it" in asked(target=lambda logits: logits[:, 0] + 3)
    assert (
        refuse(lambda: fxgrad.flow(libra, (x.repeat(2, 1, 1, 1),), target=2))
        == "a flow is of one example, and these are 2. Pass one."
    )
    assert "a number is not finite" in refuse(lambda: fxgrad.flow(libra, (x * float("nan"),), target=2))
    found = refuse(lambda: fxgrad.flow(libra.under("gradient"), (x,), target=2))
    assert (
        "is not what flows out of it, by" in found and "keep their own gradient" in found and "aten.layer_norm" in found
    )


def test_what_nothing_of_the_target_flows_through() -> None:
    libra, x, _ = converted("vit")
    found = refuse(lambda: fxgrad.flow(libra, (x,), target=2, cuts=["blocks.1.attn.qkv"]))
    assert found == "nothing of the target flows through 'blocks.1.attn.qkv'. Cut elsewhere."


def test_what_is_lost_is_found() -> None:
    """Also where nothing at all flows into a token, or out of it."""
    libra, x, _ = converted("mixer")
    graph = fxgrad.flow(libra, (x,), target=2)
    assert imbalance(graph)[0] == graph.graph["error"] < 1e-12
    for edges in (graph.in_edges("blocks.1[3]"), graph.out_edges("blocks.1[3]"), [("blocks.0[1]", "blocks.1[2]")]):
        less = graph.copy()
        less.remove_edges_from(list(edges))
        assert imbalance(less)[0] > 1e-6


def test_a_fault_of_a_node_is_found() -> None:
    """A node that hands on too much is named by the cut behind it."""
    libra, x, _ = converted("mixer")
    run = fxgrad.flows.graph.Run.back

    def wrong(self: Any, k: int, cotangents: Any) -> Any:
        starts, kept = run(self, k, cotangents)
        return starts, kept + (k == 1) * 1e-6

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fxgrad.flows.graph.Run, "back", wrong)
        assert "fxgrad.check proves node by node" in refuse(lambda: fxgrad.flow(libra, (x,), target=2))
