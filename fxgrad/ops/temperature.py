"""Softmax at another temperature in the backward than in the forward, alone and inside attention.

The gradient is that of T softmax(x / T): the weights are softer, so that a token whose rivals are strong still counts.
Products in attention halve their cotangents, as `split` does.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from fxgrad.kinds import Kind
from fxgrad.ops.attention import split
from fxgrad.ops.backward import Decided, Rewriting, replace_call
from fxgrad.ops.normalization import HALF
from fxgrad.ops.scores import scores_of, shared
from fxgrad.ops.shares import Weigh
from fxgrad.ops.swapped import SDPA
from fxgrad.ops.twins import Twin
from fxgrad.ops.weights import Weighted, weighted


def softer(op: Any, temperature: float, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """A function with the gradient of a softmax at a temperature: T softmax(x / T).

    Args:
        op: a softmax.
        temperature: T, above 0.
        x: its operand, of any shape and floating-point dtype.
        *args, **kwargs: further arguments of `op`.

    Returns:
        As `op` returns, but with other values.

    Example:
        >>> x = torch.tensor([0.0, 2.0], requires_grad=True)
        >>> (found,) = torch.autograd.grad(softer(torch.softmax, 2.0, x, -1)[0], x)
        >>> p = torch.softmax(x.detach() / 2, -1)
        >>> torch.allclose(found, p * (torch.tensor([1.0, 0.0]) - p[0]))
        True

    Source: Edin et al., GIM: Improved Interpretability for Large Language Models, arXiv:2505.17630.
    """
    return temperature * op(x / temperature, *args, **kwargs)  # type: ignore[no-any-return]


def softer_attention(
    temperature: float,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attention written out, with the gradient of its softmax at a temperature.

    Args:
        temperature: T, above 0.
        query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa: as for
            `torch.nn.functional.scaled_dot_product_attention`; nothing is dropped.

    Returns:
        (..., heads, rows, value's width), up to rounding the result of attention.

    Example:
        >>> q, k, v = torch.randn(3, 1, 2, 5, 4)
        >>> wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        >>> torch.allclose(softer_attention(2.0, q, k, v), wanted, atol=1e-6)
        True

    Source: Edin et al., GIM: Improved Interpretability for Large Language Models, arXiv:2505.17630.
    """
    q, k, v = (t.float() if t.dtype in HALF else t for t in (query, key, value))
    scores = scores_of(q, k, attn_mask, is_causal, scale=scale, enable_gqa=enable_gqa)
    safe = torch.ops.aten._safe_softmax.default  # 0 in a row that is masked altogether
    soft = softer(safe, temperature, scores, -1)
    weights = soft + (safe(scores, -1) - soft).detach()
    attended: Tensor = weights @ (shared(v, q.shape[-3]) if enable_gqa else v)
    return attended.to(query.dtype)


@dataclass(frozen=True)
class Temperature(Weighted):
    """The shares of `split`, and softmax at a temperature."""

    weigh: Weigh = split
    temperature: float = 2.0
    parameters: ClassVar[tuple[str, ...]] = ("temperature",)

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(f"temperature must be above 0, not {self.temperature:g}")

    def call(self, node: fx.Node, decided: Decided, done: Rewriting) -> fx.Node:
        if decided.kind is Kind.SOFTMAX and not decided.options.get("log"):
            replace_call(node, Twin(partial(softer, node.target, self.temperature)))
        elif node.target is SDPA:
            shares = {o.position: w for o, w in zip(decided.operands, decided.weights)}
            weights = tuple(shares.get(position, 1.0) for position in range(len(node.args)))
            replace_call(node, Twin(partial(weighted, partial(softer_attention, self.temperature), weights)))
        else:
            return super().call(node, decided, done)
        return node


BACKWARDS = (Temperature("temperature", frozenset({Kind.SOFTMAX, Kind.ATTENTION}), balanced=False),)
