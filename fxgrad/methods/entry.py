"""`fxgrad.attribute`: any method, of any target, under any policy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Union, overload

from torch import Tensor

from fxgrad.errors import FxgradError, InputError
from fxgrad.methods import attention_runs, attentions, blackbox, cams, fullgrad, inputs, shifts
from fxgrad.methods.attribution import Attribution
from fxgrad.methods.completeness import explained
from fxgrad.methods.definition import Map, Method, method_of
from fxgrad.methods.maps import Channels
from fxgrad.methods.names import Names
from fxgrad.methods.parts import Grid
from fxgrad.methods.search import GRAPH
from fxgrad.methods.targets import Target
from fxgrad.methods.together import Asked, Together, alike
from fxgrad.module.converted import ConvertedModule

METHODS: dict[str, Callable[..., Map]] = {
    f.__name__: f
    for f in (
        *(inputs.gradient, inputs.saliency, inputs.input_x_gradient, inputs.integrated_gradients, inputs.smoothgrad),
        shifts.shift_averaged,
        *(cams.gradcam, cams.gradcam_plus, cams.xgradcam_plus, cams.gradcam_plusplus, cams.layercam, cams.hirescam),
        *(fullgrad.fullgrad, fullgrad.fullgrad_plus),
        *(attentions.attcat, attentions.genatt, attentions.gradsam, attentions.tokentm),
        *(attention_runs.transatt, attention_runs.biattn, attention_runs.legrad),
        *(attentions.raw_attention, attentions.rollout),
        *(blackbox.occlusion, blackbox.rise, blackbox.kernel_shap, inputs.random),
    )
}
"""Every method by its name; the docstrings have the formulas, the decorators further facts."""
BLACK_BOX = tuple(name for name, function in METHODS.items() if method_of(function).passes == "hundreds")
"""Methods that take hundreds of forward passes, and no gradient."""
SHARING = tuple(name for name, function in METHODS.items() if method_of(function).passes == "shared")
"""Methods that one forward and one backward pass serve together."""


OneMethod = Union[str, Callable[..., Map]]
"""A method by its name, or a function of your own."""
Methods = list[Union[OneMethod, tuple[OneMethod, Mapping[str, Any]]]]
"""Several, each alone or with options of its own."""


@overload
def attribute(
    converted: ConvertedModule,
    args: tuple[Any, ...] | Tensor = ...,
    kwargs: Mapping[str, Any] | None = ...,
    *,
    target: list[Target],
    method: Methods,
    layer: str | None = ...,
    channels: int | str | Channels | None = ...,
    **options: Any,
) -> list[list[Attribution]]: ...
@overload
def attribute(
    converted: ConvertedModule,
    args: tuple[Any, ...] | Tensor = ...,
    kwargs: Mapping[str, Any] | None = ...,
    *,
    target: Target,
    method: Methods,
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
    target: list[Target],
    method: OneMethod = ...,
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
    method: OneMethod = ...,
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
    method: OneMethod | Methods = "input_x_gradient",
    layer: str | None = None,
    class_names: Names | None = None,
    input: str | None = None,
    blocks: Sequence[str] | None = None,
    grid: Grid | None = None,
    prefix: int | None = None,
    class_token: int | None = None,
    channels: int | str | Channels | None = GRAPH,
    **options: Any,
) -> Attribution | list[Attribution] | list[list[Attribution]]:
    """Attribute a target to the input: which parts speak for it, and which against it.

    Args:
        converted: what `fxgrad.convert` returned, under any policy; `converted.under("gradient")` is the plain one.
        args, kwargs: inputs, as for calling the module; all examples of the batch are attributed.
        target: a class's number or name, an int64 tensor (batch,) with one class per example, None for the largest
            logit, a `Contrast`, `Token`, `Probability`, `Finer` or `Similarity`, or any function of the outputs that
            returns (batch,). A list of them gives a list of attributions, from backward passes that are batched as
            memory allows: equal to those of single calls but for rounding.
        method: a name in `fxgrad.methods.METHODS`, or a function of your own from a `fxgrad.methods.Problem` to a
            `fxgrad.methods.Map`. The decorator `fxgrad.methods.method` says that it counts constants, or takes a layer.
            A list of them gives a list of attributions, for each target if these are a list, too; all are made from one
            recorded run. In it, (method, {"n_steps": 20}) has options of its own, of those below, too; those given
            beside the list are for every method.
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
        >>> import fxgrad, timm, torch
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
        >>> several = attribute(libra, (x,), target=7, method=["genatt", ("gradcam", {"layer": "blocks.3"}), squared])
        >>> [one.method for one in several]
        ['genatt', 'gradcam', 'squared']

    Source: docs/methods.md has every method's formula and paper.
    """
    several = isinstance(method, list)
    general: dict[str, Any] = {"layer": layer, "input": input, "blocks": blocks, "grid": grid, "prefix": prefix}
    general |= {"class_token": class_token, "channels": channels}
    asked = [_asked(one, general, options, several) for one in (method if isinstance(method, list) else [method])]
    targets = target if isinstance(target, list) else [target]
    found = attributed(converted, args, kwargs, targets=targets, asked=asked, class_names=class_names)
    rows = [list(row) if several else row[0] for row in found]
    return rows if isinstance(target, list) else rows[0]


def attributed(
    converted: ConvertedModule,
    args: tuple[Any, ...] | Tensor,
    kwargs: Mapping[str, Any] | None,
    *,
    targets: Sequence[Target],
    asked: Sequence[Asked],
    class_names: Names | None = None,
    caught: tuple[type[FxgradError], ...] = (),
) -> list[list[Any]]:
    """Every method of every target; methods that have the same anatomy share their runs.

    Args:
        converted, args, kwargs, targets, class_names: as for `attribute`.
        asked: the methods.
        caught: errors that are returned in place of a method's attributions; others are raised.

    Returns:
        For each target, the attribution by each method.

    Raises:
        InputError, and warnings: as for `attribute`.

    Example:
        >>> import fxgrad, torch
        >>> libra = fxgrad.convert(torch.nn.Linear(3, 2).eval(), (torch.ones(1, 3),))
        >>> asked = [Asked(known(name)) for name in ("saliency", "genatt")]
        >>> found = attributed(libra, torch.ones(1, 3), None, targets=[1], asked=asked, caught=(InputError,))
        >>> [type(one).__name__ for one in found[0]]
        ['Attribution', 'InputError']
    """
    found: list[list[Any]] = [[None] * len(asked) for _ in targets]
    for places in alike(asked):
        some = [asked[i] for i in places]
        try:
            together = Together(converted, args, kwargs, some, len(targets), caught)
            problems = [together.problem(target, class_names) for target in targets]
            solved = together.solve(problems)
        except caught as error:  # of the model, the target or the anatomy
            problems, solved = [], []
            for row in found:
                row[:] = [error if i in places else one for i, one in enumerate(row)]
        for row, problem, own in zip(found, problems, solved):
            for i, one in enumerate(some):
                result = row[places[i]] = own[i]
                if isinstance(result, Attribution):
                    note = explained(result, one.method, replace(problem, layer=one.layer))
                    row[places[i]] = replace(result, note=note)
    return found


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


def _asked(method: Any, general: Mapping[str, Any], options: Mapping[str, Any], several: bool) -> Asked:
    """A requested method, checked to take the layer, the channels and the options."""
    own: Any = {}
    if several and isinstance(method, tuple):
        name, own = method if len(method) == 2 else (method, None)
        if not isinstance(own, Mapping):
            raise InputError(f'a method with options of its own is (method, {{"n_steps": 20}}), not {method!r}.')
        method = name
    chosen, given = known(method), {**general, **options, **own}
    for option in given.keys() - general.keys():
        if refused := chosen.refused(option):
            alone = f". Give it to one method of the list: (method, {{{option!r}: ...}})"
            raise InputError(f"{refused}{alone if several and option not in own else ''}.")
    layer = given["layer"]
    if layer is not None and not chosen.layered:
        others = ", ".join(name for name, function in METHODS.items() if method_of(function).layered)
        alone = f'; in a list, (method, {{"layer": {layer!r}}})' if several else ""
        raise InputError(f"{chosen.name} does not look at one layer. Leave out layer={layer!r}; {others} do{alone}.")
    if given["channels"] != GRAPH and method in METHODS and not chosen.of_inputs:
        others = ", ".join(name for name, function in METHODS.items() if method_of(function).of_inputs)
        raise InputError(
            f"{chosen.name} maps tokens, not elements. Leave out channels={given['channels']!r}; {others} take it."
        )
    return Asked.of(chosen, given)
