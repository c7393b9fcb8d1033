"""Ops spelled out for runtimes without PyTorch's kernels.

Attention becomes matrix products and a softmax, kept for the backward; global average pooling becomes a mean; padding
concatenates constants, which keeps dynamic sizes dynamic (the kernel specializes them).
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxgrad.module.converted import ConvertedModule
from fxgrad.ops.attention import value_only
from fxgrad.ops.scores import attention_weights, shared
from fxgrad.ops.swapped import SDPA
from fxgrad.ops.weights import weighted


def plain_attention(
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
    """softmax(scale q k^T + mask) v, as `torch.nn.functional.scaled_dot_product_attention` without dropout.

    Example:
        >>> q, k, v = torch.randn(3, 1, 2, 5, 4)
        >>> torch.allclose(plain_attention(q, k, v), SDPA(q, k, v), atol=1e-6)
        True

    Source: Vaswani et al., arXiv:1706.03762, eq. 1.
    """
    weights = attention_weights(query, key, attn_mask, is_causal, scale=scale, enable_gqa=enable_gqa)
    return weights @ (shared(value, query.shape[-3]) if enable_gqa else value)


def held_attention(_op: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Attention with held weights, with the signature of `fxgrad.ops.value_only` (the op first)."""
    return plain_attention(query.detach(), key.detach(), value, *args, **kwargs)


def plain_pool(x: Tensor, output_size: Sequence[int]) -> Tensor:
    """Like `torch.nn.functional.adaptive_avg_pool2d`; to one pixel without its kernel, which picks a memory format.

    Example:
        >>> plain_pool(torch.arange(4.0).reshape(1, 1, 2, 2), [1, 1]).item()
        1.5
    """
    return x.mean((-2, -1), keepdim=True) if list(output_size) == [1, 1] else POOL(x, output_size)


def plain_pad(x: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Tensor:
    """Like `torch.nn.functional.pad`; constant padding without its kernel. A negative width crops.

    Example:
        >>> plain_pad(torch.ones(2, 2), [1, 0, -1, 1])
        tensor([[0., 1., 1.],
                [0., 0., 0.]])
    """
    if mode != "constant":
        return PAD(x, pad, mode, value)
    for dim, (before, after) in enumerate(zip(pad[::2], pad[1::2]), start=1):
        if before < 0 or after < 0:
            x = x.narrow(-dim, max(-before, 0), x.shape[-dim] + min(before, 0) + min(after, 0))
        shape = list(x.shape)
        parts = [x]
        if before > 0:
            shape[-dim] = before
            parts.insert(0, x.new_full(shape, value or 0))
        if after > 0:
            shape[-dim] = after
            parts.append(x.new_full(shape, value or 0))
        x = torch.cat(parts, -dim) if len(parts) > 1 else x
    return x


PAD: Callable[..., Tensor] = torch.ops.aten.pad.default
POOL = torch.ops.aten.adaptive_avg_pool2d.default
PLAIN: Mapping[Any, Callable[..., Tensor]] = {
    SDPA: plain_attention,
    PAD: plain_pad,
    POOL: plain_pool,
    value_only: held_attention,
}
"""An op of converted programs -> its plain form."""


def _weighted(plain: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`weighted` of a function: the code of a graph can name a function that it calls, but not one that it passes."""

    @functools.wraps(plain)
    def call(*args: Any, **kwargs: Any) -> Tensor:
        result: Tensor = weighted(plain, *args, **kwargs)
        return result

    return call


def with_plain_ops(converted: ConvertedModule) -> ConvertedModule:
    """A copy of the module with its ops spelled out; held attention weights stay held.

    Example:
        >>> import fxgrad
        >>> model = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
        >>> x = torch.randn(2, 5, 8)
        >>> libra = fxgrad.convert(model, (x,))
        >>> torch.allclose(with_plain_ops(libra)(x), libra(x), atol=1e-5)
        True
    """
    graph = fx.Graph()
    graph.output(graph.graph_copy(converted.graph, {}))
    for node in graph.nodes:
        if node.target is weighted and node.args[0] in PLAIN:
            node.target, node.args = _weighted(PLAIN[node.args[0]]), node.args[1:]
        elif node.target in PLAIN:
            node.target = PLAIN[node.target]
    program = fx.GraphModule(nn.Module(), graph, class_name="FxgradProgram")
    other = copy.copy(converted)
    object.__setattr__(other, "program", program)
    object.__setattr__(other, "runner", program)
    return other
