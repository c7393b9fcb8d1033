"""Recurrent layers, spelled out: their gates are held, the signal's path keeps its gradient.

An LSTM's cell c' = f * c + i * tanh(a) and output o * tanh(c') are products of gates (sigmoids) and
carriers; a GRU's h' = (1 - z) * n + z * h likewise; a plain RNN has no gates. The squash is carried
by its secant. Biases and initial states are sources.

Source: LibraGrad, arXiv:2411.16760, section 3.2, applied to the cells of Hochreiter and Schmidhuber
(1997) and Cho et al. (arXiv:1406.1078), in PyTorch's layout of the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fxgrad.ops.secant import secant

State = tuple[Tensor, ...]
Cell = Callable[[Tensor, State, Sequence[Tensor]], State]
"""(one time step's input projection, state, weights of one direction) -> next state, the output first."""


def _tanh(x: Tensor) -> Tensor:
    return secant(torch.ops.aten.tanh.default, (0.0, 1.0), x)


def _inward(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """W x + b for all time steps at once."""
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


def _layers(
    cell: Cell,
    x: Tensor,
    states: State,
    parameters: Sequence[Tensor],
    layers: int,
    bidirectional: bool,
    counts: Sequence[int] | None,
) -> tuple[Tensor, ...]:
    """All layers and directions over (time, batch, features), or over packed rows where `counts` says how many."""
    directions = 2 if bidirectional else 1
    size = len(parameters) // (layers * directions)
    final: list[State] = []
    for layer in range(layers):
        outputs = []
        for direction in range(directions):
            index = layer * directions + direction
            weights = parameters[index * size : (index + 1) * size]
            start = tuple(s[index] for s in states)
            steps, last = _scan(cell, _inward(x, weights), start, weights, direction == 1, counts)
            outputs.append(steps)
            final.append(last)
        x = torch.cat(outputs, -1) if bidirectional else outputs[0]
    return x, *(torch.stack(s) for s in zip(*final))


def _scan(
    cell: Cell, x: Tensor, state: State, weights: Sequence[Tensor], backwards: bool, counts: Sequence[int] | None
) -> tuple[Tensor, State]:
    """One direction of one layer: the outputs of all steps, in the order of time, and the last state."""
    steps = list(x.unbind(0)) if counts is None else list(torch.split(x, list(counts)))
    outputs: list[Tensor] = []
    running = state
    for step in reversed(steps) if backwards else steps:
        rows = step.shape[0]
        # Packed sequences are sorted by length: the first rows go on, the others keep their state.
        moved = cell(step, tuple(s[:rows] for s in running), weights)
        outputs.append(moved[0])
        running = tuple(torch.cat([m, s[rows:]]) if rows < s.shape[0] else m for m, s in zip(moved, running))
    if backwards:
        outputs.reverse()
    return torch.stack(outputs) if counts is None else torch.cat(outputs), running


def _padded(cell: Cell) -> Callable[..., tuple[Tensor, ...]]:
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
        y, *final = _layers(cell, x, states, params, num_layers, bidirectional, None)
        return (y.transpose(0, 1) if batch_first else y), *final

    return recurrence


def _packed(cell: Cell) -> Callable[..., tuple[Tensor, ...]]:
    def recurrence(
        data: Tensor,
        batch_sizes: Tensor,
        hx: Tensor | Sequence[Tensor],
        params: Sequence[Tensor],
        has_biases: bool,
        num_layers: int,
        dropout: float,
        train: bool,
        bidirectional: bool,
    ) -> tuple[Tensor, ...]:
        states = (hx,) if isinstance(hx, Tensor) else tuple(hx)
        return _layers(cell, data, states, params, num_layers, bidirectional, batch_sizes.tolist())

    return recurrence


RECURRENCES: dict[str, Callable[..., tuple[Tensor, ...]]] = {
    f"aten.{name}.{overload}": form(cell)
    for name, cell in {"lstm": _lstm_cell, "gru": _gru_cell, "rnn_tanh": _tanh_cell, "rnn_relu": _relu_cell}.items()
    for overload, form in {"input": _padded, "data": _packed}.items()
}
"""Op -> its twin, with the op's own signature."""
