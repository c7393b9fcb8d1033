"""The argument of a method: a `Problem`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxgrad.classify.decision import Classified
from fxgrad.errors import FxgradError, InputError
from fxgrad.methods.aim import Aim
from fxgrad.methods.alone import cut, ways
from fxgrad.methods.layers import of_layer
from fxgrad.methods.outputs import differentiable
from fxgrad.methods.parts import Anatomy
from fxgrad.methods.placing import layout, per_example, per_token
from fxgrad.methods.scoring import Scored
from fxgrad.methods.structure import Structure
from fxgrad.module.converted import ConvertedModule
from fxgrad.run.recording import Contributions
from fxgrad.run.runs import Runs
from fxgrad.run.sources import wide

Result = TypeVar("Result")


def size_of_batch(classified: Classified, entries: Sequence[Any], anatomy: Anatomy, outputs: Sequence[Any] = ()) -> int:
    """The number of examples among a program's entries; of the first output's rows if the inputs have no examples."""
    for name, value in zip(classified.captured.entry_names, entries):
        if name in anatomy.inputs:
            return int(value.shape[anatomy.inputs[name]])
    return next((len(v) for v in outputs if differentiable(v) and v.dim()), 1)


@dataclass(frozen=True, eq=False)
class Problem(Structure):
    """A model, its inputs, a target, and a layer.

    Attributes:
        converted: the model under some policy.
        entries: its flattened inputs, then its embedded tokens.
        aim: the target, its values and its cotangents at the outputs of the whole batch.
        anatomy: the model's anatomy.
        layer: module path for methods of one layer; None: the method's default.
        example: index of the only example of the batch that is looked at; None: all are.
        whole: whether the entries hold the other examples, too, whose cotangents are then 0.
        instead: node name -> the value that it is given, whatever the entries are.
        runs: the program's runs at these entries, which other methods, targets and examples use, too.
        memo: the result of `run`, for all methods, whatever their layers are. Both are made anew for a problem that
            `dataclasses.replace` made at other entries, say.
    """

    converted: ConvertedModule
    entries: list[Any]
    aim: Aim
    anatomy: Anatomy
    layer: str | None = None
    example: int | None = None
    whole: bool = False
    instead: Mapping[str, Tensor] = field(default_factory=dict)
    runs: Runs = None  # type: ignore[assignment]
    memo: dict[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.runs is None or not self.runs.are_of(self.converted, self.entries, self.instead):
            object.__setattr__(self, "runs", Runs(self.converted, self.entries, instead=self.instead))
        objects = self.converted, self.entries, self.aim, self.instead
        own = (*map(id, objects), self.example, self.whole)
        if self.memo.setdefault("of", own) != own:
            object.__setattr__(self, "memo", {"of": own})

    @property
    def target(self) -> Scored:
        """The target, fitted to the model's outputs.

        Raises:
            InputError: this is one example of a batch, and a target sees whole batches only.
        """
        if self.example is not None and not self.whole:
            raise InputError(
                "this method gets the examples of a batch one by one (shares=True), and a target is a function of the "
                "whole batch's outputs. Use problem.run(), which has the example's part, or pass one example at a time."
            )
        return self.aim.target

    @property
    def batch(self) -> int:
        """The number of examples in a method's results; without an axis of examples, each goes by itself."""
        if not self.anatomy.inputs:
            return self.aim.batch if self.example is None else 1
        return size_of_batch(self.converted.classified, self.entries, self.anatomy, self.aim.outputs)

    def only(self, example: int, whole: bool = False) -> Problem:
        """The problem of one example of the batch, which runs alone where its part of the inputs is known.

        Args:
            example: its index.
            whole: whether to run all examples, with cotangents of this one. It is so anyway if the program takes
                batches of this size only, or the inputs have no examples.
        """
        captured, parts = self.converted.classified.captured, self.anatomy
        if parts.inputs and not isinstance(parts.examples, int) and not whole:
            choices = ways(captured, self.entries, parts.inputs, self.batch)
            for axes in choices:
                entries = cut(captured, self.entries, axes, example)
                found = replace(self, entries=entries, example=example, runs=self.runs.elsewhere(entries))
                if len(choices) == 1 or found._fits(example):
                    return found
        return replace(self, example=example, whole=True)

    def _fits(self, example: int) -> bool:
        """Whether the outputs of an example that runs alone are its part of the batch's."""
        try:
            with torch.no_grad():
                outputs = pytree.tree_leaves(self.converted.run(self.entries))
        except FxgradError:
            return False
        return self.aim.fits(example, outputs)

    def on_layer(self) -> Problem:
        """The problem with the layer's map of features, or its tokens, as those of a model that has none in blocks."""
        parts = self.anatomy
        if self.layer is None or parts.grid is not None or parts.tokens is not None:
            return self
        return replace(self, anatomy=of_layer(parts, self.nodes[self.layer_node("")]))

    def row(self, values: Tensor, always: bool = False) -> Tensor:
        """The row of the only example, if the values have one for every example; else the values.

        Args:
            values: (batch, ...).
            always: whether they have one for every example of the whole batch, whatever the entries hold.
        """
        if self.example is None or not (always or (self.whole and len(values) > 1)):
            return values
        return values[self.example : self.example + 1]

    def refuse_several(self, method: str) -> None:
        """Refuse an input with an axis like that of examples, if all examples share it, for methods of its tokens.

        Raises:
            InputError: it is one.
        """
        name, parts = self.anatomy.input, self.anatomy
        shape = tuple(self.entries[list(self.inputs).index(name)].shape)
        own = len(shape) - len(parts.channels.get(name, ()))
        several = own > (1 if parts.size is None else len(parts.size)) and shape[0] > 1
        if name not in parts.inputs and several and (parts.tokens or parts.grid):
            raise InputError(
                f"{method} looks at the tokens of one example, and input {name!r} of shape {shape} has {shape[0]} that "
                "all examples share. Pass one, or use input_x_gradient, whose .maps have them all."
            )

    def reduced(self, name: str, values: Tensor, over: Callable[[Tensor, list[int]], Tensor] = torch.sum) -> Tensor:
        """Values of an input's elements as its map: (batch, *the input's own axes without its channels).

        Args:
            name: the input's name.
            values: shaped as the input.
            over: reduces some axes of a tensor.
        """
        examples = self.anatomy.inputs.get(name)
        gone = self.anatomy.channels.get(name, ())
        if examples is None:  # one example, which has all of it
            examples, gone, values = 0, tuple(axis + 1 for axis in gone), values[None]
        found = values.movedim(examples, 0)
        order = [examples, *(axis for axis in range(values.dim()) if axis != examples)]
        return over(found, [order.index(axis) for axis in gone]) if gone else found

    def joint(self, maps: Mapping[str, Tensor]) -> Tensor:
        """The sum of the maps of the main inputs, shaped as the one of the anatomy's input.

        All examples may share one of them, such as the embedding of positions (1, tokens).

        Args:
            maps: input's name -> map.
        """
        own = self.row(maps[self.anatomy.input])
        others = [self.row(maps[name]) for name in self.main if name != self.anatomy.input]
        return sum((map.reshape(-1, *own.shape[1:]) for map in others), own)

    def run(self, also: Collection[str] = (), sources: bool = False) -> Contributions:
        """One forward and one backward pass of the target, made once for all methods.

        Args:
            also: names of nodes whose values and cotangents to return, at least.
            sources: whether to return the contributions of constants.
        """
        found, complete = self.memo.get("run", (None, False))
        if found is None or not found.values.keys() >= set(also) or sources > complete:
            found = self.runs.back(self.cotangents, also, sources)
            self.memo["run"] = found, self.runs.sources
        ours: Contributions = found
        return ours

    def once(self, function: Callable[..., Result], *args: Any) -> Result:
        """`function(self, *args)`, computed once for all methods that need it.

        Args:
            function: of a problem and of values that can be hashed.
            *args: these values; a run's result is one.
        """
        key = (function, *args)
        if key not in self._computed:
            self._computed[key] = function(self, *args)
        found: Result = self._computed[key]
        return found

    @cached_property
    def _computed(self) -> dict[Any, Any]:
        return {}

    def cotangents(self, outputs: list[Any]) -> list[Tensor | None]:
        """The target's cotangents at a run's flattened outputs; None for outputs that take no part."""
        spec = self.converted.classified.captured.out_spec
        if self.example is None:
            return self.aim.whole(outputs, spec)
        if self.whole:
            return self.aim.alone(self.example, outputs, spec)
        return self.aim.only(self.example, outputs)

    def at(self, inputs: Mapping[str, Tensor], nodes: Mapping[str, Tensor] | None = None) -> Problem:
        """The same problem at other values of some inputs, and of some nodes within the program."""
        entries = [inputs.get(name, value) for name, value in zip(self.inputs, self.entries)]
        return replace(self, entries=entries, instead=nodes or self.instead)

    def values_of_target(self) -> Tensor:
        """The target's value per example, (batch,)."""
        outputs = pytree.tree_unflatten(self.runs.looked(), self.converted.classified.captured.out_spec)
        with torch.no_grad():
            return self.row(self.target.score(outputs), always=True)

    def values(self, names: Collection[str]) -> dict[str, Any]:
        """Node name -> value, detached, of at least these nodes, for methods that do not use the target."""
        found, _ = self.memo.get("run", (None, False))
        return found.values if found is not None and found.values.keys() >= set(names) else self.runs.values(names)

    def kept(self, found: Contributions, nodes: set[str]) -> Tensor:
        """The contributions of the constants of some nodes, (batch,)."""
        each = [(part, name) for name, parts in found.sources.items() if name in nodes for part in parts]
        shares = (per_example(part, self.nodes[name], self.anatomy, self.batch, self.example) for part, name in each)
        return sum(shares, self._nothing(found))

    def beside(self, found: Contributions, nodes: set[str]) -> dict[str, Tensor]:
        """The maps of the contributions of attributed inputs among `nodes` that are not main."""
        others = [n for n in self.attributed if n not in self.main and self.inputs[n].name in nodes]
        return {name: self.reduced(name, wide(found.inputs[name]) * found.gradients[name]) for name in others}

    def placed(self, found: Contributions, nodes: set[str]) -> tuple[Tensor, Tensor]:
        """The contributions of the constants of some nodes: (per token, the rest).

        The rest goes to the class token if the model has one.
        """
        apart = self._nothing(found)
        tokens = apart.new_zeros(self.batch, self.anatomy.count + self.anatomy.prefix)
        for name in found.sources:
            if name in nodes:
                on, off = self.once(Problem.spread, found, name)
                tokens, apart = tokens + on, apart + off
        if self.anatomy.class_token is not None and self.anatomy.class_token < tokens.shape[1]:
            tokens[:, self.anatomy.class_token] += apart
            apart = torch.zeros_like(apart)
        return tokens, apart

    def spread(self, found: Contributions, name: str) -> tuple[Tensor, Tensor]:
        """The contributions of a node's constants: (per token, the rest)."""
        node, known = self.nodes[name], (self.anatomy, self.batch, self.example)
        pairs = [per_token(part, node, *known) for part in found.sources[name]]
        tokens, apart = zip(*pairs)
        return sum(tokens[1:], tokens[0]), sum(apart[1:], apart[0])

    def _nothing(self, found: Contributions) -> Tensor:
        return found.inputs[self.anatomy.input].new_zeros(self.batch)

    @cached_property
    def counted(self) -> Tensor | None:
        """Which tokens the target depends on at all, (batch, tokens), by the first block's input; None for all.

        The others are padding, or come after the position that a language model's target is read from. Models without
        integer inputs have none.
        """
        inputs = self.converted.classified.captured.inputs
        if not any(i.dtype is not None and not i.attributed for i in inputs) or not self.anatomy.tokens:
            return None
        name = next((block.entry for block in self.anatomy.blocks if block.entry in self.reached), None)
        g = None if name is None else self.run([name]).cotangents[name]
        place = None if g is None or name is None else layout(g, self.nodes[name], self.anatomy, self.batch)
        if g is None or place is None or place.map:
            return None
        found = (place.rows(g) != 0).any(2)
        return found | ~found.any(1, keepdim=True)

    def mean(self, values: Tensor) -> Tensor:
        """The mean over axis 1, of tokens: over those that the target depends on."""
        if self.counted is None or self.counted.shape != values.shape[:2]:
            return values.mean(1)
        share = self.counted.to(values) / self.number(values)
        return (values * share.reshape(*share.shape, *[1] * (values.dim() - 2))).sum(1)

    def number(self, values: Tensor) -> Tensor | int:
        """How many tokens `mean` is over: of all examples, or of each, (batch, 1)."""
        if self.counted is None or self.counted.shape != values.shape[:2]:
            return values.shape[1]
        return self.counted.sum(1, keepdim=True).to(values)

    def row_of(self, matrix: Tensor) -> Tensor:
        """The matrix's row for the token that the output is read from: (batch, rows, columns) to (batch, tokens).

        It is the row of the class token, or of the position of a language model's target, or the mean over all rows of
        tokens that the target depends on.
        """
        row = self.anatomy.class_token if self.aim.target.row is None else self.aim.target.row
        if isinstance(row, Tensor):
            row = row if row.shape[0] == matrix.shape[0] else self.row(row, always=True)
            return matrix[torch.arange(matrix.shape[0], device=matrix.device), row][
                :, : self.anatomy.count + self.anatomy.prefix
            ]
        read = self.mean(matrix) if row is None else matrix[:, row]
        return read[:, : self.anatomy.count + self.anatomy.prefix]
