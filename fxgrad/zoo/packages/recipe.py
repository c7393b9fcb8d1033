"""How models of packages are written down: as data, so that nothing is imported before a model is built.

A recipe says what to call for the model (`make`), and what the model takes (`floats`, `ints`, `flags`, or any value).
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from fxgrad.zoo.case import Built

BATCH = 2
"""The examples of a recipe."""


@dataclass(frozen=True)
class Make:
    """A call that makes an object: of "module:attribute", with arguments that may be such calls themselves.

    Attributes:
        path: where the class or function is, as in "torch.nn:Linear".
        args, options: its arguments.
        called: False for the object at the path itself.
    """

    path: str
    args: tuple[Any, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    called: bool = True

    def __call__(self) -> Any:
        """Import the path, make the arguments, and call it."""
        module, _, attributes = self.path.partition(":")
        found: Any = importlib.import_module(module)
        for attribute in attributes.split("."):
            found = getattr(found, attribute)
        return found(*made(self.args), **made(self.options)) if self.called else found


def make(path: str, /, *args: Any, **options: Any) -> Make:
    """A call of "module:attribute" for later.

    Example:
        >>> make("torch.nn:Sequential", make("torch.nn:Linear", 3, 4), make("torch.nn:GELU"))()
        Sequential(
          (0): Linear(in_features=3, out_features=4, bias=True)
          (1): GELU(approximate='none')
        )
    """
    return Make(path, args, options)


def itself(path: str) -> Make:
    """The object at "module:attribute", such as a class that is an argument.

    Example:
        >>> itself("torch.nn:GELU")()
        <class 'torch.nn.modules.activation.GELU'>
    """
    return Make(path, called=False)


@dataclass(frozen=True)
class Draw:
    """A random tensor for later.

    Attributes:
        shape: its sizes after the batch.
        low, high: bounds of integers, `high` excluded; None for normal noise.
        batch: size of its first axis, the batch; 0 if it has none.
        flags: zeros and ones as booleans.
    """

    shape: tuple[int, ...]
    low: int | None = None
    high: int | None = None
    batch: int = BATCH
    flags: bool = False

    def __call__(self) -> Tensor:
        """The tensor, from torch's own generator."""
        shape = (self.batch, *self.shape) if self.batch else self.shape
        if self.low is None or self.high is None:
            return torch.randn(shape)
        drawn = torch.randint(self.low, self.high, shape)
        return drawn.bool() if self.flags else drawn

    def whole(self) -> Draw:
        """The same without a batch: its shape is all there is."""
        return replace(self, batch=0)


def floats(*shape: int) -> Draw:
    """Standard normal noise, float32 (batch, *shape).

    Example:
        >>> floats(3, 8, 8)().shape
        torch.Size([2, 3, 8, 8])
    """
    return Draw(shape)


def ints(*shape: int, below: int, start: int = 0) -> Draw:
    """Integers from `start` to `below`, excluded, int64 (batch, *shape).

    Example:
        >>> ints(7, below=99).whole()().dtype
        torch.int64
    """
    return Draw(shape, start, below)


def flags(*shape: int) -> Draw:
    """Random booleans (batch, *shape).

    Example:
        >>> flags(4)().dtype
        torch.bool
    """
    return Draw(shape, 0, 2, flags=True)


@dataclass(frozen=True)
class Ones:
    """A tensor of ones, of a dtype, for later: a mask that lets all through."""

    shape: tuple[int, ...]
    dtype: str = "bool"

    def __call__(self) -> Tensor:
        """The tensor (batch, *shape)."""
        return torch.ones(BATCH, *self.shape, dtype=getattr(torch, self.dtype))


def ones(*shape: int, dtype: str = "bool") -> Ones:
    """A mask that lets all through.

    Example:
        >>> ones(2)()
        tensor([[True, True],
                [True, True]])
    """
    return Ones(shape, dtype)


@dataclass(frozen=True)
class Recipe:
    """A model and what it takes.

    Attributes:
        model: makes it, with small random weights.
        args, kwargs: its example; draws and calls in them are made.
        calls: the method that is the model's forward.
        through_no_grad: as for `fxgrad.convert`.
    """

    model: Make
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    calls: str = ""
    through_no_grad: bool = False

    def calling(self, method: str) -> Recipe:
        """The same model, with this method of it as the forward."""
        return replace(self, calls=method)

    def build(self) -> Built:
        """Make the model in eval mode, and its example."""
        model = self.model().eval()
        if self.calls:
            model = _Calls(model, self.calls).eval()
        return Built(model, made(self.args), dict(made(self.kwargs)), through_no_grad=self.through_no_grad)


def recipe(model: Make, /, *args: Any, **kwargs: Any) -> Recipe:
    """A recipe: the model, and its inputs as its forward takes them.

    Example:
        >>> model, (x,), *_ = recipe(make("torch.nn:Linear", 3, 4), floats(3)).build()
        >>> model(x).shape
        torch.Size([2, 4])
    """
    return Recipe(model, args, kwargs)


@dataclass(frozen=True)
class Package:
    """The recipes of one package.

    Attributes:
        name: as pip knows it.
        imported: the module that it is imported as.
        recipes: name of a model -> its recipe; what stands before a slash is its family.
        needs: further packages that pip must install for it.
    """

    name: str
    imported: str
    recipes: Mapping[str, Recipe]
    needs: tuple[str, ...] = ()


class _Calls(nn.Module):
    """A module whose forward is a method of another one."""

    def __init__(self, module: nn.Module, method: str) -> None:
        super().__init__()
        self.module, self.method = module, method

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.module, self.method)(*args, **kwargs)


def made(value: Any) -> Any:
    """The value, with every call and draw in it made."""
    if isinstance(value, (Make, Draw, Ones)):
        return value()
    if isinstance(value, Mapping):
        return {key: made(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(made(item) for item in value)
    return value
