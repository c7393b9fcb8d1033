"""A stretch whose late half is passed once for all tokens has the edges that one pass for each token gives."""

from __future__ import annotations

from typing import Any

import networkx as nx
import pytest
import timm
import torch
from timm.models.mlp_mixer import MlpMixer
from torch import nn

import fxgrad
from fxgrad.data.models import randomize
from fxgrad.flows.cuts import Stretches, stretches
from fxgrad.flows.graph import _Graph
from fxgrad.flows.late import with_late_halves
from fxgrad.flows.run import Run
from fxgrad.flows.single import of_one_example, tokens_of_all
from fxgrad.kinds import Kind
from fxgrad.methods import Problem, Token
from tests.helpers.language_models import IN_FLOAT32, V, model


def case(name: str) -> tuple[nn.Module, Any, Any]:
    torch.manual_seed(0)
    if name == "vit":
        net = timm.create_model("test_vit", img_size=32, num_classes=5).double().eval()
        return net, torch.randn(1, 3, 32, 32).double(), 3
    if name == "mixer":
        net = MlpMixer(num_classes=5, img_size=32, patch_size=8, num_blocks=2, embed_dim=16).double().eval()
        randomize(net, 0)
        return net, torch.randn(1, 3, 32, 32).double(), 3
    net = model(name)
    randomize(net, 0)
    return net, torch.randint(5, V, (1, 5)), Token(position=2, id=7)


def graph(problem: Problem, cut: Stretches) -> nx.DiGraph[str]:
    run = Run(problem, cut)
    names = [*run.inputs, *(name for one in cut.cuts for name in one.nodes)]
    tokens = tokens_of_all(problem, {name: run.values[name] for name in names}, cut.cuts[-1].node, None)
    return _Graph(problem, run, tokens).made()


@pytest.mark.parametrize("name", ["vit", "mixer", "gpt2", "llama", "mamba"])
def test_both_ways_give_the_same_edges(name: str) -> None:
    net, x, target = case(name)
    problem = of_one_example(fxgrad.convert(net, (x,)), x, None, target, None, "a flow", "fxgrad.flow")
    cut = stretches(problem, None)
    divided = with_late_halves(problem, cut)
    assert divided.late and divided.middle
    once, each = graph(problem, divided), graph(problem, cut)
    assert once.edges.keys() == each.edges.keys()
    weights = torch.tensor([[g.edges[edge]["weight"] for edge in each.edges] for g in (once, each)])
    bound = 1e-5 if name in IN_FLOAT32 else 1e-12
    assert (weights[0] - weights[1]).abs().max() <= bound * weights.abs().max()


def test_no_attention_and_no_norm_ahead_of_one_is_late() -> None:
    net, x, target = case("vit")
    problem = of_one_example(fxgrad.convert(net, (x,)), x, None, target, None, "a flow", "fxgrad.flow")
    divided = with_late_halves(problem, stretches(problem, ["blocks.0", "blocks.1"]))
    decisions = problem.converted.classified.decisions
    late = [decisions[name] for name in divided.late]
    assert {d.place.module_path for d in late} >= {"blocks.1.mlp.fc1", "blocks.1.attn.proj", "blocks.1.norm2"}
    assert not {d.place.module_path for d in late} & {"blocks.1.attn.qkv", "blocks.1.norm1"}
    assert Kind.ATTENTION not in {d.kind for d in late}


def test_heads_at_the_end_take_a_pass_each() -> None:
    net, x, target = case("vit")
    problem = of_one_example(fxgrad.convert(net, (x,)), x, None, target, None, "a flow", "fxgrad.flow")
    assert not with_late_halves(problem, stretches(problem, [fxgrad.Heads("blocks.1.attn")])).middle
