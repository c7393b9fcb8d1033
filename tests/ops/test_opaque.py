"""Attention's operators for the compiler: PyTorch's own check of operators, the eager gradient, and vmap."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fxgrad.ops import short, swapped
from fxgrad.ops.attention import value_only
from fxgrad.ops.opaque import attend, attention_vjp
from fxgrad.ops.swapped import SDPA

CHECKS = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")


def operands(*lead: int, rows: int = 6, columns: int = 6, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [torch.randn(*lead, n, 4, dtype=dtype) for n in (rows, columns, columns)]


@pytest.mark.parametrize("chosen", [True, False], ids=["fused kernel", "another kernel"])
@pytest.mark.parametrize("causal", [False, True])
def test_operators_are_what_they_declare(causal: bool, chosen: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swapped, "is_chosen", lambda *args: chosen)
    q, k, v = operands(2, 3)
    torch.library.opcheck(attend, (q, k, v, causal, None), test_utils=CHECKS)
    y, lse = attend(q, k, v, causal, None)
    assert torch.equal(y, SDPA(q, k, v, None, 0.0, causal)) or not chosen
    torch.testing.assert_close(y, SDPA(q, k, v, None, 0.0, causal))
    assert bool(lse.isposinf().all()) is not chosen
    torch.library.opcheck(attention_vjp, (y, q, k, None, lse, causal, 0.5, False), test_utils=CHECKS)


CALLS: dict[str, tuple[list[Tensor], dict[str, Any]]] = {
    "plain": (operands(2, 3), {}),
    "causal": (operands(2, 3), {"is_causal": True}),
    "causal, longer": (operands(2, 3, columns=8), {"is_causal": True}),
    "mask": (operands(2, 3), {"attn_mask": torch.rand(2, 1, 6, 6) > 0.3}),
    "scores far from zero": ([1e3 * t for t in operands(2, 3)], {}),
    "groups": ([torch.randn(2, 4, 6, 4), *torch.randn(2, 2, 2, 6, 4)], {"enable_gqa": True}),
    "three axes": (operands(3), {}),
    "half": (operands(2, 3, dtype=torch.bfloat16), {}),
}


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("name", CALLS)
def test_compiled_gradient_is_the_eager_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(short, "SCORES", 0)
    (q, k, v), options = CALLS[name]
    v = v.detach().requires_grad_()

    def attention(v: Tensor) -> Tensor:
        return value_only(SDPA, q, k, v, **options)

    y, z = attention(v), torch.compile(attention, fullgraph=True, backend="aot_eager")(v)
    g = torch.randn_like(y)
    assert torch.equal(y, z)
    torch.testing.assert_close(torch.autograd.grad(z, v, g)[0], torch.autograd.grad(y, v, g)[0])


def test_vmap_calls_them_one_by_one() -> None:
    q, k, v = operands(2, 3)
    y, lse = attend(q, k, v, False, None)
    cotangents = torch.randn(5, *y.shape, dtype=y.dtype)
    found = torch.func.vmap(lambda g: attention_vjp(g, q, k, None, lse, False, 0.5, False))(cotangents)
    wanted = [attention_vjp(g, q, k, None, lse, False, 0.5, False) for g in cotangents]
    assert torch.equal(found, torch.stack(wanted))
    many, _ = torch.func.vmap(lambda v: attend(q, k, v, False, None), 1, 1)(torch.stack([v, 2 * v], 1))
    torch.testing.assert_close(many[:, 1], 2 * y)
