"""One map for every input: against plain autograd on the converted module, the sums, and one example at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxgrad
from fxgrad.methods import anatomy

OF_INPUTS = ("gradient", "saliency", "input_x_gradient", "integrated_gradients", "smoothgrad")


def converted(model: nn.Module, *inputs: Tensor, **options: Any) -> fxgrad.ConvertedModule:
    return fxgrad.convert(model.double().eval(), inputs, **options)


def products(libra: nn.Module, inputs: Sequence[Tensor], target: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """x * gradient of every input of floating dtype, by autograd alone."""
    leaves = [x.clone().requires_grad_() if x.is_floating_point() else x for x in inputs]
    target(libra(*leaves)).sum().backward()
    return [x.detach() * x.grad for x in leaves if x.grad is not None]


def assert_complete(found: fxgrad.Attribution) -> None:
    assert found.apart is not None
    total = sum((m.flatten(1).sum(1) if m.dim() > 1 else m for m in found.maps.values()), found.apart)
    assert torch.allclose(total, found.output, rtol=1e-10, atol=1e-10)
    assert found.completeness_error is not None and found.completeness_error < 1e-9


class Table(nn.Module):
    """Category ids, a table each, and numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(n, 8) for n in (7, 5, 11))
        self.norm, self.mix = nn.BatchNorm1d(4), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Sequential(nn.Linear(28, 16), nn.GELU(), nn.Linear(16, 3))

    def forward(self, ids: Tensor, numbers: Tensor) -> Tensor:
        tokens = torch.stack([table(ids[:, i]) for i, table in enumerate(self.tables)], 1)
        return self.head(torch.cat([self.mix(tokens).flatten(1), self.norm(numbers)], 1))


def test_columns_of_a_table() -> None:
    torch.manual_seed(0)
    inputs = torch.stack([torch.randint(n, (6,)) for n in (7, 5, 11)], 1), torch.randn(6, 4).double()
    target = torch.tensor([0, 1, 2, 0, 1, 2])
    libra = converted(Table(), *inputs)
    tokens = libra.embed(*inputs)
    numbers = inputs[1].clone().requires_grad_()
    libra.forward_from(tokens, inputs[0], numbers).gather(1, target[:, None]).sum().backward()
    wanted = {"numbers": numbers.detach() * numbers.grad}
    wanted |= {name: (v.detach() * v.grad).sum(1) for name, v in tokens.items()}  # type: ignore[operator]
    found = fxgrad.attribute(libra, inputs, target=target)
    assert {name: tuple(m.shape) for name, m in found.maps.items()} == {
        "numbers": (6, 4),
        **{f"tables.{i}": (6,) for i in range(3)},
    }
    for name, values in wanted.items():
        assert torch.allclose(found.maps[name], values, rtol=1e-10, atol=1e-12), name
    assert_complete(found)
    assert "numbers (6, 4), tables.0 (6,), tables.1 (6,), tables.2 (6,); .map is of numbers" in str(found)
    one = fxgrad.attribute(libra, tuple(x[4:5] for x in inputs), target=1)
    assert all(torch.allclose(one.maps[name], found.maps[name][4:5], atol=1e-12) for name in wanted)
    chosen = fxgrad.attribute(libra, inputs, target=target, input="tables.1")
    assert torch.equal(chosen.map, found.maps["tables.1"]) and chosen.tokens.shape == (6, 1)
    with pytest.raises(
        fxgrad.InputError, match=r"fullgrad puts .* map of input 'tables.0' is \(6,\)\. Use input_x_grad"
    ):
        fxgrad.attribute(libra, inputs, target=0, method="fullgrad", input="tables.0", blocks=["mix"])


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.f, self.h = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), nn.Linear(4, 2)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.h((self.f(a) - self.f(b)).abs().mean((2, 3)) + 0.1 * b.mean((1, 2, 3))[:, None])


def test_two_pictures() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(2, 3, 8, 8).double(), torch.randn(2, 3, 9, 8)[:, :, :8].double()
    libra = converted(Two(), *inputs)
    found = fxgrad.attribute(libra, inputs, target=1)
    for values, wanted in zip(found.maps.values(), products(libra, inputs, lambda y: y[:, 1])):
        assert torch.allclose(values, wanted.sum(1), rtol=1e-10, atol=1e-12)
    assert list(found.maps) == ["a", "b"] and torch.equal(found.pixels, found.maps["a"])
    assert_complete(found)
    other = fxgrad.attribute(libra, inputs, target=1, input="b")
    assert torch.equal(other.pixels, found.maps["b"])
    for method in OF_INPUTS:
        assert {m.shape for m in fxgrad.attribute(libra, inputs, target=1, method=method).maps.values()} == {(2, 8, 8)}
    with pytest.raises(fxgrad.InputError, match="channels names the input 'c'; the attributed inputs are a, b"):
        fxgrad.attribute(libra, inputs, target=1, channels={"c": 1})
    both = fxgrad.attribute(libra, inputs, target=1, channels={"a": None, "b": 3}).maps
    assert both["a"].shape == (2, 3, 8, 8) and both["b"].shape == (2, 3, 8)


class Translator(nn.Module):
    """Ids of an encoder and of a decoder, from one table, of one length."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.kinds = nn.Embedding(11, 8), nn.Embedding(3, 8)
        self.model = nn.Transformer(8, 2, 1, 1, 16, batch_first=True)
        self.head = nn.Linear(8, 11)

    def forward(self, ids: Tensor, kinds: Tensor, decoded: Tensor) -> Tensor:
        return self.head(self.model(self.words(ids) * 2 + self.kinds(kinds), self.words(decoded))[:, -1])


def test_an_encoder_and_a_decoder() -> None:
    torch.manual_seed(0)
    inputs = torch.randint(11, (2, 5)), torch.randint(3, (2, 5)), torch.randint(11, (2, 5))
    libra = converted(Translator(), *inputs)
    tokens = libra.embed(*inputs)
    libra.forward_from(tokens, *inputs)[:, 7].sum().backward()
    found = fxgrad.attribute(libra, inputs, target=7)
    wanted = {name: (v.detach() * v.grad).sum(2) for name, v in tokens.items()}  # type: ignore[operator]
    assert set(found.maps) == {"words(ids)", "kinds", "words(decoded)"} == set(wanted)
    assert all(torch.allclose(found.maps[name], wanted[name], rtol=1e-10, atol=1e-12) for name in wanted)
    assert torch.allclose(found.tokens, wanted["words(ids)"] + wanted["kinds"])  # the same tokens
    assert torch.allclose(
        fxgrad.attribute(libra, inputs, target=7, input="words(decoded)").tokens, wanted["words(decoded)"]
    )
    assert_complete(found)


class Graph(nn.Module):
    """Convolutions on a graph; with `batch`, nodes belong to two graphs; else every node has an output of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, edges: Tensor, batch: Tensor | None = None) -> Tensor:
        x = self.a(x)
        x = (torch.zeros_like(x).index_add(0, edges[1], x[edges[0]]) + x).relu()
        return self.b(x if batch is None else torch.zeros(2, 8).to(x).index_add(0, batch, x))


def graph(nodes: int, edges: int) -> tuple[Tensor, Tensor]:
    return torch.randn(nodes, 5).double(), torch.randint(nodes, (2, edges))


@pytest.mark.parametrize("pooled", [True, False])
def test_the_nodes_of_a_graph_are_no_examples(pooled: bool) -> None:
    torch.manual_seed(0)
    auto = torch.export.Dim.AUTO
    batch = (torch.arange(9) >= 4).long()
    pool = (batch,) if pooled else ()
    libra = converted(Graph(), *graph(9, 20), *pool, dynamic_shapes=({0: auto}, {1: auto}, *[{0: auto}] * pooled))
    batch = (torch.arange(7) >= 3).long()
    inputs = *graph(7, 12), *(batch,) * pooled
    rows = 2 if pooled else 7
    target = torch.arange(rows) % 3
    for method in ("input_x_gradient", "gradient", "saliency", "smoothgrad", "integrated_gradients"):
        found = fxgrad.attribute(libra, inputs, target=target, method=method)
        assert found.map.shape == (rows, 7) == found.tokens.shape and list(found.maps) == ["x"]
    found = fxgrad.attribute(libra, inputs, target=target)
    for row in range(rows):
        (wanted,) = products(libra, inputs, lambda y, row=row: y[row, target[row]])  # type: ignore[misc]
        assert torch.allclose(found.map[row], wanted.sum(1), rtol=1e-10, atol=1e-12)
    assert_complete(found)
    assert anatomy(libra.classified).inputs == {}
    each = fxgrad.attribute(libra, inputs, target=target, channels=None)
    assert each.map.shape == (rows, 7, 5) and torch.allclose(each.map.sum(2), found.map)
    with pytest.raises(fxgrad.InputError, match=r"neither patches nor tokens .* Use a method of the inputs"):
        fxgrad.attribute(libra, inputs, target=target, method="fullgrad")


def test_one_node_is_asked_about() -> None:
    torch.manual_seed(0)
    inputs = graph(7, 12)
    libra = converted(Graph(), *inputs)
    found = fxgrad.attribute(libra, inputs, target=lambda y: y[3, 2])
    each = fxgrad.attribute(libra, inputs, target=2)
    assert found.map.shape == (1, 7) and torch.allclose(found.map[0], each.map[3], rtol=1e-10, atol=1e-12)


class Pairs(nn.Module):
    """Similarities of pictures with texts."""

    def __init__(self) -> None:
        super().__init__()
        self.see, self.words = nn.Conv2d(3, 8, 4, 4), nn.Embedding(9, 8)
        self.blocks = nn.ModuleList([nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)])

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        text = self.blocks[0](self.words(text)).mean(1)
        return self.see(image).mean((2, 3)) @ nn.functional.normalize(text, dim=-1).T


def test_three_texts_with_one_picture() -> None:
    torch.manual_seed(0)
    libra = converted(Pairs(), torch.randn(2, 3, 8, 8).double(), torch.randint(9, (3, 5)))
    for pictures in (1, 2):
        inputs = torch.randn(pictures, 3, 8, 8).double(), torch.randint(9, (3, 5))
        found = fxgrad.attribute(libra, inputs, target=1)
        assert {n: tuple(m.shape) for n, m in found.maps.items()} == {
            "image": (pictures, 8, 8),
            "words": (pictures, 3, 5),
        }
        assert_complete(found)
        assert bool((found.maps["words"][:, [0, 2]] == 0).all()) and bool((found.maps["words"][:, 1] != 0).any())
        for i in range(pictures):
            one = fxgrad.attribute(libra, (inputs[0][i : i + 1], inputs[1]), target=1)
            assert all(torch.allclose(one.maps[n], found.maps[n][i : i + 1], atol=1e-11) for n in found.maps)
        with pytest.raises(fxgrad.InputError, match=r"genatt looks at .* 'words' of shape \(3, 5, 8\) has 3 that all"):
            fxgrad.attribute(libra, inputs, target=1, method="genatt", input="words")
        text = inputs[1][:1]
        for method in ("genatt", "fullgrad_plus", "hirescam"):
            shared = fxgrad.attribute(libra, (inputs[0], text), target=0, method=method, input="words")
            assert shared.map.shape == (pictures, 5), method


class Reads(nn.Module):
    """A recurrence over time, whatever axis that is."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.first, self.r, self.h = first, nn.GRU(6, 8, batch_first=not first), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.r(x)[0]
        return self.h(y[-1] if self.first else y[:, -1])


class Frames(nn.Module):
    """A video, frame by frame: (batch, time, channels, height, width)."""

    def __init__(self) -> None:
        super().__init__()
        self.c, self.h = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.c(x.flatten(0, 1)).relu().mean((2, 3))
        return self.h(y.unflatten(0, x.shape[:2]).mean(1))


class Last(nn.Module):
    """Pictures with their channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.c, self.h = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.h(self.c(x.permute(0, 3, 1, 2)).relu().mean((2, 3)))


def net(convolution: type[nn.Module], norm: type[nn.Module], size: int) -> nn.Module:
    pool = getattr(nn, f"AdaptiveAvgPool{size}d")(1)
    return nn.Sequential(convolution(2, 4, 3), norm(4), nn.GELU(), pool, nn.Flatten(), nn.Linear(4, 3))


RANKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int, tuple[int, ...]]] = {
    # model, shape, its axis of channels, the map's shape
    "signal": (lambda: net(nn.Conv1d, nn.BatchNorm1d, 1), (2, 2, 9), 1, (2, 9)),
    "signal of one channel": (
        lambda: nn.Sequential(nn.Conv1d(1, 4, 3), nn.GELU(), nn.Flatten(), nn.Linear(28, 3)),
        (2, 1, 9),
        1,
        (2, 9),
    ),
    "grey and flat": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), (2, 1, 4, 4), 1, (2, 4, 4)),
    "volume": (lambda: net(nn.Conv3d, nn.BatchNorm3d, 3), (2, 2, 4, 5, 6), 1, (2, 4, 5, 6)),
    "series": (lambda: Reads(False), (2, 5, 6), 2, (2, 5)),
    "series, time first": (lambda: Reads(True), (5, 2, 6), 2, (2, 5)),
    "video": (Frames, (2, 3, 3, 7, 8), 2, (2, 3, 7, 8)),
    "channels last": (Last, (2, 7, 8, 3), 3, (2, 7, 8)),
    "flat": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(48, 3)), (2, 3, 4, 4), 1, (2, 4, 4)),
    "mixed along time": (
        lambda: nn.Sequential(nn.Conv1d(6, 4, 1), nn.Linear(5, 2), nn.Flatten(), nn.Linear(8, 3)),
        (2, 6, 5),
        1,
        (2, 5),
    ),
}


@pytest.mark.parametrize("name", RANKS)
def test_the_axis_of_channels_is_the_one_that_layers_read(name: str) -> None:
    factory, shape, channels, wanted = RANKS[name]
    torch.manual_seed(0)
    x = torch.randn(shape).double()
    libra = converted(factory(), x)
    axis = 1 if name.endswith("first") else 0
    share = products(libra, (x,), lambda y: y[:, 1])[0].movedim(axis, 0)
    channels += channels < axis
    for policy in ("libragrad", "gradient"):
        for method in OF_INPUTS:
            found = fxgrad.attribute(libra.under(policy), (x,), target=1, method=method)
            assert found.map.shape == wanted and found.map.isfinite().all(), method
    found = fxgrad.attribute(libra, (x,), target=1)
    assert torch.allclose(found.map, share.sum(channels), rtol=1e-10, atol=1e-12)
    assert_complete(found)
    every = fxgrad.attribute(libra, (x,), target=1, channels=None)
    assert torch.allclose(every.map, share, rtol=1e-10, atol=1e-12)
    assert_complete(every)
    other = fxgrad.attribute(libra, (x,), target=1, channels=-1)
    assert torch.allclose(other.map, share.sum(-1), rtol=1e-10, atol=1e-12)
    if axis == 0:
        one = fxgrad.attribute(libra, (x[1:],), target=1)
        assert torch.allclose(one.map, found.map[1:], rtol=1e-10, atol=1e-12)


def test_channels_that_there_are_not() -> None:
    x = torch.randn(2, 2, 9).double()
    libra = converted(RANKS["signal"][0](), x)
    for given, message in (
        (0, "axis 0 of input 'input' has the examples, so it cannot be that of the channels"),
        (3, r"channels=3 is no axis of input 'input', which has 3\. Pass 0 to 2, or None"),
    ):
        with pytest.raises(fxgrad.InputError, match=message):
            fxgrad.attribute(libra, (x,), target=1, channels=given)
    with pytest.raises(fxgrad.InputError, match=r"gradcam maps tokens, .* Leave out channels=None; gradient, saliency"):
        fxgrad.attribute(libra, (x,), target=1, method="gradcam", channels=None)


class Picks(nn.Module):
    """Reads a position of its own from every example, or sorts the rows of the batch and sorts them back."""

    def __init__(self, sorts: bool) -> None:
        super().__init__()
        self.sorts, self.a, self.b = sorts, nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor, at: Tensor) -> Tensor:
        y = self.a(x).relu()
        if self.sorts:
            order = y.sum((1, 2)).argsort()
            y = y[order][order.argsort()]
        return self.b(y[torch.arange(len(x)), at])


@pytest.mark.parametrize("sorts", [True, False])
def test_an_index_that_leaves_examples_apart(sorts: bool) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(3, 5, 4).double(), torch.tensor([1, 4, 0])
    libra = converted(Picks(sorts), *inputs)
    found = fxgrad.attribute(libra, inputs, target=torch.tensor([0, 2, 1]))
    assert found.map.shape == (3, 5) and all(bool(m[at] != 0) for m, at in zip(found.map, inputs[1]))
    assert int((found.map != 0).sum()) == 3
    assert_complete(found)


def test_integrated_gradients_of_a_polynomial_are_exact() -> None:
    class Cubic(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return (a**3).sum((1, 2), keepdim=True)[:, 0] * b[:, :1]

    inputs = torch.rand(2, 3, 4).double(), torch.rand(2, 2).double()
    plain = converted(Cubic(), *inputs, rules="gradient")
    found = fxgrad.attribute(plain, inputs, target=0, method="integrated_gradients", n_steps=3)
    a, b = inputs  # along the line t: 3 t^2 a^2 * t b, and t^3 a^3
    assert torch.allclose(found.maps["a"], (a**3 * b[:, :1, None] * 3 / 4).sum(-1), rtol=1e-6)
    assert torch.allclose(
        found.maps["b"], torch.stack([(a**3).sum((1, 2)) * b[:, 0] / 4, torch.zeros(2)], 1), rtol=1e-6
    )


class Memory(nn.Module):
    """Reads a memory (slots, steps, features) that all examples share."""

    def __init__(self) -> None:
        super().__init__()
        self.keys, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        return self.head(x + self.keys(memory).mean((0, 1)))


def test_a_map_of_more_axes_than_tokens_says_so() -> None:
    inputs = torch.randn(3, 6).double(), torch.randn(2, 5, 4).double()
    found = fxgrad.attribute(converted(Memory(), *inputs), inputs, target=1, input="memory")
    assert found.map.shape == (3, 2, 5)
    with pytest.raises(fxgrad.InputError) as caught:
        _ = found.tokens
    assert str(caught.value) == (
        "the model has no grid of patches, and the map of input 'memory' has 2 behind the batch's, (3, 2, 5) in all: "
        "use .map."
    )
