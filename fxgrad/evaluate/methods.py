"""The interface between `evaluate` and the attribution methods."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Union

from torch import Tensor

from fxgrad import methods
from fxgrad.data.factory import load_object
from fxgrad.errors import FxgradError, InputError, one_line
from fxgrad.methods import METHODS, Contrast, Method, Probability, Target, anatomy
from fxgrad.methods.definition import method_of
from fxgrad.methods.entry import attributed, known
from fxgrad.methods.together import GENERAL, Asked
from fxgrad.metrics.removal import Grid
from fxgrad.module.converted import ConvertedModule

POLICY_FREE = tuple(name for name, function in METHODS.items() if not method_of(function).takes_gradient)
"""fxgrad's methods that take no gradient, so their results are the same under every policy."""
LARGEST = 16
"""The largest number of parts per side of a picture, for models without patches."""


class Shares(Protocol):
    """The parts of an attribution that are measured, of pictures and of texts.

    Attributes:
        output: the target's value, (batch,).
        total: the sum of all shares, (batch,); None for a method whose numbers are no shares.
        absolute: the sum of the sizes of all shares, (batch,); None like `total`.
    """

    @property
    def output(self) -> Tensor: ...
    @property
    def total(self) -> Tensor | None: ...
    @property
    def absolute(self) -> Tensor | None: ...


class Attribution(Shares, Protocol):
    """Those of a picture; `fxgrad.methods.Attribution` implements it.

    Attributes:
        patches: the influence of each patch, (batch, rows, columns).
        pixels: the influence of each pixel, (batch, H, W).
    """

    @property
    def patches(self) -> Tensor: ...
    @property
    def pixels(self) -> Tensor: ...


class TextAttribution(Shares, Protocol):
    """Those of a text.

    Attributes:
        words: the influence of each token, (batch, tokens).
    """

    @property
    def words(self) -> Tensor: ...


Inputs = Union[Tensor, Mapping[str, Tensor]]
"""Pictures (batch, C, H, W), or of texts the model's inputs by name."""
Attribute = Callable[[ConvertedModule, Any, Tensor, Any, int], Any]
"""Converted model, inputs, targets int64 (batch,), grid of patches or None, seed -> an `Attribution` or its like."""

VALUES: dict[str, Callable[[Tensor], Target]] = {
    "logit": lambda classes: classes,
    "probability": Probability,
    "margin": lambda classes: Contrast(classes, 1 - classes),
}
"""What is attributed -> the target, for class indices int64 (batch,)."""


@dataclass(frozen=True, eq=False)
class Given:
    """What fxgrad's methods give: an `Attribution`, and a `TextAttribution`.

    Attributes:
        of: the attribution.
        maps: how a map of patches becomes one of pixels, as for `Plan`.
    """

    of: methods.Attribution
    maps: str

    @property
    def pixels(self) -> Tensor:
        return self.of.enlarged(self.maps)

    @property
    def patches(self) -> Tensor:
        return self.of.patches

    @property
    def words(self) -> Tensor:
        return self.of.map

    @property
    def output(self) -> Tensor:
        return self.of.output

    @property
    def total(self) -> Tensor | None:
        return self.of.total

    @property
    def absolute(self) -> Tensor | None:
        return self.of.absolute


@dataclass(frozen=True, eq=False)
class Chosen:
    """A method with its options: an `Attribute`.

    Attributes:
        method: the method.
        options: of `fxgrad.attribute`, and the method's own.
        value, maps: as for `Plan`.
    """

    method: Method
    options: Mapping[str, Any]
    value: str
    maps: str

    def __call__(self, converted: ConvertedModule, x: Inputs, target: Tensor, grid: Grid | None, seed: int) -> Given:
        found: list[Given | FxgradError] = attributed_together([self], converted, x, target, grid, seed)
        if isinstance(found[0], FxgradError):
            raise found[0]
        return found[0]

    def asked(self, grid: Grid | None, seed: int) -> Asked:
        """The method with all its options."""
        seeded = {"seed": seed} if "seed" in inspect.signature(self.method.function).parameters else {}
        return Asked.of(self.method, {"grid": grid, **seeded, **self.options})


def attributed_together(
    chosen: Sequence[Attribute], converted: ConvertedModule, x: Inputs, target: Tensor, grid: Grid | None, seed: int
) -> list[Any]:
    """The attribution by each method, or the error that says why there is none; `attributes` share a run.

    Args:
        chosen: the methods.
        converted, x, target, grid, seed: as for `Attribute`.
    """
    found: dict[int, Any] = {}
    for i, one in enumerate(chosen):
        if not isinstance(one, Chosen):
            try:
                found[i] = one(converted, x, target, grid, seed)
            except FxgradError as error:
                found[i] = error
    ours = {i: one for i, one in enumerate(chosen) if isinstance(one, Chosen)}
    args, kwargs = ((x,), None) if isinstance(x, Tensor) else ((), x)
    for value in dict.fromkeys(one.value for one in ours.values()):
        some = {i: one for i, one in ours.items() if one.value == value}
        asked = [one.asked(grid, seed) for one in some.values()]
        aimed, caught = VALUES[value](target), (FxgradError,)
        (made,) = attributed(converted, args, kwargs, targets=[aimed], asked=asked, caught=caught)
        found |= {i: one if isinstance(one, FxgradError) else Given(one, some[i].maps) for i, one in zip(some, made)}
    return [found[i] for i in range(len(chosen))]


def attributes(
    names: Sequence[str], options: Sequence[str] = (), *, value: str = "logit", maps: str = "linear"
) -> dict[str, Attribute]:
    """Name -> method, with its options set.

    Args:
        names: keys of `fxgrad.methods.METHODS`, or `module.path:function` for your own.
        options: such as "integrated_gradients.n_steps=20".
        value, maps: as for `Plan`.

    Raises:
        InputError: there is no such method or option, or the value is not a Python literal.

    Example:
        >>> list(attributes(["saliency", "smoothgrad"], ["smoothgrad.samples=5"]))
        ['saliency', 'smoothgrad']
    """
    found = {name: named_method(name) for name in names}
    chosen = method_options(names, options)
    return {name: Chosen(method, chosen[name], value, maps) for name, method in found.items()}


def named_method(name: str) -> Method:
    """A method by its name.

    Args:
        name: a key of `fxgrad.methods.METHODS`, or `module.path:function` for your own, looked for in the current
            directory and on sys.path.

    Raises:
        InputError: there is no such method.

    Example:
        >>> named_method("random").takes_gradient, named_method("fxgrad.methods.inputs:random").takes_gradient
        (False, False)
    """
    if ":" not in name:
        return known(name)
    try:
        _, function = load_object(name)
    except Exception as error:
        raise InputError(f"a method of your own is module.path:function; {name!r} is not: {one_line(error)}") from error
    return method_of(function)


def takes_gradient(name: str) -> bool:
    """Whether a method's result depends on the policy; true for names that are not fxgrad's.

    Example:
        >>> takes_gradient("rollout"), takes_gradient("saliency"), takes_gradient("a stranger")
        (False, True, True)
    """
    return name not in POLICY_FREE and (":" not in name or named_method(name).takes_gradient)


def grid_of(converted: ConvertedModule) -> Grid:
    """(rows, columns) of the model's patches; without patches, the finest even grid of at most 16 x 16.

    Args:
        converted: a model of pictures.

    Raises:
        InputError: the model's input is no picture.
    """
    parts = anatomy(converted.classified)
    if parts.size is None or len(parts.size) != 2:
        raise InputError("evaluate takes models of pictures, (batch, channels, height, width).")
    height, width = (max(n for n in range(1, LARGEST + 1) if side % n == 0) for side in parts.size)
    if parts.grid is None or len(parts.grid) != 2:
        return height, width
    return parts.grid[0], parts.grid[1]


def method_options(names: Sequence[str], given: Sequence[str], *, seed: int | None = None) -> dict[str, dict[str, Any]]:
    """Method -> its options, from what a command line gives.

    Args:
        names: of the methods, as for `named_method`.
        given: "METHOD.OPTION=VALUE", or "OPTION=VALUE" for every one of these methods that has such an option. The
            value is a Python literal; text needs no quotes.
        seed: for the methods that take one and are given none.

    Raises:
        InputError: no such method, none of the methods has such an option, or the value is no literal.

    Example:
        >>> method_options(["smoothgrad", "saliency"], ["samples=5"])
        {'smoothgrad': {'samples': 5}, 'saliency': {}}
        >>> method_options(["gradcam", "input_x_gradient"], ["layer=blocks.9", "at=tokens"])
        {'gradcam': {'layer': 'blocks.9'}, 'input_x_gradient': {'at': 'tokens'}}
    """
    seeded = [n for n in names if seed is not None and "seed" in inspect.signature(named_method(n).function).parameters]
    found: dict[str, dict[str, Any]] = {n: {"seed": seed} if n in seeded else {} for n in names}
    for option in given:
        left, _, text = option.partition("=")
        method, _, name = left.rpartition(".")
        problem = "there is no such method" if method and method not in METHODS and method not in found else ""
        why = {} if problem else {n: _refused(n, name) for n in ([method] if method else names)}
        takers = [n for n, reason in why.items() if reason is None]
        if not takers:
            problem = problem or "; ".join(filter(None, why.values()))
        try:
            value = text if name in ("layer", "input") else ast.literal_eval(text)
        except (ValueError, SyntaxError) as error:
            value = text
            if not all(_is_text(taker, name) for taker in takers):
                problem = problem or f"its value is no literal of Python ({error})"
        if problem:
            raise InputError(f"{option!r} is not METHOD.OPTION=VALUE, as in smoothgrad.samples=5: {problem}.")
        for taker in takers:
            found.get(taker, {})[name] = value
    return found


def _is_text(method: str, option: str) -> bool:
    """Whether a method's own option is text, such as at=tokens, which needs no quotes."""
    own = inspect.signature(named_method(method).function).parameters.get(option)
    return own is not None and isinstance(own.default, str)


def _refused(method: str, option: str) -> str | None:
    """Why a method has no such option; None if it has."""
    chosen = named_method(method)
    if option in GENERAL and (option != "layer" or chosen.layered):
        return None
    return chosen.refused(option)
