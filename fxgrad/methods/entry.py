"""`fxgrad.attribute`: any method, of any target, under any policy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, overload

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxgrad.errors import InputError
from fxgrad.methods import attentions, cams, fullgrad, inputs
from fxgrad.methods.aim import aimed, axis_of, outputs_of
from fxgrad.methods.attribution import Attribution, joined
from fxgrad.methods.completeness import explained
from fxgrad.methods.definition import Method, method_of
from fxgrad.methods.maps import Channels
from fxgrad.methods.names import Names
from fxgrad.methods.options import refuse_wrong
from fxgrad.methods.parts import Grid
from fxgrad.methods.problem import Map, Problem, size_of_batch
from fxgrad.methods.search import GRAPH, Search
from fxgrad.methods.targets import Contrast, Target, called, scored
from fxgrad.module.converted import ConvertedModule

METHODS: dict[str, Callable[..., Map]] = {
    f.__name__: f
    for f in (
        *(inputs.gradient, inputs.saliency, inputs.input_x_gradient, inputs.integrated_gradients, inputs.smoothgrad),
        *(cams.gradcam, cams.gradcam_plus, cams.xgradcam_plus, cams.hirescam),
        *(fullgrad.fullgrad, fullgrad.fullgrad_plus),
        *(attentions.attcat, attentions.genatt, attentions.gradsam, attentions.tokentm),
        *(attentions.raw_attention, attentions.rollout, inputs.random),
    )
}
"""Every method by its name; the docstrings have the formulas, the decorators further facts."""


@overload
def attribute(
    converted: ConvertedModule,
    args: tuple[Any, ...] | Tensor = ...,
    kwargs: Mapping[str, Any] | None = ...,
    *,
    target: list[Target],
    method: str | Callable[..., Map] = ...,
    layer: str | None = ...,
    channels: int | str | Channels | None = ...,
    **options: Any,
) -> list[Attribution]: ...
@overload
def attribute(
    converted: ConvertedModule,
    args: tuple[Any, ...] | Tensor = ...,
    kwargs: Mapping[str, Any] | None = ...,
    *,
    target: Target,
    method: str | Callable[..., Map] = ...,
    layer: str | None = ...,
    channels: int | str | Channels | None = ...,
    **options: Any,
) -> Attribution: ...
def attribute(
    converted: ConvertedModule,
    args: tuple[Any, ...] | Tensor = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    target: Target | list[Target],
    method: str | Callable[..., Map] = "input_x_gradient",
    layer: str | None = None,
    class_names: Names | None = None,
    input: str | None = None,
    blocks: Sequence[str] | None = None,
    grid: Grid | None = None,
    prefix: int | None = None,
    class_token: int | None = None,
    channels: int | str | Channels | None = GRAPH,
    **options: Any,
) -> Attribution | list[Attribution]:
    """Attribute a target to the input: which parts speak for it, and which against it.

    Args:
        converted: what `fxgrad.convert` returned, under any policy; `converted.under("gradient")` is the plain one.
        args, kwargs: inputs, as for calling the module; all examples of the batch are attributed.
        target: a class's number or name, an int64 tensor (batch,) with one class per example, None for the largest
            logit, a `Contrast`, `Token`, `Probability` or `Similarity`, or any function of the outputs that returns
            (batch,). A list of them gives a list of attributions.
        method: a name in `fxgrad.methods.METHODS`, or a function of your own from a `fxgrad.methods.Problem` to a
            `fxgrad.methods.Map`. The decorator `fxgrad.methods.method` says that it counts constants, or takes a layer.
        layer: module path of the layer for gradcam, gradcam_plus, xgradcam_plus and hirescam, which use its output; by
            default they use the input of the last block that the target's gradient reaches.
        class_names: for targets by name: one per logit, a mapping such as config.id2label or tokenizer.get_vocab(), or
            the tokenizer.
        input: name of the attributed input, if there are several: `.map` and methods that look at blocks are of this
            one, by default the first. An embedding of token ids has the name of its module.
        channels: for methods of the inputs, the axis of the input that its map sums over: a number, None to map every
            element, or a dict of these by the input's name. By default it is the axis that the model's own layers read
            as channels (or as features, where an input has other axes besides).
        blocks, grid, prefix, class_token: override what is read from the graph; see `fxgrad.methods.Anatomy`.
        **options: options of the method, such as n_steps of integrated_gradients.

    Returns:
        The attribution: .tokens (batch, tokens), .patches (batch, rows, columns), .pixels (batch, height, width), and
        .maps, name of an input -> (batch, *the input's own axes without its channels).

    Warns:
        IncompleteWarning: shares do not add up to the target's value, beyond the dtype's tolerance, for no reason that
            the call gives; the message names the cause. Other reasons are in the result's `.note` only.

    Raises:
        InputError: no such method, option, layer or target; the model lacks what the method needs; or your own method
            returned no map of the model's input.

    Example:
        >>> import fxgrad, timm
        >>> vit = timm.create_model("test_vit").eval()
        >>> x = torch.randn(2, 3, 160, 160)
        >>> libra = fxgrad.convert(vit, (x,))
        >>> found = attribute(libra, (x,), target=torch.tensor([7, 3]), method="fullgrad")
        >>> found.patches.shape, found.completeness_error < 1e-4
        (torch.Size([2, 10, 10]), True)
        >>> from fxgrad.methods import Map, Problem
        >>> def squared(problem: Problem, power: int = 2) -> Map:
        ...     gradient = problem.run().gradients[problem.main[0]]
        ...     return Map(pixels=(gradient.abs() ** power).sum(1))
        >>> attribute(libra, (x,), target=7, method=squared, power=3).pixels.shape
        torch.Size([2, 160, 160])

    Source: docs/methods.md has every method's formula and paper.
    """
    chosen = _chosen(method, layer, channels, options)
    anatomical = {"input": input, "blocks": blocks, "grid": grid, "prefix": prefix, "class_token": class_token}
    refuse_wrong({"layer": layer, **anatomical})
    with torch.no_grad():
        entries = converted.entries(args, kwargs)
    search = Search(converted.classified, input, entries)
    parts = search.anatomy(blocks, grid, prefix, class_token, channels)
    with torch.no_grad():
        outputs = converted.run(entries)
    leaves, spec = pytree.tree_flatten(outputs)
    batch = size_of_batch(converted.classified, entries, parts, leaves)
    if not batch:
        raise InputError(f"input {parts.input!r} has no examples: its first axis has size 0.")
    where = outputs_of(converted.classified, parts)

    def one(target: Target) -> Attribution:
        count = batch if parts.inputs else _count(target, outputs, batch)
        fitted = scored(target, outputs, class_names, batch=count, axis=axis_of(leaves, where, count))
        problem = Problem(converted, entries, aimed(fitted, leaves, spec, where, count), parts, layer).on_layer()
        if not chosen.of_inputs:
            problem.refuse_several(chosen.name)
        each = (chosen.shares and problem.mixed) or (chosen.takes_gradient and problem.shared)
        if count > 1 and each:
            # Only contributions of constants need examples that run alone; other methods may move the inputs.
            alone = problem.only if chosen.shares else partial(problem.only, whole=True)
            found = joined([_solved(chosen, alone(i), options) for i in range(count)])
        else:
            found = _solved(chosen, problem, options)
        return replace(found, note=explained(found, chosen, problem))

    return [one(t) for t in target] if isinstance(target, list) else one(target)


def known(method: str | Callable[..., Map]) -> Method:
    """A method by its name, or a function with the facts that its decorator states.

    Raises:
        InputError: there is no such method.

    Example:
        >>> known("hirescam").layered
        True
    """
    if isinstance(method, str) and method not in METHODS:
        raise InputError(f"there is no method {method!r}. There are {', '.join(METHODS)}.")
    return method_of(METHODS[method] if isinstance(method, str) else method)


def _chosen(
    method: str | Callable[..., Map], layer: str | None, channels: object, options: Mapping[str, Any]
) -> Method:
    """The requested method, checked to take the layer, the channels and the options."""
    chosen = known(method)
    for option in options:
        if refused := chosen.refused(option):
            raise InputError(f"{refused}.")
    if layer is not None and not chosen.layered:
        others = ", ".join(name for name, function in METHODS.items() if method_of(function).layered)
        raise InputError(f"{chosen.name} does not look at one layer. Leave out layer={layer!r}; {others} do.")
    if channels != GRAPH and method in METHODS and not chosen.of_inputs:
        others = ", ".join(name for name, function in METHODS.items() if method_of(function).of_inputs)
        raise InputError(f"{chosen.name} maps tokens, not elements. Leave out channels={channels!r}; {others} take it.")
    return chosen


def _count(target: Target, outputs: Any, rows: int) -> int:
    """How many values a target has where the inputs have no examples: one for each row, unless it is a function."""
    if isinstance(target, Contrast):
        return _count(target.a, outputs, rows)
    if not callable(target) or isinstance(target, Tensor):
        return rows
    with torch.no_grad():
        value = called(target, outputs)
    return (len(value) if value.dim() else 1) if isinstance(value, Tensor) else rows


def _solved(method: Method, problem: Problem, options: Mapping[str, Any]) -> Attribution:
    found = method.function(problem, **options)
    map = _checked(method, problem, found)
    maps = found.maps if problem.anatomy.input in found.maps else {problem.anatomy.input: map, **found.maps}
    return Attribution(
        method.name,
        problem.converted.classified.table.name,
        problem.aim.target.label,
        problem.row(problem.aim.values, always=True),
        problem.row(map.detach()),
        {name: problem.row(values.detach()) for name, values in maps.items()},
        None if found.apart is None else problem.row(found.apart.detach()),
        found.copies,
        problem.anatomy,
        problem.anatomy.size is not None and found.tokens is None,
        problem.aim.target.note,
    )


def _checked(method: Method, problem: Problem, found: Map) -> Tensor:
    """The pixels or the tokens of a method's map, checked to have the problem's shape."""
    returns = f"{method.name} must return Map(pixels=(batch, height, width)) or Map(tokens=(batch, tokens))"
    if not isinstance(found, Map):
        raise InputError(f"{returns}, of fxgrad.methods; it returned {type(found).__name__}.")
    map = found.tokens if found.pixels is None else found.pixels
    if map is None and problem.anatomy.input in found.maps:
        return problem.joint(found.maps)
    if map is None or (found.pixels is not None and found.tokens is not None):
        raise InputError(f"{returns}; its Map has {'neither' if map is None else 'both'}. Give one of them.")
    anatomy, batch = problem.anatomy, problem.batch
    if found.pixels is not None:
        size = anatomy.size or ("no", "picture")
        if tuple(map.shape) != (batch, *size):
            raise InputError(f"{returns}; its pixels are {tuple(map.shape)}, the input's {(batch, *size)}.")
    elif map.dim() != 2 or len(map) != batch or (anatomy.grid and map.shape[1] != anatomy.prefix + anatomy.count):
        tokens = anatomy.prefix + anatomy.count if anatomy.grid else "tokens"
        ahead = f", of which {anatomy.prefix} lie ahead of the patches" if anatomy.prefix else ""
        raise InputError(f"{returns}; its tokens are {tuple(map.shape)}, the model's ({batch}, {tokens}){ahead}.")
    if found.apart is not None and tuple(found.apart.shape) != (batch,):
        given = tuple(found.apart.shape)
        raise InputError(f"apart holds one number per example, ({batch},); {method.name} returned {given}. Sum it.")
    return map
