"""A flow in the form of circuit-tracer's viewer: every key and type, and the sums of the graph that it was made from."""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import networkx as nx
import pytest
import torch
from timm.models import VisionTransformer

import fxgrad
from fxgrad.data.models import randomize
from fxgrad.errors import InputError
from fxgrad.flows.circuit import circuit
from fxgrad.flows.files import read, write
from tests.helpers.language_models import V, model

NODE = {
    "node_id": str,
    "feature": int,
    "layer": str,
    "ctx_idx": int,
    "feature_type": str,
    "token_prob": float,
    "is_target_logit": bool,
    "run_idx": int,
    "reverse_ctx_idx": int,
    "jsNodeId": str,
    "clerp": str,
    "influence": float,
    "activation": float,
}
METADATA = {
    "slug": str,
    "scan": str,
    "transcoder_list": list,
    "prompt_tokens": list,
    "prompt": str,
    "node_threshold": float,
    "schema_version": int,
}
VIEW = {"pinnedIds": list, "supernodes": list, "linkType": str, "clickedId": str, "sg_pos": str}
LINK = {"source": str, "target": str, "weight": float}
KINDS = ["picture", "heads", "top", "gpt2", "t5", "whole"]
WORDS = ["the", " sky", ' "is', " blue", " and"]


@cache
def made(kind: str) -> Any:
    torch.manual_seed(0)
    if kind in ("gpt2", "t5"):
        net, ids = model(kind), torch.randint(5, V, (1, 5))
        kwargs = {"decoder_input_ids": torch.randint(5, V, (1, 3))} if kind == "t5" else {}
        return fxgrad.flow(
            fxgrad.convert(net, (ids,), kwargs), (ids,), kwargs, target=fxgrad.methods.Token(), token_names=WORDS
        )
    if kind == "whole":
        x = torch.randn(1, 3)
        return fxgrad.flow(fxgrad.convert(torch.nn.Linear(3, 2).eval(), (x,)), (x,), target=1)
    net = VisionTransformer(img_size=32, patch_size=16, embed_dim=16, depth=2, num_heads=2, num_classes=5).eval()
    randomize(net, 0)
    x = torch.randn(1, 3, 32, 32)
    options: dict[str, Any] = {"cuts": ["blocks.0", fxgrad.Heads("blocks.1.attn")]} if kind == "heads" else {}
    return fxgrad.flow(fxgrad.convert(net, (x,)), (x,), target=3, top=5 if kind == "top" else None, **options)


def written(kind: str, folder: Path) -> Any:
    write(made(kind), folder / "sky.circuit.json")
    return json.loads((folder / "sky.circuit.json").read_text("utf-8"))


def types(found: dict[str, Any]) -> dict[str, type]:
    return {key: type(value) for key, value in found.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_every_key_and_type(kind: str, tmp_path: Path) -> None:
    found = written(kind, tmp_path)
    assert set(found) == {"metadata", "qParams", "nodes", "links"}
    assert types(found["metadata"]) == METADATA and types(found["qParams"]) == VIEW
    assert all(types(node) == NODE for node in found["nodes"]) and all(types(link) == LINK for link in found["links"])
    assert found["metadata"]["slug"] == "sky.circuit"  # the viewer asks for {slug}.json
    ids = [node["node_id"] for node in found["nodes"]]
    assert len(set(ids)) == len(ids) and not any("," in one for one in ids)
    assert {end for link in found["links"] for end in (link["source"], link["target"])} <= set(ids)
    columns = range(len(found["metadata"]["prompt_tokens"]))
    assert all(node["ctx_idx"] in columns for node in found["nodes"])
    rows = [int(node["layer"]) for node in found["nodes"] if node["layer"] != "E"]
    (logit,) = [node for node in found["nodes"] if node["is_target_logit"]]
    assert int(logit["layer"]) == max(rows) and logit["feature_type"] == "logit"
    label, _, probability = logit["clerp"].partition("(p=")  # the viewer takes both apart
    assert len(label.split('"')) == 3 and probability.endswith(")")


@pytest.mark.parametrize("kind", KINDS)
def test_circuit_tracer_reads_it(kind: str, tmp_path: Path) -> None:
    models = pytest.importorskip("circuit_tracer.frontend.graph_models")
    found = written(kind, tmp_path)
    again = models.Model.model_validate(found, strict=True)
    assert again.model_dump() == found
    assert [models.Link.model_validate(link, strict=True).weight for link in found["links"]]


@pytest.mark.parametrize("kind", KINDS)
def test_all_sums_are_those_of_the_flow(kind: str, tmp_path: Path) -> None:
    graph, found = made(kind), written(kind, tmp_path)
    names = {node["node_id"]: name for node, name in zip(found["nodes"], graph)}
    edges = {(names[link["source"]], names[link["target"]]): link["weight"] for link in found["links"]}
    assert edges == {(a, b): weight for a, b, weight in graph.edges.data("weight")}
    for node in found["nodes"]:
        into = [link["weight"] for link in found["links"] if link["target"] == node["node_id"]]
        if node["feature_type"] not in ("embedding", "mlp reconstruction error"):
            assert math.fsum(into) == pytest.approx(node["activation"], abs=1e-4)
    roots = [link["weight"] for link in found["links"] if not graph.pred[names[link["source"]]]]
    assert kind == "top" or math.fsum(roots) == pytest.approx(graph.graph["value"], abs=1e-4)


def test_where_nodes_stand() -> None:
    found = circuit(made("gpt2"), "sky")
    assert found["metadata"]["prompt_tokens"] == [*WORDS, ""]
    by_name = dict(zip(made("gpt2"), found["nodes"]))
    for name, about in made("gpt2").nodes.items():
        node = by_name[name]
        wanted = {"input": "embedding", "token": "token", "target": "logit"}
        assert node["feature_type"] == wanted.get(about["kind"], "mlp reconstruction error")
        assert (node["ctx_idx"] == about.get("token", 5) and name in node["clerp"]) or node["feature_type"] == "logit"
        assert node["layer"] == ("E" if about["kind"] == "input" else str(about["layer"]))
    tokens = circuit(made("heads"), "cat")["metadata"]["prompt_tokens"]
    assert tokens == ["patch 0, 0", "patch 0, 1", "patch 1, 0", "patch 1, 1", "class token", ""]
    parts = [node for node in circuit(made("heads"), "cat")["nodes"] if "head 1" in node["clerp"]]
    assert [tokens[node["ctx_idx"]] for node in parts] == ["class token", *tokens[:4]]


def test_influence_grows_from_the_largest_share_to_the_smallest() -> None:
    graph = made("picture")
    found = [node["influence"] for node in circuit(graph, "cat")["nodes"]]
    sizes = [abs(about["share"]) for about in graph.nodes.values()]
    for size, influence in zip(sizes, found):
        assert influence == pytest.approx(sum(other for other in sizes if other >= size) / sum(sizes), rel=1e-9)
    assert max(found) <= 1 == circuit(graph, "cat")["metadata"]["node_threshold"]  # the slider starts with all


def test_a_target_in_quotes_is_one_label() -> None:
    graph = nx.DiGraph([("x[0]", "target", {"weight": 1.0})], target='token "blue"', rules="libragrad", value=1.0)
    graph.add_node("x[0]", kind="input", layer=0, name="sky", share=1.0)
    graph.add_node("target", kind="target", layer=1, name='token "blue"', share=1.0)
    assert circuit(graph, "a")["nodes"][1]["clerp"] == "Output \"token 'blue'\" (p=unknown)"


def test_it_is_not_read_back(tmp_path: Path) -> None:
    written("picture", tmp_path)
    with pytest.raises(InputError, match=r"a flow is read from \.json or \.graphml, not from .*sky\.circuit\.json"):
        read(tmp_path / "sky.circuit.json")
