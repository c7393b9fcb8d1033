"""A piece of a linear layer's output whose vjp goes directly to the layer's input: dx = g W[rows].

The layer runs once, whole and unrecorded, and the model's own moves cut up its output. A live piece takes its values
from there. Its vjp multiplies with the rows of the weight that made the piece, and no others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from fxgrad.graph.replay import Replay
from fxgrad.ops.backward import Backward, Decided, Pairs, Rewriting
from fxgrad.ops.function import Function, recording
from fxgrad.ops.zero import at_zero


class Rows(NamedTuple):
    """Which piece of a linear layer's output a tensor is.

    Attributes:
        order: the tensor's axes: those of batch and tokens first, then those of features, each as in the output.
        first: the first of the layer's output features in the piece.
        axes: size and stride of the feature axes, the longest stride first.
    """

    order: tuple[int, ...]
    first: int
    axes: tuple[tuple[int, int], ...]

    @property
    def features(self) -> int:
        """The number of features in the piece."""
        return math.prod(size for size, _ in self.axes)

    @property
    def where(self) -> slice | list[int]:
        """The indices of its features; a slice where possible, so that the weight need not be copied."""
        run = 1
        for size, stride in reversed(self.axes):
            if stride != run and size != 1:
                return self._listed()
            run *= size
        return slice(self.first, self.first + run)

    def _listed(self) -> list[int]:
        index = [self.first]
        for size, stride in self.axes:
            index = [i + stride * step for i in index for step in range(size)]
        return index


NO_ROWS = Rows((), 0, ())


class _Rows(Function):
    @staticmethod
    def forward(rows: Rows, piece: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return piece.detach()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.rows, _, x, weight, bias = inputs
        ctx.outer = x.shape[:-1]
        ctx.bias_shape = None if bias is None else bias.shape
        # Only the weight's own gradient looks at x.
        ctx.save_for_backward(weight, x if ctx.needs_input_grad[3] else None)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Any, ...]:
        weight, x = ctx.saved_tensors
        where = ctx.rows.where
        g = cotangent.permute(ctx.rows.order).reshape(*ctx.outer, ctx.rows.features)
        dx = dw = db = None
        if ctx.needs_input_grad[2]:
            rows = weight[where]
            dx = torch.matmul(g, rows if rows.dtype is g.dtype else rows.to(g.dtype))
        if ctx.needs_input_grad[3]:
            part = torch.matmul(g.reshape(-1, g.shape[-1]).T, x.reshape(-1, x.shape[-1]).to(g.dtype))
            dw = _placed(part, where, weight.shape).to(weight.dtype)
        if ctx.needs_input_grad[4]:
            db = _placed(g.reshape(-1, g.shape[-1]).sum(0), where, ctx.bias_shape)
        return None, None, dx, dw, db


def _placed(part: Tensor, where: slice | list[int], shape: torch.Size) -> Tensor:
    """A tensor of zeros of this shape, with `part` in the rows `where`."""
    index = torch.arange(shape[0], device=part.device)[where]
    return part.new_zeros(shape).index_add(0, index, part)


def rows_of(rows: Rows, piece: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A piece of a linear layer's output; its vjp is the layer's vjp for that piece.

    Args:
        rows: which piece.
        piece: its values, cut out of the layer's output by any moves; these get no cotangent.
        x: the layer's input, (..., in), any floating dtype.
        weight: (out, in).
        bias: (out,) or None.

    Returns:
        The values of `piece`.

    Example:
        >>> x, weight = torch.randn(3, 4, requires_grad=True), torch.randn(6, 4)
        >>> y = torch.nn.functional.linear(x.detach(), weight)
        >>> piece = rows_of(Rows((0, 1), 2, ((2, 1),)), y[:, 2:4], x, weight)
        >>> torch.allclose(torch.autograd.grad(piece.sum(), x)[0], weight[2:4].sum(0).expand(3, 4))
        True

    Source: LibraGrad, arXiv:2411.16760, section 3.2: held operands are not differentiated.
    """
    return _Rows.call(rows, piece, x, weight, bias) if recording(x, weight, bias) else piece


@dataclass(frozen=True)
class OfRows(Backward):
    """The backward of a piece of a linear layer's output. `classify` chooses it, no policy does.

    Attributes:
        rows: which piece.
        moves: names of the nodes from the layer to the piece, which are held.
    """

    name: str = "rows"
    rows: Rows = NO_ROWS
    moves: tuple[str, ...] = ()

    def call(self, node: fx.Node, decided: Decided, done: Rewriting) -> fx.Node:
        # The decision's operands are the layer's: the values come from the piece, the vjp from the layer.
        operands = [done.nodes[str(o.value)] for o in decided.operands if isinstance(o.value, str)]
        with node.graph.inserting_after(node):
            call = node.graph.call_function(rows_of, (self.rows, node, *operands))
        call.meta = dict(node.meta)
        node.name, call.name = f"{decided.node}_value", decided.node
        return call

    def reads(self, decided: Decided) -> tuple[str, ...]:
        return (decided.node, *self.moves)

    def offset(self, decided: Decided, original: Replay, carrying: list[str], g: Any) -> Pairs:
        layer, *moves = self.moves
        with torch.no_grad():
            found = {layer: at_zero(original, layer, carrying)}
            for name in moves:
                found[name] = original.call(name, found)
            return [(g, original.call(decided.node, found))]
