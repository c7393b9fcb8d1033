"""The passes of one recorded run that make products with its linear map: W' g, W v, and what constants give."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fxgrad.errors import InputError
from fxgrad.flows.chosen import Chosen
from fxgrad.module.converted import ConvertedModule
from fxgrad.proof.ledger import TOLERANCE
from fxgrad.run.recording import Contributions
from fxgrad.run.runs import Runs
from fxgrad.run.sources import detached, wide


class Passes:
    """W of f(x) = W x + b at one example, by backward passes.

    W' g is the balanced gradient of <g, f>. It is linear in g, so that its own gradient in g, from v on, is W v: two
    backward passes make one forward one, and nothing in the model is differentiated twice.

    Args:
        converted: the model.
        entries: its flattened inputs, then its embedded tokens.
        outputs: as for `fxgrad.linear_map`.
        place: name of the node that the map starts from -> its value; {} for the inputs.

    Attributes:
        chosen: the outputs.
        starts: name of an input, or of the place's node -> its value.
        x: these values, flattened, one behind the other, (inputs,).

    Example:
        >>> import fxgrad
        >>> layer, x = torch.nn.Linear(3, 2).eval(), torch.randn(1, 3)
        >>> passes = Passes(fxgrad.convert(layer, (x,)), [x], None, {})
        >>> torch.equal(passes.pulled(torch.eye(2)), layer.weight), torch.equal(passes.pushed(x), x @ layer.weight.T)
        (True, True)
    """

    def __init__(
        self, converted: ConvertedModule, entries: list[Any], outputs: Any, place: Mapping[str, Tensor]
    ) -> None:
        self._place, self._decisions = place, converted.classified.decisions
        self._runs, self._booking = (
            Runs(converted, entries, place, sources, instead=place, again=True) for sources in (False, True)
        )
        recording = self._runs.recorded()
        self.chosen = Chosen(recording.outputs, converted.classified.captured.out_spec, outputs)
        inputs = {recording.names[name]: detached(value) for name, value in recording.inputs.items()}
        self.starts: dict[str, Tensor] = dict(place) or inputs
        self.x = torch.cat([value.flatten() for value in self.starts.values()])

    def pulled(self, lines: Tensor) -> Tensor:
        """W' g for each g of some lines, (count, outputs): (count, inputs), of the inputs' dtype."""
        return self._back(len(lines), lines.to(self.chosen.value).__getitem__)

    def rows(self, indices: Sequence[int]) -> Tensor:
        """Some rows of W, (count, inputs)."""
        return self._back(len(indices), lambda i: self._unit(indices[i]))

    def pushed(self, lines: Tensor) -> Tensor:
        """W v for each v of some lines, (count, inputs): (count, outputs), of the outputs' dtype.

        Where an op's backward cannot be differentiated, or not all of it, by the rows of W.
        """
        if self._tape is None:
            return (lines.to(self.matrix) @ self.matrix.mT).to(self.chosen.value)
        g, pulled = self._tape
        if not len(lines):
            return lines.new_zeros(0, len(g)).to(g)
        size = self._runs.recorded().fitting(len(lines))
        return torch.cat([_derivative(pulled, g, some) for some in torch.split(lines.to(pulled), size)])

    @cached_property
    def matrix(self) -> Tensor:
        """W, (outputs, inputs)."""
        return self.rows(range(len(self.chosen.value)))

    def biases(self) -> dict[str, Tensor]:
        """What each constant contributes, (outputs,), by name; of a map from a place, what goes past it, too."""
        value = self.chosen.value
        found: dict[str, Tensor] = {}
        at, size = 0, 1
        while at < len(value):
            some = range(at, min(at + size, len(value)))
            each = self._booking.back_at_once([self.chosen.cotangents(self._unit(i)) for i in some])
            for i, one in zip(some, each):
                for name, share in self._shares(one):
                    found.setdefault(name, torch.zeros_like(value, dtype=share.dtype))[i] += share
            at += size
            size = self._booking.recorded().fitting(len(value), each[0].bytes)  # known once a pass has returned them
        self._booking.free()
        return found

    def _unit(self, index: int) -> Tensor:
        """The cotangent of one output."""
        found = torch.zeros_like(self.chosen.value)
        found[index] = 1
        return found

    def _back(self, count: int, line: Callable[[int], Tensor]) -> Tensor:
        """W' g for some g, given by number: (count, inputs)."""
        size, found = self._runs.recorded().fitting(count, self.x.nbytes), []
        for at in range(0, count, size):
            some = [self.chosen.cotangents(line(i)) for i in range(at, min(at + size, count))]
            found += [self._flat(one) for one in self._runs.back_at_once(some)]
        return torch.stack(found) if found else self.x.new_zeros(0, len(self.x))

    def _shares(self, found: Contributions) -> Iterator[tuple[str, Tensor]]:
        """(name, what it contributes) for the constants, and for the inputs that go past the place."""
        for name, parts in found.sources.items():
            if name not in self._place:  # its constants are in its value
                constants = self._decisions[name].sources if name in self._decisions else ()
                yield ", ".join(constants) or name, torch.stack([part.sum() for part in parts]).sum()
        for name, value in found.inputs.items() if self._place else ():
            share = (wide(value) * found.gradients[name]).sum()
            if share != 0:
                yield name, share

    def _flat(self, found: Contributions) -> Tensor:
        """What arrives at the starts, all of it in one line."""
        arrived = found.cotangents if self._place else found.gradients
        each = [(arrived[name], value) for name, value in self.starts.items()]
        return torch.cat([(torch.zeros_like(value) if g is None else g).flatten() for g, value in each])

    @cached_property
    def _tape(self) -> tuple[Tensor, Tensor] | None:
        """(g, W' g), recorded; None if it has no derivative in g, or a part of one: then <g, W W' g> is not |W' g|²."""
        g = self.chosen.probe.clone().requires_grad_()
        cotangents = self.chosen.cotangents(g, record=True)
        try:
            pulled = self._flat(self._runs.recorded().back(cotangents, last=False, record=True))
            (again,) = _derivative(pulled, g, pulled.detach()[None])
        except torch.OutOfMemoryError:
            raise
        except (InputError, RuntimeError):
            return None
        wanted, found = pulled.detach().double().square().sum(), (g.detach() * again).double().sum()
        kept = (found - wanted).abs() <= max(TOLERANCE[g.dtype], TOLERANCE[torch.float32]) * wanted
        return (g, pulled) if bool(kept) else None


def _derivative(pulled: Tensor, g: Tensor, lines: Tensor) -> Tensor:
    """The derivatives in g of <v, W' g> for some v, (count, outputs)."""
    if len(lines) > 1:
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)  # of ops one by one
                return torch.autograd.grad(pulled, g, lines, retain_graph=True, is_grads_batched=True)[0]
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # an op has no gradient that vmap can batch
            pass
    return torch.stack([torch.autograd.grad(pulled, g, v, retain_graph=True)[0] for v in lines])
