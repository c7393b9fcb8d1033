"""Packed sequences as plain ops, for lengths that are known: how PyTorch packs, pads, and runs a recurrent layer.

The kernels read lengths from memory, which a traced tensor does not have. Step by step they compute the same: at each
time, the sequences that are still running, the longest first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

States = tuple[Tensor, ...]
"""The states of a cell: (h,), or (h, c) of an LSTM; each (sequences, width)."""
Cell = Callable[[Tensor, States, Callable[[Tensor], Tensor]], States]


def pack(input: Tensor, lengths: Sequence[int], batch_first: bool) -> tuple[Tensor, Tensor]:
    """What `torch._pack_padded_sequence` returns: (the elements time by time, the number of sequences at each time).

    Example:
        >>> pack(torch.tensor([[1.0, 2.0], [3.0, 0.0]]), [2, 1], True)
        (tensor([1., 3., 2.]), tensor([2, 1]))
    """
    steps = input.transpose(0, 1) if batch_first else input
    torch._check(steps.shape[1] == len(lengths), lambda: "as many lengths as sequences")
    sizes = [sum(length > time for length in lengths) for time in range(max(lengths))]
    return torch.cat([steps[time, :size] for time, size in enumerate(sizes)]), torch.tensor(sizes)


def pad(
    data: Tensor, sizes: Sequence[int], batch_first: bool, padding: float, total: int = -1
) -> tuple[Tensor, Tensor]:
    """What `torch._pad_packed_sequence` returns: (the padded sequences, their lengths).

    Example:
        >>> pad(torch.tensor([1.0, 3.0, 2.0]), [2, 1], True, 0.0)
        (tensor([[1., 2.],
                [3., 0.]]), tensor([2, 1]))
    """
    rest, times = (0,) * (2 * (data.dim() - 1)), max(total, len(sizes))
    steps = [
        functional.pad(step, (*rest, 0, sizes[0] - len(step)), value=padding) for step in torch.split(data, list(sizes))
    ]
    padded = functional.pad(torch.stack(steps), (*rest, 0, 0, 0, times - len(sizes)), value=padding)
    lengths = torch.tensor([sum(size > index for size in sizes) for index in range(sizes[0])])
    return (padded.transpose(0, 1) if batch_first else padded), lengths


def recurrent(
    kind: str,
    data: Tensor,
    sizes: Sequence[int],
    states: States,
    weights: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    bidirectional: bool,
) -> tuple[Tensor, ...]:
    """What `torch.lstm`, `torch.gru`, `torch.rnn_tanh` or `torch.rnn_relu` returns for a packed sequence in eval mode.

    Args:
        kind: "lstm", "gru", "rnn_tanh" or "rnn_relu".
        data, sizes: as `pack` returns them.
        states: the first states, each (layers and directions, sequences, width).
        weights: as the layer has them: per layer and direction.
        has_biases, num_layers, bidirectional: of the layer.

    Returns:
        (the output, packed like the data; the last states).

    Example:
        >>> layer, x = torch.nn.GRU(2, 3), torch.ones(4, 2)
        >>> first = torch.zeros(1, 2, 3)
        >>> output, last = recurrent("gru", x, [2, 1, 1], (first,), list(layer.parameters()), True, 1, False)
        >>> output.shape, last.shape
        (torch.Size([4, 3]), torch.Size([1, 2, 3]))
    """
    directions, step = 2 if bidirectional else 1, _CELLS[kind]
    per = len(weights) // (num_layers * directions)
    found: list[States] = []
    for layer in range(num_layers):
        outputs = []
        for direction in range(directions):
            index = layer * directions + direction
            own = list(weights[index * per : (index + 1) * per])
            biases, more = (own[2:4], own[4:]) if has_biases else ([None, None], own[2:])
            ready = functional.linear(data, own[0], biases[0])
            recur = _recur(own[1], biases[1])
            first = tuple(_as_state(state[index], ready) for state in states)
            run = _backward if direction else _forward
            output, last = run(ready, sizes, first, lambda x, s, recur=recur: step(x, s, recur))
            if more:  # an LSTM with a projection has no plain cell
                raise NotImplementedError("a packed LSTM with proj_size")
            outputs.append(output)
            found.append(last)
        data = torch.cat(outputs, -1) if bidirectional else outputs[0]
    return data, *(torch.stack(parts) for parts in zip(*found))


def _as_state(first: Tensor, ready: Tensor) -> Tensor:
    """A first state as one that depends on the input: its gates are held at the first step as at any other.

    So the rule of a layer, which knows what is a state, holds step by step; a gate times a constant would be a gate.
    """
    return first + 0 * ready[: len(first), :1]


def _recur(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    return lambda state: functional.linear(state, weight, bias)


def _forward(ready: Tensor, sizes: Sequence[int], states: States, step: Callable[..., States]) -> tuple[Tensor, States]:
    """In the order of time: sequences end, the shortest first."""
    outputs: list[Tensor] = []
    ended: list[States] = []
    for x in torch.split(ready, list(sizes)):
        if len(x) < len(states[0]):
            ended.append(tuple(state[len(x) :] for state in states))
            states = tuple(state[: len(x)] for state in states)
        states = step(x, states)
        outputs.append(states[0])
    ended.append(states)
    return torch.cat(outputs), tuple(torch.cat(parts) for parts in zip(*reversed(ended)))


def _backward(
    ready: Tensor, sizes: Sequence[int], states: States, step: Callable[..., States]
) -> tuple[Tensor, States]:
    """Against the order of time: sequences begin, the longest first."""
    first, outputs = states, list[Tensor]()
    states = tuple(state[: sizes[-1]] for state in first)
    for x in reversed(torch.split(ready, list(sizes))):
        if len(x) > len(states[0]):
            states = tuple(torch.cat([s, f[len(s) : len(x)]]) for s, f in zip(states, first))
        states = step(x, states)
        outputs.append(states[0])
    return torch.cat(outputs[::-1]), states


def _lstm(x: Tensor, states: States, recur: Callable[[Tensor], Tensor]) -> States:
    hidden, cell = states
    enter, forget, new, leave = (recur(hidden) + x).chunk(4, 1)
    cell = forget.sigmoid() * cell + enter.sigmoid() * new.tanh()
    return leave.sigmoid() * cell.tanh(), cell


def _gru(x: Tensor, states: States, recur: Callable[[Tensor], Tensor]) -> States:
    (hidden,) = states
    width = hidden.shape[1]
    own = recur(hidden)
    # Both gates lie in one tensor, as the kernel has them: PyTorch's sigmoid has other bits for other strides.
    reset, update = (own[:, : 2 * width] + x[:, : 2 * width]).chunk(2, 1)
    new = (x[:, 2 * width :] + own[:, 2 * width :] * reset.sigmoid()).tanh()
    return ((hidden - new) * update.sigmoid() + new,)


def _plain(function: Callable[[Tensor], Tensor]) -> Cell:
    return lambda x, states, recur: (function(recur(states[0]) + x),)


_CELLS: dict[str, Any] = {"lstm": _lstm, "gru": _gru, "rnn_tanh": _plain(torch.tanh), "rnn_relu": _plain(torch.relu)}
