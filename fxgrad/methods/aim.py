"""A target at the outputs of one batch: its values and its cotangents, from which those of single examples are cut.

The target is evaluated once, on the whole batch. What follows is linear in the cotangents, so an example that runs
alone gets its part of them; the target itself never sees less than the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxgrad.classify.decision import Classified
from fxgrad.errors import InputError
from fxgrad.graph.axes import Within, where
from fxgrad.graph.nodes import descendants
from fxgrad.graph.sizes import known
from fxgrad.methods.outputs import differentiable
from fxgrad.methods.parts import Anatomy
from fxgrad.methods.scoring import Scored, gradients
from fxgrad.run.examples import BATCH

_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Output:
    """One of a model's flattened outputs.

    Attributes:
        name: the expression for it in a function of the outputs.
        places: where the examples are; two places if examples are compared with examples, none if it is unknown.
        depends: whether it depends on the input that is attributed.
    """

    name: str
    places: tuple[Within, ...]
    depends: bool

    def found(self, value: Tensor, batch: int) -> tuple[Within, ...]:
        """The places that fit a value. Unknown ones are taken to be the first axis, if its size fits."""
        if self.places and all(value.shape[p.axis] == p.ahead * batch * p.behind for p in self.places):
            return self.places
        return (Within(0, 1, 1),) if self.depends and value.dim() and len(value) == batch else ()


def outputs_of(classified: Classified, anatomy: Anatomy) -> list[Output]:
    """A model's flattened outputs, with where the examples of the anatomy's input are.

    Example:
        >>> import fxgrad
        >>> from fxgrad.methods import anatomy
        >>> classified = fxgrad.convert(torch.nn.Linear(2, 3).eval(), (torch.ones(4, 2),)).classified
        >>> outputs_of(classified, anatomy(classified))
        [Output(name='output', places=(Within(axis=0, ahead=1, behind=1),), depends=True)]
    """
    captured = classified.captured
    nodes: Any = captured.graph.output_node().args[0]
    entries = dict(zip((entry.name for entry in captured.entries), captured.entry_nodes))
    reached = descendants(entries[anatomy.input])
    tree = pytree.tree_unflatten(list(range(len(nodes))), captured.out_spec)
    try:
        names = [f"output{pytree.keystr(path)}" for path, _ in pytree.tree_flatten_with_path(tree)[0]]
    except ValueError:  # a structure that names no keys
        names = [f"output {i}" for i in range(len(nodes))]
    found = []
    for node, name in zip(nodes, names):
        axes = anatomy.places.get(getattr(node, "name", ""), ())
        own = [(i, where((axis,), BATCH, anatomy.examples)) for i, axis in enumerate(axes)]
        places = [
            Within(i, known(p.ahead, anatomy.free), known(p.behind, anatomy.free)) for i, p in own if p is not None
        ]
        certain = tuple(p for p in places if p.ahead > 0 and p.behind > 0)
        found.append(Output(name, certain, node in reached))
    return found


def axis_of(outputs: list[Any], known: Sequence[Output], batch: int) -> Callable[[Tensor], int]:
    """The axis of the examples in one of the flattened outputs; the first, where it is unknown."""

    def axis(output: Tensor) -> int:
        places = next((o.found(v, batch) for o, v in zip(known, outputs) if v is output), ())
        return places[0].axis if places else 0

    return axis


@dataclass(frozen=True, eq=False)
class Aim:
    """A target at the outputs of one batch.

    Attributes:
        target: the target, fitted to the outputs, with its note.
        batch: the number of examples.
        values: the target's values, (batch,).
        outputs: the flattened outputs that it was evaluated at, detached.
        cotangents: the gradient of the values' sum, one per flattened output; None for one that takes no part.
        places: where the examples are in each output.
        shared: index of an output that all examples share -> its gradient for each value, (batch, *its shape).
    """

    target: Scored
    batch: int
    values: Tensor
    outputs: list[Any]
    cotangents: list[Tensor | None]
    places: list[tuple[Within, ...]]
    shared: dict[int, Tensor]

    def whole(self, outputs: list[Any], spec: pytree.TreeSpec) -> list[Tensor | None]:
        """The cotangents of the whole batch; the target is evaluated again only if other inputs gave other outputs."""
        pairs = zip(outputs, self.outputs)
        if all(torch.equal(a, b) for a, b in pairs if isinstance(a, Tensor)):
            return self.cotangents
        return self.target.cotangents(outputs, spec)

    def alone(self, example: int, outputs: list[Any], spec: pytree.TreeSpec) -> list[Tensor | None]:
        """The cotangents of one example's value at the outputs of a whole batch."""
        values, leaves = self.target.graph(outputs, spec)
        chosen = torch.zeros_like(values)
        chosen[example] = 1
        return gradients(values, leaves, chosen)

    def only(self, example: int, outputs: list[Any]) -> list[Tensor | None]:
        """The cotangents of one example that ran alone.

        Args:
            example: its index in the batch.
            outputs: its flattened outputs.

        Raises:
            InputError: they are not the example's part of the batch's outputs.
        """
        return [None if g is None else self._part(i, g, example, outputs[i]) for i, g in enumerate(self.cotangents)]

    def fits(self, example: int, outputs: list[Any]) -> bool:
        """Whether flattened outputs are an example's part of the batch's where the target reads them, but for rounding.

        Args:
            example: its index in the batch.
            outputs: of the example alone.
        """
        for i, g in enumerate(self.cotangents):
            if g is None:
                continue
            whole = self.outputs[i]
            for place in self._places(i, outputs[i]):
                whole = part_of(whole, place, self.batch, example)
            if not near(outputs[i], whole, 1000 * _rounding(whole)):
                return False
        return True

    def _places(self, i: int, alone: Tensor) -> tuple[Within, ...]:
        """Where the examples are in an output, of which one example that ran alone has some part."""
        if i not in self.shared:
            return self.places[i]
        whole = self.outputs[i].shape
        return (Within(0, 1, 1),) if whole[:1] == (self.batch,) and alone.shape != whole else ()

    def _part(self, i: int, g: Tensor, example: int, alone: Tensor) -> Tensor:
        whole = self.outputs[i]
        g = self.shared[i][example] if i in self.shared else g
        for place in self._places(i, alone):
            g, whole = (part_of(v, place, self.batch, example) for v in (g, whole))
        if not near(alone, whole):
            raise InputError(
                f"example {example} of the batch gives other outputs when it runs alone, so its part of the target "
                f"({self.target.label}) is unknown: the model mixes the examples of a batch, or the method runs it at "
                "other inputs. Attribute one example at a time."
            )
        return g


def aimed(target: Scored, outputs: list[Any], spec: pytree.TreeSpec, known: Sequence[Output], batch: int) -> Aim:
    """Evaluate a target at the outputs of a whole batch.

    Args:
        target: the target, fitted to these outputs.
        outputs: the model's flattened outputs.
        spec: their structure.
        known: what `outputs_of` returned.
        batch: the number of examples.

    Raises:
        InputError: the target mixes examples, does not depend on the outputs, or reads an output that all examples
            share and that depends on them, such as a loss.
    """
    values, leaves = target.graph(outputs, spec)
    found = gradients(values, leaves, torch.ones_like(values))
    if all(g is None for g in found):
        raise InputError(f"the target ({target.label}) does not depend on the model's outputs.")
    places = [o.found(v, batch) if differentiable(v) else () for o, v in zip(known, leaves)]
    shared: dict[int, Tensor] = {}
    for i, g in enumerate(found):
        if g is not None and not places[i] and batch > 1:
            _refuse_shared(target, known[i], g, batch)
            shared[i] = _jacobian(values, leaves[i])
    # A class or a token is read from one example's logits, unless these compare examples with examples.
    if target.function or any(len(own) > 1 for own in places):
        weights = _weights(values)
        weighted = gradients(values, leaves, weights)
        for i, (g, w) in enumerate(zip(found, weighted)):
            if batch > 1 and g is not None and w is not None and g.numel():
                for place in places[i]:
                    wrong = w - _along(weights, g, place) * g
                    _refuse_mixing(target, values, leaves[i], g, wrong, place, known[i].name)
        if target.function and not target.note and not _adds_up(weights * values, leaves, weighted):
            target = replace(target, note=_NO_SUM.format(target.label))
    detached = [v.detach() if isinstance(v, Tensor) else v for v in outputs]
    return Aim(target, batch, values.detach(), detached, found, places, shared)


_NO_SUM = (
    "Warning: the target ({}) is no sum of contributions of the outputs (it has a constant in it, or a curve such as a "
    "probability's or a loss's), so shares of its value cannot be complete. Attribute a logit, or a weighted sum of "
    "outputs, for one that is."
)


def _weights(values: Tensor) -> Tensor:
    """A weight for each example, no two alike, in [1, 2)."""
    steps = torch.arange(len(values), dtype=torch.float64) * _GOLDEN
    return (1 + steps.frac()).to(values)


def _refuse_shared(target: Scored, output: Output, g: Tensor, batch: int) -> None:
    if output.depends:
        raise InputError(
            f"the target ({target.label}) reads {output.name} of shape {tuple(g.shape)}, which has no axis for the "
            f"{batch} examples of the batch, so that its value for each is unknown. Read another output, or attribute "
            "one example at a time."
        )


def _refuse_mixing(
    target: Scored, values: Tensor, leaf: Tensor, g: Tensor, wrong: Tensor, place: Within, name: str
) -> None:
    """If each value comes from its own example's outputs, weights of the values are weights of the gradient.

    Args:
        values, leaf: with the target's graph between them.
        g: the gradient of the values' sum.
        wrong: the gradient of the weighted sum, minus the weighted gradient.
    """
    rounding = _rounding(values, g)
    least = 1000 * rounding * values.abs().max() / leaf.detach().abs().max()  # what rounds away in the values
    if not bool(wrong.abs().max() > rounding**0.5 * g.abs().max() + least):
        return
    batch = len(values)
    other = max(range(batch), key=lambda i: float(part_of(wrong, place, batch, i).abs().max()))
    parts = [part_of(each, place, batch, other).abs().max() for each in _jacobian(values, leaf)]
    value = max((i for i in range(batch) if i != other), key=lambda i: float(parts[i]))
    raise InputError(
        f"the target ({target.label}) mixes the examples of the batch: value {value} depends on {name} of example "
        f"{other}. Compute each value from its own example's outputs, with .detach() around what comes from others, or "
        "attribute one example at a time."
    )


def _adds_up(values: Tensor, leaves: Sequence[Any], found: Sequence[Tensor | None]) -> bool:
    """Whether outputs times gradients give the sum of the values: Euler's theorem for functions of degree 1."""
    parts = [
        torch.where(g == 0, 0, g.conj() * v.detach()).real.double() for g, v in zip(found, leaves) if g is not None
    ]
    total = values.detach().double()
    error = abs(total.sum() - sum(p.sum() for p in parts))
    scale = total.abs().sum() + sum(p.abs().sum() for p in parts)
    return not bool(error > min(0.1, 1000 * _rounding(values, *(g for g in found if g is not None))) * scale)


def _jacobian(values: Tensor, leaf: Tensor) -> Tensor:
    """The gradient of each value with respect to an output, (batch, *its shape)."""
    found = [torch.autograd.grad(v, leaf, retain_graph=True, allow_unused=True)[0] for v in values]
    return torch.stack([torch.zeros_like(leaf) if g is None else g for g in found])


def part_of(value: Tensor, place: Within, batch: int, example: int) -> Tensor:
    """One example's part of a value, with an axis of size 1 for the examples.

    Example:
        >>> part_of(torch.tensor([0, 1, 2, 3]), Within(0, 1, 2), 2, 1)
        tensor([2, 3])
    """
    shape = value.shape
    parts = value.reshape(*shape[: place.axis], place.ahead, batch, place.behind, *shape[place.axis + 1 :])
    return parts.select(place.axis + 1, example).flatten(place.axis, place.axis + 1)


def _along(weights: Tensor, value: Tensor, place: Within) -> Tensor:
    """Weights of the examples, shaped to multiply a value."""
    axis = weights.to(value.dtype).repeat_interleave(place.behind).repeat(place.ahead)
    return axis.reshape(*(-1 if i == place.axis else 1 for i in range(value.dim())))


def near(alone: Tensor, whole: Tensor, tolerance: float = 1e-3) -> bool:
    """Whether an example's outputs are its part of the batch's, up to the rounding of other kernels.

    Args:
        alone: an output of the example.
        whole: its part of the batch's.
        tolerance: the largest difference, relative to the largest number; at most 1e-3, at least eight roundings.

    Example:
        >>> near(torch.tensor([1.0, 4.0]), torch.tensor([1.0, 4.002])), near(torch.ones(2), torch.zeros(2))
        (True, False)
    """
    if alone.shape != whole.shape:
        return False
    finite = whole.isfinite()
    difference = torch.where(finite, (alone - whole).abs(), 0)
    scale = torch.where(finite, whole.abs(), 0)
    if not torch.equal(finite, alone.isfinite()):
        return False
    return not difference.numel() or bool(
        difference.max() <= max(min(1e-3, tolerance), 8 * _rounding(whole)) * scale.max()
    )


def _rounding(*tensors: Tensor) -> float:
    """The rounding of the coarsest dtype among these."""
    return max(torch.finfo(t.dtype).eps for t in tensors)
