"""What a target is of a model's outputs: a function of them that gives one number per example, and the target in words.

It always sees the outputs of a whole batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from fxgrad.errors import InputError, first_line
from fxgrad.methods.classes import class_of, each
from fxgrad.methods.names import Names, listed, token_id, whole
from fxgrad.methods.outputs import called, differentiable, logits_of, one_each, path_of
from fxgrad.methods.targets import Contrast, Finer, Probability, Similarity, Target, Token


@dataclass(frozen=True)
class Scored:
    """A target that fits a model's outputs.

    Attributes:
        label: the target, in words.
        of: the outputs of the whole batch -> (batch,).
        note: a warning for every attribution of this target, or "".
        row: index of the token that the target is read from, one for all examples or int64 (batch,); or None.
        function: whether a function of the user's has a part in it.
    """

    label: str
    of: Callable[[Any], Tensor]
    note: str = ""
    row: int | Tensor | None = None
    function: bool = False

    def score(self, outputs: Any) -> Tensor:
        """The target's value per example, (batch,). `outputs` are those of the whole batch, at any inputs."""
        return self.of(outputs)

    def graph(self, outputs: list[Any], spec: pytree.TreeSpec) -> tuple[Tensor, list[Any]]:
        """The target's values (batch,), with a graph whose leaves are copies of the flattened outputs; these copies.

        Raises:
            InputError: the target does not depend on the outputs.
        """
        leaves = [v.detach().requires_grad_() if differentiable(v) else v for v in outputs]
        with torch.enable_grad():
            values = self.score(pytree.tree_unflatten(leaves, spec))
        if not values.requires_grad:
            raise InputError(f"the target ({self.label}) does not depend on the model's outputs.")
        return values, leaves

    def cotangents(self, outputs: list[Any], spec: pytree.TreeSpec) -> list[Tensor | None]:
        """The gradient of the values' sum with respect to the flattened outputs; None for outputs without a part."""
        values, leaves = self.graph(outputs, spec)
        return gradients(values, leaves, torch.ones_like(values))


def gradients(values: Tensor, leaves: list[Any], weights: Tensor) -> list[Tensor | None]:
    """The gradient of a weighted sum of a target's values with respect to each leaf of `Scored.graph`."""
    wanted = [v for v in leaves if differentiable(v)]
    try:
        found = iter(torch.autograd.grad(values, wanted, weights, allow_unused=True, retain_graph=True))
    except RuntimeError as error:
        raise InputError(f"the target has no gradient: {first_line(error)}") from error
    return [next(found) if differentiable(v) else None for v in leaves]


def scored(
    target: Target,
    outputs: Any,
    class_names: Names | None = None,
    *,
    batch: int | None = None,
    axis: Callable[[Tensor], int] = lambda logits: 0,
) -> Scored:
    """Fit a target to a model's outputs.

    Args:
        target: see `Target`. An int64 tensor (batch,) has one class per example.
        outputs: the model's outputs for the examples to attribute.
        class_names: one per logit, or a vocabulary; see `fxgrad.methods.names.Names`.
        batch: the number of examples; by default the logits'.
        axis: the axis of the examples in one of the outputs; by default the first.

    Raises:
        InputError: there is no such class, or the outputs lack the form that the target needs.

    Example:
        >>> logits = torch.tensor([[1.0, 5.0], [4.0, 2.0]])
        >>> scored(None, logits).score(logits), scored("cat", logits, ["dog", "cat"]).score(logits)
        (tensor([5., 4.]), tensor([5., 2.]))
    """
    if isinstance(target, Contrast):
        a, b = (scored(t, outputs, class_names, batch=batch, axis=axis) for t in (target.a, target.b))
        return Scored(
            f"{a.label} minus {b.label}",
            lambda y: a.score(y) - b.score(y),
            " ".join(dict.fromkeys(filter(None, (a.note, b.note)))),
            a.row if _equal(a.row, b.row) else None,
            a.function or b.function,
        )
    if callable(target) and not isinstance(target, Tensor):
        return _function(target, outputs, batch)
    logits = logits_of(outputs, lambda v: v.dim() > 0 and axis(v) == 0 and batch in (None, len(v)))
    along = axis(logits) if logits.dim() else 0
    path = "" if along else path_of(outputs, logits)

    def rows(outputs: Any) -> Tensor:
        return logits_of(outputs).movedim(along, 0) if along else logits_of(outputs)

    _fits(logits, rows(outputs), batch, path_of(outputs, logits))
    names = listed(class_names)
    if isinstance(target, Token):
        return _token(target, rows(outputs), rows, names)
    if isinstance(target, Similarity):
        return _similarity(target, rows(outputs), rows)
    if isinstance(target, Finer):
        return _finer(target, *class_of(target.target, rows(outputs), names, path), rows(outputs), rows)
    if isinstance(target, Probability):
        index, label = class_of(target.target, rows(outputs), names, path)
        return Scored(f"probability of {label}", lambda y: _pick(rows(y).softmax(-1), index), _PROBABILITY)
    index, label = class_of(target, rows(outputs), names, path)
    return Scored(label, lambda y: _pick(rows(y), index))


_PROBABILITY = (
    "Warning: a probability is no sum of contributions (softmax is only ever a multiplier), so its attribution cannot "
    "be complete. Attribute the logit, or a Contrast of two logits, for one that is."
)


def _function(target: Callable[[Any], Tensor], outputs: Any, batch: int | None) -> Scored:
    """A function of the user's, checked to return one number per example."""
    label = getattr(target, "__name__", "a function of the outputs")
    rows = [len(v) for v in pytree.tree_leaves(outputs) if differentiable(v) and v.dim()]
    count = batch if batch is not None else next(iter(rows), 1)

    return Scored(label, lambda outputs: one_each(called(target, outputs), count), function=True)


def _fits(logits: Tensor, rows: Tensor, batch: int | None, path: str) -> None:
    """Check that an output has real numbers, with a row for each example."""
    if logits.is_complex():
        raise InputError(
            "the output is complex, and a target is real. Pass a function of the output, such as lambda output: "
            f"{path}.abs(){'[:, 0]' * (logits.dim() == 2)}."
        )
    if batch is not None and batch > 1 and not logits.dim():
        raise InputError(f"the model returns one number for all {batch} examples. Attribute one example at a time.")
    if batch is not None and logits.dim() and len(rows) != batch:
        raise InputError(
            f"the output {tuple(logits.shape)} has no row for each of the {batch} examples of the attributed input. "
            f"Pass a function of the output as the target, which returns ({batch},)."
        )


def _token(target: Token, logits: Tensor, rows: Callable[[Any], Tensor], names: list[str] | None) -> Scored:
    if logits.dim() != 3:
        raise InputError(f"Token needs logits (batch, tokens, vocabulary); the output is {tuple(logits.shape)}.")
    batch, length, vocabulary = logits.shape
    position = each(target.position, batch, "a Token's position is a number, or one per example").to(logits.device)
    if wrong := position[(position < -length) | (position >= length)].tolist():
        raise InputError(f"there is no position {wrong[0]}: the output has {length} tokens.")
    position = position % length
    here = torch.arange(batch, device=logits.device)
    given = token_id(target.id, vocabulary, names) if isinstance(target.id, str) else target.id
    if given is None:
        index = logits[here, position].detach().argmax(-1)
    else:
        index = each(given, batch, "a Token's id is a number, a string, or one number per example").to(logits.device)
    if wrong := index[(index < 0) | (index >= vocabulary)].tolist():
        raise InputError(f"there is no token {wrong[0]}: the vocabulary has {vocabulary}, numbered from 0.")
    places, ids = set(position.tolist()), set(index.tolist())
    row = places.pop() if len(places) == 1 else position
    if given is None:
        which = "the likeliest token"
    else:
        which = _word(ids.pop(), names) if len(ids) == 1 else "a token per example"
    where = f"position {row}" if isinstance(row, int) else "a position per example"
    return Scored(f"{which} at {where}", lambda y: _pick(rows(y)[here, position], index), row=row)


def _word(token: int, names: list[str] | None) -> str:
    return f"token {names[token]!r} ({token})" if names and token < len(names) and names[token] else f"token {token}"


def _finer(target: Finer, index: Tensor, label: str, logits: Tensor, rows: Callable[[Any], Tensor]) -> Scored:
    count = whole(target.others)
    if count is None or not 1 <= count < logits.shape[1]:
        raise InputError(
            f"Finer compares a class with others: the model has {logits.shape[1] - 1}, not {target.others!r}."
        )
    apart = (logits.detach() - logits.detach().gather(1, index[:, None])).abs()
    near = apart.scatter(1, index[:, None], torch.inf).topk(count, largest=False).indices
    return Scored(
        f"{label} over the {count} nearest" if count > 1 else f"{label} over the nearest",
        lambda y: _pick(rows(y), index) - target.gamma * rows(y).gather(1, near).mean(1),
    )


def _similarity(target: Similarity, features: Tensor, rows: Callable[[Any], Tensor]) -> Scored:
    given = target.embedding
    shape = tuple(given.shape) if isinstance(given, Tensor) else ()
    fits = features.dim() == 2 and shape in [tuple(features.shape[d:]) for d in (0, 1)] + [(1, features.shape[-1])]
    if not fits:
        raise InputError(
            f"Similarity compares embeddings (batch, width): the model's is {tuple(features.shape)}, the one given is "
            f"{shape or type(given).__name__}."
        )
    wanted = F.normalize(given.detach().to(features), dim=-1).expand(features.shape)

    def cosine(outputs: Any) -> Tensor:
        features = rows(outputs)
        cosines: Tensor = (features * wanted).sum(-1) / features.detach().norm(dim=-1)
        return target.scale * cosines

    return Scored(f"similarity with {target.label}", cosine)


def _pick(values: Tensor, index: Tensor) -> Tensor:
    return values.gather(1, index[:, None])[:, 0]


def _equal(a: int | Tensor | None, b: int | Tensor | None) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.equal(a, b)
    return not isinstance(a, Tensor) and not isinstance(b, Tensor) and a == b
