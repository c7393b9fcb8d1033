"""What is found in the graph of models that nobody described, and what the methods make of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import fxgrad
from fxgrad.data.models import randomize
from fxgrad.methods import METHODS, Token, anatomy
from fxgrad.methods.placing import resample

SHARES = ["input_x_gradient", "hirescam", "fullgrad", "fullgrad_plus"]
ATTENTION = ["attcat", "genatt", "gradsam", "tokentm", "raw_attention", "rollout"]
SMALL: dict[str, Any] = {"img_size": 32, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 5}


class Pick(nn.Module):
    def forward(self, x: tuple[Tensor, Any]) -> Tensor:
        return x[0][:, -1]


class Attend(nn.Module):
    """Causal attention with separate projections, written out or fused, added to the stream."""

    def __init__(self, fused: bool = False, width: int = 8) -> None:
        super().__init__()
        self.fused = fused
        self.q, self.k, self.v = (nn.Linear(width, 8) for _ in range(3))
        self.o = nn.Linear(8, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (project(x).unflatten(-1, (2, 4)).transpose(1, 2) for project in (self.q, self.k, self.v))
        if self.fused:
            y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.7)
        else:
            mask = torch.full((x.shape[1], x.shape[1]), -torch.inf, dtype=x.dtype).triu(1)
            y = (q @ k.transpose(-2, -1) * 0.7 + mask).softmax(-1) @ v
        return x + self.o(y.transpose(1, 2).flatten(2))


class Tagger(nn.Module):
    """Token ids in, logits of every position out."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.types = nn.Embedding(11, 8), nn.Embedding(2, 8)
        self.layers, self.head = nn.Sequential(Attend(), Attend()), nn.Linear(8, 11)

    def forward(self, ids: Tensor, types: Tensor) -> Tensor:
        return self.head(self.layers(self.words(ids) + self.types(types)))


def encoder() -> nn.Module:
    """Tokens first inside: the batch's axis is merged into that of the tokens here and there."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Flatten(), nn.Linear(40, 3))


Case = tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, Any]]
CASES: dict[str, Case] = {
    "vit with registers": (
        lambda: timm.create_model("vit_tiny_patch16_224", patch_size=8, reg_tokens=3, **SMALL),
        (3, 32, 32),
        {"grid": (4, 4), "prefix": 4, "class_token": 0},
    ),
    "mean of patches": (
        lambda: timm.create_model("beitv2_base_patch16_224", patch_size=8, **SMALL),
        (3, 32, 32),
        {"grid": (4, 4), "prefix": 1, "class_token": None},
    ),
    "attention pooling": (
        lambda: timm.create_model("vit_base_patch16_siglip_224", patch_size=8, **SMALL),
        (3, 32, 32),
        {"grid": (4, 4), "prefix": 0, "class_token": None},
    ),
    "mixer": (
        lambda: timm.models.MlpMixer(img_size=32, patch_size=8, embed_dim=24, num_blocks=2, num_classes=5),
        (3, 32, 32),
        {"grid": (4, 4), "prefix": 0, "class_token": None},
    ),
    "resnet": (
        lambda: timm.create_model("resnet10t", num_classes=5),
        (3, 64, 64),
        {"grid": (4, 4), "prefix": 0, "class_token": None},
    ),
    "swin": (
        lambda: timm.create_model(
            "swin_tiny_patch4_window7_224", img_size=56, embed_dim=12, depths=(1, 1), num_heads=(2, 4), num_classes=5
        ),
        (3, 56, 56),
        {"grid": (14, 14), "prefix": 0, "class_token": None},
    ),
    "encoder": (encoder, (5, 8), {"grid": None, "prefix": 0, "class_token": None}),
    "recurrent": (
        lambda: nn.Sequential(nn.LSTM(6, 6, batch_first=True), Pick(), nn.Linear(6, 3)),
        (5, 6),
        {"grid": None, "prefix": 0, "class_token": 4},
    ),
}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[str, fxgrad.ConvertedModule, Tensor, dict[str, Any]]:
    factory, shape, wanted = CASES[request.param]
    torch.manual_seed(0)
    model = factory().double().eval()
    randomize(model)
    x = torch.randn(2, *shape).double()
    return request.param, fxgrad.convert(model, (x,)), x, wanted


def test_what_is_found(case: tuple) -> None:  # type: ignore[type-arg]
    _, libra, _, wanted = case
    found = anatomy(libra.classified)
    assert {key: getattr(found, key) for key in wanted} == wanted


def test_shares_add_up_example_by_example(case: tuple) -> None:  # type: ignore[type-arg]
    _, libra, x, _ = case
    target = torch.tensor([1, 2])
    for method in SHARES:
        found = fxgrad.attribute(libra, (x,), target=target, method=method)
        assert found.completeness_error is not None and found.completeness_error < 1e-11, method
        assert found.tokens.shape == (2, found.anatomy.count) and found.map.isfinite().all()
        one = fxgrad.attribute(libra, (x[1:],), target=2, method=method)
        assert torch.allclose(one.map[0], found.map[1], rtol=1e-8, atol=1e-11), method


def test_methods_that_need_attention(case: tuple) -> None:  # type: ignore[type-arg]
    name, libra, x, _ = case
    for method in ATTENTION:
        if name in ("mixer", "resnet", "swin", "recurrent"):
            with pytest.raises(
                fxgrad.InputError, match=rf"{method} needs attention, and none of the model's \d+ blocks"
            ):
                fxgrad.attribute(libra, (x,), target=0, method=method)
        else:
            found = fxgrad.attribute(libra, (x,), target=0, method=method)
            assert found.tokens.shape == (2, found.anatomy.count) and found.map.isfinite().all()


def test_constants_on_a_class_token_or_apart(case: tuple) -> None:  # type: ignore[type-arg]
    _, libra, x, wanted = case
    found = fxgrad.attribute(libra, (x,), target=0, method="fullgrad")
    assert found.apart is not None
    assert bool((found.apart == 0).all()) == (wanted["class_token"] is not None)


def test_tokens_are_followed_where_every_size_is_alike() -> None:
    torch.manual_seed(0)
    model = timm.models.MlpMixer(
        img_size=32, patch_size=8, embed_dim=16, num_blocks=1, mlp_ratio=(1.0, 1.0), num_classes=16
    )
    model = model.double().eval()
    randomize(model)
    x = torch.randn(2, 3, 32, 32).double()
    libra = fxgrad.convert(model, (x,))
    decisions = libra.classified.decisions.values()
    axes = {d.place.module_path: anatomy(libra.classified).axes.get(d.node) for d in decisions if d.sources}
    # What mixes the tokens has units of its own in the middle, and tokens last behind it.
    assert axes == {
        "stem.proj": None,
        "blocks.0.norm1": 1,
        "blocks.0.mlp_tokens.fc1": None,
        "blocks.0.mlp_tokens.fc2": 2,
        "blocks.0.norm2": 1,
        "blocks.0.mlp_channels.fc1": 1,
        "blocks.0.mlp_channels.fc2": 1,
        "norm": 1,
        "head": None,
    }
    found = fxgrad.attribute(libra, (x,), target=3, method="fullgrad")
    assert found.completeness_error is not None and found.completeness_error < 1e-12


def test_several_embeddings_are_one_map_of_the_tokens() -> None:
    torch.manual_seed(0)
    model = Tagger().double().eval()
    ids = torch.randint(11, (2, 6)), torch.randint(2, (2, 6))
    libra = fxgrad.convert(model, ids)
    found = anatomy(libra.classified)
    assert (found.input, found.tokens, found.grid) == ("words", 6, None)
    assert [len(block.attentions) for block in found.blocks] == [1, 1]
    assert all(a.weights is not None for block in found.blocks for a in block.attentions)
    target = Token(-2, 7)
    shares = fxgrad.attribute(libra, ids, target=target)
    tokens = libra.embed(*ids)
    libra.forward_from(tokens, *ids)[:, -2, 7].sum().backward()
    assert torch.allclose(shares.tokens, sum((t * t.grad).sum(-1) for t in tokens.values()))  # type: ignore[misc, arg-type]
    assert shares.label == "token 7 at position 4" and shares.completeness_error < 1e-12  # type: ignore[operator]
    for method in ("rollout", "genatt", "gradsam"):
        after = fxgrad.attribute(libra, ids, target=target, method=method).tokens
        assert (after[:, 5] == 0).all() and (after[:, 0] != 0).all()  # the row of position 4 sees no later token
    with pytest.raises(
        fxgrad.InputError, match=r"tokentm needs blocks of an attention and a perceptron.*has 1 such sums"
    ):
        fxgrad.attribute(libra, ids, target=target, method="tokentm")
    with pytest.raises(
        fxgrad.InputError, match=r"no cotangent reaches 'layers.1.q' under 'libragrad': what it computes"
    ):
        fxgrad.attribute(libra, ids, target=target, method="gradcam", layer="layers.1.q")
    with pytest.raises(fxgrad.InputError, match=r"has no grid of patches: use .tokens for text"):
        _ = shares.patches
    with pytest.raises(fxgrad.InputError, match=r"input 'words' is no picture"):
        _ = shares.pixels


def test_written_out_attention_is_the_fused_op_s() -> None:
    torch.manual_seed(0)
    fused, written = (nn.Sequential(Attend(fused)).double().eval() for fused in (True, False))
    written.load_state_dict(fused.state_dict())
    x = torch.randn(2, 5, 8).double()
    maps: list[list[Tensor]] = []
    for model in (fused, written):
        libra = fxgrad.convert(model, (x,))
        modules = (libra, libra.under("gradient"))
        given = {"args": (x,), "target": Token(3, 2)}
        maps.append([fxgrad.attribute(c, method=m, **given).map for c in modules for m in ("rollout", "genatt")])
    for ours, theirs in zip(*maps):
        assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-12) and ours.abs().max() > 0


class Towers(nn.Module):
    """Similarities of pictures with texts."""

    def __init__(self) -> None:
        super().__init__()
        self.visual = timm.create_model("vit_tiny_patch16_224", patch_size=8, **SMALL)
        self.words, self.text = nn.Embedding(9, 5), nn.Sequential(Attend(width=5), Attend(width=5))

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        features = nn.functional.normalize(self.visual(image), dim=-1)
        return features @ nn.functional.normalize(self.text(self.words(text)).mean(1), dim=-1).T


def test_two_towers() -> None:
    torch.manual_seed(0)
    model = Towers().double().eval()
    randomize(model)
    x, ids = torch.randn(2, 3, 32, 32).double(), torch.randint(9, (3, 4))
    libra = fxgrad.convert(model, (x, ids))
    for method in (*SHARES, "genatt"):
        found = fxgrad.attribute(libra, (x, ids), target=1, method=method)
        assert found.patches.shape == (2, 4, 4)
        assert torch.allclose(found.output, model(x, ids)[:, 1])
        assert method == "genatt" or found.completeness_error < 1e-11, method  # type: ignore[operator]
        one = fxgrad.attribute(libra, (x[1:], ids), target=1, method=method)
        assert torch.allclose(one.map[0], found.map[1], rtol=1e-8, atol=1e-12)
    words = fxgrad.attribute(libra, (x[:1], ids[1:2]), target=0, input="words", method="fullgrad_plus")
    assert words.tokens.shape == (1, 4) and words.completeness_error < 1e-11  # type: ignore[operator]


def test_without_blocks() -> None:
    x = torch.randn(2, 6)
    libra = fxgrad.convert(nn.Sequential(nn.Linear(6, 4), nn.GELU(), nn.Linear(4, 3)).eval(), (x,))
    assert fxgrad.attribute(libra, (x,), target=0).tokens.shape == (2, 6)
    with pytest.raises(fxgrad.InputError, match=r"gradcam needs blocks, and no module path with a number"):
        fxgrad.attribute(libra, (x,), target=0, method="gradcam")
    with pytest.raises(fxgrad.InputError, match=r"neither patches nor tokens are found"):
        fxgrad.attribute(libra, (x,), target=0, method="fullgrad")


def test_maps_on_another_grid_keep_their_total() -> None:
    maps = torch.rand(2, 5, 7).double()
    for grid in ((2, 3), (10, 14), (4, 4)):
        assert torch.allclose(resample(maps, grid).sum((1, 2)), maps.sum((1, 2)), rtol=1e-12)
    assert torch.equal(resample(maps, (5, 7)), maps)
    assert torch.allclose(resample(torch.ones(1, 4, 4).double(), (2, 2)), torch.full((1, 2, 2), 4.0).double())


def test_every_method_is_documented() -> None:
    for name, method in METHODS.items():
        assert method.__doc__ and ("Source:" in method.__doc__ or name == "random"), name
