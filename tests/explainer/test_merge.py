"""Merging equal calls changes no value: beside the graph as it was traced, where memory is written into, too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from fxgrad.explainer.merge import merge


def twice(x: Tensor) -> Tensor:
    return (x @ x.mT).softmax(-1) + (x @ x.mT).detach().softmax(-1)


def written_between(x: Tensor) -> Tensor:
    held = torch.zeros_like(x)
    before = held + 1
    held += x
    return before + (held + 1)


def written_through_a_view(x: Tensor) -> Tensor:
    held = x.clone()
    before = held.exp()
    held.view(-1)[2:].mul_(2)
    return before + held.exp()


def two_buffers(x: Tensor) -> Tensor:
    first, second = torch.zeros_like(x), torch.zeros_like(x)
    first[:, 0] = x[:, 0]
    second[:, 1] = x[:, 1]
    return first - 2 * second


def ones_of_two_types(x: Tensor) -> Tensor:
    return torch.full_like(x, 1) + torch.full_like(x, True) + torch.full_like(x, 1.0) / 2


@pytest.mark.parametrize(
    ("function", "fewer"),
    [
        (twice, True),
        (written_between, False),
        (written_through_a_view, False),
        (two_buffers, None),
        (ones_of_two_types, None),
    ],
)
def test_values_stay(function: Callable[[Tensor], Tensor], fewer: bool | None) -> None:
    x = torch.randn(3, 4)
    graph = make_fx(function)(x)
    before = len(graph.graph.nodes)
    merge(graph.graph)
    graph.recompile()
    assert torch.equal(graph(x.clone()), function(x))
    assert fewer is None or (len(graph.graph.nodes) < before) == fewer


def test_random_numbers_stay_apart() -> None:
    graph = make_fx(lambda x: torch.rand_like(x) - torch.rand_like(x))(torch.ones(5))
    merge(graph.graph)
    targets: list[Any] = [node.target for node in graph.graph.nodes]
    assert targets.count(torch.ops.aten.rand_like.default) == 2
