"""Heads and channels as nodes of a flow and as what is patched: against dense Jacobians and hooks on the original."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import networkx as nx
import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxgrad
from fxgrad import Channels, Heads
from fxgrad.data.models import randomize
from fxgrad.errors import InputError
from fxgrad.flows.files import read, write
from fxgrad.methods import Token
from tests.flows.test_flow import converted
from tests.helpers.flows import conserved


def two_blocks() -> tuple[Any, Any, Tensor]:
    """(a ViT of two blocks with four heads, converted, a picture)."""
    torch.manual_seed(0)
    vit = timm.models.VisionTransformer(
        img_size=32, patch_size=16, embed_dim=16, depth=2, num_heads=4, num_classes=5, qk_norm=True, global_pool="avg"
    )
    vit = vit.eval().double().requires_grad_(False)
    randomize(vit, 0)
    x = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    return vit, fxgrad.convert(vit, (x,)), x


def test_heads_are_those_of_dense_jacobians() -> None:
    vit, libra, x = two_blocks()
    graph = fxgrad.flow(libra, (x,), target=3, cuts=["blocks.0", Heads("blocks.1.attn")])
    conserved(graph, float(vit(x)[0, 3]))
    block = vit.blocks[1]

    class Values(nn.Module):
        def forward(self, h: Tensor) -> Tensor:
            q, k, v = block.attn.qkv(block.norm1(h)).reshape(-1, 5, 3, 4, 4).permute(2, 0, 3, 1, 4)
            return F.scaled_dot_product_attention(block.attn.q_norm(q), block.attn.k_norm(k), v)

    class Rest(nn.Module):
        def forward(self, z: Tensor, h: Tensor) -> Tensor:
            h = h + block.attn.proj(z.transpose(1, 2).reshape(-1, 5, 16))
            return vit.forward_head(vit.norm(h + block.mlp(block.norm2(h))))

    h = vit.blocks[0](vit._pos_embed(vit.patch_embed(x)))
    values, rest = Values().eval(), Rest().eval()
    z = values(h).requires_grad_()
    assert torch.allclose(rest(z, h), vit(x))
    (g,) = torch.autograd.grad(fxgrad.convert(rest, (z, h))(z, h)[0, 3], z)
    dense = torch.autograd.functional.jacobian(fxgrad.convert(values, (h,)), h)[0]  # (heads, tokens, width, 1, ...)
    weights = torch.einsum("htdsc,htd,sc->sht", dense[:, :, :, 0], g[0], h[0])
    shares = (z * g)[0].sum(-1)
    for token in range(5):
        for head in range(4):
            node = f"blocks.1.attn by heads[{token}, head {head}]"
            assert abs(graph.nodes[node]["share"] - shares[head, token]) < 1e-12
            for start in range(5):
                found = graph.edges.get((f"blocks.0[{start}]", node), {"weight": 0.0})["weight"]
                assert abs(found - weights[start, head, token]) < 1e-12
    assert weights[:, :, 1:].abs().min() > 1e-9  # the class token is not read
    one = graph.nodes["blocks.1.attn by heads[4, head 2]"]
    assert one["name"] == "patch 1, 1, head 2" and one["row"] == one["column"] == 1 and one["token"] == 4
    beside = [
        n
        for n, about in graph.nodes.items()
        if about["layer"] == 2 and about["kind"] == "token" and "by heads[" not in n
    ]
    assert len(beside) == 5  # the stream that passes the attention by


CUTS: dict[str, list[Any]] = {
    "swin": [Heads("layers.0.blocks.1.attn"), Channels("layers.1.blocks.0", 4)],
    "convnext": [Channels("stages.0", 2), Channels("stages.2.blocks.0.mlp", 8)],
    "mixer": ["blocks.0", Channels("blocks.1", 4)],
    "lstm": [Channels("two")],
}


@pytest.mark.parametrize("name", CUTS)
def test_flow_is_conserved(name: str) -> None:
    libra, x, _ = converted(name)
    graph = fxgrad.flow(libra, (x,), target=2, cuts=CUTS[name])
    conserved(graph, float(libra(x)[0, 2]))
    parts = {about["part"] for about in graph.nodes.values() if "part" in about}
    assert len(parts) >= 2 and all(part.startswith(("head ", "channel")) for part in parts)


@pytest.mark.parametrize("name", ["gpt2", "llama", "bart"])
def test_flow_of_texts_is_conserved(name: str) -> None:
    pytest.importorskip("transformers")
    from tests.helpers.language_models import IN_FLOAT32, V, model

    net = model(name)
    randomize(net, 0)
    ids = torch.randint(5, V, (1, 5))
    path = {
        "gpt2": "transformer.h.1.attn",
        "llama": "model.layers.1.self_attn",
        "bart": "model.decoder.layers.1.encoder_attn",
    }
    kwargs = {"decoder_input_ids": torch.randint(5, V, (1, 3))} if name == "bart" else {}
    libra = fxgrad.convert(net, (ids,), kwargs)
    graph = fxgrad.flow(libra, (ids,), kwargs, target=Token(id=7), cuts=[Heads(path[name])])
    conserved(graph, float(libra(ids, **kwargs).logits[0, -1, 7]), 1e-6 if name in IN_FLOAT32 else 1e-10)
    heads = {about["part"] for about in graph.nodes.values() if "part" in about}
    assert heads == {f"head {i}" for i in range(4)}


def changed(model: nn.Module, path: str, x: Any, change: Callable[[Tensor], Tensor], before: bool) -> Any:
    """The outputs with another input, or output, of a module."""
    module = model.get_submodule(path)
    if before:
        handle = module.register_forward_pre_hook(lambda _, inputs: (change(inputs[0]), *inputs[1:]))
    else:
        handle = module.register_forward_hook(lambda _, __, output: change(output))
    try:
        return model(x)
    finally:
        handle.remove()


@pytest.mark.parametrize("name", ["vit", "gpt2"])
def test_patched_heads_are_those_of_hooks_on_the_projection(name: str) -> None:
    if name == "vit":
        model, libra, clean = two_blocks()
        corrupt, attention, projection, target = torch.randn_like(clean), "blocks.1.attn", "blocks.1.attn.proj", 3
    else:
        pytest.importorskip("transformers")
        from tests.helpers.language_models import V
        from tests.helpers.language_models import model as built

        model = built("gpt2").double()
        randomize(model, 0)
        clean, corrupt = torch.randint(5, V, (2, 1, 5))
        libra = fxgrad.convert(model, (clean,))
        attention, projection, target = "transformer.h.1.attn", "transformer.h.1.attn.c_proj", Token(id=7)

    def score(output: Any) -> Tensor:
        return output[0, 3] if isinstance(output, Tensor) else output.logits[0, -1, 7]

    theirs: list[Tensor] = []
    changed(model, projection, corrupt, lambda z: (theirs.append(z), z)[1], before=True)
    place = Heads(attention)
    found = fxgrad.patching(libra, clean, corrupt, target=target, cuts=[place], effects=True)
    width = theirs[0].shape[-1] // 4
    wanted = []
    for token in range(5):
        for head in range(4):

            def change(z: Tensor, token: int = token, own: slice = slice(head * width, (head + 1) * width)) -> Tensor:
                z = z.clone()
                z[0, token, own] = theirs[0][0, token, own]
                return z

            wanted.append(score(changed(model, projection, clean, change, before=True)) - score(model(clean)))
    assert torch.allclose(found.effect[str(place)], torch.stack(wanted), rtol=0, atol=1e-12)
    assert found.nodes[str(place)][6] == f"{attention} by heads[1, head 2]" and max(map(abs, wanted)) > 1e-4
    whole = fxgrad.patching(libra.under("gradient"), clean, corrupt, target=target, cuts=[projection, place])
    assert abs(whole.estimate[projection].sum() - whole.estimate[str(place)].sum()) < 1e-12  # the projection is linear


def test_patched_channels_are_those_of_hooks() -> None:
    libra, clean, _ = converted("convnext")
    model = timm.create_model("test_convnext", num_classes=5).eval().double()
    model.load_state_dict(libra.state_dict())
    corrupt = torch.randn_like(clean)
    theirs: list[Tensor] = []
    changed(model, "stages.3", corrupt, lambda h: (theirs.append(h), h)[1], before=False)
    places = ["stages.3", Channels("stages.3", groups=2)]
    found = fxgrad.patching(libra, clean, corrupt, target=2, cuts=places, effects=True)
    half, cell = theirs[0].shape[1] // 2, 0
    for row in range(theirs[0].shape[2]):
        for column in range(theirs[0].shape[3]):
            for group in range(2):

                def change(h: Tensor, at: Any = (0, slice(group * half, (group + 1) * half), row, column)) -> Tensor:
                    h = h.clone()
                    h[at] = theirs[0][at]
                    return h

                wanted = changed(model, "stages.3", clean, change, before=False)[0, 2] - model(clean)[0, 2]
                assert abs(found.effect["stages.3 by channels"][cell] - wanted) < 1e-12
                cell += 1
    parts = found.estimate["stages.3 by channels"].reshape(-1, 2).sum(1)
    assert cell == 2 * len(parts) and torch.allclose(parts, found.estimate["stages.3"], rtol=0, atol=1e-12)


def test_files_and_pictures(tmp_path: Path) -> None:
    _, libra, x = two_blocks()
    graph = fxgrad.flow(libra, (x,), target=3, cuts=[Heads("blocks.1.attn")])
    for ending in ("json", "graphml"):
        write(graph, tmp_path / f"flow.{ending}")
        assert nx.utils.graphs_equal(read(tmp_path / f"flow.{ending}"), graph)
    from fxgrad.flows.layout import laid_out

    cells = [(cell.x, cell.y) for cell in laid_out(graph).cells.values()]
    assert len(set(cells)) == len(cells) == len(graph)  # no head is drawn over another
    write(graph, tmp_path / "flow.png", x[0].clamp(0, 1))
    write(graph, tmp_path / "flow.html")
    assert "patch 1, 1, head 2" in (tmp_path / "flow.html").read_text()


def test_refusals() -> None:
    _, libra, x = two_blocks()

    def refused(place: Any) -> str:
        with pytest.raises(InputError) as error:
            fxgrad.flow(libra, (x,), target=3, cuts=[place])
        return str(error.value)

    assert refused(Heads("blocks")) == (
        "Heads takes the module path of one attention, and 'blocks' has several: blocks.0.attn, blocks.1.attn. Name another."
    )
    assert "'blocks.0.mlp' has none in the graph" in refused(Heads("blocks.0.mlp"))
    assert refused(Channels("blocks.0", 3)) == "what leaves 'blocks.0' has 16 channels, which 3 groups do not divide."
