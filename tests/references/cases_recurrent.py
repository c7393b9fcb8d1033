"""The cases of recurrent layers: textbook cells, one time step and one direction after the other.

Gates are held, squashes carried by their secants. Sources: Hochreiter and Schmidhuber, 1997, with forget gates
(LSTM) and a projection (arXiv:1402.1128); Cho et al., arXiv:1406.1078 (GRU); Elman, 1990 (RNN).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.references.cases import case
from tests.references.textbook import secant

Cell = Callable[[dict[str, Tensor], Tensor, list[Tensor]], list[Tensor]]
tanh = secant("tanh")


def gate(x: Tensor) -> Tensor:
    return (1 / (1 + torch.exp(-x))).detach()


def lstm_cell(w: dict[str, Tensor], x: Tensor, state: list[Tensor]) -> list[Tensor]:
    h, c = state
    units = c.shape[-1]
    rows = {name: slice(i * units, (i + 1) * units) for i, name in enumerate("ifgo")}
    total = {name: project(w, "ih", x, r) + project(w, "hh", h, r) for name, r in rows.items()}
    c = gate(total["f"]) * c + gate(total["i"]) * tanh(total["g"])
    h = gate(total["o"]) * tanh(c)
    return [h @ w["weight_hr"].mT if "weight_hr" in w else h, c]


def gru_cell(w: dict[str, Tensor], x: Tensor, state: list[Tensor]) -> list[Tensor]:
    (h,) = state
    units = h.shape[-1]
    reset, update, new = (slice(i * units, (i + 1) * units) for i in range(3))
    r = gate(project(w, "ih", x, reset) + project(w, "hh", h, reset))
    z = gate(project(w, "ih", x, update) + project(w, "hh", h, update))
    return [z * h + (1 - z) * tanh(project(w, "ih", x, new) + r * project(w, "hh", h, new))]


def tanh_cell(w: dict[str, Tensor], x: Tensor, state: list[Tensor]) -> list[Tensor]:
    return [tanh(project(w, "ih", x) + project(w, "hh", state[0]))]


def relu_cell(w: dict[str, Tensor], x: Tensor, state: list[Tensor]) -> list[Tensor]:
    return [torch.relu(project(w, "ih", x) + project(w, "hh", state[0]))]


def project(w: dict[str, Tensor], which: str, x: Tensor, rows: slice = slice(None)) -> Tensor:
    bias = w.get(f"bias_{which}")
    product = x @ w[f"weight_{which}"][rows].mT
    return product if bias is None else product + bias[rows]


def unrolled(cell: Cell) -> Callable[[nn.RNNBase, Tensor], Tensor]:
    """All outputs of an `nn.RNNBase` with batch_first, and its last states, (batch, everything)."""

    def reference(module: nn.RNNBase, x: Tensor) -> Tensor:
        last: list[list[Tensor]] = []
        parameters = dict(module.named_parameters())
        for layer in range(module.num_layers):
            sides = []
            for suffix in [f"_l{layer}", f"_l{layer}_reverse"][: 1 + module.bidirectional]:
                weights = {k.removesuffix(suffix): v for k, v in parameters.items() if k.endswith(suffix)}
                steps = list(x.unbind(1))
                outputs, states = run(cell, weights, steps[::-1] if "reverse" in suffix else steps, module)
                sides.append(torch.stack(outputs[::-1] if "reverse" in suffix else outputs, 1))
                last.append(states)
            x = torch.cat(sides, -1)
        return torch.cat([x.flatten(1), *(torch.cat(group, -1) for group in zip(*last))], -1)

    return reference


def run(
    cell: Cell, weights: dict[str, Tensor], steps: list[Tensor], module: nn.RNNBase
) -> tuple[list[Tensor], list[Tensor]]:
    state = [steps[0].new_zeros(steps[0].shape[0], size) for size in state_sizes(module)]
    outputs = []
    for x in steps:
        state = cell(weights, x, state)
        outputs.append(state[0])
    return outputs, state


def state_sizes(module: nn.RNNBase) -> list[int]:
    return [module.proj_size or module.hidden_size, module.hidden_size][: 1 + isinstance(module, nn.LSTM)]


class Everything(nn.Module):
    """A layer's outputs and last states, (batch, everything).

    The first states are made here, in the input's dtype: a layer's own are in that of the example, once captured.
    """

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        layer = self.layer
        several = layer.num_layers * (1 + layer.bidirectional)
        first = [x.new_zeros(several, x.shape[0], size) for size in state_sizes(layer)]
        y, states = layer(x, tuple(first) if len(first) > 1 else first[0])
        states = states if isinstance(states, tuple) else (states,)
        return torch.cat([y.flatten(1), *(s.transpose(0, 1).flatten(1) for s in states)], -1)


def recurrent(name: str, row: str, layer: nn.RNNBase, cell: Cell) -> Any:
    reference = unrolled(cell)
    return case(
        name, f"{row}.input", "n 4 3", Everything(layer), lambda m, x: reference(m.layer, x), large=100, loose=8
    )


class Step(nn.Module):
    """Two steps of a cell, from states that are computed, too: its last states, (batch, everything)."""

    def __init__(self, cell: nn.RNNCellBase, several: bool = False) -> None:
        super().__init__()
        self.cell, self.several = cell, several

    def forward(self, x: Tensor) -> Tensor:
        state = [x[:, 0, : self.cell.hidden_size] * factor for factor in (2, -1)]
        for step in x.unbind(1):
            found = self.cell(step, tuple(state) if self.several else state[0])
            state = list(found) if self.several else [found]
        return torch.cat(state, -1)


def stepped(cell: Cell) -> Callable[[Step, Tensor], Tensor]:
    def reference(module: Step, x: Tensor) -> Tensor:
        weights = dict(module.cell.named_parameters())
        state = [x[:, 0, : module.cell.hidden_size] * factor for factor in (2, -1)][: 1 + module.several]
        for step in x.unbind(1):
            state = cell(weights, step, state)
        return torch.cat(state, -1)

    return reference


def one_step(name: str, layer: nn.RNNCellBase, cell: Cell) -> Any:
    return case(name, name, "n 2 3", Step(layer, cell is lstm_cell), stepped(cell), large=100, loose=8)


TWO_WAYS = {"num_layers": 2, "bidirectional": True, "batch_first": True}
RECURRENT = [
    recurrent("lstm", "lstm", nn.LSTM(3, 2, batch_first=True), lstm_cell),
    recurrent("lstm_both_ways", "lstm", nn.LSTM(3, 2, **TWO_WAYS), lstm_cell),
    recurrent("lstm_projected", "lstm", nn.LSTM(3, 3, proj_size=2, bias=False, batch_first=True), lstm_cell),
    recurrent("gru", "gru", nn.GRU(3, 2, batch_first=True), gru_cell),
    recurrent("gru_both_ways", "gru", nn.GRU(3, 2, **TWO_WAYS), gru_cell),
    recurrent("rnn", "rnn_tanh", nn.RNN(3, 2, batch_first=True), tanh_cell),
    recurrent("rnn_both_ways", "rnn_tanh", nn.RNN(3, 2, **TWO_WAYS, bias=False), tanh_cell),
    recurrent("rnn_relu", "rnn_relu", nn.RNN(3, 2, nonlinearity="relu", batch_first=True), relu_cell),
    one_step("lstm_cell", nn.LSTMCell(3, 2), lstm_cell),
    one_step("gru_cell", nn.GRUCell(3, 2), gru_cell),
    one_step("rnn_tanh_cell", nn.RNNCell(3, 2, bias=False), tanh_cell),
    one_step("rnn_relu_cell", nn.RNNCell(3, 2, nonlinearity="relu"), relu_cell),
]
