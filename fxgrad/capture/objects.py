"""Objects that torch knows no structure of, such as a cache of keys and values, among a model's inputs and outputs.

An input of that sort is opened: the program takes its tensors and numbers, by the names of its attributes, and the
model gets a copy of the object that holds them. So is a PackedSequence, which no tracer can make of other leaves.
An output of that sort is left out: None stands in its place. So a cache is read, and neither changed nor returned.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as pytree

from fxgrad.capture.tracing import around, signature_of
from fxgrad.errors import CaptureError

_CONSTANTS = (bool, int, float, str, type(None))
_PLAIN = (*_CONSTANTS, Tensor, complex, torch.dtype, torch.device, torch.layout, torch.memory_format)
_SYMBOLIC = (torch.SymInt, torch.SymFloat, torch.SymBool)
_UNOPENED = (type, tuple, nn.Module, types.FunctionType, types.BuiltinFunctionType, types.MethodType)


def parts_of(value: Any) -> dict[str, Any]:
    """Path of attributes -> tensor or number, for all that an object holds.

    Example:
        >>> class Cache:
        ...     def __init__(self):
        ...         self.layers, self.device = [torch.ones(1), torch.ones(2)], torch.device("cpu")
        >>> list(parts_of(Cache()))
        ['layers.0', 'layers.1']
    """
    return dict(_walk(value, (), set()))


def _walk(value: Any, path: tuple[str, ...], seen: set[int]) -> Iterator[tuple[str, Any]]:
    if isinstance(value, (Tensor, *_CONSTANTS)):
        yield ".".join(path), value
        return
    if id(value) in seen or isinstance(value, (type, nn.Module)):
        return
    seen.add(id(value))
    if isinstance(value, Mapping):
        items = list(value.items())
    elif isinstance(value, PackedSequence):
        items = list(value._asdict().items())
    elif isinstance(value, (list, tuple)):
        items = list(enumerate(value))
    else:
        items = list(getattr(value, "__dict__", {}).items())
    for name, part in items:
        yield from _walk(part, (*path, str(name)), seen)


def rebuilt(value: Any, parts: Mapping[str, Any]) -> Any:
    """A copy of an object that holds these tensors, by path, in place of its own."""
    if isinstance(value, PackedSequence):
        return PackedSequence(**{**value._asdict(), **parts})
    own = {path: part for path, part in parts_of(value).items() if isinstance(part, Tensor)}
    return copy.deepcopy(value, {id(tensor): parts[path] for path, tensor in own.items()})


def with_tensors(tree: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A copy of a tree of inputs with other tensors, also in the objects among its leaves.

    Example:
        >>> with_tensors((torch.ones(1), 2), torch.neg)
        (tensor([-1.]), 2)
    """

    def changed(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return change(leaf)
        if not _is_object(leaf):
            return leaf
        parts = parts_of(leaf)
        return rebuilt(leaf, {path: change(part) for path, part in parts.items() if isinstance(part, Tensor)})

    return _mapped(changed, tree)


def spared(tree: Any) -> Any:
    """A tree of inputs with copies of its objects, for a model that may write to them."""
    return _mapped(lambda leaf: with_tensors(leaf, Tensor.clone) if _is_object(leaf) else leaf, tree)


def opened(tree: Any) -> Any:
    """A tree of inputs with a dict of tensors and numbers in the place of each object."""
    return _mapped(lambda leaf: parts_of(leaf) if _is_object(leaf) else leaf, tree)


def _mapped(change: Callable[[Any], Any], tree: Any) -> Any:
    return pytree.tree_map(change, tree, is_leaf=_is_packed)


def _is_packed(value: Any) -> bool:
    return isinstance(value, PackedSequence)


def returned(outputs: Any) -> Any:
    """A model's outputs as a program returns them: None in the place of each object.

    Raises:
        CaptureError: nothing else is returned, or a dataclass with tensors is among them, which is meant as a result.
    """
    leaves = pytree.tree_leaves(outputs)
    objects = [leaf for leaf in leaves if not isinstance(leaf, (*_PLAIN, *_SYMBOLIC))]
    results = [o for o in objects if dataclasses.is_dataclass(o) and any(isinstance(p, Tensor) for p in _tensors(o))]
    if objects and (results or not any(isinstance(leaf, Tensor) for leaf in leaves)):
        name = type((results or objects)[0]).__name__
        register = f"register it with torch.export.register_dataclass({name}), or " if results else ""
        raise CaptureError(
            f"the model returns a {name}, of which torch does not know what tensors it holds: {register}wrap the "
            "model in a module that returns its tensors, as a tuple or a dict."
        )
    # Rebuilt in any case: the outputs of some libraries have their keys in another order afterwards.
    return pytree.tree_map(lambda leaf: None if any(leaf is o for o in objects) else leaf, outputs)


def _tensors(value: Any) -> list[Any]:
    return [part for part in parts_of(value).values() if isinstance(part, Tensor)]


def plainly_called(model: nn.Module, example: Any, on_copies: bool = False) -> nn.Module:
    """A module that shares all with the model, takes what `opened` makes of inputs, and returns what `returned` does.

    Args:
        model: any; not changed.
        example: (args, kwargs), with objects whose copies the model gets.
        on_copies: whether it gets copies of all tensors, too, for it writes to them.

    Example:
        >>> class Lookup:
        ...     def __init__(self):
        ...         self.table = torch.arange(3.0)
        >>> class Adds(nn.Module):
        ...     def forward(self, x, lookup):
        ...         return x + lookup.table, lookup
        >>> example = ((torch.ones(3), Lookup()), {})
        >>> args, kwargs = opened(example)
        >>> args[1]
        {'table': tensor([0., 1., 2.])}
        >>> plainly_called(Adds(), example)(*args, **kwargs)
        (tensor([1., 2., 3.]), None)
    """
    leaves, spec = pytree.tree_flatten(example, is_leaf=_is_packed)
    objects = any(_is_object(leaf) for leaf in leaves)

    def run(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if on_copies:
            args, kwargs = with_tensors((args, kwargs), Tensor.clone)
        if objects:
            given = spec.flatten_up_to((args, kwargs))
            args, kwargs = pytree.tree_unflatten([_closed(o, g) for o, g in zip(leaves, given)], spec)
        return returned(forward(*args, **kwargs))

    return around(model, run, _explicit(signature_of(model), example[1]))


def _explicit(signature: inspect.Signature, keywords: Mapping[str, Any]) -> inspect.Signature:
    """A signature with the keywords of a call in the place of **kwargs, under which torch.export confuses inputs."""
    own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    more = [name for name in keywords if name not in signature.parameters]
    return signature.replace(parameters=own + [inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY) for n in more])


def explicit_shapes(signature: inspect.Signature, shapes: Any) -> Any:
    """Dynamic shapes by the names of inputs, also for those that go through **kwargs.

    Example:
        >>> def forward(x, **kwargs): ...
        >>> explicit_shapes(inspect.signature(forward), {"x": {0: 4}, "kwargs": {"mask": {0: 4}}})
        {'x': {0: 4}, 'mask': {0: 4}}
    """
    name = next((n for n, p in signature.parameters.items() if p.kind is p.VAR_KEYWORD), None)
    if not isinstance(shapes, Mapping) or not isinstance(shapes.get(name), Mapping):
        return shapes
    return {**{n: shape for n, shape in shapes.items() if n != name}, **shapes[name]}


def _closed(example: Any, given: Any) -> Any:
    # A copy of each tensor: the model may write to it.
    if not _is_object(example) or not isinstance(given, dict):
        return given
    return rebuilt(example, {path: part.clone() for path, part in given.items() if isinstance(part, Tensor)})


def _is_object(leaf: Any) -> bool:
    """Whether a leaf of inputs is to be opened."""
    known = (*_PLAIN, *_SYMBOLIC, *_UNOPENED)
    return _is_packed(leaf) or (hasattr(leaf, "__dict__") and not isinstance(leaf, known))
