"""`fxgrad.flow` of language models: causal, masked, with an encoder and a decoder."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers")

import fxgrad
from fxgrad.data.models import randomize
from fxgrad.methods import Token
from tests.helpers.flows import conserved
from tests.helpers.language_models import IN_FLOAT32, V, model

WORDS = ["the", " sky", " is", " blue", " and"]


@pytest.mark.parametrize("name", ["gpt2", "masked", "llama", "mamba", "t5", "bart"])
def test_flow_is_conserved(name: str) -> None:
    net = model(name)
    randomize(net, 0)
    ids = torch.randint(5, V, (1, 5))
    kwargs = {"decoder_input_ids": torch.randint(5, V, (1, 3))} if name in ("t5", "bart") else {}
    libra = fxgrad.convert(net, (ids,), kwargs)
    target = Token(position=1, id=7)
    graph = fxgrad.flow(libra, (ids,), kwargs, target=target, token_names=WORDS)
    value = float(libra(ids, **kwargs).logits[0, 1, 7])
    conserved(graph, value, 1e-6 if name in IN_FLOAT32 else 1e-10)
    conserved(fxgrad.flow(libra, (ids,), kwargs, target=target, top=2), value, 1e-6 if name in IN_FLOAT32 else 1e-10)
    if name in ("gpt2", "llama", "mamba"):  # nothing flows from later tokens
        assert all(
            graph.nodes[a]["token"] <= graph.nodes[b]["token"]
            for a, b in graph.edges
            if "token" in graph.nodes[a] and "token" in graph.nodes[b]
        )
        assert [a["name"] for a in graph.nodes.values() if a["kind"] == "input"] == WORDS
    found = fxgrad.attribute(libra, (ids,), kwargs, target=target)
    for input, map in found.maps.items():
        shares = [a["share"] for a in graph.nodes.values() if a["kind"] == "input" and a["cut"] == input]
        assert torch.allclose(torch.tensor(shares).double(), map[0].double(), rtol=0, atol=1e-6)


def test_the_encoder_s_output_is_part_of_the_decoder_s_cuts() -> None:
    net = model("bart")
    kwargs = {"decoder_input_ids": torch.randint(5, V, (1, 3))}
    ids = torch.randint(5, V, (1, 5))
    graph = fxgrad.flow(fxgrad.convert(net, (ids,), kwargs), (ids,), kwargs, target=Token())
    last = {n for n, a in graph.nodes.items() if a["cut"] == "model.decoder.layers.1" and a["kind"] == "token"}
    assert len(last) == 3 + 5
    beside = [a["path"] for n, a in graph.nodes.items() if n in last and "," in n]
    assert beside == ["model.encoder.layers.1.final_layer_norm"] * 5
