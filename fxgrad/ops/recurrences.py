"""Twins of recurrent layers: gates are held, carriers keep their gradient.

An LSTM's cell c' = f * c + i * tanh(a) and output o * tanh(c') are products of gates (sigmoids) and carriers; so is a
GRU's h' = (1 - z) * n + z * h; a plain RNN has no gates. tanh gets the secant's slope. Biases and initial states are
sources.

Source: LibraGrad, arXiv:2411.16760, section 3.2, applied to the cells of Hochreiter and Schmidhuber
(1997) and Cho et al. (arXiv:1406.1078), in PyTorch's layout of the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fxgrad.ops.secants import secant

State = tuple[Tensor, ...]
Cell = Callable[[Tensor, State, Sequence[Tensor]], State]
"""(one time step's input projection, state, weights of one direction) -> next state, the output first."""


def _tanh(x: Tensor) -> Tensor:
    return secant(torch.ops.aten.tanh.default, (0.0, 1.0), x)


def _inward(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """W x + b of all time steps at once."""
    return F.linear(x, weights[0], weights[2] if len(weights) >= 4 else None)


def _inner(h: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """U h + b of one time step."""
    return F.linear(h, weights[1], weights[3] if len(weights) >= 4 else None)


def _lstm_cell(x: Tensor, state: State, weights: Sequence[Tensor]) -> State:
    i, f, a, o = (x + _inner(state[0], weights)).chunk(4, -1)
    c = f.sigmoid().detach() * state[1] + i.sigmoid().detach() * _tanh(a)
    h = o.sigmoid().detach() * _tanh(c)
    projected = len(weights) in (3, 5)
    return (F.linear(h, weights[-1]) if projected else h), c


def _gru_cell(x: Tensor, state: State, weights: Sequence[Tensor]) -> State:
    xr, xz, xn = x.chunk(3, -1)
    hr, hz, hn = _inner(state[0], weights).chunk(3, -1)
    r, z = (xr + hr).sigmoid().detach(), (xz + hz).sigmoid().detach()
    return ((1 - z) * _tanh(xn + r * hn) + z * state[0],)


def _tanh_cell(x: Tensor, state: State, weights: Sequence[Tensor]) -> State:
    return (_tanh(x + _inner(state[0], weights)),)


def _relu_cell(x: Tensor, state: State, weights: Sequence[Tensor]) -> State:
    return ((x + _inner(state[0], weights)).relu(),)


def _unrolled(cell: Cell) -> Callable[..., tuple[Tensor, ...]]:
    """The twin of a recurrence with this cell: all layers and directions, over (time, batch, features)."""

    def recurrence(
        input: Tensor,
        hx: Tensor | Sequence[Tensor],
        params: Sequence[Tensor],
        has_biases: bool,
        num_layers: int,
        dropout: float,
        train: bool,
        bidirectional: bool,
        batch_first: bool,
    ) -> tuple[Tensor, ...]:
        x = input.transpose(0, 1) if batch_first else input
        states = (hx,) if isinstance(hx, Tensor) else tuple(hx)
        directions = 2 if bidirectional else 1
        size = len(params) // (num_layers * directions)
        final: list[State] = []
        for layer in range(num_layers):
            outputs = []
            for direction in range(directions):
                index = layer * directions + direction
                weights = params[index * size : (index + 1) * size]
                steps, last = _scan(cell, _inward(x, weights), tuple(s[index] for s in states), weights, direction == 1)
                outputs.append(steps)
                final.append(last)
            x = torch.cat(outputs, -1) if bidirectional else outputs[0]
        return (x.transpose(0, 1) if batch_first else x), *(torch.stack(s) for s in zip(*final))

    return recurrence


def _scan(cell: Cell, x: Tensor, state: State, weights: Sequence[Tensor], backwards: bool) -> tuple[Tensor, State]:
    """One direction of one layer: the outputs of all steps in temporal order, and the last state."""
    steps = x.unbind(0)
    outputs: list[Tensor] = []
    for step in reversed(steps) if backwards else steps:
        state = cell(step, state, weights)
        outputs.append(state[0])
    return torch.stack(outputs[::-1] if backwards else outputs), state


def _once(cell: Cell) -> Callable[..., Any]:
    """The twin of one step of a recurrence, as an op of its own."""

    def step(
        input: Tensor,
        hx: Tensor | Sequence[Tensor],
        w_ih: Tensor,
        w_hh: Tensor,
        b_ih: Tensor | None = None,
        b_hh: Tensor | None = None,
    ) -> Any:
        weights = [w for w in (w_ih, w_hh, b_ih, b_hh) if w is not None]
        found = cell(_inward(input, weights), (hx,) if isinstance(hx, Tensor) else tuple(hx), weights)
        return found if len(found) > 1 else found[0]

    return step


RECURRENCES: dict[str, Callable[..., Any]] = {
    "aten.lstm.input": _unrolled(_lstm_cell),
    "aten.gru.input": _unrolled(_gru_cell),
    "aten.rnn_tanh.input": _unrolled(_tanh_cell),
    "aten.rnn_relu.input": _unrolled(_relu_cell),
    "aten.lstm_cell": _once(_lstm_cell),
    "aten.gru_cell": _once(_gru_cell),
    "aten.rnn_tanh_cell": _once(_tanh_cell),
    "aten.rnn_relu_cell": _once(_relu_cell),
}
"""Op -> its twin, with the op's own signature."""
