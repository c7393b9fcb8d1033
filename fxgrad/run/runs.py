"""The runs of a program at one set of inputs: what was computed once serves all methods, targets and examples."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fxgrad.errors import InputError
from fxgrad.module.converted import ConvertedModule
from fxgrad.run.recording import Contributions, Cotangents, Recorder, Recording
from fxgrad.run.sources import detached


class Runs:
    """One forward pass of a program, recorded once a gradient is asked for, and its backward passes.

    What will be asked for is best said beforehand. A node beyond that costs another forward pass, which has it, too.

    Args:
        converted: what `fxgrad.convert` returned.
        entries: what `converted.entries` returned: the inputs, then the embedded tokens.
        reads: names of the nodes whose values and cotangents will be asked for.
        sources: whether the contributions of constants will be.
        instead: node name -> the value it has in these runs, whatever its operands are.
        again: whether several backward passes follow. The recorded values are freed after the only one.

    Example:
        >>> import fxgrad
        >>> x = torch.randn(2, 3)
        >>> runs = Runs(fxgrad.convert(torch.nn.GELU().eval(), (x,)), [x])
        >>> runs.back(lambda outputs: [torch.ones_like(outputs[0])]).gradients["input"].shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        converted: ConvertedModule,
        entries: list[Any],
        reads: Collection[str] = (),
        sources: bool = False,
        instead: Mapping[str, Tensor] | None = None,
        *,
        again: bool = False,
    ) -> None:
        self.converted, self.entries, self.instead = converted, entries, instead or {}
        self.reads, self.sources, self.again = set(reads), sources, again
        self._recording: Recording | None = None
        self._values: dict[str, Any] = {}

    def are_of(self, converted: ConvertedModule, entries: list[Any], instead: Mapping[str, Tensor]) -> bool:
        """Whether they are of this program at these very entries and values."""
        same = self.instead is instead or not (self.instead or instead)
        return self.converted is converted and self.entries is entries and same

    def elsewhere(self, entries: list[Any]) -> Runs:
        """Runs of the same program at other entries, of which the same will be asked for."""
        return Runs(self.converted, entries, self.reads, self.sources)

    def recorded(self, also: Collection[str] = (), sources: bool = False) -> Recording:
        """The recorded forward pass, with at least these nodes."""
        enough = self.reads.issuperset(also) and self.sources >= sources
        if self._recording is None or not enough:
            self.free()
            self.reads |= set(also)
            self.sources |= sources
            made = Recording(self.converted, self.entries, self.reads, self.sources, self.instead, self.again)
            self._recording = made
        return self._recording

    def looked(self, names: Collection[str] = ()) -> list[Any]:
        """The flattened outputs of a forward pass that records nothing but values: those of `names` and of `reads`."""
        recorder = Recorder(self.converted.program, self.reads | set(names), self.instead)
        with torch.no_grad():
            outputs = self.converted.called(recorder.run, self.entries)
        self._values = recorder.values
        return [detached(output) for output in outputs]

    def values(self, names: Collection[str]) -> dict[str, Any]:
        """Node name -> value, detached, of at least these nodes; from a run that was made already, if one has them."""
        if self._recording is not None and self.reads.issuperset(names):
            return self._recording.values(self.reads)
        if not self._values.keys() >= set(names):
            self.looked(names)
        return self._values

    def back(
        self,
        cotangents: Callable[[list[Any]], Cotangents],
        also: Collection[str] = (),
        sources: bool = False,
    ) -> Contributions:
        """One backward pass; see `fxgrad.run.recording.contributions`.

        Args:
            cotangents: from the flattened outputs to one cotangent each; None for an output that takes no part.
            also: names of nodes whose values and cotangents to return, at least.
            sources: whether to return the contributions of constants.
        """
        recording = self.recorded(also, sources)
        found = recording.back(cotangents(recording.outputs), last=not self.again)
        if not self.again:
            self.free()
        return found

    def back_at_once(self, cotangents: Sequence[Cotangents]) -> list[Contributions]:
        """The backward passes of several cotangents; one by one where an op's gradient cannot be batched.

        Args:
            cotangents: for each, one per flattened output; None for an output that takes no part.
        """
        recording = self.recorded()
        alike = len({tuple(g is None for g in row) for row in cotangents}) == 1
        try:
            if alike and len(cotangents) > 1:
                return recording.back_at_once(cotangents)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, InputError):  # what is wrong with a single one is said below
            pass
        return [recording.back(row, last=False) for row in cotangents]

    def free(self) -> None:
        """Forget all values."""
        self._recording, self._values = None, {}
