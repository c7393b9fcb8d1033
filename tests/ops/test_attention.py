"""Value-only attention against attention written out, whatever its blocks, masks, groups and shapes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fxgrad.ops import blocks, short, swapped
from fxgrad.ops.attention import value_only

SDPA = torch.ops.aten.scaled_dot_product_attention.default
ROWS, WIDTH = 5, 3


def textbook(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float, g: Tensor) -> Tensor:
    """dV = P^T dO with P spelled out in float64; rows that see nothing have no weights."""
    group = q.shape[-3] // k.shape[-3] if q.dim() > 2 else 1
    values = v.detach().double().requires_grad_()
    keys = k.double().repeat_interleave(group, -3) if group > 1 else k.double()
    each = values.repeat_interleave(group, -3) if group > 1 else values
    scores = scale * q.double() @ keys.mT
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), -math.inf)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype is torch.bool else scores + mask
    weights = torch.softmax(scores, -1).nan_to_num(0)
    return torch.autograd.grad(weights @ each, values, g.double())[0]


def masks(lead: tuple[int, ...], columns: int) -> dict[str, Tensor]:
    """One of every sort that attention takes for scores of shape (*lead, ROWS, columns)."""
    added = {
        "one row": torch.randn(1, columns).double(),
        "one column": torch.randn(ROWS, 1).double(),
        "everything": torch.randn(*lead, ROWS, columns).double(),
    }
    boolean = {
        "rows and columns": torch.rand(ROWS, columns) > 0.4,
        "a row that sees nothing": torch.arange(ROWS)[:, None].expand(ROWS, columns) > 0,
    }
    heads = {"one for all heads": torch.rand(*lead[:-1], 1, ROWS, columns) > 0.4} if lead else {}
    return {**added, **boolean, **heads}


@pytest.fixture(params=[0, short.SCORES], ids=["long", "short"])
def scores(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many scores are made at once."""
    monkeypatch.setattr(short, "SCORES", request.param)
    return int(request.param)


long_and_short = pytest.mark.usefixtures("scores")


@pytest.fixture(
    params=[(0, 2**19, 256), (0, 40, 3), (0, 1, 1), (short.SCORES, 1, 1)],
    ids=["one block", "some blocks", "many blocks", "at once"],
)
def _blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    at_once, scores, rows = request.param
    monkeypatch.setattr(short, "SCORES", at_once)
    monkeypatch.setitem(blocks.BLOCK, "cpu", scores)
    monkeypatch.setattr(blocks, "ROWS", rows)


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("columns", [5, 7, 2])
@pytest.mark.parametrize("grouped", [False, True], ids=["", "grouped"])
@pytest.mark.parametrize("lead", [(), (4,), (2, 4), (2, 3, 4)], ids=str)
def test_gradient_of_the_value(lead: tuple[int, ...], grouped: bool, columns: int) -> None:
    if grouped and not lead:
        return  # no heads to group
    few = (*lead[:-1], 2) if grouped else lead
    q, k = torch.randn(*lead, ROWS, WIDTH).double(), torch.randn(*few, columns, WIDTH).double()
    v = torch.randn(*few, columns, 6).double().requires_grad_()
    g = torch.randn(*lead, ROWS, 6).double()
    cases = [("none", None, False), ("causal", None, True), *((n, m, False) for n, m in masks(lead, columns).items())]
    for name, mask, causal in cases:
        for scale in (None, 0.3):
            y = value_only(SDPA, q, k, v, mask, 0.0, causal, scale=scale, enable_gqa=grouped)
            assert torch.equal(y.detach(), SDPA(q, k, v.detach(), mask, 0.0, causal, scale=scale, enable_gqa=grouped))
            found = torch.autograd.grad(y, v, g)[0]
            wanted = textbook(q, k, v, mask, causal, scale or WIDTH**-0.5, g)
            torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-13, msg=f"{name}, scale {scale}")


@long_and_short
def test_values_that_are_broadcast_get_the_sum() -> None:
    q, k = torch.randn(2, 4, ROWS, WIDTH).double(), torch.randn(1, 4, 6, WIDTH).double()
    v = torch.randn(4, 6, WIDTH).double().requires_grad_()
    y = value_only(SDPA, q, k, v)
    g = torch.randn_like(y)
    wanted = textbook(q, k.expand(2, -1, -1, -1), v.expand(2, -1, -1, -1), None, False, WIDTH**-0.5, g).sum(0)
    torch.testing.assert_close(torch.autograd.grad(y, v, g)[0], wanted)


@long_and_short
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_takes_its_weights_in_float32(dtype: torch.dtype) -> None:
    q, k, v = torch.randn(3, 1, 2, 300, 16).to(dtype)
    v.requires_grad_()
    y = value_only(SDPA, 4 * q, k, v)
    g = torch.randn_like(y)
    (found,) = torch.autograd.grad(y, v, g)
    wanted = textbook(4 * q, k, v, None, False, 0.25, g)
    assert found.dtype is dtype
    # The weights are rounded once, to multiply; so are the products' sums.
    assert (found - wanted).abs().max() < 2 * torch.finfo(dtype).eps * wanted.abs().max()


def test_dropped_weights_are_the_same_backward() -> None:
    q, k, v = torch.randn(3, 1, 2, 5, 4).double()
    v.requires_grad_()
    y = value_only(SDPA, q, k, v, None, 0.5)
    (dv,) = torch.autograd.grad((y * y.detach()).sum(), v)
    torch.testing.assert_close((v * dv).sum(), (y * y).sum())


def test_neither_scores_nor_values_are_kept(scores: int) -> None:
    q, k, v = torch.randn(3, 2, 4, 64, 8)
    v.requires_grad_()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        value_only(SDPA, q, k, v)
    # In the fused kernel's way one entry a row more, for lse.
    assert sum(t.numel() for t in kept) == (q.numel() + k.numel()) * (8 if scores else 9) // 8


@long_and_short
def test_empty_attention() -> None:
    for rows, columns in [(0, 3), (3, 0)]:
        q, k, v = (torch.randn(1, 2, n, 4) for n in (rows, columns, columns))
        v.requires_grad_()
        y = value_only(SDPA, q, k, v)
        assert torch.equal(torch.autograd.grad(y.sum(), v)[0], torch.zeros_like(v))


def test_the_fused_kernel_is_where_it_was() -> None:
    """Without these names attention goes block by block: right, but slower."""
    assert swapped.FLASH is not None and swapped.CHOICE is not None
    assert SDPBackend.FLASH_ATTENTION.value == swapped.IS_FLASH


@long_and_short
@pytest.mark.parametrize("missing", ["FLASH", "CHOICE"])
@pytest.mark.parametrize("causal", [False, True])
def test_without_the_fused_kernel(causal: bool, missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = torch.randn(3, 2, 4, 7, 3).double()
    v.requires_grad_()
    g = torch.randn(2, 4, 7, 3).double()
    (fused,) = torch.autograd.grad(value_only(SDPA, q, k, v, None, 0.0, causal), v, g)
    monkeypatch.setattr(swapped, missing, None)
    (without,) = torch.autograd.grad(value_only(SDPA, q, k, v, None, 0.0, causal), v, g)
    torch.testing.assert_close(fused, without, rtol=1e-13, atol=1e-14)


@long_and_short
def test_another_backend_of_attention_is_kept_to() -> None:
    q, k, v = torch.randn(3, 2, 4, 7, 3)
    v.requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):
        y = value_only(SDPA, q, k, v)
        assert torch.equal(y.detach(), SDPA(q, k, v.detach()))
    wanted = textbook(q, k, v, None, False, 3**-0.5, torch.ones_like(y))
    torch.testing.assert_close(torch.autograd.grad(y.sum(), v)[0].double(), wanted, rtol=1e-5, atol=1e-6)


@long_and_short
def test_weights_that_almost_vanish() -> None:
    """Scores far apart: a key that hardly anybody sees, and log-sum-exps far from 0."""
    q, k, v = torch.randn(3, 1, 2, 9, 4).double()
    k[..., 3, :] *= 30
    v.requires_grad_()
    g = torch.randn(1, 2, 9, 4).double()
    (found,) = torch.autograd.grad(value_only(SDPA, q, k, v), v, g)
    wanted = textbook(q, k, v, None, False, 0.5, g)
    assert found.isfinite().all() and (found - wanted).abs().max() < 1e-12 * wanted.abs().max()


@long_and_short
@pytest.mark.parametrize("factor", [1e1, 1e3, 1e5])
def test_scores_far_from_zero(factor: float) -> None:
    """Attention to one key each: its weight is 1, however the scores are rounded."""
    q, v = torch.eye(6)[None, None] * factor, torch.randn(1, 1, 6, 3)
    k = q + torch.rand(1, 1, 6, 6) * factor / 4
    v.requires_grad_()
    y = value_only(SDPA, q, k, v)
    g = torch.randn_like(y)
    wanted = textbook(q, k, v, None, False, 6**-0.5, g)
    assert (torch.autograd.grad(y, v, g)[0] - wanted).abs().max() < 1e-5 * wanted.abs().max()
