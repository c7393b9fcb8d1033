"""Attention written out, against PyTorch's own: of unit vectors as values, attention returns its weights."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from fxgrad.ops.scores import attention_weights, scores_of, shared

SEEN = torch.tensor([[True, False, True, True, False], [False] * 5, [False, True, True, True, True]])
CASES: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "plain": ((2, 4, 3, 6), (2, 4, 5, 6), {}),
    "two axes": ((3, 6), (5, 6), {}),
    "one key head": ((2, 4, 3, 6), (2, 1, 5, 6), {}),
    "one query head": ((2, 1, 3, 6), (2, 4, 5, 6), {}),
    "groups": ((2, 4, 3, 6), (2, 2, 5, 6), {"enable_gqa": True}),
    "groups of one": ((2, 4, 3, 6), (2, 4, 5, 6), {"enable_gqa": True}),
    "causal": ((2, 4, 5, 6), (2, 4, 5, 6), {"is_causal": True}),
    "causal, more rows": ((2, 4, 5, 6), (2, 4, 3, 6), {"is_causal": True}),
    "causal, more columns": ((2, 4, 3, 6), (2, 4, 5, 6), {"is_causal": True}),
    "a row that sees nothing": ((2, 4, 3, 6), (2, 4, 5, 6), {"attn_mask": SEEN}),
    "-inf added": ((2, 4, 3, 6), (2, 4, 5, 6), {"attn_mask": torch.where(SEEN, 0.5, -math.inf).double()}),
    "a mask per head": ((2, 4, 3, 6), (2, 4, 5, 6), {"attn_mask": torch.linspace(-2, 1, 60).double().view(4, 3, 5)}),
    "scale": ((2, 4, 3, 6), (2, 4, 5, 6), {"scale": 0.3}),
}


@pytest.mark.parametrize("name", CASES)
def test_weights_are_those_of_attention(name: str) -> None:
    rows, columns, options = CASES[name]
    q, k = torch.randn(rows).double(), torch.randn(columns).double()
    units = torch.eye(columns[-2]).double().expand(*columns[:-1], columns[-2])
    wanted = F.scaled_dot_product_attention(q, k, units, **options)
    torch.testing.assert_close(attention_weights(q, k, **options), wanted, rtol=1e-13, atol=1e-15)


def test_what_is_not_a_number_stays_so() -> None:
    """A row that sees nothing is told by its scores; a fault of the model is not hidden with it."""
    q, k = torch.tensor([[math.nan], [1.0]]), torch.ones(2, 1)
    found = attention_weights(q, k, torch.tensor([[True, True], [False, False]]))
    assert found[0].isnan().all() and torch.equal(found[1], torch.zeros(2))


def test_scores_of_columns_that_are_not_seen() -> None:
    q, k = torch.randn(3, 6).double(), torch.randn(5, 6).double()
    found = scores_of(q, k, SEEN, scale=1.0)
    assert torch.equal(found.isneginf(), ~SEEN)
    torch.testing.assert_close(found[SEEN], torch.einsum("rd,cd->rc", q, k)[SEEN], rtol=1e-13, atol=1e-14)


def test_heads_are_shared_by_neighbours() -> None:
    x = torch.randn(2, 3, 4, 5)
    assert torch.equal(shared(x, 6), x.repeat_interleave(2, 1)) and shared(x, 3) is x
