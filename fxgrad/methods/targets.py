"""Targets: functions from the outputs of a model to one number per example, which is attributed.

A target is a class's number or name, a tensor with one index per example, one of the classes below, or any function of
the outputs. A list of targets gives one attribution each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Union

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from fxgrad.errors import InputError


@dataclass(frozen=True)
class Contrast:
    """The difference of two targets, a - b: what speaks for a rather than for b.

    Example:
        >>> scored(Contrast(2, 0), torch.tensor([[1.0, 5.0, 7.0]])).score(torch.tensor([[1.0, 5.0, 7.0]]))
        tensor([6.])
    """

    a: Any
    b: Any


@dataclass(frozen=True)
class Token:
    """For language models: the logit of a token at a position of the output.

    Attributes:
        position: the output's position, which predicts the next token; negative numbers count from the end.
        id: the token's id; None: the token with the largest logit.
    """

    position: int
    id: int | None = None


@dataclass(frozen=True)
class Probability:
    """The softmax probability of a class. No backward makes its attribution complete."""

    target: Any


@dataclass(frozen=True)
class Similarity:
    """For models whose output is an embedding: its cosine with another embedding.

    The output's length is held, as a normalization's scale is, so the attribution is complete.

    Attributes:
        embedding: (width,), or (batch, width) for one per example; need not be a unit vector.
        scale: a factor, such as a model's temperature.
        label: a name for the embedding, such as the prompt.
    """

    embedding: Tensor
    scale: float = 1.0
    label: str = "the embedding given"


Target = Union[None, int, str, Tensor, Contrast, Token, Probability, Similarity, Callable[[Any], Tensor]]
"""All forms of a target; None is the class with the largest logit of each example."""


@dataclass(frozen=True)
class Scored:
    """A target that fits a model's outputs.

    Attributes:
        label: the target, in words.
        tensors: further arguments of `of` with one value per example, (batch, ...).
        of: outputs, and these tensors -> (batch,).
        note: a warning for every attribution of this target, or "".
        row: index of the token that the target is read from, or None.
    """

    label: str
    tensors: tuple[Tensor, ...]
    of: Callable[..., Tensor]
    note: str = ""
    row: int | None = None

    def score(self, outputs: Any, *tensors: Tensor) -> Tensor:
        """The target's value per example, (batch,)."""
        return self.of(outputs, *(tensors or self.tensors))

    def one_of(self, example: int) -> Scored:
        """The target's value for one example, as a target of the same outputs."""
        return replace(self, of=lambda y, *t: self.of(y, *t)[example : example + 1])

    def cotangents(self, outputs: list[Any], spec: pytree.TreeSpec) -> list[Tensor | None]:
        """The target's gradient with respect to the flattened outputs; None for outputs that take no part."""
        leaves = [v.detach().requires_grad_() if _floating(v) else v for v in outputs]
        with torch.enable_grad():
            total = self.score(pytree.tree_unflatten(leaves, spec)).sum()
        wanted = [v for v in leaves if _floating(v)]
        if not total.requires_grad:
            raise InputError(f"the target ({self.label}) does not depend on the model's outputs.")
        found = iter(torch.autograd.grad(total, wanted, allow_unused=True))
        return [next(found) if _floating(v) else None for v in leaves]


def scored(target: Target, outputs: Any, class_names: Sequence[str] | None = None) -> Scored:
    """Fit a target to a model's outputs.

    Args:
        target: see `Target`. An int64 tensor (batch,) has one class per example.
        outputs: the model's outputs for the examples to attribute.
        class_names: one per logit.

    Raises:
        InputError: there is no such class, or the outputs lack the form that the target needs.

    Example:
        >>> logits = torch.tensor([[1.0, 5.0], [4.0, 2.0]])
        >>> scored(None, logits).score(logits), scored("cat", logits, ["dog", "cat"]).score(logits)
        (tensor([5., 4.]), tensor([5., 2.]))
    """
    if isinstance(target, Contrast):
        a, b = (scored(t, outputs, class_names) for t in (target.a, target.b))
        split = len(a.tensors)
        return Scored(
            f"{a.label} minus {b.label}",
            a.tensors + b.tensors,
            lambda y, *t: a.of(y, *t[:split]) - b.of(y, *t[split:]),
            " ".join(dict.fromkeys(filter(None, (a.note, b.note)))),
            a.row if a.row == b.row else None,
        )
    if isinstance(target, Probability):
        index, label = class_of(target.target, logits_of(outputs), class_names)
        return Scored(f"probability of {label}", (index,), lambda y, i: _pick(logits_of(y).softmax(-1), i), _INCOMPLETE)
    if isinstance(target, Similarity):
        return _similarity(target, outputs)
    if isinstance(target, Token):
        return _token(target, outputs)
    if callable(target) and not isinstance(target, Tensor):
        return Scored(getattr(target, "__name__", "a function of the outputs"), (), lambda y: _one_each(target(y), y))
    index, label = class_of(target, logits_of(outputs), class_names)
    return Scored(label, (index,), lambda y, i: _pick(logits_of(y), i))


_INCOMPLETE = (
    "Warning: a probability is no sum of contributions (softmax is only ever a multiplier), so its attribution cannot "
    "be complete. Attribute the logit, or a Contrast of two logits, for one that is."
)


def class_of(target: Any, logits: Tensor, names: Sequence[str] | None) -> tuple[Tensor, str]:
    """(the class of each example, int64 (batch,); the classes in words)."""
    if logits.dim() != 2:
        raise InputError(
            f"a class as the target needs logits (batch, classes); the output is {tuple(logits.shape)}. Pass "
            "Token(position, id) for a language model, or a function of the output."
        )
    if isinstance(target, Tensor):
        count, whole = logits.shape[1], not (target.is_floating_point() or target.dtype is torch.bool)
        if not whole or target.shape not in ((), (len(logits),)):
            raise InputError(
                f"a tensor as the target holds one class per example, int64 ({len(logits)},); this one is "
                f"{target.dtype} {tuple(target.shape)}."
            )
        index = target.to(logits.device, torch.int64).expand(len(logits))
        if bool(((index < 0) | (index >= count)).any()):
            raise InputError(
                f"there is no class {int(index[(index < 0) | (index >= count)][0])}: the model has {count}."
            )
    elif target is None:
        index = logits.detach().argmax(1)
    else:
        index = torch.full((len(logits),), resolve(target, logits.shape[1], names), device=logits.device)
    classes = sorted(set(index.tolist()))
    if len(classes) > 1:
        return index, "a class per example"
    named = names is not None and len(names) == logits.shape[1]
    return index, str(names[classes[0]]) if named and names else f"class {classes[0]}"


def logits_of(outputs: Any) -> Tensor:
    """The logits among a model's outputs: the one named logits, or the only tensor of floating dtype.

    Raises:
        InputError: there are several outputs, none of them named logits.
    """
    if isinstance(outputs, Tensor):
        return outputs
    named = outputs.get("logits") if isinstance(outputs, dict) else getattr(outputs, "logits", None)
    if isinstance(named, Tensor):
        return named
    found = [v for v in pytree.tree_leaves(outputs) if _floating(v)]
    if len(found) == 1:
        only: Tensor = found[0]
        return only
    shapes = ", ".join(str(tuple(v.shape)) for v in found)
    raise InputError(
        f"the model returns {len(found)} tensors ({shapes}), none of them called logits. Pass a function of the output "
        "as the target, such as lambda output: output[0][:, 3]."
    )


def resolve(target: int | str, count: int, names: Sequence[str] | None = None) -> int:
    """The index of a class, by number or name.

    Args:
        target: an index (a number, or digits), a class name, or one of a name's synonyms, which are separated by
            commas; case does not matter.
        count: number of classes.
        names: the names of all classes, or None.

    Raises:
        InputError: no such index or name, or a name of several classes; the message says what to write instead.

    Example:
        >>> resolve("Ounce", 2, ["tench, Tinca tinca", "snow leopard, ounce"])
        1
    """
    import difflib

    if not isinstance(target, (int, str)) or isinstance(target, bool):
        raise InputError(f"{target!r} is no target: a class's number or name, a Contrast, a Token, or a function.")
    if isinstance(target, int) or target.strip().lstrip("-").isdecimal():
        if 0 <= int(target) < count:
            return int(target)
        raise InputError(f"there is no class {target}: the model has {count}, numbered 0 to {count - 1}.")
    if names is None:
        raise InputError(f"{target!r}: the model's classes have no names. Give a number from 0 to {count - 1}.")
    wanted = target.strip().lower()
    known: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        for synonym in {name.lower(), *(part.strip().lower() for part in name.split(","))}:
            known.setdefault(synonym, []).append(index)
    matches = known.get(wanted, [])
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise InputError(f"{target!r} names the classes {', '.join(map(str, matches))}. Give the number of one.")
    close = difflib.get_close_matches(wanted, known, 5) or [name for name in known if wanted in name][:5] or ["none"]
    raise InputError(f"no class {target!r}. Close to it: {'; '.join(close)}. Numbers go from 0 to {count - 1}.")


def _token(target: Token, outputs: Any) -> Scored:
    logits = logits_of(outputs)
    if logits.dim() != 3:
        raise InputError(f"Token needs logits (batch, tokens, vocabulary); the output is {tuple(logits.shape)}.")
    length, vocabulary = logits.shape[1:]
    if not -length <= target.position < length:
        raise InputError(f"there is no position {target.position}: the output has {length} tokens.")
    if target.id is not None and not 0 <= target.id < vocabulary:
        raise InputError(f"there is no token {target.id}: the vocabulary has {vocabulary}, numbered from 0.")
    row = target.position % length
    ids = logits[:, row].detach().argmax(-1)
    index = ids if target.id is None else torch.full_like(ids, target.id)
    which = f"token {target.id}" if target.id is not None else "the likeliest token"
    return Scored(f"{which} at position {row}", (index,), lambda y, i: _pick(logits_of(y)[:, row], i), "", row)


def _similarity(target: Similarity, outputs: Any) -> Scored:
    features = logits_of(outputs)
    width = target.embedding.shape[-1]
    if features.dim() != 2 or features.shape[1] != width or target.embedding.dim() > 2:
        raise InputError(
            f"Similarity compares embeddings (batch, width): the model's is {tuple(features.shape)}, the one given is "
            f"{tuple(target.embedding.shape)}."
        )
    wanted = F.normalize(target.embedding.detach().to(features), dim=-1).expand(len(features), width)

    def cosine(outputs: Any, wanted: Tensor) -> Tensor:
        features = logits_of(outputs)
        cosines: Tensor = (features * wanted).sum(-1) / features.detach().norm(dim=-1)
        return target.scale * cosines

    return Scored(f"similarity with {target.label}", (wanted,), cosine)


def _pick(values: Tensor, index: Tensor) -> Tensor:
    return values.gather(1, index[:, None])[:, 0]


def _one_each(value: Any, outputs: Any) -> Tensor:
    """The result of the user's function, checked to have one number per example, (batch,)."""
    batch = next(len(v) for v in pytree.tree_leaves(outputs) if _floating(v) and v.dim())
    if not isinstance(value, Tensor) or value.shape not in ((), (batch,)):
        given = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise InputError(f"a function as the target returns one number per example, ({batch},); this one gave {given}.")
    if value.dim() == 0 and batch > 1:
        raise InputError(f"the target function returned one number for {batch} examples; return ({batch},), one each.")
    return value.reshape(batch)


def _floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()
